"""Statistics: every channel brought back to the mean and the deviation that it has in the original.

What re-estimating BatchNormalization does where it is kept, for folded ones and for other normalisations too: with t
the original's channel and s that of the pruned model so far,

    match     a = dev(t) / dev(s)          both moments as in the original
    fit       a = cov(t, s) / var(s)       least squares
    c = mean(t) - a mean(s)

and a s + c is what the new weights give. Without `a` a cut that takes variance away (the mean alone put right) leaves
activations that fade from layer to layer, and behind a ReLU vanish: worse than nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.recover.execution import Walk
from onnxprune.recover.layers import Weights
from onnxprune.recover.sites import Site
from onnxprune.recover.solve import Solution
from onnxprune.shapes import node_attributes

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Left = Mapping[int, npt.NDArray[np.int64]]
"""Kept indices of every axis that is cut."""

NORMS = {
    "BatchNormalization": 1,
    "InstanceNormalization": 1,
    "GroupNormalization": 1,
    "LayerNormalization": -1,
    "RMSNormalization": -1,
    "SimplifiedLayerNormalization": -1,
}
"""Normalisations with a scale (operand 1) and mostly an offset (operand 2) per channel: the axis of the channels."""
AVERAGING = ("GroupNormalization", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
"""Those of them that average over channels."""
LARGEST_SCALE = 10.0
"""No channel is scaled by more: one that has nearly no variance left says nothing."""


@dataclass(frozen=True)
class Norm:
    """A normalisation with stored scale that no linear operator has taken in. `node` indexes the graph."""

    node: int
    out: str
    axis: int


@dataclass(frozen=True)
class Change:
    """t ~ scale * s + offset, both (channels,); mean squared errors before and after over the variance of t."""

    scale: Float
    offset: Float
    before: float
    after: float

    @property
    def solution(self) -> Solution:
        """For the report: as of a layer that was solved."""
        return Solution(self.scale[None, :, None], self.offset[None], 0.0, self.before, self.after)


def norms(proto: onnx.ModelProto, stored: set[str], taken: set[int], rank: Callable[[str], int]) -> Iterator[Norm]:
    """The normalisations of the main graph with stored operands, without the nodes `taken`. `rank`: of a tensor."""
    for index, node in enumerate(proto.graph.node):
        axis = NORMS.get(node.op_type)
        if axis is None or index in taken or node_attributes(node).get("training_mode", 0):
            continue
        if axis == -1 and node_attributes(node).get("axis", -1) not in (-1, rank(node.output[0]) - 1):
            continue
        if all(name in stored for name in node.input[1:3] if name):
            yield Norm(index, node.output[0], axis)


def change(teacher: Walk, student: Walk, out: str, axis: int, left: Left, *, fit: bool, offset: bool = True) -> Change:
    """What brings the channels of the tensor `out` back. `offset`: whether there is one.

    Its errors are those on every fifth batch of a fit to the others, where there are several batches. The original's
    tensor must be computed; the pruned model's is run here and not kept, as its weights are to change.
    """
    parts: tuple[list[Float], list[Float]] = ([], [])
    counts = [0, 0]
    centre: tuple[Float, Float] | None = None
    holdout = student.holdout
    for b, given in enumerate(student.results(out)):
        t = _channels(of_left(teacher.get(out, b), left), axis)
        s = _channels(given, axis)
        if centre is None:
            centre = t.mean(1), s.mean(1)
        t, s = t - centre[0][:, None], s - centre[1][:, None]
        side = int(len(holdout.rows) > 1 and holdout.is_held(b))
        parts[side].append(np.stack([t.sum(1), s.sum(1), (t * t).sum(1), (s * s).sum(1), (t * s).sum(1)]))
        counts[side] += t.shape[1]
    if centre is None:
        raise ValueError("no batches")
    sums = [np.sum(side, axis=0) for side in parts]
    train = _central(sums[0] / counts[0], centre)
    held = _central(sums[1] / counts[1], centre) if counts[1] else train
    both = _central((sums[0] + sums[1]) / sum(counts), centre)
    unchanged = np.ones(len(centre[0])), np.zeros(len(centre[0]))
    total = max(float(held.tt.sum()), 1e-30)
    before, after = (held.error(*found) / total for found in (unchanged, train.solved(fit, offset)))
    return Change(*both.solved(fit, offset), before, after)


@dataclass(frozen=True)
class _Central:
    """Means of t and s, variances and covariance, by channel."""

    t: Float
    s: Float
    tt: Float
    ss: Float
    ts: Float

    def error(self, scale: Float, shift: Float) -> float:
        """Mean of (t - scale s - shift)^2, summed over channels."""
        spread = self.tt - 2 * scale * self.ts + scale**2 * self.ss
        return float((spread + (self.t - scale * self.s - shift) ** 2).sum())

    def solved(self, fit: bool, offset: bool) -> tuple[Float, Float]:
        """Scale and offset, by least squares (`fit`) or such that the spreads are equal."""
        tt, ss, ts = self.tt, self.ss, self.ts
        if not offset:
            tt, ss, ts = tt + self.t**2, ss + self.s**2, ts + self.t * self.s
        usable = (ss > 1e-12 * max(float(ss.max()), 1e-30)) & (tt > 0)
        safe = np.where(usable, ss, 1)
        ratio = ts / safe if fit else np.sqrt(np.maximum(tt, 0) / safe)
        scale = np.where(usable, np.clip(ratio, 0 if fit else 1 / LARGEST_SCALE, LARGEST_SCALE), 1)
        return scale, self.t - scale * self.s if offset else np.zeros_like(self.t)


def _central(moments: Float, centre: tuple[Float, Float]) -> _Central:
    """From the means of t, s, t^2, s^2 and t s about `centre`."""
    t, s = moments[0], moments[1]
    tt, ss, ts = moments[2] - t * t, moments[3] - s * s, moments[4] - t * s
    return _Central(t + centre[0], s + centre[1], tt, ss, ts)


def of_left(array: Array, left: Left) -> Array:
    """What of a tensor of the original is left."""
    for axis, rows in left.items():
        array = np.take(array, rows, axis)
    return array


def _channels(array: Array, axis: int) -> Float:
    """(channels, n) float64."""
    return np.moveaxis(np.asarray(array, np.float64), axis, 0).reshape(array.shape[axis], -1)


def apply_to_site(weights: Weights, site: Site, node: onnx.NodeProto, found: Change) -> None:
    """Scale the weight and move the bias of a linear operator."""
    weight = weights.constant(node.input[1])
    matrix, bias, scale = weights.effective(site, node, weight)
    factor, offset = found.scale.reshape(bias.shape), found.offset.reshape(bias.shape)
    weights.write(site, node, weight, matrix * factor[:, :, None], bias * factor + offset, scale)


def apply_to_norm(weights: Weights, node: onnx.NodeProto, found: Change) -> bool:
    """Scale the scale and move the offset of a normalisation; False where they are not one number per channel."""
    operands = [weights.constant(name) for name in node.input[1:3] if name]
    if any(a.shape != found.scale.shape for a in operands):
        return False
    weights.put(node, 1, (operands[0] * found.scale).astype(operands[0].dtype))
    if len(operands) > 1:
        weights.put(node, 2, (operands[1] * found.scale + found.offset).astype(operands[1].dtype))
    return True
