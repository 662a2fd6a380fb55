"""Quantized operators."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import graph, groups, model, places, prunable, prune_and_compare, reasons

from onnxprune import wording

_SCALES = "float sx = {0.05}, uint8 zx = {128}, float sy = {0.1}, uint8 zy = {120}, float sw = {0.01}, int8 zw = {0}"


@pytest.mark.parametrize("scale", ["1", "8"])
def test_weights_behind_a_dequantize(scale: str) -> None:
    """QDQ: scales of one per output channel are carried, scalars are not."""
    scales = "float[8] s, int8[8] z = {0,0,0,0,0,0,0,0}" if scale == "8" else "float s = {0.02}, int8 z = {0}"
    m = model(f"""(float[N,3,6,6] x) => (float[N,5,6,6] y) <int8[8,3,1,1] w, {scales}, float[5,8,1,1] v, {_SCALES}> {{
        d = DequantizeLinear<axis=0>(w, s, z)
        h = Conv(x, d)
        q = QuantizeLinear(h, sx, zx)
        e = DequantizeLinear(q, sx, zx)
        y = Conv(e, v)
    }}""")
    assert list(prunable(m).values()) == [8]
    assert (("s", 0) in places(next(iter(groups(m).values())))) == (scale == "8")
    assert prune_and_compare(m).weights["w"] == (4, 3, 1, 1)


def test_scales_and_zero_points_are_carried() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <int8[4,8] w, float[8] s, int8[8] z, float[8,3] v> {
        d = DequantizeLinear<axis=1>(w, s, z)
        h = MatMul(x, d)
        y = MatMul(h, v)
    }""")
    found = places(next(g for g in groups(m).values() if g.size == 8))
    assert found == {("w", 1): "produced", ("s", 0): "carried", ("z", 0): "carried", ("v", 0): "contracted"}


def test_quantization_of_the_contributed_domain() -> None:
    m = model(f"""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] v, {_SCALES}> {{
        h = MatMul(x, w)
        q = com.microsoft.QuantizeLinear(h, sx, zx)
        d = com.microsoft.DequantizeLinear(q, sx, zx)
        y = MatMul(d, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_quantization_by_blocks_is_left_alone() -> None:
    m = model(
        """(float[N,4] x) => (float[N,3] y) <int8[4,8] w, float[2,8] s, int8[2,8] z, float[8,3] v> {
        d = DequantizeLinear<axis=0, block_size=2>(w, s, z)
        h = MatMul(x, d)
        y = MatMul(h, v)
    }""",
        opset=21,
        ir=10,
    )
    assert prunable(m) == {}


@pytest.mark.parametrize("per_channel", [False, True])
def test_qlinear_conv(per_channel: bool) -> None:
    scales = "float[8] s, int8[8] z = {0,0,0,0,0,0,0,0}" if per_channel else "float s = {0.01}, int8 z = {0}"
    m = model(f"""(float[N,3,6,6] x) => (float[N,5,6,6] y) <int8[8,3,1,1] w, {scales}, int32[8] b, int8[5,8,1,1] v,
        {_SCALES}> {{
        a = QuantizeLinear(x, sx, zx)
        h = QLinearConv(a, sx, zx, w, s, z, sx, zx, b)
        k = QLinearConv(h, sx, zx, v, sw, zw, sy, zy)
        y = DequantizeLinear(k, sy, zy)
    }}""")
    assert prunable(m) == {"w:0": 8}
    assert places(groups(m)["w:0"])["b", 0] == "carried"
    prune_and_compare(m)


def test_conv_integer() -> None:
    m = model("""(uint8[N,3,6,6] x) => (float[N,5,6,6] y) <uint8[8,3,1,1] w, uint8 z = {3}, float[5,8,1,1] v> {
        h = ConvInteger(x, w, z, z)
        f = Cast<to=1>(h)
        y = Conv(f, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


def test_matmul_integer_with_zero_points_by_column() -> None:
    m = model("""(uint8[N,4] x) => (float[N,3] y) <int8[4,8] w, uint8 z = {3}, int8[8] zw, float[8,3] v> {
        h = MatMulInteger(x, w, z, zw)
        f = Cast<to=1>(h)
        y = MatMul(f, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_qlinear_matmul() -> None:
    m = model(f"""(float[N,4] x) => (float[N,3] y) <int8[4,8] w, float[8,3] v, {_SCALES}> {{
        a = QuantizeLinear(x, sx, zx)
        h = QLinearMatMul(a, sx, zx, w, sw, zw, sy, zy)
        f = DequantizeLinear(h, sy, zy)
        y = MatMul(f, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_a_quantized_sum_over_a_pruned_axis_is_not_masked_with_zero() -> None:
    """Zero is the zero point there."""
    m = model(f"""(float[N,4] x) => (float[N,3] y) <int8[4,8] w, int8[8,3] v, {_SCALES}> {{
        a = QuantizeLinear(x, sx, zx)
        h = QLinearMatMul(a, sx, zx, w, sw, zw, sy, zy)
        k = QLinearMatMul(h, sy, zy, v, sw, zw, sx, zx)
        y = DequantizeLinear(k, sx, zx)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_dynamic_quantization_sees_only_what_is_left() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, int8[8,3] v, int8 zv = {0}> {
        h = MatMul(x, w)
        q, s, z = DynamicQuantizeLinear(h)
        k = MatMulInteger(q, v, z, zv)
        f = Cast<to=1>(k)
        y = Mul(f, s)
    }""")
    assert prunable(m) == {"w:1": 8}
    assert groups(m)["w:1"].renormalised
    prune_and_compare(m)


@pytest.mark.parametrize(
    "call",
    [
        "com.microsoft.DynamicQuantizeMatMul(x, w, sw, zw, b)",
        "com.microsoft.MatMulIntegerToFloat(q, w, sx, sw, zx, zw, b)",
    ],
)
def test_fused_integer_products_with_a_float_result(call: str) -> None:
    m = model(f"""(float[N,4] x) => (float[N,3] y) <int8[4,8] w, float[8] b, float[8,3] v, {_SCALES}> {{
        q = QuantizeLinear(x, sx, zx)
        h = {call}
        y = MatMul(h, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_qgemm() -> None:
    m = model(f"""(float[N,4] x) => (float[N,3] y) <int8[8,4] w, int32[8] b, float[8,3] v, {_SCALES}> {{
        a = QuantizeLinear(x, sx, zx)
        h = com.microsoft.QGemm<transB=1>(a, sx, zx, w, sw, zw, b, sy, zy)
        f = DequantizeLinear(h, sy, zy)
        y = MatMul(f, v)
    }}""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


@pytest.mark.parametrize(
    "call",
    [
        "com.microsoft.QLinearAdd(h, sx, zx, k, sx, zx, sy, zy)",
        "com.microsoft.QLinearMul(h, sx, zx, k, sx, zx, sy, zy)",
        "com.microsoft.QLinearSigmoid(h, sx, zx, sy, zy)",
        "com.microsoft.QLinearLeakyRelu<alpha=0.1>(h, sx, zx, sy, zy)",
        "com.microsoft.QLinearGlobalAveragePool(h, sx, zx, sy, zy)",
        "com.microsoft.QLinearAveragePool<kernel_shape=[2,2]>(h, sx, zx, sy, zy)",
    ],
)
def test_quantized_element_wise_operators_and_pools(call: str) -> None:
    m = model(f"""(float[2,3,6,6] x) => (float[2,5,A,B] y) <float[8,3,1,1] w, float[8,3,1,1] u, float[5,8,1,1] v,
        {_SCALES}> {{
        p = Conv(x, w)
        o = Conv(x, u)
        h = QuantizeLinear(p, sx, zx)
        k = QuantizeLinear(o, sx, zx)
        r = {call}
        f = DequantizeLinear(r, sy, zy)
        y = Conv(f, v)
    }}""")
    assert "w:0" in prunable(m)
    prune_and_compare(m)


def test_quantized_concatenation() -> None:
    m = model(f"""(float[2,3,6,6] x) => (float[2,5,6,6] y) <float[8,3,1,1] w, float[4,3,1,1] u, float[5,12,1,1] v,
        {_SCALES}> {{
        p = Conv(x, w)
        o = Conv(x, u)
        h = QuantizeLinear(p, sx, zx)
        k = QuantizeLinear(o, sx, zx)
        r = com.microsoft.QLinearConcat<axis=1>(sy, zy, h, sx, zx, k, sx, zx)
        f = DequantizeLinear(r, sy, zy)
        y = Conv(f, v)
    }}""")
    assert prunable(m) == {"w:0": 8, "u:0": 4}
    prune_and_compare(m)


@pytest.mark.parametrize(
    "call",
    [
        "com.microsoft.QLinearSoftmax<axis=1, opset=13>(h, sx, zx, sx, zx)",
        "com.microsoft.QLinearWhere(c, h, sx, zx, h, sx, zx, sx, zx)",
    ],
)
def test_a_quantized_comparison_and_choice_of_tokens(call: str) -> None:
    m = model(f"""(float[2,6,4] x, bool[2,6,1] c) => (float[2,6,3] y) <float[4,8] w, float[8,3] v, {_SCALES}> {{
        p = MatMul(x, w)
        h = QuantizeLinear(p, sx, zx)
        r = {call}
        f = DequantizeLinear(r, sx, zx)
        y = MatMul(f, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_quantized_softmax_needs_its_axis_whole() -> None:
    m = model(f"""(float[2,4] x) => (float[2,3] y) <float[4,8] w, float[8,3] v, {_SCALES}> {{
        p = MatMul(x, w)
        h = QuantizeLinear(p, sx, zx)
        r = com.microsoft.QLinearSoftmax<axis=1, opset=13>(h, sx, zx, sy, zy)
        f = DequantizeLinear(r, sy, zy)
        y = MatMul(f, v)
    }}""")
    assert reasons(m)["w:1"] == "QLinearSoftmax: QLinearSoftmax compares along this axis"


@pytest.mark.parametrize("group", [1, 4])
def test_quantized_convolution_and_pooling_with_channels_last(group: int) -> None:
    m = model(f"""(float[2,6,6,3] x) => (float[2,4,4,5] y) <float[3,8] w, uint8[8,{8 // group},2,2] u, int32[8] b,
        float[8,5] v, uint8 zw = {{50}}, {_SCALES.replace("int8 zw", "int8 zs")}> {{
        p = MatMul(x, w)
        h = QuantizeLinear(p, sx, zx)
        c = com.microsoft.QLinearConv<channels_last=1, group={group}>(h, sx, zx, u, sw, zw, sx, zx, b)
        m = com.microsoft.NhwcMaxPool<kernel_shape=[2,1]>(c)
        a = com.microsoft.QLinearAveragePool<kernel_shape=[1,2], channels_last=1>(m, sx, zx, sx, zx)
        f = DequantizeLinear(a, sx, zx)
        y = MatMul(f, v)
    }}""")
    assert prunable(m)
    prune_and_compare(m)


def test_products_by_packed_weights_lose_rows() -> None:
    m = model("""(float[N,32] x) => (float[N,3] y) <uint8[8,2,8] w, float[8,2] s, float[8,3] v> {
        h = com.microsoft.MatMulNBits<K=32, N=8, bits=4, block_size=16>(x, w, s)
        y = MatMul(h, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    assert prune_and_compare(m).attribute("MatMulNBits", "N") == 4


_PACKED = """(float[N,8] x) => (float[N,3] y)
    <float[8,64] e, uint8[5,4,8] w, float[5,4] s, {zero} float[5] b, int32[64] order, float[5,3] v> {{
    h = MatMul(x, e)
    r = Relu(h)
    p = com.microsoft.MatMulNBits<K=64, N=5, bits={bits}, block_size=16>(r, w, s{operands})
    y = MatMul(p, v)
}}"""


@pytest.mark.parametrize(
    ("zero", "operands", "blocks"),
    [
        ("", "", 4),
        ("", ", , , b", 4),
        ("float[5,4] z,", ", z", 4),
        ("uint8[5,2] z,", ", z", 2),
    ],
    ids=["symmetric", "bias", "a zero point per block", "two zero points in a byte"],
)
def test_products_by_packed_weights_lose_blocks_of_inputs(zero: str, operands: str, blocks: int) -> None:
    m = model(_PACKED.format(zero=zero, operands=operands, bits=4))
    assert prunable(m) == {"e:1": blocks, "w:0": 5}
    result = prune_and_compare(m)
    assert result.attribute("MatMulNBits", "K") == 32
    assert result.weights["e"] == (8, 32)
    assert result.weights["w"] == (2, 2, 8)
    assert result.weights["s"] == (2, 2)
    if zero:
        assert result.weights["z"] == (2, blocks // 2 if "uint8" in zero else 2)


def test_packed_weights_as_flat_scales_lose_blocks_of_inputs() -> None:
    m = model(_PACKED.replace("float[5,4] s", "float[20] s").format(zero="uint8[10] z,", operands=", z", bits=4))
    assert prunable(m) == {"e:1": 2, "w:0": 5}
    result = prune_and_compare(m)
    assert (result.weights["s"], result.weights["z"]) == ((4,), (2,))


def test_zeros_in_the_scales_mask_packed_weights() -> None:
    """The packed zero is no zero, so the plan names the scales as what sums over the blocks."""
    m = model(_PACKED.format(zero="", operands="", bits=4))
    assert places(groups(m)["e:1"]) == {("e", 1): "produced", ("w", 1): "carried", ("s", 1): "contracted"}


def test_chains_of_packed_weights_lose_rows_in_blocks() -> None:
    m = model("""(float[N,32] x) => (float[N,3] y)
        <uint8[64,2,8] w, float[64,2] s, uint8[5,2,16] u, float[5,2] t, float[5,3] v> {
        h = com.microsoft.MatMulNBits<K=32, N=64, bits=4, block_size=16>(x, w, s)
        r = Relu(h)
        p = com.microsoft.MatMulNBits<K=64, N=5, bits=4, block_size=32>(r, u, t)
        y = MatMul(p, v)
    }""")
    assert prunable(m) == {"w:0": 2, "u:0": 5}
    found = graph(m)[0]
    tied = wording.ties(found.groups[0], wording.readers(m, found))
    assert wording.words(found, found.groups[0], tied) == "2 blocks of 32 features of MatMulNBits(h)"
    result = prune_and_compare(m)
    assert result.weights["w"] == (32, 2, 8)
    assert (result.attribute("MatMulNBits", "N"), result.attribute("MatMulNBits", "K", 1)) == (32, 32)


@pytest.mark.parametrize(
    "text",
    [
        _PACKED.format(zero="", operands=", , order", bits=4),
        _PACKED.replace("float[8,64] e", "float[8,60] e").replace("K=64", "K=60").format(zero="", operands="", bits=4),
    ],
    ids=["an order of its own", "a block that is not full"],
)
def test_inputs_of_packed_weights_stay_where_they_are_no_whole_blocks(text: str) -> None:
    reason = "MatMulNBits: MatMulNBits with a block that is not full, or an order of its own"
    assert reasons(model(text, order=np.arange(64) // 16))["e:1"] == reason
