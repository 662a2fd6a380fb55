"""Inputs, and how close a result is to the original on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnxprune.records.timing import Latency


@dataclass(frozen=True)
class Range:
    """Least, largest and mean value of an input."""

    low: float
    high: float
    mean: float


@dataclass(frozen=True)
class Inputs:
    """What was fitted to and measured on. `words`: where it comes from; `rows`: of which `held_out` for measuring only;
    `ranges`: by input name; `guesses`: how synthetic inputs were made, in words; `remarks`: what looks wrong.
    """

    kind: Literal["calibration", "synthetic"]
    words: str
    rows: int
    held_out: int
    ranges: Mapping[str, Range]
    guesses: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exactness:
    """Largest difference between the pruned model and the masked original.

    `max_abs`: in units of the output; `max_rel`: over the largest absolute output; `runs`: input sizes compared;
    `shown`: the masked original differs from the original, so that a wrong cut would have been seen.
    """

    max_abs: float
    max_rel: float
    passed: bool
    runs: int
    shown: bool = True


@dataclass(frozen=True)
class OutputQuality:
    """Closeness of one output to the original's: cosine, |error| / |original|, signal over noise in dB (capped at 120),
    and the share of equal arg max over the last axis (axis 1 of a 4-D output), None for outputs without classes.
    """

    cosine: float
    relative_error: float
    sqnr_db: float
    top1_agreement: float | None


@dataclass(frozen=True)
class Quality:
    """Quality of every output, and what it was measured on: "calibration" or "synthetic" inputs."""

    outputs: Mapping[str, OutputQuality]
    data: Literal["calibration", "synthetic"]
    samples: int


@dataclass(frozen=True)
class LayerQuality:
    """Error of one refitted layer as a share of its variance: as it was cut, and refitted. On inputs that its own fit
    left out; the choice of channels and the layers before have seen them, so it flatters."""

    node: str
    before: float
    after: float


@dataclass(frozen=True)
class Distillation:
    """Loss on inputs held out, before and after: summed over the outputs, each as a share of the loss of always giving
    its mean."""

    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the distilled weights are those of the result."""
        return self.after < self.before


@dataclass(frozen=True)
class Measured:
    """A value on a sample, and its 95% interval; None where there is no sound one."""

    value: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class MetricResult:
    """A metric (higher is better) of the original, of the cut alone where something was recovered, and of the result.

    `drop`: original less result, with the interval of that difference on the same rows. `rows`: how many were measured
    on; `data`: whether those are held out of the calibration data or from a file of their own. No row was fitted to.
    `labels`: how many labels count, None where the metric is not of class numbers.
    """

    name: str
    data: Literal["calibration", "evaluation"]
    rows: int
    original: Measured
    cut: Measured | None
    final: Measured
    drop: Measured
    labels: int | None = None


@dataclass(frozen=True)
class Round:
    """One round of the search for the smallest model within a budget: the share kept of the MACs (or of what the target
    counts), the metric, how much it fell, and whether that is within the budget."""

    share: float
    value: float
    drop: float
    within: bool


@dataclass(frozen=True)
class GroupCurve:
    """Damage at the outputs when `removed` indices of a group of `size` go and its consumers are refitted.

    0: the same outputs; 1: as wrong as their mean. Not `refitted`: no layer that is refitted reads the group, and the
    damage is that of the cut alone.
    """

    id: str
    words: str
    size: int
    macs_share: float
    removed: tuple[int, ...]
    damage: tuple[float, ...]
    refitted: bool = True


@dataclass(frozen=True)
class Sensitivity:
    """The curves of the prunable groups of a model in graph order, measured on `rows` rows of real inputs at `levels`
    (shares removed)."""

    model: str
    rows: int
    seed: int
    criterion: str
    levels: tuple[float, ...]
    groups: tuple[GroupCurve, ...]


@dataclass(frozen=True)
class Proof:
    """What verification found. `quality`: of the result; `cut_quality`: of the cut alone where that was recovered;
    `note`: what was meant to be done and could not; `latency`: of the result, where it was asked for; `fused`: how many
    nodes were taken into others."""

    exactness: Exactness
    quality: Quality
    cut_quality: Quality | None = None
    layers: tuple[LayerQuality, ...] = ()
    metric: MetricResult | None = None
    note: str = ""
    latency: Latency | None = None
    distillation: Distillation | None = None
    fused: int = 0
