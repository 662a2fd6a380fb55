"""Quantized operators: QDQ pairs, QOperator forms, dynamic quantization.

Scales and zero points are scalars or vectors along one axis, and then shrink with it. In integer tensors zero is the
zero point, not the number 0, so the parts an operator must not see are gathered away instead of masked.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.dims import Dim
from onnxprune.rules.join import state_concat
from onnxprune.rules.linear import operand_terms, result_terms
from onnxprune.rules.pointwise import state_softmax
from onnxprune.rules.registry import Operator, rule

CONTRIB = "com.microsoft"


def _along(op: Operator, d: Dim, operands: Sequence[int]) -> None:
    """Scales and zero points of these operands are scalars, or one per index of `d`."""
    for operand in operands:
        for axis in op.dims(operand) if op.has(operand) else ():
            if axis.size > 1:
                op.unify(axis, d)


@rule("QuantizeLinear", "DequantizeLinear")
@rule("QuantizeLinear", "DequantizeLinear", domain=CONTRIB)
def quantize(op: Operator) -> None:
    x = op.dims(0)
    if op.attribute("block_size", 0):
        raise ValueError("quantization by blocks")
    _along(op, x[op.attribute("axis", 1) % len(x)] if x else op.dims(1)[0], [1, 2])
    op.broadcast([0])


@rule("DynamicQuantizeLinear")
def dynamic_quantize(op: Operator) -> None:
    """The scale comes from the extremes of the whole tensor, so it changes with what is left of it."""
    op.contract(0, range(len(op.dims(0))), average=True)
    op.broadcast([0])


@rule("QLinearConv")
@rule("QLinearConv", domain=CONTRIB)
def qlinear_conv(op: Operator) -> None:
    """x, its scale and zero point, w, its scales and zero points, those of y, bias."""
    last = op.attribute("channels_last", 0)
    x, y = ("n * (g i)", "n * (g o)") if last else ("n (g i) *", "n (g o) *")
    letters = op.apply(f"{x}, *, *, (g o) i * -> {y}", quantized=True, g="group")
    _along(op, op.outputs[0][-1 if last else 1], [4, 5, 8])
    op.macs(*op.outputs[0], letters["i"], *op.dims(3)[2:])


@rule("ConvInteger")
def conv_integer(op: Operator) -> None:
    letters = op.apply("n (g i) *, (g o) i * -> n (g o) *", quantized=True, g="group")
    _along(op, op.outputs[0][1], [3])
    op.macs(*op.outputs[0], letters["i"], *op.dims(1)[2:])


@rule("MatMulInteger16", domain=CONTRIB)
@rule("MatMulInteger")
def matmul_integer(op: Operator) -> None:
    a, b = operand_terms(op)
    letters = op.apply(f"{a}, {b} -> {result_terms(op)}", quantized=True)
    _along(op, op.outputs[0][-1], [3])
    _along(op, letters.get("m", op.outputs[0][-1]), [2])
    op.macs(*op.outputs[0], letters["k"])


@rule("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=CONTRIB)
def matmul_to_float(op: Operator) -> None:
    """Operands a, b, then scales, zero points and a bias along the last axis; a dynamic scale sees the whole of a."""
    a, b = operand_terms(op)
    letters = op.apply(f"{a}, {b} -> {result_terms(op)}", quantized=True)
    if op.kind == "DynamicQuantizeMatMul":
        op.contract(0, range(len(op.dims(0))), average=True)
    _along(op, op.outputs[0][-1], range(2, len(op.inputs)))
    op.macs(*op.outputs[0], letters["k"])


@rule("QLinearMatMul")
def qlinear_matmul(op: Operator) -> None:
    letters = _product(op, 3, transposed=False)
    _along(op, op.outputs[0][-1], [4, 5, 6, 7])
    op.macs(*op.outputs[0], letters["k"])


@rule("QGemm", domain=CONTRIB)
def qgemm(op: Operator) -> None:
    if op.attribute("transA", 0):
        raise ValueError("QGemm with transA")
    letters = _product(op, 3, transposed=bool(op.attribute("transB", 0)))
    _along(op, op.outputs[0][-1], [4, 5, 6, 7, 8])
    op.macs(*op.outputs[0], letters["k"])


def _product(op: Operator, second: int, *, transposed: bool) -> dict[str, Dim]:
    """A matrix product whose second operand comes after the scale and zero point of the first."""
    b = "... n k" if transposed else "... k n"
    ignored = ", ".join(["*"] * (second - 1))
    return op.apply(f"... m k, {ignored}, {b} -> {result_terms(op, second)}", quantized=True)


@rule("QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", domain=CONTRIB)
def qlinear_pointwise(op: Operator) -> None:
    """a, its scale and zero point, b, its scale and zero point, those of the result: all of those scalars."""
    op.broadcast([0, 3] if op.kind in ("QLinearAdd", "QLinearMul") else [0])


@rule("QLinearWhere", domain=CONTRIB)
def qlinear_where(op: Operator) -> None:
    """The condition, then twice a tensor, its scale and zero point, then those of the result."""
    op.broadcast([0, 1, 4])


@rule("QLinearSoftmax", domain=CONTRIB)
def qlinear_softmax(op: Operator) -> None:
    state_softmax(op, op.attribute("opset"))


@rule("QLinearGlobalAveragePool", "QLinearAveragePool", domain=CONTRIB)
def qlinear_pool(op: Operator) -> None:
    x = "n * c" if op.attribute("channels_last", 0) else "n c *"
    op.apply(f"{x} -> {x}")


@rule("QLinearConcat", domain=CONTRIB)
def qlinear_concat(op: Operator) -> None:
    """Scale and zero point of the result, then (tensor, scale, zero point) of every part."""
    state_concat(op, range(2, len(op.inputs), 3))


@rule("MatMulNBits", domain=CONTRIB)
def matmul_n_bits(op: Operator) -> None:
    """x: ... (k i), b: n k bytes, scales: n k, zero points: n k or n (k / per byte), bias: n -> ... n

    A block of i inputs is packed as one run of bytes, so blocks k go as a whole; where a byte holds the zero points
    of several blocks, those go together.
    """
    x, b = op.dims(0), op.dims(1)
    if len(b) != 3:
        raise ValueError("MatMulNBits with weights that are not rows x blocks x bytes")
    n, blocks, packed = b
    op.freeze(packed, "MatMulNBits packs this axis in blocks")
    whole = blocks.size * op.attribute("block_size") == x[-1].size
    if whole and not op.has(4) and not op.attribute("weight_prepacked", 0):
        found, inner = op.factor(x[-1], [blocks.size, x[-1].size // blocks.size])
        op.unify(found, blocks)
        op.freeze(inner, "MatMulNBits packs this axis in blocks")
    else:
        for d in (x[-1], blocks, *(op.dims(4) if op.has(4) else ())):
            op.freeze(d, "MatMulNBits with a block that is not full, or an order of its own")
    for operand in (2, 3):
        _by_block(op, operand, n, blocks)
    if op.has(5):
        op.unify(op.dims(5)[0], n)
    op.contract(0, [-1])
    op.role(1, 0, "produced")
    op.role(2, len(op.dims(2)) - 1, "contracted")
    op.outputs[0] = (*x[:-1], n)
    op.sizes("N", [n])
    op.sizes("K", [x[-1]])
    op.macs(*op.outputs[0], x[-1])


def _by_block(op: Operator, operand: int, n: Dim, blocks: Dim) -> None:
    """Scales or zero points: n x blocks, or the two as one axis; zero points of several blocks may share a byte."""
    if not op.has(operand):
        return
    first, *rest = op.dims(operand)
    if not rest:
        first, last = op.factor(first, [n.size, first.size // n.size])
        rest = [last]
    op.unify(first, n)
    if rest[0].size == blocks.size:
        op.unify(rest[0], blocks)
    elif blocks.size % rest[0].size == 0:
        found, shared = op.factor(blocks, [rest[0].size, blocks.size // rest[0].size])
        op.unify(found, rest[0])
        op.freeze(shared, "a byte holds the zero points of several blocks")
    else:
        for d in (rest[0], blocks):
            op.freeze(d, "a byte holds the zero points of several blocks, and the last one is not full")
