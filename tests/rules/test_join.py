"""Operators that put axes end to end or take parts of them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from oracle import groups, model, places, prunable, prune, prune_and_compare, reasons, stored


def test_a_dense_block_grows_by_concatenation() -> None:
    """DenseNet: every layer reads all before it, every normalisation spans several groups."""
    m = model("""(float[N,3,H,W] x) => (float[N,5,H,W] y)
        <float[8,3,1,1] a, float[6,8,3,3] b, float[6] bb, float[4,14,1,1] c,
        float[18] scale, float[18] shift, float[18] mean, float[18] var, float[5,18,1,1] v> {
        h = Conv(x, a)
        k = Conv<pads=[1,1,1,1]>(h, b, bb)
        hk = Concat<axis=1>(h, k)
        l = Conv(hk, c)
        hkl = Concat<axis=1>(hk, l)
        n = BatchNormalization(hkl, scale, shift, mean, var)
        y = Conv(n, v)
    }""")
    assert prunable(m) == {"a:0": 8, "b:0": 6, "c:0": 4}
    assert places(groups(m)["b:0"]) == {
        ("b", 0): "produced",
        ("bb", 0): "carried",
        ("c", 1): "contracted",
        **{(name, 0): "carried" for name in ("scale", "shift", "mean", "var")},
        ("v", 1): "contracted",
    }
    assert prune_and_compare(m).weights["v"] == (5, 9, 1, 1)


def test_concat_of_an_input_keeps_the_input_part() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[12,3] v> {
        h = MatMul(x, w)
        c = Concat<axis=-1>(x, h)
        y = MatMul(c, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    result = prune_and_compare(m)
    assert result.weights["v"] == (8, 3)
    original = numpy_helper.to_array(stored(m)["v"])
    np.testing.assert_array_equal(numpy_helper.to_array(stored(result.pruned)["v"])[:4], original[:4])


def test_concat_along_another_axis_couples_the_channels() -> None:
    m = model("""(float[N,T,4] x) => (float[N,U,3] y) <float[4,8] a, float[4,8] b, float[8,3] v> {
        p = MatMul(x, a)
        q = MatMul(x, b)
        c = Concat<axis=1>(p, q)
        y = MatMul(c, v)
    }""")
    assert prunable(m) == {"a:1": 8}
    assert places(groups(m)["a:1"])["b", 1] == "produced"
    prune_and_compare(m)


@pytest.mark.parametrize(("opset", "split"), [(11, "Split<axis=1, split=[2,6]>(h)"), (13, "Split<axis=1>(h, sizes)")])
def test_split_cuts_a_dimension_in_parts_of_their_own(opset: int, split: str) -> None:
    sizes = "int64[2] sizes = {2, 6}," if opset == 13 else ""
    m = model(
        f"""(float[N,4] x) => (float[N,3] y) <float[4,8] w, {sizes} float[2,3] u, float[6,3] v> {{
        h = MatMul(x, w)
        a, b = {split}
        p = MatMul(a, u)
        q = MatMul(b, v)
        y = Add(p, q)
    }}""",
        opset=opset,
    )
    assert prunable(m) == {"w:1": 2, "w:1#2": 6}
    assert places(groups(m)["w:1#2"]) == {("w", 1): "produced", ("v", 0): "contracted"}
    result = prune_and_compare(m)
    assert result.weights == {**result.weights, "w": (4, 4), "u": (1, 3), "v": (3, 3)}


@pytest.mark.parametrize(("opset", "attributes"), [(11, "axis=1"), (17, "axis=1"), (18, "axis=1, num_outputs=2")])
def test_split_into_equal_parts_that_become_unequal(opset: int, attributes: str) -> None:
    """The second half meets the input and stays, so the parts must be written out."""
    m = model(
        f"""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[4,3] u, float[4,3] v> {{
        h = MatMul(x, w)
        a, b = Split<{attributes}>(h)
        s = Add(b, x)
        p = MatMul(a, u)
        q = MatMul(s, v)
        y = Add(p, q)
    }}""",
        opset=opset,
    )
    assert list(prunable(m).values()) == [4]
    prune_and_compare(m)


def test_split_into_equal_parts_that_stay_equal() -> None:
    """A gated linear unit: both halves are one dimension, so the cut falls in both."""
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,16] w, float[8,3] v> {
        h = MatMul(x, w)
        a, b = Split<axis=1>(h)
        g = Sigmoid(b)
        s = Mul(a, g)
        y = MatMul(s, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    result = prune_and_compare(m)
    assert result.weights["w"] == (4, 8)
    assert len(result.node("Split").input) == 1


def test_split_into_uneven_parts_by_their_number() -> None:
    m = model(
        """(float[N,4] x) => (float[N,3] y) <float[4,7] w, float[4,3] u, float[3,3] v> {
        h = MatMul(x, w)
        a, b = Split<axis=1, num_outputs=2>(h)
        p = MatMul(a, u)
        q = MatMul(b, v)
        y = Add(p, q)
    }""",
        opset=18,
    )
    assert prunable(m) == {"w:1": 4, "w:1#2": 3}
    prune_and_compare(m)


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [("0|5", 5), ("3|8", 5), ("2|6", 4), ("-3|100", 3), ("0|-2", 6), ("1|-1", 6), ("0|9223372036854775807", 8)],
)
def test_slice_takes_a_run_of_channels(bounds: str, kept: int) -> None:
    start, end = bounds.split("|")
    m = model(f"""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] u, float[{kept},3] v,
        int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, int64[1] a = {{-1}}> {{
        h = MatMul(x, w)
        p = MatMul(h, u)
        t = Slice(h, s, e, a)
        q = MatMul(t, v)
        y = Add(p, q)
    }}""")
    assert sum(prunable(m).values()) == 8 - _single_indices(bounds)
    prune_and_compare(m)
    prune_and_compare(m, ratio=0.3, seed=1)


def _single_indices(bounds: str) -> int:
    """Parts of one index, which never go."""
    return {"1|-1": 2}.get(bounds, 0)


def test_slice_by_attributes_before_opset_10() -> None:
    m = model(
        """(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[5,3] v> {
        h = MatMul(x, w)
        t = Slice<axes=[1], starts=[2], ends=[7]>(h)
        y = MatMul(t, v)
    }""",
        opset=9,
    )
    assert prunable(m)["w:1#2"] == 5
    result = prune_and_compare(m)
    assert result.weights["v"][0] == result.attribute("Slice", "ends")[0] - result.attribute("Slice", "starts")[0]


def test_slice_of_two_axes_at_once() -> None:
    m = model("""(float[N,6,4] x) => (float[N,2,3] y) <float[4,8] w, float[5,3] v,
        int64[2] s = {1, 3}, int64[2] e = {3, 8}, int64[2] a = {1, 2}> {
        h = MatMul(x, w)
        t = Slice(h, s, e, a)
        y = MatMul(t, v)
    }""")
    assert prunable(m)["w:1#2"] == 5
    prune_and_compare(m)


@pytest.mark.parametrize("start", [0, 1])
def test_slice_with_a_stride_that_divides_takes_the_outer_factor(start: int) -> None:
    """Interleaved pairs, as rotary embeddings take them."""
    m = model(f"""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] u, float[4,3] v,
        int64[1] s = {{{start}}}, int64[1] e = {{8}}, int64[1] a = {{1}}, int64[1] two = {{2}}> {{
        h = MatMul(x, w)
        p = MatMul(h, u)
        t = Slice(h, s, e, a, two)
        q = MatMul(t, v)
        y = Add(p, q)
    }}""")
    assert prunable(m) == {"w:1": 4}
    assert prune_and_compare(m).weights["w"] == (4, 4)


@pytest.mark.parametrize(("bounds", "step", "kept"), [("0|8", "3", 3), ("7|-9", "-1", 8), ("0|5", "2", 3)])
def test_slice_with_any_other_stride_freezes_the_axis(bounds: str, step: str, kept: int) -> None:
    start, end = bounds.split("|")
    m = model(f"""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[{kept},3] v,
        int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, int64[1] a = {{1}}, int64[1] k = {{{step}}}> {{
        h = MatMul(x, w)
        t = Slice(h, s, e, a, k)
        y = MatMul(t, v)
    }}""")
    assert reasons(m)["w:1"] == "Slice: Slice with a stride that does not divide the axis"


@pytest.mark.parametrize(("start", "wide"), [("c", 12), ("nil", 12)])
def test_slice_up_to_an_end_that_another_width_tells(start: str, wide: int) -> None:
    """Packed projections cut at once and twice the width of what they are made from."""
    left = 12 if start == "nil" else 6
    m = model(f"""(float[2,4] x) => (float[2,3] y) <float[4,6] u, float[6,3] p, float[4,{wide}] w, float[{left},3] v,
        int64[1] nil = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}> {{
        h = MatMul(x, u)
        s = Shape(h)
        c = Slice(s, one, two)
        end = Add(c, c)
        k = MatMul(x, w)
        a = Slice(k, {start}, end, one)
        e = MatMul(a, v)
        f = MatMul(h, p)
        y = Add(e, f)
    }}""")
    assert prunable(m)["u:1"] == 6
    assert max(prune(m, {"u:1": np.arange(0, 6, 2)}).differences.values()) < 1e-6
    prune_and_compare(m)


def test_slice_with_computed_bounds_freezes_the_axis_and_no_other() -> None:
    m = model(
        """(float[N,6,4] x, int64[1] e) => (float[N,T,3] y) <float[4,8] w, float[8,3] v,
        int64[1] s = {0}, int64[1] a = {A}> {
        h = MatMul(x, w)
        t = Slice(h, s, e, a)
        y = MatMul(t, v)
    }""".replace("{A}", "{1}")
    )
    assert prunable(m) in ({"w:1": 8}, {})
    if not prunable(m):
        assert reasons(m)["w:1"].startswith("Slice: ")


@pytest.mark.parametrize(
    "taken",
    ["p = Slice(f, from, to, one)", "i = Constant<value_ints=[3,4,5,6]>()\np = Gather<axis=1>(f, i)"],
)
def test_a_part_of_an_axis_that_follows_the_input_freezes_it(taken: str) -> None:
    """(channels, length): the first 4 are of one channel where the length is 24, of two where it is 2."""
    m = model(f"""(float[N,3,L] x) => (float[N,5] y) <float[8,3,1] w, float[4,5] v, int64[2] flat = {{0,-1}},
        int64[1] from = {{3}}, int64[1] to = {{7}}, int64[1] one = {{1}}> {{
        h = Conv(x, w)
        f = Reshape(h, flat)
        {taken}
        y = MatMul(p, v)
    }}""")
    assert reasons(m)["w:0"].endswith("an axis that follows the input is cut")


def test_gather_of_rows_of_a_weight_produces_the_other_axes() -> None:
    """A token embedding."""
    m = model("""(int64[N,T] ids) => (float[N,T,3] y) <float[9,8] table, float[8,3] v> {
        h = Gather(table, ids)
        y = MatMul(h, v)
    }""")
    assert prunable(m) == {"table:1": 8}
    assert places(groups(m)["table:1"]) == {("table", 1): "produced", ("v", 0): "contracted"}
    result = prune_and_compare(m, high=9)
    assert result.weights["table"] == (9, 4)


def test_embeddings_of_tokens_and_positions_are_coupled_by_their_sum() -> None:
    m = model("""(int64[N,6] ids) => (float[N,6,3] y) <float[9,8] tokens, float[6,8] positions, float[8,3] v> {
        h = Gather(tokens, ids)
        s = Add(h, positions)
        y = MatMul(s, v)
    }""")
    assert places(groups(m)["tokens:1"]) == {
        ("tokens", 1): "produced",
        ("positions", 1): "carried",
        ("v", 0): "contracted",
    }
    prune_and_compare(m)


def test_gather_freezes_the_axis_it_picks_from() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[3,3] v, int64[3] i = {5, 0, 2}> {
        h = MatMul(x, w)
        t = Gather<axis=1>(h, i)
        y = MatMul(t, v)
    }""")
    assert reasons(m)["w:1"] == "Gather: Gather picks from this axis"


def test_gather_of_one_token_passes_the_width() -> None:
    m = model("""(float[N,6,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] v, int64 first = {0}> {
        h = MatMul(x, w)
        t = Gather<axis=1>(h, first)
        y = MatMul(t, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


_STRIDED = """(float[N,4,2,2] x) => (float[N,3] y)
    <float[8,4,1,1] w, int64[1] flat = {{-1}}, float[8,3] v, int64[1] width = {{8}}, int64[1] zero = {{0}},
    int64[1,8,1,1] channels, int64 first = {{0}}, int64 one = {{1}}, int64[3] after = {{1,2,3}}> {{
    h = Conv(x, w)
    m = GlobalAveragePool(h)
    f = Reshape(m, flat)
    s = Shape(x)
    n = Gather(s, first)
    images = Range(first, n, one)
    starts = Mul(images, {stride})
    there = Unsqueeze(starts, after)
    places = Add(there, channels)
    g = Gather(f, places)
    t = Flatten(g)
    y = MatMul(t, v)
}}"""


def test_a_flat_tensor_read_from_first_to_last_is_reshaped() -> None:
    """How exporters write a view with strides (as_strided)."""
    m = model(_STRIDED.format(stride="width"), channels=np.arange(8).reshape(1, 8, 1, 1))
    assert prunable(m) == {"w:0": 8}
    result = prune_and_compare(m)
    assert [n.op_type for n in result.pruned.graph.node if n.output[0] == "g"] == ["Reshape"]


@pytest.mark.parametrize(
    ("stride", "channels"), [("zero", np.arange(8)), ("width", np.arange(8)[::-1])], ids=["overlapping", "reversed"]
)
def test_a_flat_tensor_read_in_another_order_stays(stride: str, channels: np.ndarray) -> None:
    m = model(_STRIDED.format(stride=stride), channels=channels.reshape(1, 8, 1, 1))
    assert reasons(m)["w:0"].startswith("Gather: ")


def test_gather_of_a_whole_axis_in_order() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,4] w, float[4,3] v, int64[4] i = {0, 1, 2, -1}> {
        h = MatMul(x, w)
        t = Gather<axis=1>(h, i)
        y = MatMul(t, v)
    }""")
    if prunable(m):
        prune_and_compare(m)
    else:
        assert reasons(m)["w:1"] == "Gather: Gather picks from this axis"


@pytest.mark.parametrize("form", ["operand", "attribute", "axes"])
def test_pad_of_the_channel_axis_adds_fixed_parts(form: str) -> None:
    opset, pad, weights = {
        "operand": (13, "Pad(h, p)", "int64[8] p = {0,2,0,0,0,1,0,0},"),
        "attribute": (10, "Pad<pads=[0,2,0,0,0,1,0,0]>(h)", ""),
        "axes": (18, "Pad(h, p, zero, a)", "int64[2] p = {2,1}, float zero = {0.5}, int64[1] a = {1},"),
    }[form]
    m = model(
        f"""(float[N,3,H,W] x) => (float[N,5,H,W] y) <float[8,3,1,1] w, {weights} float[5,11,1,1] v> {{
        h = Conv(x, w)
        t = {pad}
        y = Conv(t, v)
    }}""",
        opset=opset,
    )
    assert prunable(m) == {"w:0": 8}
    assert prune_and_compare(m).weights["v"] == (5, 7, 1, 1)


@pytest.mark.parametrize(
    ("mode", "amounts"), [("reflect", "0,2,0,0,0,1,0,0"), ("edge", "0,0,0,0,0,3,0,0"), ("constant", "0,-2,0,0,0,0,0,0")]
)
def test_pad_that_copies_or_cuts_channels_freezes_them(mode: str, amounts: str) -> None:
    width = 8 + sum(map(int, amounts.split(",")))
    m = model(f"""(float[N,3,H,W] x) => (float[N,5,H,W] y)
        <float[8,3,1,1] w, int64[8] p = {{{amounts}}}, float[5,{width},1,1] v> {{
        h = Conv(x, w)
        t = Pad<mode="{mode}">(h, p)
        y = Conv(t, v)
    }}""")
    assert reasons(m)["w:0"] == "Pad: Pad copies or cuts along this axis"


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad_of_space_passes_channels_in_every_mode(mode: str) -> None:
    m = model(f"""(float[N,3,H,W] x) => (float[N,5,P,Q] y)
        <float[8,3,1,1] w, int64[8] p = {{0,0,1,2,0,0,3,1}}, float[5,8,1,1] v> {{
        h = Conv(x, w)
        t = Pad<mode="{mode}">(h, p)
        y = Conv(t, v)
    }}""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


def test_pad_by_amounts_computed_from_the_input_size() -> None:
    """Padding to a multiple of 4, as detectors do."""
    m = model("""(float[N,3,H,W] x) => (float[N,5,P,Q] y) <float[8,3,1,1] w, float[5,8,1,1] v,
        int64 two = {2}, int64[1] four = {4}, int64[6] head = {0,0,0,0,0,0}, int64[1] tail = {0}> {
        h = Conv(x, w)
        s = Shape(h)
        a = Gather(s, two)
        z = Constant<value_ints=[0]>()
        u = Unsqueeze(a, z)
        m = Mod(u, four)
        p = Concat<axis=0>(head, m, tail)
        t = Pad(h, p)
        y = Conv(t, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


@pytest.mark.parametrize(
    ("indices", "groups"),
    [
        ("0,1,2,3,4,5,6,7", {"w:1": 8}),
        ("2,3,4,5", {"w:1": 2, "w:1#2": 4, "w:1#3": 2}),
        ("0,2,4,6", {"w:1": 4}),
        ("0,4,1,5,2,6,3,7", {"w:1": 2, "w:1#2": 4}),
        ("3,1,2", {}),
    ],
    ids=["all", "run", "stride", "shuffle", "any"],
)
def test_gather_by_constant_indices(indices: str, groups: dict[str, int]) -> None:
    count = len(indices.split(","))
    m = model(f"""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[{count},3] v, float[8,3] u> {{
        h = MatMul(x, w)
        i = Constant<value_ints=[{indices}]>()
        g = Gather<axis=1>(h, i)
        a = MatMul(g, v)
        b = MatMul(h, u)
        y = Add(a, b)
    }}""")
    assert prunable(m) == groups
    if groups:
        prune_and_compare(m, ratio=0.5)
