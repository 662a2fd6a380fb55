"""Indices that are parts of the model: each owns a matrix of its own (an expert of a mixture).

The matrices lie behind each other in one weight; or the parts are written out one by one and put side by side by a
Concat, and each falls with every node and weight that nothing else reads.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxprune import dims
from onnxprune.bodies import operands
from onnxprune.dims import Dim
from onnxprune.records import Owned, Role

Roles = dict[tuple[str, int | None, Dim], Role]
"""The role of each atom on each axis (None: on all) of each weight."""


def outer_parts(axes: Sequence[Dim], weight: str, roles: Roles) -> Iterator[Dim]:
    """The dimensions of which each index owns a matrix in a weight: the outermost ones of an axis, beside which the
    weight produces something from something else."""
    for part in (p for d in axes for p in dims.cat_parts(d)):
        outer = dims.prod_factors(part)[:1]
        if is_matrix(axes, weight, roles, without=outer):
            yield from outer


def is_matrix(axes: Sequence[Dim], weight: str, roles: Roles, *, without: Sequence[Dim] = ()) -> bool:
    """Whether a weight, or one index of the dimensions `without` of it, produces something from something else."""
    found = {a for d in axes for a in dims.atoms(d) if a.size > 1} - set(without)
    stated = {roles.get((weight, k, a)) for a in found for k in (None, *range(len(axes)))}
    return {"produced", "contracted"} <= stated


@dataclass
class _Graph:
    nodes: Sequence[onnx.NodeProto]
    makers: Mapping[str, int]
    readers: Mapping[str, Sequence[int]]
    outputs: frozenset[str]


def owned(proto: onnx.ModelProto, flat: Sequence[tuple[onnx.GraphProto, onnx.NodeProto]], at: int) -> list[Owned]:
    """For each operand of node number `at` of `flat` (as `bodies.flat_nodes`): what only that operand needs.

    Nothing where the node lies in a body.
    """
    graph = _index(proto, flat)
    if flat[at][0] is not proto.graph:
        return [Owned(frozenset(), frozenset()) for _ in flat[at][1].input]
    return [_needed_by(graph, name, at) for name in flat[at][1].input]


def _index(proto: onnx.ModelProto, flat: Sequence[tuple[onnx.GraphProto, onnx.NodeProto]]) -> _Graph:
    readers: dict[str, list[int]] = {}
    makers: dict[str, int] = {}
    for index, (holder, node) in enumerate(flat):
        for name in operands(node):
            readers.setdefault(name, []).append(index)
        if holder is proto.graph:
            makers.update((name, index) for name in node.output if name)
    outputs = frozenset(o.name for holder, _ in flat for o in holder.output) | {o.name for o in proto.graph.output}
    return _Graph([node for _, node in flat], makers, readers, outputs)


def _needed_by(graph: _Graph, name: str, at: int) -> Owned:
    """The nodes and the tensors that nothing reads when node `at` does not read `name`."""
    gone: set[int] = set()
    unread: set[str] = set()

    def is_unread(tensor: str) -> bool:
        left = [r for r in graph.readers.get(tensor, ()) if r not in gone]
        return tensor not in graph.outputs and (left == [at] if tensor == name else not left)

    waiting = [-graph.makers[name]] if name in graph.makers else []
    while waiting:
        index = -heapq.heappop(waiting)
        if index in gone or not all(is_unread(o) for o in graph.nodes[index].output if o):
            continue
        gone.add(index)
        for source in set(operands(graph.nodes[index])):
            if source in graph.makers:
                heapq.heappush(waiting, -graph.makers[source])
            elif is_unread(source):
                unread.add(source)
    made = {name for index in gone for name in graph.nodes[index].output if name}
    return Owned(frozenset(gone), frozenset(unread | made))
