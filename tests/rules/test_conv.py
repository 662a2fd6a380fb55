"""Convolution and pooling."""

from __future__ import annotations

import math

import onnx
import pytest
from oracle import groups, model, places, prunable, prune_and_compare, reasons


def test_conv_couples_filters_bias_and_the_consumers_columns() -> None:
    m = model("""(float[N,3,H,W] x) => (float[N,5,H,W] y)
        <float[8,3,3,3] w, float[8] b, float[5,8,1,1] v> {
        h = Conv<pads=[1,1,1,1]>(x, w, b)
        r = Relu(h)
        y = Conv(r, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    assert places(groups(m)["w:0"]) == {("w", 0): "produced", ("b", 0): "carried", ("v", 1): "contracted"}
    assert reasons(m) == {"v:0": "graph output: the interface keeps its shape"}
    result = prune_and_compare(m)
    assert result.weights == {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4, 1, 1)}
    assert set(result.differences) == {"masked", "zeroed"}


@pytest.mark.parametrize(("space", "kernel"), [("6", "3"), ("6,5", "3,2"), ("4,5,6", "3,2,1")])
def test_conv_of_any_rank(space: str, kernel: str) -> None:
    ones = ",".join("1" for _ in kernel.split(","))
    m = model(f"""(float[N,3,{space}] x) => (float[N,5,{",".join("ABC"[: len(kernel.split(","))])}] y)
        <float[8,3,{kernel}] w, float[5,8,{ones}] v> {{
        h = Conv(x, w)
        y = Conv(h, v)
    }}""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


def test_grouped_conv_has_three_dimensions_groups_inputs_and_outputs() -> None:
    m = model("""(float[N,3,6,6] x) => (float[N,5,6,6] y)
        <float[8,3,1,1] w, float[12,4,3,3] u, float[12] b, float[5,12,1,1] v> {
        h = Conv(x, w)
        k = Conv<group=2, pads=[1,1,1,1]>(h, u, b)
        y = Conv(k, v)
    }""")
    assert prunable(m) == {"w:0": 2, "w:0#2": 4, "u:0": 6}
    assert places(groups(m)["w:0#2"]) == {("w", 0): "produced", ("u", 1): "contracted"}
    result = prune_and_compare(m)
    assert result.attribute("Conv", "group", 1) == 1
    assert result.weights["w"] == (4, 3, 1, 1)
    assert result.weights["u"] == (6, 4, 3, 3)
    every = prune_and_compare(m, factors=True, seed=1)
    assert every.weights["u"] == (3, 2, 3, 3)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_conv_passes_the_channels_on(multiplier: int) -> None:
    c = 8 * multiplier
    m = model(f"""(float[N,3,6,6] x) => (float[N,5,4,4] y)
        <float[8,3,1,1] w, float[{c},1,3,3] u, float[{c}] b, float[5,{c},1,1] v> {{
        h = Conv(x, w)
        k = Conv<group=8>(h, u, b)
        y = Conv(k, v)
    }}""")
    assert prunable(m) == ({"w:0": 8} if multiplier == 1 else {"w:0": 8, "u:0": 2})
    assert places(groups(m)["w:0"])["u", 0] == "produced"
    result = prune_and_compare(m)
    assert result.attribute("Conv", "group", 1) == 4
    assert result.weights["u"] == (c // 2, 1, 3, 3)
    prune_and_compare(m, factors=True, seed=2)


def test_grouped_conv_after_a_shared_residual() -> None:
    """The input channels (g i) and the output channels (g o) of the grouped convolution are one dimension."""
    m = model("""(float[N,3,6,6] x) => (float[N,5,6,6] y)
        <float[8,3,1,1] w, float[8,4,3,3] u, float[5,8,1,1] v> {
        h = Conv(x, w)
        k = Conv<group=2, pads=[1,1,1,1]>(h, u)
        s = Add(h, k)
        y = Conv(s, v)
    }""")
    assert prunable(m) == {"w:0": 2, "w:0#2": 4}
    assert places(groups(m)["w:0#2"])["u", 0] in ("produced", "contracted")
    prune_and_compare(m)
    prune_and_compare(m, factors=True, seed=1)


def test_a_pointwise_conv_over_tokens_leaves_the_token_width_alone() -> None:
    text = """(float[N,4,5] x) => (float[N,6,3] y) <float[5,8] w, float[6,4,K] c, float[6] b, float[8,3] v> {
        h = MatMul(x, w)
        k = Conv<pads=[P,P]>(h, c, b)
        y = MatMul(k, v)
    }"""
    pointwise = model(text.replace("K", "1").replace("P", "0"))
    assert prunable(pointwise) == {"w:1": 8}
    prune_and_compare(pointwise)
    wide = model(text.replace("K", "3").replace("P", "1"))
    assert reasons(wide)["w:1"] == "Conv: Conv works along this axis"


def test_conv_transpose_keeps_its_input_channels_first() -> None:
    m = model("""(float[N,3,H,W] x) => (float[N,5,P,Q] y) <float[8,3,1,1] w, float[8,6,2,2] t, float[6] b,
        float[5,6,1,1] v> {
        h = Conv(x, w)
        k = ConvTranspose<strides=[2,2]>(h, t, b)
        y = Conv(k, v)
    }""")
    assert prunable(m) == {"w:0": 8, "t:1": 6}
    assert places(groups(m)["w:0"]) == {("w", 0): "produced", ("t", 0): "contracted"}
    assert places(groups(m)["t:1"]) == {("t", 1): "produced", ("b", 0): "carried", ("v", 1): "contracted"}
    assert prune_and_compare(m).weights["t"] == (4, 3, 2, 2)


@pytest.mark.parametrize("group", [2, 8])
def test_grouped_conv_transpose(group: int) -> None:
    m = model(f"""(float[N,3,4,4] x) => (float[N,5,8,8] y) <float[8,3,1,1] w, float[8,3,2,2] t, float[{3 * group}] b,
        float[5,{3 * group},1,1] v> {{
        h = Conv(x, w)
        k = ConvTranspose<strides=[2,2], group={group}>(h, t, b)
        y = Conv(k, v)
    }}""")
    inner = {"w:0#2": 4} if group == 2 else {}
    assert prunable(m) == {"w:0": group, **inner, "t:1": 3}
    result = prune_and_compare(m)
    assert result.attribute("ConvTranspose", "group") == group // 2
    prune_and_compare(m, factors=True, seed=1)


def test_fused_conv_adds_and_activates() -> None:
    m = model("""(float[N,3,6,6] x) => (float[N,5,6,6] y) <float[8,3,1,1] w, float[8] b, float[8,3,1,1] u,
        float[5,8,1,1] v> {
        z = Conv(x, u)
        h = com.microsoft.FusedConv<activation="Relu">(x, w, b, z)
        y = Conv(h, v)
    }""")
    assert places(groups(m)["w:0"])["u", 0] == "produced"
    prune_and_compare(m)


POOLS = [
    "MaxPool<kernel_shape=[2,2]>",
    "AveragePool<kernel_shape=[2,2],strides=[2,2]>",
    "LpPool<kernel_shape=[2,2]>",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
]


@pytest.mark.parametrize("pool", POOLS)
def test_pooling_passes_channels_through(pool: str) -> None:
    m = model(f"""(float[N,3,8,8] x) => (float[N,5,H,W] y) <float[8,3,1,1] w, float[5,8,1,1] v> {{
        h = Conv(x, w)
        p = {pool}(h)
        y = Conv(p, v)
    }}""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


def test_the_indices_of_max_pool_count_over_all_channels() -> None:
    m = model("""(float[N,3,8,8] x) => (float[N,5,4,4] y, int64[N,8,4,4] i) <float[8,3,1,1] w, float[5,8,1,1] v> {
        h = Conv(x, w)
        p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h)
        y = Conv(p, v)
    }""")
    assert reasons(m)["w:0"] == "MaxPool: the indices of MaxPool count over all channels"


def test_lrn_mixes_neighbouring_channels() -> None:
    m = model("""(float[N,3,8,8] x) => (float[N,5,8,8] y) <float[8,3,1,1] w, float[5,8,1,1] v> {
        h = Conv(x, w)
        p = LRN<size=3>(h)
        y = Conv(p, v)
    }""")
    assert reasons(m)["w:0"] == "LRN: LRN mixes neighbouring channels"
    assert prunable(m) == {}


def test_a_transposed_conv_that_is_given_its_padding() -> None:
    m = model("""(float[2,3,6,6] x) => (float[2,5,6,6] y)
        <float[8,3,1,1] w, float[8,5,3,3] v, int64[4] p = {1,1,1,1}, float[5] b> {
        h = Conv(x, w)
        y = com.microsoft.ConvTransposeWithDynamicPads<kernel_shape=[3,3]>(h, v, p, b)
    }""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


@pytest.mark.parametrize(("group", "offsets"), [(1, 1), (1, 2), (2, 2), (4, 2)])
def test_deformable_conv(group: int, offsets: int) -> None:
    """Inputs and outputs shrink with their groups; the offsets, made by another layer, keep two for every point."""
    m = model(
        f"""(float[2,3,6,6] x) => (float[2,5,4,4] y)
        <float[8,3,1,1] w, float[{18 * offsets},3,3,3] f, float[{9 * offsets},3,3,3] g, float[12,{8 // group},3,3] d,
        float[12] b, float[5,12,1,1] v> {{
        h = Conv(x, w)
        o = Conv(x, f)
        k = Conv(x, g)
        m = Sigmoid(k)
        e = DeformConv<group={group}, offset_group={offsets}>(h, d, o, b, m)
        y = Conv(e, v)
    }}""",
        opset=19,
        ir=9,
    )
    assert sorted(prunable(m).values())[-1] == 12 // group
    assert sum(math.prod(s) for s in prune_and_compare(m).weights.values()) < 0.8 * _elements(m)


def _elements(m: onnx.ModelProto) -> int:
    return sum(math.prod(t.dims) for t in m.graph.initializer)


@pytest.mark.parametrize("call", ["CausalConvWithState", 'CausalConvWithState<activation="silu">'])
def test_causal_conv_passes_its_channels_on(call: str) -> None:
    m = model(f"""(float[N,3,T] x) => (float[N,5,T] y)
        <float[8,3,1] w, float[8,1,4] d, float[8] b, float[5,8,1] v> {{
        h = Conv(x, w)
        c, last = com.microsoft.{call}(h, d, b)
        y = Conv(c, v)
    }}""")
    assert prunable(m) == {"w:0": 8}
    assert prune_and_compare(m).weights["d"] == (4, 1, 4)


def test_causal_conv_with_channels_last_and_a_state() -> None:
    m = model("""(float[2,T,3] x, float[2,3,3] s) => (float[2,T,5] y, float[2,3,5] z)
        <float[3,8] w, float[3,8] u, float[8,1,4] d, float[8,5] v> {
        h = MatMul(x, w)
        a = MatMul(s, u)
        c, last = com.microsoft.CausalConvWithState<channels_last=1>(h, d, , a)
        y = MatMul(c, v)
        z = MatMul(last, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_columns_become_channels() -> None:
    m = model(
        """(float[2,3,16] x) => (float[2,5,5,5] y)
        <float[32,3,1] w, int64[2] size = {5,5}, int64[2] block = {2,2}, float[5,8,1,1] v> {
        h = Conv(x, w)
        c = Col2Im(h, size, block)
        y = Conv(c, v)
    }""",
        opset=18,
    )
    assert prunable(m) == {"w:0": 8}
    assert prune_and_compare(m).weights["w"] == (16, 3, 1)


def test_causal_conv_of_onnx() -> None:
    """Newer than the runtime, so analysed only."""
    m = model(
        """(float[N,3,T] x) => (float[N,5,T] y) <float[8,3,1] w, float[8,1,4] d, float[5,8,1] v> {
        h = Conv(x, w)
        c, last = CausalConvWithState(h, d)
        y = Conv(c, v)
    }""",
        opset=27,
        ir=10,
    )
    assert prunable(m) == {"w:0": 8}


def test_causal_conv_with_a_window_of_states_is_left_alone() -> None:
    m = model("""(float[2,3,6] x) => (float[2,5,6] y)
        <float[8,3,1] w, float[8,1,4] d, float[5,8,1] v, float[2,8,6] c, float[2,2,8,3] last> {
        h = Conv(x, w)
        c, last = com.microsoft.CausalConvWithState<state_window=2>(h, d)
        y = Conv(c, v)
    }""")
    assert "a window of states" in reasons(m)["w:0"]
