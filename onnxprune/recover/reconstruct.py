"""Layer-by-layer reconstruction: every linear operator is refitted to give what the original gave.

In graph order, with X the input in the pruned model so far and Y the original's output at the kept rows:

    min_{W, b}  || Y - W X - b ||^2 + lambda || W - W_cut ||^2

Where the result only goes into an addition (a residual connection) whose other operand T is of the same shape and
computed already, the target is (original sum) - T, so that the error of the other branch is made good too. Elsewhere,
but where an activation hides a part of it (`relax`), every output is given the spread of its target back, which least
squares shrinks (`Equations.widening`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import dims
from onnxprune.bodies import inner_nodes, operands
from onnxprune.dequantized import GRIDS
from onnxprune.dims import Dim
from onnxprune.records import Analysis, Feed
from onnxprune.recover import recurrent, sites, statistics
from onnxprune.recover.execution import Shelf, Walk
from onnxprune.recover.layers import Weights
from onnxprune.recover.sites import Site
from onnxprune.recover.task import Task
from onnxprune.shapes import stored_tensors

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Keep = Mapping[Dim, npt.NDArray[np.bool_]]
Step = Site | statistics.Norm | recurrent.Cell

BLOCK_SHARE = 0.5
"""Columns of one layer are kept up to this share of the memory, to look at them more than once."""


@dataclass(frozen=True)
class LayerReport:
    """Held-out error of one layer as a share of its variance, for the plain cut and after reconstruction. `number`: of
    its node in the analysis."""

    number: int
    node: str
    before: float
    after: float
    ridge: float | None


@dataclass(frozen=True)
class Options:
    """`memory_bytes`: activations held in memory. `relaxed`: look at the columns again for what the activation behind
    hides (`relax`). `fits`: least squares; else statistics alone. `own`: batches that are not
    made from others, None for all. `steps_first`: the first axis of the inputs counts the steps of sequences."""

    seed: int = 0
    threads: int = 1
    memory_bytes: int = 1 << 30
    relaxed: bool = True
    fits: bool = True
    own: int | None = None
    steps_first: bool = False


@dataclass(frozen=True)
class Cutting:
    """What was cut: `proto` (the original, or that without some residual blocks), its analysis, and the bool mask of
    what is kept by cut atom."""

    proto: onnx.ModelProto
    analysis: Analysis
    keep: Keep


def reconstruct(
    original: onnx.ModelProto,
    read_original: Callable[[str], Array],
    cutting: Cutting,
    weights: Weights,
    feeds: Sequence[Feed],
    options: Options,
) -> list[LayerReport]:
    """Solve every linear operator of the pruned model in place (`weights`)."""
    found = list(find_sites(cutting.proto, cutting.analysis))
    kept = int(options.memory_bytes * BLOCK_SHARE)
    with contextlib.closing(Shelf(options.memory_bytes - kept)) as shelf:
        shared: dict[str, Any] = {
            "threads": options.threads,
            "shelf": shelf,
            "own": options.own,
            "steps_first": options.steps_first,
        }
        teacher = Walk(original, read_original, feeds, **shared)
        student = Walk(weights.proto, weights.get, feeds, **shared)
        random = np.random.default_rng(options.seed)
        task = Task(
            teacher,
            student,
            cutting.proto,
            weights,
            cutting.analysis,
            cutting.keep,
            random,
            options.relaxed,
            kept,
            options.fits,
        )
        return list(_solve_all(task, found))


def _solve_all(task: Task, found: Sequence[Site]) -> Iterator[LayerReport]:
    touched = _touched(task)
    inside = {s.norm for s in found if s.norm is not None}
    steps: list[Step] = [
        *found,
        *statistics.norms(task.proto, task.weights.stored, inside, lambda n: len(task.analysis.tensors.get(n, ()))),
        *recurrent.cells(task.proto, task.weights.stored),
    ]
    latest = _latest_step(task.proto, {s.node for s in steps})
    left = (s for s in steps if s.node in touched and s.out in task.weights.nodes)
    for step in sorted(left, key=lambda s: s.node):
        if isinstance(step, statistics.Norm):
            solution = task.match_norm(step)
        elif isinstance(step, recurrent.Cell):
            solution = task.solve_cell(step)
        else:
            ready = step.other is not None and latest.get(step.other, -1) < step.node
            solution = task.solve(step, ready) if task.fits else task.match(step)
        if solution is None:
            continue
        number = task.analysis.main[step.node]
        report = LayerReport(number, task.analysis.nodes[number], solution.before, solution.after, solution.ridge)
        log.info("%s: error %.4f -> %.4f", report.node, report.before, report.after)
        yield report


def unfitted(found: Analysis, keep: Keep, reports: Iterable[LayerReport]) -> list[str]:
    """The nodes that have a weight, lost inputs and were not refitted, by name, in graph order."""
    refitted = {report.number for report in reports}
    lost = {c.node for c in found.contractions if c.weighted and not c.average and _is_cut(keep, c.dims)}
    return [found.nodes[number] for number in sorted(lost - refitted)]


def _is_cut(keep: Keep, found: Iterable[Dim]) -> bool:
    return any(a in keep for d in found for a in dims.atoms(d))


def find_sites(proto: onnx.ModelProto, analysis: Analysis) -> Iterable[Site]:
    """The linear operators of the main graph that the analysis knows, in graph order."""
    tensors = stored_tensors(proto)
    types = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    known = {n for n, t in tensors.items() if t.data_type in types}
    integers = {n for n, t in tensors.items() if t.data_type in GRIDS}

    def shape(name: str) -> tuple[int, ...]:
        return tuple(tensors[name].dims) if name in tensors else tuple(d.size for d in analysis.tensors.get(name, ()))

    return (
        s
        for s in sites.find(proto, known | integers, lambda n: n not in integers, shape)
        if s.weight in analysis.tensors and s.out in analysis.tensors
    )


def _latest_step(proto: onnx.ModelProto, steps: set[int]) -> dict[str, int]:
    """For every tensor the last of the nodes `steps` among its ancestors (-1 where there is none)."""
    latest: dict[str, int] = {}
    for index, node in enumerate(proto.graph.node):
        value = max([latest.get(n, -1) for n in operands(node)] + [index if index in steps else -1])
        latest.update((o, value) for o in node.output)
    return latest


def _touched(task: Task) -> set[int]:
    """The nodes that something changes for: themselves or somewhere above there is one that sums or averages over a cut
    axis, or that reads something else in the original."""
    changed: set[str] = set()
    touched: set[int] = set()
    found = task.analysis
    cutting = {found.holders[c.node] for c in found.contractions if _is_cut(task.keep, c.dims)}
    for index, node in enumerate(task.proto.graph.node):
        averaging = (n for n in (node, *inner_nodes(node)) if n.op_type in statistics.AVERAGING)
        averaged = any(_is_cut(task.keep, found.tensors.get(n.input[0], ())) for n in averaging)
        other = list(node.input) != list(task.teacher.node_of(node).input)
        if index in cutting or averaged or other or any(n in changed for n in operands(node)):
            changed.update(node.output)
            touched.add(index)
    return touched
