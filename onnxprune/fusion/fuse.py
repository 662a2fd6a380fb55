"""A model with its maps fused: the walks over it in their order, and what they must leave alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from onnxprune.bodies import captured_names, drop_entries, drop_unread, operands, opset_of
from onnxprune.fusion.affine import Step, step
from onnxprune.fusion.ahead import CARRYING, carried
from onnxprune.fusion.behind import left_to_runtime, taken_in
from onnxprune.fusion.constants import Array, Constants, Edit, readers
from onnxprune.fusion.linear import LINEAR
from onnxprune.fusion.walk import Walk

LEAST_OPSET = 7
"""The first in which operands are broadcast as they are today."""
LEAST_IR = 4
"""The first in which an initializer need not be a graph input as well."""
REWRITTEN = ("PRelu", "Mish", "Softplus")
"""What is found in the operators that are put in cheaper terms."""
PATTERNED = frozenset(
    ("Erf", "Tanh", "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Gelu", "Softplus", "LayerNormalization")
)
"""What ONNX Runtime's own fusions of several nodes are found by (Gelu, LayerNormalization and their like)."""
_BETWEEN = CARRYING | PATTERNED | {"ReduceMean", "Neg", "Sigmoid", "HardSwish"}


@dataclass(frozen=True)
class Fused:
    """`proto`, `edits`: the model as it is written, as of a cut. `nodes`: how many are part of others or stand in other
    terms now; `stored`: how many more numbers are stored."""

    proto: onnx.ModelProto
    edits: dict[str, Edit]
    nodes: int
    stored: int


def fused(
    proto: onnx.ModelProto,
    edits: Mapping[str, Edit],
    read: Callable[[str], Array | None],
    shapes: Mapping[str, Sequence[int]],
    *,
    blocked: bool,
) -> Fused | None:
    """The model `proto` with its maps fused; None where that changes nothing for the better. No argument is changed.

    `proto`: with its nodes in order; its stored arrays are those of `read` under `edits`. `shapes`: of the float32
    tensors of the main graph before the cut. `blocked`: whether the model will run where convolutions have a layout of
    their own (on the CPU).
    """
    if opset_of(proto) < LEAST_OPSET or proto.ir_version < LEAST_IR:
        return None
    constants = Constants(proto, read, edits, shapes)
    patterned = _near_patterns(proto.graph.node)
    found = (step(node, constants, shapes) for node in proto.graph.node if not patterned.intersection(node.output))
    steps = {s.node.output[0]: s for s in found if s is not None}
    if not steps and not any(n.op_type in REWRITTEN for n in proto.graph.node):
        return None
    nodes = taken_in([_copied(node) for node in proto.graph.node], steps, constants)
    walk = Walk(constants, _worth_carrying(nodes, steps, constants), _fixed(proto.graph), shapes, blocked)
    nodes = carried(nodes, walk)
    rewritten = max(0, _count(proto.graph.node) - _count(nodes)) + walk.rewritten
    if not rewritten:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    gone = _replace(copy.graph, nodes, constants)
    new = {t.name for t in copy.graph.initializer}
    stored = sum(a.size for n, a in constants.added.items() if n in new) - sum(map(constants.size, gone))
    return Fused(copy, {n: e for n, e in constants.edits.items() if n not in gone}, rewritten, stored)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _count(nodes: Iterable[onnx.NodeProto]) -> int:
    """How many nodes there are, but for copies, which ONNX Runtime does without."""
    return sum(n.op_type != "Identity" for n in nodes)


def _fixed(graph: onnx.GraphProto) -> frozenset[str]:
    """Tensors that stay: graph outputs, what the last operators read, which is compared as well, and what bodies
    read."""
    outputs = {o.name for o in graph.output}
    ends = [node for node in graph.node if outputs.intersection(node.output) and node.op_type not in LINEAR]
    last = {n for node in ends for n in node.input}
    return frozenset(outputs | last | {n for node in graph.node for n in captured_names(node)})


def _near_patterns(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """The results of nodes that are tied to an operator of `PATTERNED` by operators that could be fused with it."""
    between = [n for n in nodes if n.op_type in _BETWEEN]
    by_tensor: dict[str, list[onnx.NodeProto]] = {}
    for node in between:
        for name in (*node.input, *node.output):
            by_tensor.setdefault(name, []).append(node)
    stored = {n for node in nodes if node.op_type == "Constant" for n in node.output}
    produced = {o for node in nodes for o in node.output} - stored
    waiting, near = [n for n in between if n.op_type in PATTERNED], set[str]()
    while waiting:
        node = waiting.pop()
        if near.issuperset(node.output):
            continue
        near.update(node.output)
        tensors = [n for n in (*node.input, *node.output) if n in produced]
        waiting.extend(other for name in tensors for other in by_tensor.get(name, ()))
    return near


def _worth_carrying(
    nodes: Iterable[onnx.NodeProto], steps: Mapping[str, Step], constants: Constants
) -> dict[str, Step]:
    """Maps but for those that ONNX Runtime takes into the operator before them."""
    made = {n.output[0]: n for n in nodes if n.op_type in LINEAR and constants.readers.get(n.output[0]) == 1}
    return {name: s for name, s in steps.items() if s.x not in made or not left_to_runtime(made[s.x], s)}


def _replace(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], constants: Constants) -> set[str]:
    """Give a graph other nodes, and what they read; take off what nothing reads any more, and return its names."""
    before = {n for node in graph.node for n in (*operands(node), *node.output)}
    del graph.node[:]
    graph.node.extend(nodes)
    read = readers(graph)
    graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.added.items() if name in read
    )
    gone = drop_unread(graph, sorted(before - set(read)))
    there = {o for node in graph.node for o in node.output} | {i.name for i in graph.input}
    there |= {t.name for t in graph.initializer}
    drop_entries(graph, {v.name for v in graph.value_info} - there)
    return gone
