"""Latency of a model at widths it has not been cut to: the sum over its nodes, each between widths it was timed at.

The model is cut uniformly to a few widths that are all on the fast path, and profiled at each. A node's latency is then
known at a few sizes (multiply-accumulates, or elements written), and taken to lie on straight lines between them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune import dims
from onnxprune.bodies import flat_nodes
from onnxprune.dims import Dim
from onnxprune.records import Analysis, FloatArray, KernelTime, LatencyModel, NodeLatency, Profile, Stack

_LABEL = "onnxprune:{}:"
_NUMBER = re.compile(r"onnxprune:(\d+):")
_BLOCKED = "_nchwc"
_LOOK_BACK = 8
_RISE = 1e-3
"""Latency rises by at least this share over the whole width, so that every step down saves something."""


def labelled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes are named by their numbers, so that a profile of it tells which is which."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for number, (_, node) in enumerate(flat_nodes(copy)):
        node.name = _LABEL.format(number)
    return copy


@dataclass(frozen=True)
class Labels:
    """How the nodes that run are found among the nodes of a model."""

    nodes: Sequence[onnx.NodeProto]
    producers: Mapping[str, int]
    names: Mapping[str, int]

    def find(self, name: str, op: str) -> int | None:
        """The number of the node that a kernel runs, by its label, its name or a tensor it writes; None where unknown.

        Of a fused chain the kernel may have the name of any part; the one meant is the nearest of its operator.
        """
        label = _NUMBER.search(name)
        plain = name.removesuffix(_BLOCKED)
        number = int(label[1]) if label else self.names.get(name, self.producers.get(plain))
        return None if number is None else self._nearest(number, op.removeprefix("Fused"))

    def _nearest(self, number: int, op: str) -> int:
        front = [number]
        for _ in range(_LOOK_BACK):
            for n in front:
                if self.nodes[n].op_type == op:
                    return n
            front = [self.producers[i] for n in front for i in self.nodes[n].input if i in self.producers]
        return number


def labels(proto: onnx.ModelProto) -> Labels:
    """The labels of the walked nodes of a model."""
    nodes = [node for _, node in flat_nodes(proto)]
    producers = {o: n for n, node in enumerate(nodes) for o in node.output if o}
    return Labels(nodes, producers, {node.name: n for n, node in enumerate(nodes) if node.name})


def named(profile: Profile, proto: onnx.ModelProto) -> Profile:
    """The profile of a model with the names of its nodes in place of those that the runtime gave them."""
    found = labels(proto)

    def name(kernel: KernelTime) -> str:
        number = found.find(kernel.name, kernel.op)
        node = None if number is None else found.nodes[number]
        return kernel.name if node is None else node.name or next(iter(node.output), kernel.name)

    return Profile(profile.whole, tuple(KernelTime(name(k), k.op, k.ms) for k in profile.kernels))


def sizes_of(nodes: Sequence[onnx.NodeProto], analysis: Analysis) -> list[tuple[Dim, ...] | None]:
    """By node the dimensions whose product is its size: of its multiply-accumulates, else of its first output.

    Nodes that only one operand of a stack needs go with it: their size counts the operands that are left.
    """
    found = [analysis.tensors.get(node.output[0]) if node.output else None for node in nodes]
    most: dict[int, int] = {}
    for work in analysis.work:
        amount = math.prod(d.size for d in work.dims)
        if amount > most.get(work.node, -1):
            most[work.node], found[work.node] = amount, work.dims
    owners = owners_of(analysis)
    return [(*d, owners[n].dim) if d is not None and n in owners else d for n, d in enumerate(found)]


def owners_of(analysis: Analysis) -> dict[int, Stack]:
    """The stack whose operand needs a node (an expert written out), by node."""
    return {index: s for s in analysis.stacks for o in s.owned for index in o.nodes}


def fit(
    proto: onnx.ModelProto,
    analysis: Analysis,
    kept: Sequence[Mapping[Dim, int]],
    profiles: Sequence[Profile],
    levels: Sequence[float],
) -> LatencyModel:
    """The model of profiles taken at several widths: `kept[k]` are the counts by atom at `levels[k]`.

    Where nodes cannot be timed, they share the latency of the whole by their multiply-accumulates.
    """
    if not all(profile.kernels for profile in profiles):
        return _by_work(proto, analysis, kept, profiles, levels)
    found = labels(proto)
    sizes = sizes_of(found.nodes, analysis)
    points: dict[int, dict[int, list[float]]] = {}
    for counts, profile in zip(kept, profiles, strict=True):
        for number, ms in _by_node(found, profile, owners_of(analysis)).items():
            factors = sizes[number]
            if factors is not None:
                points.setdefault(number, {}).setdefault(_size(factors, counts), []).append(ms)
    nodes = tuple(_curve(number, timed) for number, timed in sorted(points.items()))
    return _whole(nodes, costs(proto, analysis, nodes), kept, profiles, levels)


def _by_node(found: Labels, profile: Profile, owners: Mapping[int, Stack]) -> dict[int, float]:
    """Milliseconds by node; nodes of one stack share what all of them take, those that are gone included."""
    times: dict[int, float] = {}
    for kernel in profile.kernels:
        number = found.find(kernel.name, kernel.op)
        if number is not None:
            times[number] = times.get(number, 0.0) + kernel.ms
    for dim in {stack.dim for stack in owners.values()}:
        members = [n for n, stack in owners.items() if stack.dim is dim]
        even = sum(times.get(n, 0.0) for n in members) / len(members)
        times.update(dict.fromkeys(members, even))
    return times


def _size(factors: Sequence[Dim], kept: Mapping[Dim, int]) -> int:
    return math.prod(dims.size(d, kept) for d in factors)


def _curve(number: int, points: Mapping[int, Sequence[float]]) -> NodeLatency:
    """Medians by size, made to rise: of two sizes the larger does not take less time."""
    sizes = sorted(points)
    ms = np.maximum.accumulate([float(np.median(points[size])) for size in sizes])
    ms = ms + _RISE * float(ms[-1]) * np.array(sizes) / max(sizes[-1], 1)
    return NodeLatency(number, tuple(sizes), tuple(float(t) for t in ms))


def _by_work(
    proto: onnx.ModelProto,
    analysis: Analysis,
    kept: Sequence[Mapping[Dim, int]],
    profiles: Sequence[Profile],
    levels: Sequence[float],
) -> LatencyModel:
    """Every multiply-accumulate costs the same: what the smallest width saves against the whole."""
    sizes = sizes_of([node for _, node in flat_nodes(proto)], analysis)
    working = {w.node: sizes[w.node] or () for w in analysis.work}
    amounts = [sum(_size(factors, counts) for factors in working.values()) for counts in kept]
    wholes = [profile.whole for profile in profiles]
    unit = max((max(wholes) - min(wholes)) / max(max(amounts) - min(amounts), 1), 1e-12)
    full = {n: _size(factors, {}) for n, factors in working.items()}
    nodes = tuple(NodeLatency(n, (0, size), (0.0, unit * size)) for n, size in full.items())
    return _whole(nodes, costs(proto, analysis, nodes), kept, profiles, levels)


def _whole(
    nodes: tuple[NodeLatency, ...],
    terms: Sequence[tuple[tuple[Dim, ...], Callable[[int], float]]],
    kept: Sequence[Mapping[Dim, int]],
    profiles: Sequence[Profile],
    levels: Sequence[float],
) -> LatencyModel:
    """Tie the sum over the nodes to the latency of the whole, by a line: what the nodes leave out costs time too."""
    sums = np.array([sum(curve(_size(factors, counts)) for factors, curve in terms) for counts in kept])
    wholes = np.array([profile.whole for profile in profiles])
    factor, overhead = _line(sums, wholes)
    ratios = wholes / np.maximum(sums, 1e-12)
    return LatencyModel(nodes, factor, overhead, tuple(levels), tuple(float(r) for r in ratios))


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """The slope and height of the best line through points, neither below 0."""
    spread = float(np.square(x - x.mean()).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    height = float(y.mean() - slope * x.mean())
    if slope > 0 and height >= 0:
        return slope, height
    return float((x * y).sum() / max(float((x * x).sum()), 1e-12)), 0.0


def costs(
    proto: onnx.ModelProto, analysis: Analysis, nodes: Sequence[NodeLatency]
) -> list[tuple[tuple[Dim, ...], Callable[[int], float]]]:
    """One term per node: the dimensions of its size, and its latency in ms at any size."""
    sizes = sizes_of([node for _, node in flat_nodes(proto)], analysis)
    return [(sizes[n.node] or (), _interpolation(n)) for n in nodes]


def _interpolation(node: NodeLatency) -> Callable[[int], float]:
    """Straight lines between the sizes timed; below the smallest, towards nine tenths of its latency."""
    sizes, ms = [0, *node.sizes], [0.9 * node.ms[0], *node.ms]
    if node.sizes[0] == 0:
        sizes, ms = list(node.sizes), list(node.ms)
    return lambda size: float(np.interp(size, sizes, ms))
