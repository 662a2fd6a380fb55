"""Element-wise operators: every element of the result depends on the same element of the operands alone."""

from __future__ import annotations

import numpy as np

from onnxprune.rules.registry import Operator, rule

UNARY = (
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitCast",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
)
BINARY = (
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "CastLike",
    "Div",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Sum",
    "SwiGLU",
    "Where",
    "Xor",
)


@rule("PRelu", since=7)
@rule(*UNARY, *BINARY)
def pointwise(op: Operator) -> None:
    if op.attribute("axis") is not None and op.opset < 7:
        op.freeze_all("broadcasting by `axis`, as before opset 7")
        return
    op.broadcast([i for i in range(len(op.inputs)) if op.has(i) and not _is_target_type(op, i)])


@rule("Equal")
def equal(op: Operator) -> None:
    """Element-wise; places on a dimension (... 1) equal to each of its indices (0 1 2 ...) give that dimension."""
    operands = next((pair for pair in ((0, 1), (1, 0)) if _counts_places(op, *pair)), None)
    if operands is None:
        pointwise(op)
        return
    places, listed = operands
    op.broadcast([places])
    *rest, found = op.outputs[0]
    if op.follows(places, found):
        op.pick(listed, found, found)
    op.outputs[0] = (*rest, found)


def _counts_places(op: Operator, places: int, listed: int) -> bool:
    """Whether one operand holds places along an axis of size 1, and the other lists all there are."""
    found, value = op.places[places], op.fixed(listed)
    if found is None or value is None or value.shape != (found.size,) or op.dims(places)[-1].size != 1:
        return False
    return bool(np.array_equal(value, np.arange(found.size)))


def _is_target_type(op: Operator, operand: int) -> bool:
    return op.kind == "CastLike" and operand == 1


@rule("Clip", "Dropout")
def first_operand(op: Operator) -> None:
    """The bounds of Clip and the ratio of Dropout are scalars; the mask of Dropout has the axes of the data."""
    for output in range(len(op.outputs)):
        op.broadcast([0], output)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: Operator) -> None:
    state_softmax(op, op.opset)


def state_softmax(op: Operator, opset: int) -> None:
    """Along `axis`; before opset 13 along all axes from `axis` (default 1) on."""
    rank = len(op.dims(0))
    old = opset < 13
    axis = op.attribute("axis", 1 if old else -1) % rank
    op.compare(0, range(axis, rank) if old else [axis], f"{op.kind} compares along this axis")
    op.broadcast([0])


@rule("CumSum", "CumProd")
def cumulative(op: Operator) -> None:
    axis = op.fixed(1)
    frozen = op.dims(0) if axis is None else [op.dims(0)[int(axis.reshape(-1)[0])]]
    for d in frozen:
        op.freeze(d, f"{op.kind} runs along this axis")
    op.broadcast([0])
