"""What users are told of one run, of several models, and of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnxprune.records.graph import Group, Refusal, Role
from onnxprune.records.quality import (
    Distillation,
    Exactness,
    Inputs,
    LayerQuality,
    Measured,
    MetricResult,
    Quality,
    Round,
)
from onnxprune.records.timing import Latency, Pursuit

Status = Literal["pruned", "kept", "frozen"]


@dataclass(frozen=True)
class Totals:
    """Size of a model: nodes, stored float parameters, bytes on disk, multiply-accumulates of one run."""

    nodes: int
    parameters: int
    bytes: int
    macs: int


@dataclass(frozen=True)
class Tie:
    """The group lies on `axis` of the weight `tensor`, which the node `operator` of type `kind` works with.

    `label` is a short name of the place, for people. `operator` and `kind` are "" where no node reads the weight.
    """

    operator: str
    kind: str
    tensor: str
    axis: int
    role: Role
    label: str


@dataclass(frozen=True)
class GroupReport:
    """What happened to one group. Shares are of the original model's MACs and parameters.

    `words`: what the group is and where ("12 heads of 64 in encoder.layer.3.attention"); `ties`: what falls with it.
    """

    group: Group
    kept: int
    status: Status
    reason: str
    macs_share: float
    parameters_share: float
    words: str = ""
    ties: tuple[Tie, ...] = ()


@dataclass(frozen=True)
class RefusalReport:
    """A refusal with the number of groups it freezes, and the shares of MACs and parameters that hold one of them."""

    refusal: Refusal
    groups: int
    macs_share: float
    parameters_share: float


@dataclass(frozen=True)
class Reach:
    """How much of a model can be pruned at all, as shares of its parameters and MACs.

    `parameters`, `macs`: in weights and nodes with a prunable group. `parameters_at_half`, `macs_at_half`: what goes
    when half of every group is removed, before rounding (of heads and their width, the heads alone).
    """

    parameters: float
    macs: float
    parameters_at_half: float
    macs_at_half: float


@dataclass(frozen=True)
class Report:
    """Everything a run found and did; every output format is written from this. `seconds` are wall-clock, by stage.
    `fused`: how many nodes were taken into others after the cut."""

    model: str
    output: str | None
    seed: int
    options: Mapping[str, object]
    before: Totals
    after: Totals | None
    groups: tuple[GroupReport, ...]
    refusals: tuple[RefusalReport, ...]
    exactness: Exactness | None
    quality: Quality | None
    latency: Latency | None
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    reach: Reach | None = None
    inputs: Inputs | None = None
    cut_quality: Quality | None = None
    layers: tuple[LayerQuality, ...] = ()
    metric: MetricResult | None = None
    rounds: tuple[Round, ...] = ()
    pursuit: Pursuit | None = None
    distillation: Distillation | None = None
    fused: int = 0


@dataclass(frozen=True)
class Pruned:
    """What became of one of several models: its report, or the error that ended it and the exit code of that."""

    model: str
    report: Report | None
    error: str | None = None
    exit_code: int = 0


@dataclass(frozen=True)
class Trial:
    """One point of a search: how much goes ("ratio=0.3") or stays ("macs=0.5"), and by which criterion."""

    amount: str
    criterion: str


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial; where `error` says why there is no model, the rest is empty.

    `key`: hash of the model, the data and the options. `metric`: what `quality` and `original` (of the model as it was
    given) are values of, on `rows` rows that nothing was fitted to. `seconds`: the time the trial took.
    """

    trial: Trial
    key: str
    error: str | None = None
    exit_code: int = 0
    metric: str = ""
    quality: Measured | None = None
    original: Measured | None = None
    rows: int = 0
    after: Totals | None = None
    seconds: float = 0.0
    plan: str | None = None
    latency: Latency | None = None


@dataclass(frozen=True)
class SearchReport:
    """All trials of a search, in the order they were asked for; `front`: the numbers of those that no other beats.

    `folder`: where results and plans lie; `reused`: how many trials an earlier run had finished.
    """

    model: str
    folder: str
    seed: int
    options: Mapping[str, object]
    before: Totals
    results: tuple[TrialResult, ...]
    front: tuple[int, ...]
    reused: int
