"""Convolution and pooling.

    Conv            y[n, (g o), s] = sum_{i, k} w[(g o), i, k] x[n, (g i), s + k] + b[(g o)]
    ConvTranspose   the adjoint: w[(g i), o, k]

g = attribute `group`. A kernel of one point works on every position alone, so the other axes pass through.
"""

from __future__ import annotations

from onnxprune.rules.registry import Operator, rule


def _is_pointwise(op: Operator) -> bool:
    kernel = [d.size for d in op.dims(1)[2:]]
    strides = op.attribute("strides", [1])
    pads = op.attribute("pads", [0])
    automatic = op.attribute("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return all(k == 1 for k in [*kernel, *strides]) and not any(pads) and automatic


def state_convolution(op: Operator) -> None:
    """The signature, `group` and MACs of a convolution whose operands are x, w, b."""
    run = "..." if _is_pointwise(op) else "*"
    letters = op.apply(f"n (g i) {run}, (g o) i *, (g o)? -> n (g o) {run}", g=op.attribute("group", 1))
    if op.attribute("group", 1) > 1:
        op.sizes("group", [letters["g"]])
    op.macs(*op.outputs[0], letters["i"], *op.dims(1)[2:])


@rule("Conv")
def conv(op: Operator) -> None:
    state_convolution(op)


@rule("ConvTranspose")
def conv_transpose(op: Operator) -> None:
    letters = op.apply("n (g i) *, (g i) o *, (g o)? -> n (g o) *", g=op.attribute("group", 1))
    if op.attribute("group", 1) > 1:
        op.sizes("group", [letters["g"]])
    op.macs(*op.dims(0), letters["o"], *op.dims(1)[2:])


@rule("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pool(op: Operator) -> None:
    if len(op.outputs) > 1:
        op.freeze_all("the indices of MaxPool count over all channels")
        return
    op.apply("n c * -> n c *")


@rule("LRN")
def local_response_normalization(op: Operator) -> None:
    op.freeze(op.dims(0)[1], "LRN mixes neighbouring channels")
    op.broadcast([0])
