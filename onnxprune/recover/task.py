"""One operator at a time: what it sees in the original and in the pruned model so far, and its new weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxprune import dims
from onnxprune.criteria import obs
from onnxprune.dims import Dim
from onnxprune.holdout import HELD_OUT
from onnxprune.records import Analysis
from onnxprune.recover import large, recurrent, sites, statistics
from onnxprune.recover.execution import Walk
from onnxprune.recover.layers import Weights
from onnxprune.recover.moments import Moments
from onnxprune.recover.relax import Block, Side, flat_regions, relax
from onnxprune.recover.sites import Site
from onnxprune.recover.solve import Solution, requantized, solve
from onnxprune.shapes import node_attributes, stored_tensors

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Keep = Mapping[Dim, npt.NDArray[np.bool_]]

LARGEST = 4608
"""Inputs (channels x taps) up to which a whole Gram matrix is solved; beyond, see `large`."""
COLUMNS_PER_INPUT = 20
LEAST_COLUMNS = 60_000
"""Columns gathered per layer: this many at least, and this many times the number of inputs; no more are looked at."""
FEW_COLUMNS = 3
"""With fewer columns than this many times the inputs, a mean over space is looked at before the mean is taken."""
POSITIONS = 50_000


@dataclass
class Task:
    """One pass: the original (`teacher`) and the pruned model so far (`student`) side by side, and what is solved.
    `proto` is the model that was cut.

    `fits`: least squares; else statistics alone. `relaxed`: look at the columns again for what the activation behind
    hides (`relax`), where they take no more than `block_bytes`.
    """

    teacher: Walk
    student: Walk
    proto: onnx.ModelProto
    weights: Weights
    analysis: Analysis
    keep: Keep
    random: np.random.Generator
    relaxed: bool = False
    block_bytes: int = 1 << 29
    fits: bool = True

    def __post_init__(self) -> None:
        self.flat = flat_regions(self.teacher.proto)

    def solve(self, site: Site, compensated: bool) -> Solution | None:
        """Solve one operator and store its weights; None where that cannot be done.

        `compensated`: its target is what the addition behind it gave, less the other operand as it is now, where both
        operands are of one shape.
        """
        node = self.weights.nodes[self.proto.graph.node[site.node].output[0]]
        site = replace(site, attributes=node_attributes(node))
        weight = self.weights.constant(node.input[1])
        effective, bias, scale = self.weights.effective(site, node, weight)
        self.student.compute([site.x, *([site.other] if compensated and site.other else [])])
        compensated = compensated and self.is_plain_sum(site, weight.shape[2:], bias.size)
        target = site.total if compensated and site.total else site.out
        is_large = effective.shape[2] > LARGEST
        self.teacher.compute([target, *([self.original_x(site)] if is_large else [])])
        if not self.corresponds(target):
            return None
        if is_large:
            solution = self.solve_large(site, weight.shape[2:], target, compensated, (effective, bias, scale))
        else:
            solution = self.solve_small(site, weight.shape[2:], target, compensated, (effective, bias, scale))
        if solution.ridge is not None:
            self.weights.write(site, node, weight, solution.weight, solution.bias, scale)
        return solution

    def is_plain_sum(self, site: Site, kernel: tuple[int, ...], outputs: int) -> bool:
        """Whether the addition behind an operator has operands of one shape, for every batch: none is repeated."""
        if site.other is None:
            return False
        shapes = (
            (self.student.shape(site.x, b), self.student.shape(site.other, b)) for b in range(self.student.batches)
        )
        return all(sites.result_shape(site, x, kernel, outputs) == other for x, other in shapes)

    def match(self, site: Site) -> Solution | None:
        """Bring the mean and deviation of every channel of an operator back (`statistics`); None as of `solve`."""
        node = self.weights.nodes[self.proto.graph.node[site.node].output[0]]
        site = replace(site, attributes=node_attributes(node))
        self.teacher.compute([site.out])
        if not self.corresponds(site.out):
            return None
        left, offset = self.left(site.out), site.bias is not None
        found = statistics.change(self.teacher, self.student, site.out, site.axis, left, fit=False, offset=offset)
        statistics.apply_to_site(self.weights, site, node, found)
        return found.solution

    def solve_cell(self, cell: recurrent.Cell) -> Solution | None:
        """Solve the gates of a recurrent operator and store them; None where that cannot be done."""
        node = self.weights.nodes[cell.out]
        width = sum(self.weights.constant(n).shape[2] for n in node.input[1:3])
        if not self.fits or cell.state not in self.analysis.tensors or width > LARGEST:
            return None
        original = self.teacher.node_of(self.proto.graph.node[cell.node])
        teacher = recurrent.Side(self.teacher, original, self.teacher.read)
        student = recurrent.Side(self.student, node, self.weights.get, self.weights.nearest)
        most = max(LEAST_COLUMNS, COLUMNS_PER_INPUT * width)
        found, solution = recurrent.refit(teacher, student, self.kept(cell.state, 2), most, self.random)
        if solution.ridge is not None:
            recurrent.store(self.weights, node, found)
        return solution

    def match_norm(self, norm: statistics.Norm) -> Solution | None:
        """The same for a normalisation that no linear operator has taken in."""
        node = self.weights.nodes[norm.out]
        if norm.out not in self.analysis.tensors:
            return None
        self.teacher.compute([norm.out])
        if not self.corresponds(norm.out):
            return None
        left, offset = self.left(norm.out), len(node.input) > 2 and bool(node.input[2])
        found = statistics.change(self.teacher, self.student, norm.out, norm.axis, left, fit=self.fits, offset=offset)
        is_better = found.after < found.before * (1 - 1e-3) or not self.fits
        return found.solution if is_better and statistics.apply_to_norm(self.weights, node, found) else None

    def solve_small(
        self, site: Site, kernel: tuple[int, ...], target: str, compensated: bool, now: tuple[Float, Float, Float]
    ) -> Solution:
        """Least squares from moments. `now`: weight, bias and scale (see `Weights.effective`)."""
        effective, bias, scale = now
        train, held, blocks = self.gather(site, kernel, target, compensated)
        prior = effective
        if train.count + held.count < FEW_COLUMNS * effective.shape[2]:
            prior = self.pooled_prior(site, effective, scale)
        weight = self.weights.constant(site.weight)
        has_grid = self.weights.has_grid(site.weight)
        fit_bias, widened = site.bias is not None, not (compensated or has_grid)
        solution = solve(train, held, effective, bias, prior=prior, fit_bias=fit_bias, widened=widened)
        if blocks is not None and solution.ridge:
            solution = relax(blocks, train, held, (effective, bias), solution, prior)
        rounded = self.weights.rounded(site, weight, solution.weight, scale)
        if solution.ridge is not None and rounded is not None:
            return requantized(train, held, (effective, bias), replace(solution, weight=rounded))
        return solution

    def solve_large(
        self, site: Site, kernel: tuple[int, ...], target: str, compensated: bool, now: tuple[Float, Float, Float]
    ) -> Solution:
        """Least squares over the columns themselves (`large`), as many as there is memory for."""
        effective, bias, scale = now
        room = self.block_bytes // (8 * effective.shape[2] * site.groups)
        most = max(HELD_OUT, min(large.COLUMNS, room))
        parts: tuple[list[tuple[Array, Array]], list[tuple[Array, Array]]] = ([], [])
        for x, y, _, held in self.columns(site, kernel, target, compensated, most):
            for side, chosen in zip(parts, (~held, held), strict=True):
                side.append((_pick(x, chosen), _pick(y, chosen)))
        train, test = ([np.concatenate(a, axis=2)[:, :, :most] for a in zip(*side, strict=True)] for side in parts)
        starts = [effective]
        mapped = self.channel_start(site, scale)
        if mapped is not None:
            starts.append(mapped)
        return large.solve((train[0], train[1]), (test[0], test[1]), starts, bias, fit_bias=site.bias is not None)

    def channel_start(self, site: Site, scale: Float) -> Float | None:
        """The original's weight with every channel replaced by what the channels left say of it, the same at every
        tap; None where inputs are no channels with taps."""
        layout = self.channels(site)
        if layout is None:
            return None
        source, result, kept = layout
        sums: Moments | None = None
        for b in range(self.teacher.batches):
            whole = sites.by_channel(site, self.teacher.get(self.original_x(site), b), source)
            left = sites.by_channel(site, self.student.get(site.x, b), result)
            step = max(1, whole.shape[2] * self.teacher.batches // POSITIONS)
            whole, left = whole[:, :, ::step], left[:, :, ::step]
            sums = sums or Moments.about(left.mean(2, dtype=np.float64), whole.mean(2, dtype=np.float64))
            sums.add(left, whole)
        if sums is None:
            raise ValueError("no batches")
        xx, yx, _ = sums.covariance()
        weight = sites.to_matrix(site, sites.value(self.teacher.proto, self.teacher.read, site.weight))[0]
        rows = self.kept(site.out, site.axis)
        weight = (weight if rows is None else weight[rows]) * scale[0][:, None]
        return large.spread(weight, large.channel_map(yx[0], xx[0], kept), source, result)[None]

    def channels(self, site: Site) -> tuple[Index, Index, Index] | None:
        """Which inputs belong to each channel in the original (channels, taps) and in the pruned model (k, taps), and
        the numbers of the k channels kept; None where no such layout is known."""
        dim = self.analysis.tensors[site.x][site.axis]
        mask = dims.mask(dim, self.keep)
        if site.axis == 1:
            number, left = np.arange(len(mask)), np.flatnonzero(mask)
            taps = int(np.prod(self.weights.constant(site.weight).shape[2:]))
            number, left = np.repeat(number, taps), np.repeat(left, taps)
        else:
            cut = [a for a in dims.atoms(dim) if a in self.keep]
            if len(cut) != 1:
                return None
            number = dims.indices(dim, cut[0])
            left = number[mask]
        kept, counts = np.unique(left, return_counts=True)
        _, whole = np.unique(number, return_counts=True)
        taps = int(whole[0])
        if number.min() < 0 or taps < 2 or len(whole) > LARGEST or (counts != taps).any() or (whole != taps).any():
            return None
        if site.groups != 1:
            return None
        return (
            np.argsort(number, kind="stable").reshape(-1, taps),
            np.argsort(left, kind="stable").reshape(-1, taps),
            kept,
        )

    def pooled_prior(self, site: Site, plain: Float, scale: Float) -> Float:
        """The weight to start from where x is a mean over space (squeeze and excitation): too few items to fit to, but
        the positions before the mean tell how the removed channels follow from the kept ones."""
        source = pooled_source(self.teacher.proto, self.original_x(site))
        inputs = self.kept(site.x, site.axis)
        if source is None or inputs is None or site.groups != 1:
            return plain
        gram = self.position_gram(source)
        rows = self.kept(site.out, site.axis)
        whole = sites.to_matrix(site, sites.value(self.teacher.proto, self.teacher.read, site.weight))[0]
        if whole.shape[1] != len(gram):
            return plain
        whole = whole if rows is None else whole[rows]
        refitted: Float = obs.refit(whole, gram, inputs)[:, inputs] * scale[0][:, None]
        return refitted[None]

    def position_gram(self, name: str) -> Float:
        """Covariance of the channels of an image-like tensor of the original over positions: (channels, channels)."""
        self.teacher.compute([name])
        sums: Moments | None = None
        for b in range(self.teacher.batches):
            x = np.asarray(self.teacher.get(name, b), np.float32)
            x = np.moveaxis(x, 1, 0).reshape(1, x.shape[1], -1)
            x = x[:, :, :: max(1, x.shape[2] * self.teacher.batches // POSITIONS)]
            sums = sums or Moments.about(x.mean(2, dtype=np.float64), np.zeros((1, 1)))
            sums.add(x, np.zeros((1, 1, x.shape[2]), np.float32))
        if sums is None:
            raise ValueError("no batches")
        covariance: Float = sums.covariance()[0][0]
        return covariance

    def original_x(self, site: Site) -> str:
        """What the original's operator reads where the model that was cut reads `site.x`."""
        return str(self.teacher.node_of(self.proto.graph.node[site.node]).input[0])

    def kept(self, name: str, axis: int) -> npt.NDArray[np.int64] | None:
        """Kept indices of the channel axis of a tensor of the original, None for all."""
        found = self.analysis.tensors[name]
        mask = dims.mask(found[axis], self.keep)
        return None if mask.all() else np.flatnonzero(mask)

    def left(self, name: str) -> dict[int, Index]:
        """Kept indices of every axis of a tensor of the original that is cut: of its channels, and of what counts as
        positions where an operator works along another axis (the tokens of a mixer)."""
        found = ((axis, self.kept(name, axis)) for axis in range(len(self.analysis.tensors[name])))
        return {axis: rows for axis, rows in found if rows is not None}

    def corresponds(self, name: str) -> bool:
        """Whether the axes of a tensor of the original that are cut are as long in every batch as in the analysis: of
        one that is a width times a size of the input it is not known else which indices are left."""
        found, batches = self.analysis.tensors[name], range(self.teacher.batches)
        return all(self.teacher.shape(name, b)[axis] == found[axis].size for axis in self.left(name) for b in batches)

    def shapes_left(self, name: str) -> list[tuple[int, ...]]:
        """The shape of a tensor of the original by batch, without what goes."""
        left = self.left(name)
        shapes = (self.teacher.shape(name, b) for b in range(self.teacher.batches))
        return [tuple(len(left[k]) if k in left else n for k, n in enumerate(shape)) for shape in shapes]

    def gather(
        self, site: Site, kernel: tuple[int, ...], target: str, compensated: bool
    ) -> tuple[Moments, Moments, list[Block] | None]:
        """Moments of the columns to fit to and of those held out; the columns themselves where `relax` needs them."""
        flat = self.flat.get(target) if site.bias is not None and self.relaxed else None
        room = self.block_bytes if flat else 0
        sides: tuple[Side, Side] | None = None
        for x, y, other, held in self.columns(site, kernel, target, compensated):
            if sides is None:
                centre = x.mean((2, 3), dtype=np.float64), y.mean((2, 3), dtype=np.float64)
                sides = Side(*centre, flat, False), Side(*centre, flat, True)
            for side, chosen in zip(sides, (~held, held), strict=True):
                side.add(*(_pick(a, chosen) for a in (x, y, other) if a is not None))
            if sum(side.bytes for side in sides) > room:
                for side in sides:
                    side.blocks = None
        if sides is None:
            raise ValueError("no batches")
        for side in sides:
            side.stream.flush()
        train, held_side = sides
        blocks = None if train.blocks is None or held_side.blocks is None else [*train.blocks, *held_side.blocks]
        return train.moments, held_side.moments, blocks

    def columns(
        self, site: Site, kernel: tuple[int, ...], target: str, compensated: bool, most: int | None = None
    ) -> Iterator[tuple[Array, Array, Array | None, npt.NDArray[np.bool_]]]:
        """By batch: inputs (groups, d, items, positions), targets and the other operand of the sum behind (groups, o,
        items, positions), and which of (items, positions) are held out. `most`: columns in all, about."""
        left = self.left(target)
        for b, held, items, positions in self.looked_at(site, target, most):
            x = sites.columns(site, of_items(self.student.get(site.x, b), items), kernel, positions)
            y = sites.targets(site, statistics.of_left(of_items(self.teacher.get(target, b), items), left), positions)
            other = None
            if compensated and site.other:
                other = sites.targets(site, of_items(self.student.get(site.other, b), items), positions)
                y = y - other
            yield x, y, other, held

    def looked_at(
        self, site: Site, target: str, most: int | None = None
    ) -> Iterator[tuple[int, npt.NDArray[np.bool_], Index | None, Index | None]]:
        """The columns to look at: the number of a batch, which of its (items, positions) looked at are held out, and
        the items and positions themselves, None for all. `most`: columns in all, about."""
        shapes = self.shapes_left(target)
        share = self.budget(site, target, most)
        chosen = self.sample_items(site, shapes, share)
        for b, shape in enumerate(shapes):
            items = None if chosen is None else np.flatnonzero(chosen[b])
            if items is None or len(items):
                positions = self.sample(site, shape, share)
                width = sites.position_count(site, shape) if positions is None else len(positions)
                held = self.teacher.holdout.mask(b, _item_count(shape), width)
                yield b, of_items(held, items), items, positions

    def budget(self, site: Site, target: str, most: int | None = None) -> float:
        """The share of the positions to look at: that of `most`, or what the number of inputs calls for."""
        shapes = self.shapes_left(target)
        total = sum(sites.position_count(site, s) * _item_count(s) for s in shapes)
        if most is not None:
            return most / max(total, 1)
        node = self.weights.nodes[self.proto.graph.node[site.node].output[0]]
        inputs = sites.input_count(site, self.weights.constant(node.input[1]).shape)
        return max(LEAST_COLUMNS, COLUMNS_PER_INPUT * inputs) / max(total, 1)

    def sample_items(
        self, site: Site, shapes: Sequence[tuple[int, ...]], share: float
    ) -> list[npt.NDArray[np.bool_]] | None:
        """Which items of each batch to look at, where that `share` of the columns is less than one of each; None for
        all. Of those held out and of the others alike, one at least."""
        counts = [_item_count(s) for s in shapes]
        wanted = np.repeat([share * sites.position_count(site, s) for s in shapes], counts)
        if (wanted >= 1).all() or len(wanted) < HELD_OUT:
            return None
        held = np.concatenate([self.teacher.holdout.mask(b, n, 1)[:, 0] for b, n in enumerate(counts)])
        chosen = np.zeros(len(wanted), np.bool_)
        for side in (np.flatnonzero(held), np.flatnonzero(~held)):
            if len(side):
                weight = np.clip(wanted[side], 1e-12, 1)
                count = max(1, round(float(weight.sum())))
                chosen[self.random.choice(side, count, replace=False, p=weight / weight.sum())] = True
        return np.split(chosen, np.cumsum(counts)[:-1])

    def sample(self, site: Site, shape: tuple[int, ...], share: float) -> npt.NDArray[np.int64] | None:
        """A random `share` of the output positions, sorted; None for all."""
        count = sites.position_count(site, shape)
        if share >= 1 or count == 1:
            return None
        return np.sort(self.random.choice(count, max(1, round(count * share)), replace=False))


def pooled_source(proto: onnx.ModelProto, name: str) -> str | None:
    """What `name` is the mean over space of, None where it is no such mean."""
    node = next((n for n in proto.graph.node if name in n.output), None)
    if node is None:
        return None
    axes = node_attributes(node).get("axes")
    if node.op_type == "ReduceMean" and axes is None and len(node.input) > 1:
        stored = stored_tensors(proto).get(node.input[1])
        axes = None if stored is None else numpy_helper.to_array(stored).tolist()
    mean = node.op_type == "GlobalAveragePool" or (
        node.op_type == "ReduceMean" and sorted(axes or []) in ([2, 3], [-2, -1])
    )
    return node.input[0] if mean else None


def _item_count(shape: tuple[int, ...]) -> int:
    """Items of a batch of a tensor."""
    return shape[0] if len(shape) > 1 else 1


def of_items(array: Array, chosen: Index | None) -> Array:
    """The `chosen` items of a batch, None for all."""
    return np.asarray(array) if chosen is None else np.asarray(array)[chosen]


def _pick(columns: Array, chosen: npt.NDArray[np.bool_]) -> Array:
    """(groups, d, columns) of the chosen (items, positions); quicker where those are whole items."""
    items = chosen.any(1)
    whole = bool(chosen[items].all())
    return columns[:, :, items].reshape(*columns.shape[:2], -1) if whole else columns[:, :, chosen]
