"""Normalisation. Statistics over an axis make the axis *renormalised* when it shrinks: the average is then taken over
what is left.

    BatchNormalization      per channel, stored statistics: nothing is averaged; in training mode statistics over the
                            batch and space (how exporters standardise the filters of a convolution)
    InstanceNormalization   statistics over space, per channel
    LayerNormalization      statistics over the axes from `axis` on
    GroupNormalization      channels are (g k), statistics over k and space
"""

from __future__ import annotations

from onnxprune import dims
from onnxprune.rules.registry import Operator, rule


@rule("BatchNormalization")
def batch_normalization(op: Operator) -> None:
    if not op.attribute("spatial", 1) or (op.opset < 14 and len(op.outputs) > 1):
        raise ValueError("by position, or in the training mode of before opset 14")
    op.apply("n c ..., c, c, c, c -> n c ..., c, c")
    if op.attribute("training_mode", 0):
        op.contract(0, [0, *range(2, len(op.dims(0)))], average=True)


@rule("InstanceNormalization")
def instance_normalization(op: Operator) -> None:
    op.apply("n c ..., c, c -> n c ...")
    op.contract(0, range(2, len(op.dims(0))), average=True)


@rule("LayerNormalization", since=17)
def layer_normalization(op: Operator) -> None:
    state_layer_normalization(op, op.attribute("axis", -1))


def state_layer_normalization(op: Operator, axis: int) -> None:
    """Normalise operand 0 over its axes from `axis` on; the other operands scale and shift the result."""
    x = op.dims(0)
    axis %= len(x)
    op.contract(0, range(axis, len(x)), average=True)
    op.broadcast([i for i in range(len(op.inputs)) if op.has(i)])
    for output in range(1, len(op.outputs)):
        op.outputs[output] = (*x[:axis], *op.outputs[output][axis:])


@rule("GroupNormalization", since=18)
def group_normalization(op: Operator) -> None:
    groups = op.attribute("num_groups")
    channel = op.dims(0)[1]
    g, k = op.factor(channel, [groups, channel.size // groups])
    scale = g if op.opset < 21 else channel
    for operand in (1, 2):
        op.unify(op.dims(operand)[0], scale)
    for d in op.dims(0)[2:]:
        op.freeze(d, "GroupNormalization averages over space")
    op.sizes("num_groups", [g])
    if dims.resolve(k).size > 1:
        op.contract(0, [1], average=True)
    op.broadcast([0])


@rule("MeanVarianceNormalization", since=9)
def mean_variance_normalization(op: Operator) -> None:
    op.contract(0, op.attribute("axes", [0, 2, 3]), average=True)
    op.broadcast([0])


@rule("RMSNormalization", since=23)
@rule("SimplifiedLayerNormalization")
def rms_normalization(op: Operator) -> None:
    state_layer_normalization(op, op.attribute("axis", -1))


@rule("LpNormalization")
def lp_normalization(op: Operator) -> None:
    op.contract(0, [op.attribute("axis", -1)], weighted=False)
    op.broadcast([0])


@rule("GatedRMSNorm", domain="com.microsoft")
def gated_rms_normalization(op: Operator) -> None:
    """x: ... (h c), scale: c, gate: ... (h c) -> ... (h c); averages over c."""
    x, width = op.dims(0), op.dims(1)[0]
    op.unify(op.factor(x[-1], [x[-1].size // width.size, width.size])[1], width)
    op.contract(0, [-1], average=True)
    op.broadcast([0, 2])
