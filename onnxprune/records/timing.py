"""Fast widths, measured latencies, and the model that predicts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
