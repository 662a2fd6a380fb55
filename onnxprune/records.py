"""Frozen records handed from stage to stage. Data only: a record never computes, reads or writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnxprune.dims import Dim

Role = Literal["produced", "contracted", "carried"]
Status = Literal["pruned", "kept", "frozen"]
FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
Feed = dict[str, npt.NDArray[np.generic]]
NO_NAMES = ("", "?")
"""What exporters write for an axis without a name: two such axes are not one."""


@dataclass(frozen=True)
class Refusal:
    """Why a dimension cannot shrink: the node that said so, its operator, the reason in words."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Occurrence:
    """One place where a group lies: `axis` of the weight `tensor`, in the given role."""

    tensor: str
    axis: int
    role: Role


@dataclass(frozen=True)
class Group:
    """One independent dimension of the model: `size` channels (heads, hidden units) that fall together.

    `dim` is the resolved atom; `refusal` is None where the group may be pruned; `renormalised` says that an
    operator averages over the group or compares its indices; `nodes` are the operators that produce or consume it.
    `least`: so many indices must stay. `parts`: operators choose among the indices, and each is a part of the model
    with a matrix of its own (an expert of a mixture).
    """

    id: str
    size: int
    dim: Dim
    occurrences: tuple[Occurrence, ...]
    nodes: tuple[str, ...]
    refusal: Refusal | None
    renormalised: bool
    least: int = 1
    parts: bool = False


@dataclass(frozen=True)
class Comparison:
    """An operator chooses among the indices of `dim` or weighs them against each other, and needs `least` of them.

    `refusal` is what it says where they cannot go.
    """

    dim: Dim
    refusal: Refusal
    least: int


@dataclass(frozen=True)
class Contraction:
    """A node sums (or, `average`, averages, normalises or compares) over the axes `dims` of its operand `operand`.

    `gather`: to see only a part, the operator must be given only that part; zeros in the rest would change the result.
    `weighted`: a weight takes part in the sum.
    """

    node: int
    operand: int
    axes: tuple[int, ...]
    dims: tuple[Dim, ...]
    average: bool
    gather: bool
    weighted: bool


@dataclass(frozen=True)
class SizeUse:
    """A place outside the weights that states sizes: attribute `where` (str) or operand `where` (int) of node `node`.

    Element k must be the size of `dims[k]`, or stays as it is where `dims[k]` is None.
    """

    node: int
    where: str | int
    dims: tuple[Dim | None, ...]


@dataclass(frozen=True)
class Pick:
    """Operand `operand` of node `node` lists indices of the dimension `source`; what they pick is `result`."""

    node: int
    operand: int
    source: Dim
    result: Dim


@dataclass(frozen=True)
class Owned:
    """What only one operand of a node needs: the numbers of nodes, and the names of tensors, stored or made by them."""

    nodes: frozenset[int]
    tensors: frozenset[str]


@dataclass(frozen=True)
class Stack:
    """Operand i of the Concat number `node` is index i of `dim`, and falls with `owned[i]`."""

    node: int
    dim: Dim
    owned: tuple[Owned, ...]


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one node: the product of the sizes of `dims`."""

    node: int
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class FastWidths:
    """For each kind of layer the step in which its width should rise: what lies within a step costs the same.

    `convolution`: of kernels above one position; `pointwise`: of one position; `grouped`: per group; `product`: Gemm
    and MatMul. `measured`: on this machine, and not taken from the table.
    """

    convolution: int
    pointwise: int
    depthwise: int
    grouped: int
    product: int
    measured: bool = False


@dataclass(frozen=True)
class Staircases:
    """`widths`: what to round to. `milliseconds`: latency by width, by kind of layer. `unclear`: kinds whose latencies
    gave no clear answer, and that have the values of the table.
    """

    widths: FastWidths
    milliseconds: Mapping[str, Mapping[int, float]]
    unclear: tuple[str, ...]


@dataclass(frozen=True)
class WidthCalibration:
    """What was measured, `key`: for which processor, runtime, provider and threads; `path`: where it is remembered."""

    key: Mapping[str, str | int]
    staircases: Staircases
    path: str | None


@dataclass(frozen=True)
class LatencySide:
    """Latency in milliseconds of one model: percentiles over the measured runs; `samples` in order of measurement."""

    p50: float
    p90: float
    p99: float
    min: float
    samples: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Latency:
    """Interleaved comparison of two models. `speedup` is the median of the paired ratios before/after.

    `ci95` is its bootstrap interval; `noise_floor` the interval of the same measure of the first model against
    itself; `significant` is False where `ci95` holds 1 or meets the noise floor, or where the medians of all runs say
    the opposite. `nodes_per_provider` counts nodes of the second model; `inputs` are the shapes it was fed.
    """

    provider: str
    batch: int
    threads: int
    before: LatencySide
    after: LatencySide
    speedup: float
    ci95: tuple[float, float]
    noise_floor: tuple[float, float]
    significant: bool
    pairs: int
    nodes_per_provider: dict[str, int]
    warnings: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    runtime: str = ""
    processor: str = ""


@dataclass(frozen=True)
class KernelTime:
    """Latency in milliseconds of one node of the optimised graph: its name there, and its operator."""

    name: str
    op: str
    ms: float


@dataclass(frozen=True)
class Profile:
    """Latency of a model in milliseconds, `whole` and by node; no `kernels` where nodes cannot be timed."""

    whole: float
    kernels: tuple[KernelTime, ...]


@dataclass(frozen=True)
class NodeLatency:
    """Latency in milliseconds of node number `node` at `sizes` of it, both ascending.

    The size of a node is its multiply-accumulates, or the elements of its output where it has none.
    """

    node: int
    sizes: tuple[int, ...]
    ms: tuple[float, ...]


@dataclass(frozen=True)
class LatencyModel:
    """Latency of a model in milliseconds: `factor` times the sum over its nodes, each by its size, plus `overhead`.

    `ratios`: measured latency of the whole over that sum, at each of the `levels` (shares of every group kept).
    """

    nodes: tuple[NodeLatency, ...]
    factor: float
    overhead: float
    levels: tuple[float, ...]
    ratios: tuple[float, ...]


@dataclass(frozen=True)
class Attempt:
    """One candidate for a latency target: shares of the original's latency, predicted and measured."""

    aim: float
    predicted: float
    measured: float


@dataclass(frozen=True)
class Pursuit:
    """How a latency target was met. `goal`: share of the original's latency; `reached`: that of the candidate taken."""

    goal: float
    reached: float
    attempts: tuple[Attempt, ...]
    model: LatencyModel
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """What must go together. `groups` are in graph order, frozen ones included.

    `weights`: the dimensions of every stored weight, by name (a Constant node is named by its output); `tensors`:
    those of every tensor; `contractions`, `uses`, `picks` and `work` index `nodes`, the names of the walked nodes.
    `places`: the tensors whose elements are places on a dimension (results of TopK, ArgMax), and that dimension.
    `stacks`: the Concats whose operands are the indices of a prunable dimension. `main`: for every node of
    the main graph its number among `nodes`; `holders`: for every one of `nodes` where it lies in the main graph, or the
    node whose body it is in.
    """

    groups: tuple[Group, ...]
    weights: Mapping[str, tuple[Dim, ...]]
    tensors: Mapping[str, tuple[Dim, ...]]
    contractions: tuple[Contraction, ...]
    uses: tuple[SizeUse, ...]
    picks: tuple[Pick, ...]
    work: tuple[Work, ...]
    nodes: tuple[str, ...]
    main: tuple[int, ...]
    holders: tuple[int, ...]
    places: Mapping[str, Dim] = field(default_factory=dict)
    stacks: tuple[Stack, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Which indices of each group stay: int64, ascending, by group id. Groups that keep all are absent.

    `blocks`: the residual blocks (names of their sums) taken out before; the groups are those of what is left.
    `note`: what was meant to be measured and could not.
    """

    kept: Mapping[str, IndexArray]
    blocks: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Block:
    """A residual block y = branch(kept) + kept of the main graph: node number `node`, called `name`, is the sum.

    `nodes`: the numbers of the nodes that only the branch needs; `weights`: the stored or constant tensors that only
    they read; `parameters`: the float elements of those.
    """

    name: str
    node: int
    kept: str
    branch: str
    nodes: tuple[int, ...]
    weights: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class RemovedBlock:
    """A block taken out. `damage`: relative error of the outputs without it and the ones before; None: not measured."""

    block: Block
    damage: float | None


@dataclass(frozen=True)
class Allocation:
    """How many indices of each group stay, by group id."""

    counts: Mapping[str, int]


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
class Removal:
    """The indices of a group in the order in which they go, and the damage of removing the first n of them, (size,)."""

    order: IndexArray
    damage: FloatArray


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
class Totals:
    """Size of a model: nodes, stored float parameters, bytes on disk, multiply-accumulates of one run."""

    nodes: int
    parameters: int
    bytes: int
    macs: int


@dataclass(frozen=True)
class Proof:
    """What verification found. `quality`: of the result; `cut_quality`: of the cut alone where that was recovered;
    `note`: what was meant to be done and could not; `latency`: of the result, where it was asked for."""

    exactness: Exactness
    quality: Quality
    cut_quality: Quality | None = None
    layers: tuple[LayerQuality, ...] = ()
    metric: MetricResult | None = None
    note: str = ""
    latency: Latency | None = None
    distillation: Distillation | None = None


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
    """Everything a run found and did; every output format is written from this. `seconds` are wall-clock, by stage."""

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
