"""Which range of values a model takes: told by the statistics that it holds.

A BatchNormalization keeps the mean m and variance v of what it saw in training. The right inputs give it the same:
the divergence between two normal distributions, mean over channels (each at most `WORST`) and layers,

    D = ((s + (u - m)^2) / v - 1 - log(s / v)) / 2        u, s: mean and variance of what it sees now

Where BatchNormalization was folded into the convolutions, their results are still about standard normal over the
training data, so that m is 0 and v is 1: inputs too large or small, or to one side of zero, move them away from that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]
Read = Callable[[str], Array | None]
WORST = 10.0
MOST_PROBES = 16
LEAST_CONVOLUTIONS = 3
"""Fewer layers say nothing about the range."""


@dataclass(frozen=True)
class Scaling:
    """The input is (x - mean) / deviation of an image x in [0, 1]; one number, or one per channel."""

    words: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def apply(self, images: Array) -> Array:
        """(n, channels, height, width), scaled."""
        shift, scale = self._sides(np.float32)
        return np.asarray((images - shift) / scale)

    def undo(self, values: Array) -> Array:
        """The images that `apply` makes `values` of."""
        shift, scale = self._sides(np.float64)
        return np.asarray(values * scale + shift)

    def _sides(self, dtype: npt.DTypeLike) -> tuple[Array, Array]:
        """Mean and deviation, by channel."""
        return np.array(self.mean, dtype).reshape(-1, 1, 1), np.array(self.deviation, dtype).reshape(-1, 1, 1)


BYTES = Scaling("0 to 255", (0.0,), (1 / 255,))
IMAGENET = Scaling("ImageNet mean and deviation", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_COMMON = (
    Scaling("0 to 1", (0.0,), (1.0,)),
    Scaling("-1 to 1", (0.5,), (0.5,)),
    BYTES,
    Scaling("-128 to 127", (0.5,), (1 / 255,)),
)


def scalings(channels: int) -> tuple[Scaling, ...]:
    """The candidates; the first is taken where nothing tells."""
    if channels == 3:
        return (IMAGENET, *_COMMON)
    return (Scaling("-2 to 2", (0.5,), (0.25,)), *_COMMON)


@dataclass(frozen=True)
class Probe:
    """A tensor to look at; `mean` and `variance` by channel (axis 1) are those of training, None where not stored."""

    tensor: str
    mean: Array | None = None
    variance: Array | None = None


def probes(graph: onnx.GraphProto, read: Read) -> list[Probe]:
    """What goes into the BatchNormalizations of a model; where there are none, what its convolutions give out.

    Evenly chosen over the model, the first always. None where there is too little to go by.
    """
    found = [p for node in graph.node if (p := _normalised(node, read)) is not None]
    if not found:
        found = [Probe(node.output[0]) for node in graph.node if node.op_type == "Conv"]
        found = found if len(found) >= LEAST_CONVOLUTIONS else []
    if len(found) > MOST_PROBES:
        found = [found[k] for k in np.linspace(0, len(found) - 1, MOST_PROBES).round().astype(int)]
    return found


def _normalised(node: onnx.NodeProto, read: Read) -> Probe | None:
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
        return None
    mean, variance = read(node.input[3]), read(node.input[4])
    if mean is None or variance is None:
        return None
    return Probe(node.input[0], mean.astype(np.float64), variance.astype(np.float64))


def divergence(probes: Sequence[Probe], values: Mapping[str, Array]) -> float:
    """How far the values of the probes are from what training showed: 0 where they agree."""
    found = [_divergence(probe, values[probe.tensor]) for probe in probes]
    return float(np.mean(found))


def _divergence(probe: Probe, value: Array) -> float:
    x = value.astype(np.float64)
    axes = tuple(a for a in range(x.ndim) if a != 1)
    mean, variance = x.mean(axes), x.var(axes) + 1e-12
    if not np.isfinite(mean).all():
        return WORST
    centre, spread = (0.0, 1.0) if probe.mean is None or probe.variance is None else (probe.mean, probe.variance)
    stored = np.maximum(spread, 1e-12)
    each = ((variance + np.square(mean - centre)) / stored - 1 - np.log(variance / stored)) / 2
    return float(np.minimum(each, WORST).mean())
