"""Layer-by-layer reconstruction: every linear operator is refitted to give what the original gave.

In graph order, with X the input in the pruned model so far and Y the original's output at the kept rows:

    min_{W, b}  || Y - W X - b ||^2 + lambda || W - W_cut ||^2

Where the result only goes into an addition (a residual connection) whose other operand T is computed already, the
target is (original sum) - T, so that the error of the other branch is made good too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.records import Analysis, Feed
from onnxprune.recover import sites
from onnxprune.recover.execution import Shelf, Walk, operands, reader, stored_tensors
from onnxprune.recover.moments import Moments
from onnxprune.recover.relax import Block, flat_regions, relax
from onnxprune.recover.sites import Site
from onnxprune.recover.solve import Solution, solve
from onnxprune.shapes import node_attributes

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Keep = Mapping[Dim, npt.NDArray[np.bool_]]

LARGEST = 4608
"""Inputs (channels x taps) up to which a whole Gram matrix is solved."""
COLUMNS_PER_INPUT = 60
LEAST_COLUMNS = 60_000
"""Columns gathered per layer: this many at least, and this many times the number of inputs; the rest is not looked at."""
BLOCK_BYTES = 1 << 29
"""Columns of one layer are kept in memory up to this, to look at them more than once."""
HELD_OUT = 5
"""Every fifth item is held out to choose the ridge."""


@dataclass
class Weights:
    """The weights of the pruned model while they are solved. `values`: changed ones by name; `added`: names that the
    model did not have; `rewired`: (output of the node, operand) -> name."""

    proto: onnx.ModelProto
    read: Callable[[str], Array]
    values: dict[str, Array] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    rewired: dict[tuple[str, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.users: dict[str, int] = {}
        for node in self.proto.graph.node:
            for name in operands(node):
                self.users[name] = self.users.get(name, 0) + 1
        self.stored = set(stored_tensors(self.proto))

    def get(self, name: str) -> Array:
        return self.values[name] if name in self.values else self.read(name)

    def constant(self, name: str) -> Array:
        return sites.value(self.proto, self.get, name)

    def put(self, node: onnx.NodeProto, operand: int, array: Array) -> None:
        """Give one operand of one node a new value; a weight that others read too is not touched but copied."""
        name = node.input[operand] if operand < len(node.input) else ""
        if not (name in self.stored and self.users.get(name) == 1) and name not in self.added:
            name = f"{node.output[0]}_operand{operand}_recovered"
            while len(node.input) <= operand:
                node.input.append("")
            node.input[operand] = name
            self.rewired[node.output[0], operand] = name
            self.added.add(name)
            self.stored.add(name)
        self.values[name] = array


@dataclass(frozen=True)
class LayerReport:
    """Held-out error of one layer as a share of its variance, for the plain cut and after reconstruction."""

    node: str
    before: float
    after: float
    ridge: float | None


def reconstruct(
    original: onnx.ModelProto,
    read_original: Callable[[str], Array],
    weights: Weights,
    analysis: Analysis,
    keep: Keep,
    feeds: Sequence[Feed],
    *,
    seed: int = 0,
    threads: int = 1,
    memory_bytes: int = 2 << 30,
    compensate: bool = True,
) -> list[LayerReport]:
    """Solve every linear operator of the pruned model in place (`weights`). `keep`: bool mask by cut atom."""
    found = list(find_sites(original, analysis))
    shelf = Shelf(memory_bytes)
    teacher = Walk(original, read_original, feeds, threads=threads, shelf=shelf)
    student = Walk(weights.proto, weights.get, feeds, threads=threads, shelf=shelf)
    task = _Task(teacher, student, weights, analysis, keep, np.random.default_rng(seed))
    latest = _latest_site(original, found)
    first = _first_touched(original, found, analysis, keep)
    reports = []
    for index, site in enumerate(found):
        if index not in first:
            continue
        ready = compensate and site.other is not None and latest.get(site.other, -1) < index
        solution = task.solve(site, ready)
        if solution is not None:
            name = analysis.nodes[site.node]
            reports.append(LayerReport(name, solution.before, solution.after, solution.ridge))
            log.info(
                "%d/%d %s: error %.4f -> %.4f (ridge %s)",
                index + 1,
                len(found),
                name,
                solution.before,
                solution.after,
                solution.ridge,
            )
    return reports


def find_sites(proto: onnx.ModelProto, analysis: Analysis) -> Iterable[Site]:
    tensors = stored_tensors(proto)
    types = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    known = {n for n, t in tensors.items() if t.data_type in types}
    return (
        s
        for s in sites.find(proto, known, lambda n: True)
        if s.weight in analysis.tensors and s.out in analysis.tensors
    )


def _latest_site(proto: onnx.ModelProto, found: Sequence[Site]) -> dict[str, int]:
    """For every tensor the last site among its ancestors (-1 where there is none)."""
    number = {s.node: i for i, s in enumerate(found)}
    latest: dict[str, int] = {}
    for index, node in enumerate(proto.graph.node):
        value = max([latest.get(n, -1) for n in operands(node)] + [number.get(index, -1)])
        latest.update((o, value) for o in node.output)
    return latest


def _first_touched(proto: onnx.ModelProto, found: Sequence[Site], analysis: Analysis, keep: Keep) -> set[int]:
    """The sites whose input is cut or comes, somewhere above, from an operator that sums over a cut axis."""
    number = {s.node: i for i, s in enumerate(found)}
    cutting = {c.node for c in analysis.contractions if any(a in keep for d in c.dims for a in dims.atoms(d))}
    changed: set[str] = set()
    touched: set[int] = set()
    for index, node in enumerate(proto.graph.node):
        if index in cutting or any(n in changed for n in operands(node)):
            changed.update(node.output)
            if index in number:
                touched.add(number[index])
    return touched


@dataclass
class _Task:
    teacher: Walk
    student: Walk
    weights: Weights
    analysis: Analysis
    keep: Keep
    random: np.random.Generator

    def __post_init__(self) -> None:
        self.nodes = {o: n for n in self.weights.proto.graph.node for o in n.output}
        self.flat = flat_regions(self.teacher.proto)

    def solve(self, site: Site, compensated: bool) -> Solution | None:
        original = self.teacher.proto.graph.node
        node = self.nodes[original[site.node].output[0]]
        site = replace(site, attributes=node_attributes(node))
        weight = self.weights.constant(node.input[1])
        if weight.ndim < 2 or (site.axis == -1 and weight.ndim != 2):
            return None
        effective, bias, scale = self.effective(site, node, weight)
        if effective.shape[2] > LARGEST:
            return None
        target = site.total if compensated and site.total else site.out
        self.teacher.compute([target])
        self.student.compute([site.x, *([site.other] if compensated and site.other else [])])
        train, held, blocks = self.gather(site, node, weight.shape[2:], target, compensated)
        solution = solve(train, held, effective, bias, fit_bias=site.bias is not None)
        if blocks is not None and solution.ridge:
            solution = relax(blocks, train, held, effective, solution)
        if solution.ridge is not None:
            self.write(site, node, weight, solution, scale)
        return solution

    def effective(self, site: Site, node: onnx.NodeProto, weight: Array) -> tuple[Float, Float, Float]:
        """W (groups, out, d), b (groups, out) and the scale (groups, out) of a following BatchNormalization."""
        matrix = sites.to_matrix(site, weight)
        shape = matrix.shape[:2]
        bias = np.zeros(shape)
        scale = np.ones(shape)
        if site.op != "MatMul" and len(node.input) > 2 and node.input[2]:
            bias = (
                np.broadcast_to(np.asarray(self.weights.constant(node.input[2]), np.float64).reshape(-1), (bias.size,))
                .reshape(shape)
                .copy()
            )
        if site.op == "MatMul" and site.bias_node is not None:
            follower = self.nodes[site.out]
            bias = (
                np.broadcast_to(
                    self.weights.constant(follower.input[site.bias]).astype(np.float64).reshape(-1), (bias.size,)
                )
                .reshape(shape)
                .copy()
            )
        if site.norm is not None:
            follower = self.nodes[site.out]
            gamma, beta, mean, variance = (
                self.weights.constant(n).astype(np.float64).reshape(shape) for n in follower.input[1:5]
            )
            epsilon = next((a.f for a in follower.attribute if a.name == "epsilon"), 1e-5)
            scale = gamma / np.sqrt(variance + epsilon)
            bias = (bias - mean) * scale + beta
            matrix = matrix * scale[:, :, None]
        return matrix, bias, scale

    def write(self, site: Site, node: onnx.NodeProto, weight: Array, solution: Solution, scale: Float) -> None:
        usable = np.abs(scale) > 1e-12
        matrix = solution.weight / np.where(usable, scale, 1)[:, :, None]
        bias = solution.bias
        if not usable.all():
            old = sites.to_matrix(site, weight)
            matrix = np.where(usable[:, :, None], matrix, old)
        self.weights.put(node, 1, sites.from_matrix(site, matrix, weight))
        if site.bias is None:
            return
        if site.norm is not None:
            follower = self.nodes[site.out]
            _, offset, _ = self.effective(site, node, self.weights.constant(node.input[1]))
            beta = self.weights.constant(follower.input[2])
            self.weights.put(follower, 2, (beta.reshape(-1) + (bias - offset).reshape(-1)).astype(beta.dtype))
            return
        holder = self.nodes[site.out] if site.op == "MatMul" else node
        has_bias = site.bias < len(holder.input) and holder.input[site.bias]
        shape = self.weights.constant(holder.input[site.bias]).shape if has_bias else (bias.size,)
        shape = shape if int(np.prod(shape)) == bias.size else (bias.size,)
        self.weights.put(holder, site.bias, bias.reshape(shape).astype(weight.dtype))

    def kept(self, name: str, axis: int) -> npt.NDArray[np.int64] | None:
        """Kept indices of the channel axis of a tensor of the original, None for all."""
        found = self.analysis.tensors[name]
        mask = dims.mask(found[axis], self.keep)
        return None if mask.all() else np.flatnonzero(mask)

    def gather(
        self, site: Site, node: onnx.NodeProto, kernel: tuple[int, ...], target: str, compensated: bool
    ) -> tuple[Moments, Moments, list[Block] | None]:
        rows = self.kept(target, site.axis)
        sums: tuple[Moments, Moments] | None = None
        budget = self.budget(site, target)
        flat = self.flat.get(target) if site.bias is not None else None
        blocks: list[Block] | None = [] if flat else None
        kept_bytes = item = 0
        for b in range(self.teacher.batches):
            y = self.teacher.get(target, b)
            y = np.asarray(y if rows is None else np.take(y, rows, site.axis), np.float32)
            other = np.asarray(self.student.get(site.other, b), np.float32) if compensated and site.other else None
            positions = self.sample(site, y.shape, budget)
            x = sites.columns(site, self.student.get(site.x, b), kernel, positions)
            y = sites.targets(site, y, positions)
            if other is not None:
                other = sites.targets(site, other, positions)
                y = y - other
            if sums is None:
                centre = x.mean((2, 3), dtype=np.float64), y.mean((2, 3), dtype=np.float64)
                sums = Moments.about(*centre), Moments.about(*centre)
            held = held_out(item, x.shape[2], x.shape[3], self.teacher.batches)
            item += x.shape[2]
            for moments, chosen in zip(sums, (~held, held), strict=True):
                columns = _pick(x, chosen), _pick(y, chosen)
                moments.add(*columns)
                if blocks is not None and flat is not None:
                    shift = np.float32(0) if other is None else _pick(other, chosen)
                    blocks.append(Block(*columns, flat[0] - shift, flat[1] - shift, moments is sums[1]))
                    kept_bytes += columns[0].nbytes + 2 * columns[1].nbytes
            if kept_bytes > BLOCK_BYTES:
                blocks = None
        if sums is None:
            raise ValueError("no batches")
        return *sums, blocks

    def budget(self, site: Site, target: str) -> float:
        """The share of the positions to look at."""
        shapes = [self.teacher.get(target, b).shape for b in range(self.teacher.batches)]
        total = sum(sites.position_count(site, s) * (s[0] if len(s) > 1 else 1) for s in shapes)
        inputs = int(
            np.prod(
                self.weights.constant(self.nodes[self.teacher.proto.graph.node[site.node].output[0]].input[1]).shape[1:]
            )
        )
        return max(LEAST_COLUMNS, COLUMNS_PER_INPUT * inputs) / max(total, 1)

    def sample(self, site: Site, shape: tuple[int, ...], share: float) -> npt.NDArray[np.int64] | None:
        count = sites.position_count(site, shape)
        if share >= 1 or count == 1:
            return None
        return np.sort(self.random.choice(count, max(1, round(count * share)), replace=False))


def held_out(first: int, items: int, positions: int, batches: int) -> npt.NDArray[np.bool_]:
    """Bool (items, positions): whole items where there are enough of them, else blocks of positions."""
    if batches == 1 and items < HELD_OUT:
        block = np.arange(positions) * 4 * HELD_OUT // max(positions, 1) % HELD_OUT == HELD_OUT - 1
        return np.broadcast_to(block, (items, positions))
    every = min(HELD_OUT, max(2, batches)) if items < HELD_OUT else HELD_OUT
    chosen = (np.arange(first, first + items) % every) == every - 1
    return np.broadcast_to(chosen[:, None], (items, positions))


def _pick(columns: Array, chosen: npt.NDArray[np.bool_]) -> Array:
    """(groups, d, columns) of the chosen (items, positions)."""
    return columns[:, :, chosen]


def weights_of(
    proto: onnx.ModelProto, read: Callable[[str], Array | None], edits: Mapping[str, Callable[[Array], Array]]
) -> Weights:
    """The weights of a model that was just cut: stored arrays with the edits of the cut."""
    base = reader(proto, read, {})
    return Weights(proto, lambda name: edits[name](base(name)) if name in edits else base(name))
