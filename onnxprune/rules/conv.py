"""Convolution and pooling.

    Conv            y[n, (g o), s] = sum_{i, k} w[(g o), i, k] x[n, (g i), s + k] + b[(g o)]
    ConvTranspose   the adjoint: w[(g i), o, k]

g = attribute `group`. Along an axis where the window is one point, each position is worked on alone, so the axis
passes through; any other window needs its axis whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

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
    """The signature and MACs of a convolution whose operands are x, w, b."""
    space = _axes(op, [d.size for d in op.dims(1)[2:]])
    letters = op.apply(f"n (g i) {space}, (g o) i *, (g o)? -> n (g o) {space}", g="group")
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
    letters = op.apply("n (g i) *, (g i) o *, (g o)? -> n (g o) *", g="group")
    op.macs(*op.dims(0), letters["o"], *op.dims(1)[2:])


@rule("ConvTransposeWithDynamicPads", domain="com.microsoft")
def conv_transpose_with_pads(op: Operator) -> None:
    letters = op.apply("n (g i) *, (g i) o *, *?, (g o)? -> n (g o) *", g="group")
    op.macs(*op.dims(0), letters["o"], *op.dims(1)[2:])


@rule("DeformConv")
def deformable_conv(op: Operator) -> None:
    """x, w, two offsets for each of the k points of a window, b, a weight for each point; q = `offset_group`."""
    points = math.prod(d.size for d in op.dims(1)[2:])
    letters = op.apply(
        f"n (g i) *, (g o) i *, n (q {2 * points}) *, (g o)?, n (q {points}) *? -> n (g o) *",
        g="group",
        q="offset_group",
    )
    channel, q = op.dims(0)[1], letters["q"]
    if q.size > 1:
        op.unify(op.factor(channel, [q.size, channel.size // q.size])[0], q)
    op.macs(*op.outputs[0], letters["i"], *op.dims(1)[2:])


@rule("CausalConvWithState", since=27)
@rule("CausalConvWithState", domain="com.microsoft")
def causal_conv(op: Operator) -> None:
    """A depthwise convolution that carries the last steps over: x, w, b, the steps before -> y, the last steps."""
    if op.attribute("state_window", 0):
        raise ValueError("CausalConvWithState with a window of states")
    x = "n * c" if op.attribute("channels_last", 0) else "n c *"
    op.apply(f"{x}, c i *, c?, {x}? -> {x}, {x}", i=1)
    op.macs(*op.outputs[0], *op.dims(1)[2:])
    op.role(1, 0, "produced")


@rule("Col2Im")
def columns_to_image(op: Operator) -> None:
    """Every channel c of the image is the sum of overlapping blocks of k points: columns n (c k) l."""
    block = op.fixed(2)
    if block is None:
        raise ValueError("Col2Im with a computed block")
    op.apply(f"n (c {int(np.prod(block))}) _, _, _ -> n c *")


@rule("MaxPool", "AveragePool", "LpPool")
def pool(op: Operator) -> None:
    if len(op.outputs) > 1:
        op.freeze_all("the indices of MaxPool count over all channels")
        return
    space = _axes(op, op.attribute("kernel_shape"))
    op.apply(f"n c {space} -> n c {space}")


@rule("NhwcMaxPool", domain="com.microsoft")
def pool_channels_last(op: Operator) -> None:
    op.apply("n * c -> n * c")


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(op: Operator) -> None:
    op.apply("n c * -> n c *")


@rule("LRN")
def local_response_normalization(op: Operator) -> None:
    op.freeze(op.dims(0)[1], "LRN mixes neighbouring channels")
    op.broadcast([0])
