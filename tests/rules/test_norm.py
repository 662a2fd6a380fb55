"""Normalisation."""

from __future__ import annotations

import pytest
from oracle import groups, model, places, prunable, prune_and_compare, reasons

_CONVOLUTIONS = """(float[N,3,6,6] x) => (float[N,5,6,6] y) <float[8,3,1,1] w, {weights} float[5,8,1,1] v> {{
    h = Conv(x, w)
    n = {norm}
    y = Conv(n, v)
}}"""
_FROM = "float[8] scale, float[8] shift,"


def test_batch_normalization_carries_four_vectors() -> None:
    weights = f"{_FROM} float[8] mean, float[8] var,"
    m = model(_CONVOLUTIONS.format(weights=weights, norm="BatchNormalization(h, scale, shift, mean, var)"))
    assert prunable(m) == {"w:0": 8}
    assert places(groups(m)["w:0"]) == {
        ("w", 0): "produced",
        **{(name, 0): "carried" for name in ("scale", "shift", "mean", "var")},
        ("v", 1): "contracted",
    }
    assert not groups(m)["w:0"].renormalised
    assert set(prune_and_compare(m).differences) == {"masked", "zeroed"}


def test_batch_normalization_of_a_matrix() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y)
        <float[4,8] w, float[8] scale, float[8] shift, float[8] mean, float[8] var, float[8,3] v> {
        h = MatMul(x, w)
        n = BatchNormalization(h, scale, shift, mean, var)
        y = MatMul(n, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_batch_normalization_in_training_mode_averages_over_batch_and_space() -> None:
    m = model("""(float[N,3,4,4] x) => (float[N,5,4,4] y)
        <float[8,3,1,1] w, float[8] scale, float[8] shift, float[8] mean, float[8] var, float[5,8,1,1] v> {
        h = Conv(x, w)
        n, a, b = BatchNormalization<training_mode=1>(h, scale, shift, mean, var)
        y = Conv(n, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    assert not groups(m)["w:0"].renormalised
    assert set(prune_and_compare(m).differences) == {"masked", "zeroed"}


_STANDARDISED = """(float[N,3,4,4] x) => (float[N,5,4,4] y)
    <float[8,3,1,1] w, float[1,8,72] k, float[8] scale, float[8] shift, float[8] mean, float[8] var,
    float[5,8,1,1] v> {{
    h = Conv(x, w)
    s, a, b = BatchNormalization<training_mode=1>(k, scale, shift, mean, var)
    {shape}
    filters = Reshape(s, shape)
    f = Conv<pads=[1,1,1,1]>(h, filters)
    y = Conv(f, v)
}}"""


@pytest.mark.parametrize(
    "shape",
    [
        "shape = Constant<value_ints=[8,8,3,3]>()",
        "stored = Constant<value_ints=[8,8,3,3]>() shape = Identity(stored)",
    ],
    ids=["stored", "moved"],
)
def test_standardised_filters_are_weights_that_average_over_their_inputs(shape: str) -> None:
    m = model(_STANDARDISED.format(shape=shape))
    assert prunable(m) == {"w:0": 8, "k:1": 8}
    assert places(groups(m)["w:0"])[("k", 2)] == "contracted"
    assert groups(m)["w:0"].renormalised
    assert not groups(m)["k:1"].renormalised
    prune_and_compare(m)


@pytest.mark.parametrize(
    ("norm", "opset"),
    [
        ("n, a, b, c, d = BatchNormalization(h, scale, shift, mean, var)", 13),
        ("n = BatchNormalization<spatial=0>(h, scale, shift, mean, var)", 8),
    ],
)
def test_old_forms_of_batch_normalization_are_left_alone(norm: str, opset: int) -> None:
    m = model(
        f"""(float[N,3,4,4] x) => (float[N,5,4,4] y)
        <float[8,3,1,1] w, float[8] scale, float[8] shift, float[8] mean, float[8] var, float[5,8,1,1] v> {{
        h = Conv(x, w)
        {norm}
        y = Conv(n, v)
    }}""",
        opset=opset,
    )
    assert reasons(m)["w:0"].endswith("(by position, or in the training mode of before opset 14)")


def test_instance_normalization_averages_over_space_alone() -> None:
    m = model(_CONVOLUTIONS.format(weights=_FROM, norm="InstanceNormalization(h, scale, shift)"))
    assert prunable(m) == {"w:0": 8}
    assert not groups(m)["w:0"].renormalised
    prune_and_compare(m)


@pytest.mark.parametrize("shift", [", shift", ""])
def test_layer_normalization_renormalises_the_width(shift: str) -> None:
    m = model(f"""(float[N,T,4] x) => (float[N,T,3] y) <float[4,8] w, {_FROM} float[8,3] v> {{
        h = MatMul(x, w)
        n = LayerNormalization(h, scale{shift})
        y = MatMul(n, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    assert groups(m)["w:1"].renormalised
    result = prune_and_compare(m)
    assert result.weights["scale"] == (4,)
    assert set(result.differences) == {"masked"}


def test_layer_normalization_over_several_axes() -> None:
    m = model("""(float[N,3,6,6] x) => (float[N,5,6,6] y)
        <float[8,3,1,1] w, float[8,6,6] scale, float[8,6,6] shift, float[5,8,1,1] v> {
        h = Conv(x, w)
        n = LayerNormalization<axis=1>(h, scale, shift)
        y = Conv(n, v)
    }""")
    assert groups(m)["w:0"].renormalised
    assert prune_and_compare(m).weights["scale"] == (4, 6, 6)


def test_layer_normalization_over_a_pruned_and_a_fixed_axis_within_a_concat() -> None:
    """Half of the normalised axis comes from the input and stays."""
    m = model("""(float[N,6] x) => (float[N,3] y) <float[6,8] w, float[14] scale, float[14,3] v> {
        h = MatMul(x, w)
        c = Concat<axis=1>(h, x)
        n = LayerNormalization(c, scale)
        y = MatMul(n, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    assert groups(m)["w:1"].renormalised
    assert prune_and_compare(m).weights["scale"] == (10,)


@pytest.mark.parametrize(("opset", "scale"), [(18, 2), (21, 8)])
def test_group_normalization_drops_whole_groups_or_channels_of_each(opset: int, scale: int) -> None:
    text = _CONVOLUTIONS.format(
        weights=f"float[{scale}] scale, float[{scale}] shift,", norm="GroupNormalization<num_groups=2>(h, scale, shift)"
    )
    m = model(text, opset=opset, ir=10)
    found = groups(m)
    assert prunable(m) == {"w:0": 2, "w:0#2": 4}
    assert found["w:0#2"].renormalised
    if opset == 21:
        assert prune_and_compare(m).attribute("GroupNormalization", "num_groups") == 1


def test_group_normalization_written_with_instance_normalization() -> None:
    """What exporters emit before opset 18: groups become channels by a Reshape."""
    m = model("""(float[N,3,6,6] x) => (float[N,5,6,6] y) <float[8,3,1,1] w, float[2] one, float[2] zero,
        float[8,1,1] scale, float[8,1,1] shift, float[5,8,1,1] v, int64[3] grouped = {0, 2, -1}> {
        h = Conv(x, w)
        s = Shape(h)
        g = Reshape(h, grouped)
        i = InstanceNormalization(g, one, zero)
        r = Reshape(i, s)
        a = Mul(r, scale)
        n = Add(a, shift)
        y = Conv(n, v)
    }""")
    assert prunable(m) == {"w:0": 2, "w:0#2": 4}
    assert not groups(m)["w:0"].renormalised
    assert groups(m)["w:0#2"].renormalised
    assert prune_and_compare(m).weights["one"] == (1,)
    assert prune_and_compare(m, factors=True).weights["w"] == (2, 3, 1, 1)


def test_mean_variance_normalization_over_space_and_over_channels() -> None:
    space = model(_CONVOLUTIONS.format(weights="", norm="MeanVarianceNormalization(h)"))
    assert prunable(space) == {"w:0": 8}
    assert not groups(space)["w:0"].renormalised
    prune_and_compare(space)
    channels = model(_CONVOLUTIONS.format(weights="", norm="MeanVarianceNormalization<axes=[1,2,3]>(h)"))
    assert groups(channels)["w:0"].renormalised
    prune_and_compare(channels)


@pytest.mark.parametrize(("norm", "opset"), [("SimplifiedLayerNormalization", 17), ("RMSNormalization", 23)])
def test_rms_normalization_renormalises_the_width(norm: str, opset: int) -> None:
    m = model(
        f"""(float[N,T,4] x) => (float[N,T,3] y) <float[4,8] w, float[8] scale, float[8,3] v> {{
        h = MatMul(x, w)
        n = {norm}(h, scale)
        y = MatMul(n, v)
    }}""",
        opset=opset,
        ir=11,
    )
    assert prunable(m) == {"w:1": 8}
    assert groups(m)["w:1"].renormalised


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization_sums_over_its_axis(p: int) -> None:
    m = model(f"""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] v> {{
        h = MatMul(x, w)
        n = LpNormalization<p={p}>(h)
        y = MatMul(n, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    assert not groups(m)["w:1"].renormalised
    prune_and_compare(m)


def test_gated_rms_normalization_by_head() -> None:
    m = model("""(float[N,T,4] x) => (float[N,T,3] y)
        <float[4,12] w, float[4,12] u, float[4] scale, float[12,3] v> {
        h = MatMul(x, w)
        g = MatMul(x, u)
        n = com.microsoft.GatedRMSNorm(h, scale, g)
        y = MatMul(n, v)
    }""")
    assert prunable(m) == {"w:1": 3, "w:1#2": 4}
    prune_and_compare(m)
    assert prune_and_compare(m, factors=True).weights["scale"] == (2,)
