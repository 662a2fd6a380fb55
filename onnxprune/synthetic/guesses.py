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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]
Read = Callable[[str], Array | None]
WORST = 10.0
MOST_PROBES = 16
LEAST_CONVOLUTIONS = 3
"""Fewer layers say nothing about the range."""
NEAR, FAR = 0.1, 8.0
"""Of D by statistics: what is near enough in any case; how many times that of another range it must be to be far."""
FARTHER, ONE_SIDED = 3.0, 1.4
"""Without them: so many times as far, and so many times as much to one side of zero."""


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

    @classmethod
    def of_data(cls, arrays: Sequence[Array], axis: int) -> Scaling:
        """The range of images: least and largest value of every channel are the pixels 0 and 255."""
        others = tuple(a for a in range(4) if a != axis)
        low = np.min([a.min(others) for a in arrays], axis=0).astype(np.float64)
        width = np.maximum(np.max([a.max(others) for a in arrays], axis=0).astype(np.float64) - low, 1e-12)
        return cls("that of the data", tuple(-low / width), tuple(1 / width))

    @property
    def options(self) -> str:
        """What makes a folder of images so, as it is written on the command line."""
        factor = 255.0 if self.deviation[0] < 0.01 else 1.0
        sides = {"--mean": [factor * m for m in self.mean], "--std": [factor * d for d in self.deviation]}
        plain = {"--mean": 0.0, "--std": 1.0}
        listed = [f"{o} {','.join(f'{v:.4g}' for v in own)}" for o, own in sides.items() if own != [plain[o]]]
        return " ".join(["--scale 1"] * (factor > 1) + listed) or "--scale 1/255"

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


class Moments(NamedTuple):
    """Of the values of a tensor, by channel (axis 1)."""

    size: int
    mean: Array
    variance: Array


@dataclass(frozen=True)
class View:
    """What the probes of a model show of inputs. `known`: whether training left its statistics; `side`: how far from
    zero the means lie, in deviations."""

    divergence: float
    known: bool
    side: float


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
    found = [_distance(probe, moments(values[probe.tensor])) for probe in probes]
    return float(np.mean(found))


def _distance(probe: Probe, found: Moments) -> float:
    mean, variance = found.mean, found.variance + 1e-12
    if not np.isfinite(mean).all():
        return WORST
    centre, spread = (0.0, 1.0) if probe.mean is None or probe.variance is None else (probe.mean, probe.variance)
    stored = np.maximum(spread, 1e-12)
    each = ((variance + np.square(mean - centre)) / stored - 1 - np.log(variance / stored)) / 2
    return float(np.minimum(each, WORST).mean())


# ---- Of given inputs -------------------------------------------------------------------------------------------------


def moments(value: Array) -> Moments:
    """Mean and variance (float64) of an array over all axes but the second."""
    x = value.astype(np.float64)
    axes = tuple(a for a in range(x.ndim) if a != 1)
    return Moments(x.size // max(x.shape[1], 1), x.mean(axes), x.var(axes))


def joined(parts: Sequence[Moments]) -> Moments:
    """The moments of all values together."""
    weights = np.array([p.size for p in parts], np.float64) / sum(p.size for p in parts)
    mean = np.tensordot(weights, [p.mean for p in parts], 1)
    variance = np.tensordot(weights, [p.variance + np.square(p.mean - mean) for p in parts], 1)
    return Moments(sum(p.size for p in parts), mean, variance)


def view(probes: Sequence[Probe], runs: Sequence[Mapping[str, Moments]]) -> View:
    """What the probes show over all runs of the model."""
    found = [(probe, joined([run[probe.tensor] for run in runs])) for probe in probes]
    sides = [float(np.median(np.abs(m.mean) / np.sqrt(m.variance + 1e-12))) for _, m in found]
    distance = float(np.mean([_distance(p, m) for p, m in found]))
    return View(distance, probes[0].mean is not None, float(np.mean(sides)))


def is_near(given: View) -> bool:
    """Whether inputs are what the model was trained on, whatever other ranges show."""
    return given.known and given.divergence < NEAR


def is_far(given: View, other: View) -> bool:
    """Whether inputs are clearly not what the model was trained on, as the same in another range are much nearer."""
    if given.known:
        return given.divergence >= FAR * other.divergence and not is_near(given)
    return given.divergence >= FARTHER * other.divergence and given.side >= ONE_SIDED * other.side
