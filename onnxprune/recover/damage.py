"""What each group costs: Gram matrices of its consumers, order of removal, measured damage at the outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import dims
from onnxprune.criteria import activation, obs
from onnxprune.records import Analysis, Feed, Group
from onnxprune.recover import divergence, large, recurrent, sites
from onnxprune.recover.execution import Shelf, Walk
from onnxprune.recover.layers import Weights
from onnxprune.recover.moments import Moments, Stream
from onnxprune.recover.readers import Linear, Reader, gates
from onnxprune.recover.reconstruct import find_sites
from onnxprune.recover.sites import Site
from onnxprune.recover.task import (
    COLUMNS_PER_INPUT,
    FEW_COLUMNS,
    LARGEST,
    LEAST_COLUMNS,
    POSITIONS,
    Task,
    of_items,
    pooled_source,
)
from onnxprune.shapes import node_attributes

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Second moments of the inputs of one reader: `gram` about the mean (d, d), `mean` (d,), `weight` (o, d).
    `active`: share of each input that is not zero (d,). The two matrices lie on `shelf`, which must be open still.

    With `layout`, the inputs (channels, taps) of a reader of too many, all of that is of channels, d of them, and
    `weight` the square root of the sum of W_tap^T W_tap, which costs the same to remove.
    """

    reader: Reader
    mean: Float
    active: Float
    shelf: Shelf
    layout: obs.Index | None = None

    @property
    def gram(self) -> Float:
        return self.shelf.get(self.reader.key, "gram", 0)

    @property
    def weight(self) -> Float:
        return self.shelf.get(self.reader.key, "weight", 0)


def collect(
    proto: onnx.ModelProto,
    read: Callable[[str], Array],
    analysis: Analysis,
    wanted: Sequence[Group],
    feeds: Sequence[Feed],
    *,
    shelf: Shelf,
    seed: int,
    threads: int = 1,
) -> list[Statistics]:
    """Statistics of every reader that sums over one of the groups `wanted`, put on `shelf`."""
    atoms = {g.dim for g in wanted}
    weights = Weights(proto, read)
    walk = Walk(proto, read, feeds, threads=threads, shelf=shelf)
    found = list(_collect(walk, weights, analysis, atoms, seed))
    walk.clear()
    return found


def _collect(walk: Walk, weights: Weights, analysis: Analysis, atoms: set[dims.Dim], seed: int) -> Iterator[Statistics]:
    proto = walk.proto
    task = Task(walk, walk, proto, weights, analysis, {}, np.random.default_rng(seed))
    steps: list[Site | recurrent.Cell] = [*find_sites(proto, analysis), *recurrent.cells(proto, weights.stored)]
    for step in sorted(steps, key=lambda s: s.node):
        if isinstance(step, recurrent.Cell):
            yield from _of_cell(task, step, atoms)
            continue
        axis = _summed(analysis, step)
        if axis is not None and any(a in atoms for a in dims.atoms(axis)):
            yield from _of_site(task, Linear(step, proto.graph.node[step.node].output[0], axis), atoms)
            log.info("statistics of %s", analysis.nodes[analysis.main[step.node]])


def _summed(analysis: Analysis, site: Site) -> dims.Dim | None:
    """What every output sums over: all channels, or those of its group; None for grouped transposed convolutions."""
    if site.groups == 1:
        return analysis.tensors[site.x][site.axis]
    return analysis.tensors[site.weight][1] if site.op == "Conv" else None


def _of_site(task: Task, reader: Linear, atoms: set[dims.Dim]) -> Iterator[Statistics]:
    """Of a linear operator, group by group; by channel where it has too many inputs, none where those are not alike."""
    walk, site = task.student, reader.site
    matrix, _ = reader.linear(task.weights)
    if matrix.shape[1] > LARGEST:
        layout = _layout(reader.axis, site, atoms, matrix.shape[1])
        if site.groups == 1 and layout is not None and len(layout) <= LARGEST:
            walk.compute([site.x])
            yield _of_channels(walk, reader, matrix, layout)
        return
    walk.compute([site.x, site.out])
    weight = task.weights.constant(task.weights.nodes[reader.name].input[1])
    moments, active = _moments(task, site, weight.shape[2:])
    grams = moments.covariance(reader.has_bias)[0]
    source = pooled_source(walk.proto, site.x)
    if source is not None and site.groups == 1 and moments.count < FEW_COLUMNS * len(grams[0]):
        grams = task.position_gram(source)[None]
    for number, gram in enumerate(grams):
        part = dataclasses.replace(reader, part=number)
        walk.shelf.put(part.key, "gram", 0, gram)
        walk.shelf.put(part.key, "weight", 0, part.linear(task.weights)[0])
        yield Statistics(part, moments.mean_x[number], active[number], walk.shelf)


def _of_cell(task: Task, cell: recurrent.Cell, atoms: set[dims.Dim]) -> Iterator[Statistics]:
    """Of the gates of a recurrent cell, over the steps within the lengths of the items."""
    walk, node = task.student, task.weights.nodes[cell.out]
    directions = 2 if node_attributes(node).get("direction") == "bidirectional" else 1
    found = gates(cell, list(node.input), directions, task.analysis)
    readers = [r for r in found if r.axis.size <= LARGEST and any(a in atoms for a in dims.atoms(r.axis))]
    if not readers:
        return
    side = recurrent.Side(walk, node, task.weights.get)
    most = max(LEAST_COLUMNS, COLUMNS_PER_INPUT * max(r.axis.size for r in readers))
    sums: list[Moments] = []
    active = [np.zeros(r.axis.size) for r in readers]
    for steps in side.steps(side.parameters()):
        share = most / max(1, steps.valid.size * walk.batches)
        chosen = steps.valid & (task.random.random(steps.valid.shape) < share)
        columns = [r.inputs(steps, chosen) for r in readers]
        sums = sums or [Moments.about(x.mean(2, dtype=np.float64), np.zeros((1, 1))) for x in columns]
        for k, x in enumerate(columns):
            sums[k].add(x, np.zeros((1, 1, x.shape[2]), np.float32))
            active[k] += np.count_nonzero(x[0], axis=1)
    for reader, moments, nonzero in zip(readers, sums, active, strict=True):
        walk.shelf.put(reader.key, "gram", 0, moments.covariance()[0][0])
        walk.shelf.put(reader.key, "weight", 0, reader.linear(task.weights)[0])
        yield Statistics(reader, moments.mean_x[0], nonzero / max(moments.count, 1), walk.shelf)
    log.info("statistics of %s", task.analysis.nodes[task.analysis.main[cell.node]])


def _layout(axis: dims.Dim, site: Site, atoms: set[dims.Dim], inputs: int) -> obs.Index | None:
    """Which inputs (channels, taps) belong to each channel of a site; None where they are not alike."""
    if site.axis == 1:
        return np.arange(inputs).reshape(axis.size, -1)
    own = [a for a in dict.fromkeys(dims.atoms(axis)) if a in atoms]
    channel = dims.indices(axis, own[0])
    taps = inputs // own[0].size
    if len(own) != 1 or channel.min() < 0 or (np.bincount(channel, minlength=own[0].size) != taps).any():
        return None
    return np.argsort(channel, kind="stable").reshape(-1, taps)


def _of_channels(walk: Walk, reader: Linear, matrix: Float, layout: obs.Index) -> Statistics:
    site = reader.site
    sums: Moments | None = None
    active = np.zeros(len(layout))
    for b in range(walk.batches):
        x = sites.by_channel(site, walk.get(site.x, b), layout)
        x = x[:, :, :: max(1, x.shape[2] * walk.batches // POSITIONS)]
        sums = sums or Moments.about(x.mean(2, dtype=np.float64), np.zeros((1, 1)))
        sums.add(x, np.zeros((1, 1, x.shape[2]), np.float32))
        active += np.count_nonzero(x[0], axis=1)
    if sums is None:
        raise ValueError("no batches")
    squares = np.zeros((len(layout), len(layout)))
    for tap in range(layout.shape[1]):
        squares += matrix[:, layout[:, tap]].T @ matrix[:, layout[:, tap]]
    values, vectors = np.linalg.eigh(squares)
    walk.shelf.put(reader.key, "gram", 0, sums.covariance(reader.has_bias)[0][0])
    walk.shelf.put(reader.key, "weight", 0, (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
    return Statistics(reader, sums.mean_x[0], active / max(sums.count, 1), walk.shelf, layout)


def _moments(task: Task, site: Site, kernel: tuple[int, ...]) -> tuple[Moments, Float]:
    stream: Stream | None = None
    sums: Moments | None = None
    for b, _, items, positions in task.looked_at(site, site.out):
        x = sites.columns(site, of_items(task.student.get(site.x, b), items), kernel, positions)
        if sums is None or stream is None:
            sums = Moments.about(x.mean((2, 3), dtype=np.float64), np.zeros((1, 1)))
            stream = Stream(sums.add)
            active = np.zeros(sums.x.shape)
        flat = x.reshape(*x.shape[:2], -1)
        active += np.count_nonzero(flat, axis=2)
        stream.add(flat, np.zeros((1, 1, flat.shape[2]), np.float32))
    if sums is None or stream is None:
        raise ValueError("no batches")
    stream.flush()
    return sums, active / max(sums.count, 1)


def consumers(group: Group, found: Sequence[Statistics]) -> list[tuple[Statistics, obs.Consumer]]:
    """The consumers of a group as `obs` sees them, each operator scaled to a total variance of 1."""
    result, totals = [], dict[str, float]()
    for s in found:
        channel = dims.indices(s.reader.axis, group.dim)
        if (channel < 0).all():
            continue
        taps = (s.layout.size if s.layout is not None else s.weight.shape[1]) // len(channel)
        spread = np.repeat(channel, taps)
        spread = spread if s.layout is None else spread[s.layout[:, 0]]
        positions = np.argsort(spread, kind="stable")[int((spread < 0).sum()) :].reshape(group.size, -1)
        weight, gram = s.weight, s.gram
        own = float(np.einsum("od,od->", weight @ gram, weight))
        totals[s.reader.whole] = totals.get(s.reader.whole, 0.0) + own
        result.append((s, obs.Consumer(weight, gram, positions, 1.0, s.active)))
    return [(s, dataclasses.replace(c, scale=max(totals[s.reader.whole], 1e-30))) for s, c in result]


def orders(
    analysis: Analysis, groups: Sequence[Group], found: Sequence[Statistics], criterion: str
) -> dict[str, obs.Path]:
    """The order of removal of every group that has consumers with statistics: by `obs`, or by rising score."""
    result = {}
    for group in groups:
        own = [c for _, c in consumers(group, found)]
        if not own:
            continue
        if criterion == "obs":
            result[group.id] = obs.removal_path(own, group.size, chunk=max(1, group.size // 64))
        else:
            result[group.id] = activation.path(own, group.size, criterion)
        log.info("order of removal of %s", group.id)
    return result


@dataclass
class Curve:
    """Damage of removing `removed` indices (ascending, first 0) of a group: divergence of the outputs, where what reads
    the group is `refitted`, or else of the cut alone."""

    removed: list[int] = field(default_factory=list)
    damage: list[float] = field(default_factory=list)
    refitted: bool = True

    def at(self, count: float) -> float:
        """The damage of removing `count`, between the measured ones by straight lines."""
        return float(np.interp(count, self.removed, self.damage))


def probed(
    proto: onnx.ModelProto, read: Callable[[str], Array], feeds: Sequence[Feed], *, threads: int, memory_bytes: int
) -> list[list[Array]]:
    """The probes of a model for every batch, with its weights as `read` gives them."""
    names = [p.name for p in divergence.probes(proto)]
    return tensors_of(proto, read, names, feeds, threads=threads, memory_bytes=memory_bytes)


def tensors_of(
    proto: onnx.ModelProto,
    read: Callable[[str], Array],
    names: Sequence[str],
    feeds: Sequence[Feed],
    *,
    threads: int,
    memory_bytes: int,
) -> list[list[Array]]:
    """The named tensors of a model for every batch, with its weights as `read` gives them. `memory_bytes`: activations
    held in memory on the way."""
    with contextlib.closing(Shelf(memory_bytes)) as shelf:
        walk = Walk(proto, read, feeds, threads=threads, shelf=shelf)
        walk.compute(names)
        return [[np.array(walk.get(n, b)) for n in names] for b in range(walk.batches)]


LEVELS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
FEW_LEVELS = (0.25, 0.5, 0.75)
WORST = 1e6
"""Damage of outputs that are no numbers any more, and the most that any has; 1 is as wrong as the mean."""


def curves(
    model: Weights,
    analysis: Analysis,
    groups: Sequence[Group],
    found: Sequence[Statistics],
    order: Mapping[str, obs.Path],
    feeds: Sequence[Feed],
    *,
    memory_bytes: int,
    threads: int = 1,
    levels: Sequence[float] = LEVELS,
    without: Callable[[Group, obs.Index], Weights],
) -> dict[str, Curve]:
    """Cut one group at a time, refit its consumers, and measure the error at the outputs.

    `without`: the model cut by some indices of a group that has no consumers with statistics.
    """
    probes = divergence.probes(model.proto)
    reference = probed(model.proto, model.get, feeds, threads=threads, memory_bytes=memory_bytes)
    result = {}
    for group in groups:
        own = consumers(group, found)
        curve = Curve([0], [0.0], bool(own))
        for level in levels:
            removed = round(group.size * level)
            if removed <= curve.removed[-1] or removed > group.size - group.least:
                continue
            gone = order[group.id].order[:removed]
            left = _without(model.proto, model.get, own, gone) if own else without(group, gone)
            result_of = probed(left.proto, left.get, feeds, threads=threads, memory_bytes=memory_bytes)
            damage = divergence.divergence(probes, reference, result_of)
            curve.removed.append(removed)
            curve.damage.append(max(damage if damage < WORST else WORST, curve.damage[-1]))
        result[group.id] = curve
        log.info("damage of %s: %s", group.id, [round(d, 4) for d in curve.damage])
    return result


def _without(
    proto: onnx.ModelProto,
    read: Callable[[str], Array],
    own: Sequence[tuple[Statistics, obs.Consumer]],
    removed: obs.Index,
) -> Weights:
    """The model whose consumers `own` of a group do without the indices `removed`, refitted."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    weights = Weights(copy, read)
    for s, consumer in own:
        gone = consumer.positions[removed].reshape(-1)
        kept = np.setdiff1d(np.arange(consumer.weight.shape[1]), gone)
        before, bias = s.reader.linear(weights)
        if s.layout is None:
            mean, fitted = s.mean, obs.refit(before, consumer.gram, kept)
        else:
            mean = np.empty(s.layout.size)
            mean[s.layout] = s.mean[:, None]
            mapping = obs.refit(np.eye(len(s.layout)), consumer.gram, kept)
            fitted = large.spread(before, mapping, s.layout, s.layout)
        shifted = bias + (before - fitted) @ mean if s.reader.has_bias else bias
        s.reader.write(weights, fitted, shifted)
    return weights
