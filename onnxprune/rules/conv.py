"""Convolution and pooling.

    Conv            y[n, (g o), s] = sum_{i, k} w[(g o), i, k] x[n, (g i), s + k] + b[(g o)]
    ConvTranspose   the adjoint: w[(g i), o, k]

g = attribute `group`. Along an axis where the window is one point, each position is worked on alone, so the axis
passes through; any other window needs its axis whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.rules.registry import Operator, rule


def _axes(op: Operator, kernel: Sequence[int]) -> str:
    """The spatial axes in the notation: a letter where the window is one point, `_` elsewhere."""
    rank = len(kernel)
    strides = op.attribute("strides") or [1] * rank
    pads = op.attribute("pads") or [0] * (2 * rank)
    padded = op.attribute("auto_pad", "NOTSET").startswith("SAME")
    passing = [kernel[k] == strides[k] == 1 and not padded and not pads[k] and not pads[k + rank] for k in range(rank)]
    return " ".join(f"s{k}" if passes else "_" for k, passes in enumerate(passing))


def state_convolution(op: Operator) -> None:
    """The signature, `group` and MACs of a convolution whose operands are x, w, b."""
    space = _axes(op, [d.size for d in op.dims(1)[2:]])
    letters = op.apply(f"n (g i) {space}, (g o) i *, (g o)? -> n (g o) {space}", g=op.attribute("group", 1))
    if op.attribute("group", 1) > 1:
        op.sizes("group", [letters["g"]])
    op.macs(*op.outputs[0], letters["i"], *op.dims(1)[2:])


@rule("Conv")
def conv(op: Operator) -> None:
    state_convolution(op)


@rule("FusedConv", domain="com.microsoft")
def fused_conv(op: Operator) -> None:
    """Conv, then the sum with an optional operand z, then an activation."""
    state_convolution(op)
    if op.has(3):
        op.unify_all(op.dims(3), op.outputs[0])


@rule("ConvTranspose")
def conv_transpose(op: Operator) -> None:
    letters = op.apply("n (g i) *, (g i) o *, (g o)? -> n (g o) *", g=op.attribute("group", 1))
    if op.attribute("group", 1) > 1:
        op.sizes("group", [letters["g"]])
    op.macs(*op.dims(0), letters["o"], *op.dims(1)[2:])


@rule("MaxPool", "AveragePool", "LpPool")
def pool(op: Operator) -> None:
    if len(op.outputs) > 1:
        op.freeze_all("the indices of MaxPool count over all channels")
        return
    space = _axes(op, op.attribute("kernel_shape"))
    op.apply(f"n c {space} -> n c {space}")


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(op: Operator) -> None:
    op.apply("n c * -> n c *")


@rule("LRN")
def local_response_normalization(op: Operator) -> None:
    op.freeze(op.dims(0)[1], "LRN mixes neighbouring channels")
    op.broadcast([0])
