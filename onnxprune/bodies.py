"""Control flow: the nodes inside If, Loop and Scan, and how their tensors are tied to those outside.

Bodies are walked where every tensor name occurs once in the whole model, so that a name says which tensor is meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class Link:
    """Tensor `inner` of a body is tensor `outer` outside, without its axis `axis` (None: with the same axes)."""

    outer: str
    inner: str
    axis: int | None = None


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The subgraphs of a node, in the order of its attributes."""
    found = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def operands(node: onnx.NodeProto) -> Iterator[str]:
    """Every tensor a node reads: its inputs, and what its subgraphs read of the tensors around them."""
    yield from (n for n in node.input if n)
    yield from captured_names(node)


def captured_names(node: onnx.NodeProto) -> Iterator[str]:
    """Every tensor around a node that its subgraphs read, once per reader."""
    for graph in bodies(node):
        yield from outer_names(graph)


def outer_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every tensor around a body that it reads, once per reader: what it makes or holds itself is none, from where on
    it does."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {sparse.values.name for sparse in graph.sparse_initializer}
    for inner in graph.node:
        yield from (n for n in operands(inner) if n not in own)
        own.update(inner.output)
    yield from (o.name for o in graph.output if o.name not in own)


def held_tensors(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """What the subgraphs of a node hold themselves, by name: initializers, and the tensors of Constant nodes."""
    for graph in (g for n in (node, *inner_nodes(node)) for g in bodies(n)):
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
        constants = (n for n in graph.node if n.op_type == "Constant")
        yield from ((n.output[0], a.t) for n in constants for a in n.attribute if a.name == "value")


def inner_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Every node in the subgraphs of a node, and in theirs."""
    for graph in bodies(node):
        for inner in graph.node:
            yield inner
            yield from inner_nodes(inner)


def above(
    nodes: Sequence[onnx.NodeProto], wanted: Iterable[str], producer: Mapping[str, int], known: Set[str] = frozenset()
) -> list[int]:
    """The numbers of the nodes that make the tensors `wanted` of the tensors `known`, ascending."""
    chosen: set[int] = set()
    stack = list(wanted)
    while stack:
        name = stack.pop()
        index = producer.get(name)
        if name in known or index is None or index in chosen:
            continue
        chosen.add(index)
        stack.extend(operands(nodes[index]))
    return sorted(chosen)


def drop_unread(graph: onnx.GraphProto, names: Iterable[str]) -> set[str]:
    """Take what nothing reads any more off a graph: of the tensors `names`, and of what they were made from.
    Returns the names of the tensors that went."""
    gone, waiting = set[str](), list(names)
    kept = {v.name for v in (*graph.input, *graph.output)}
    read = Counter(n for node in graph.node for n in operands(node))
    producers = {o: k for k, node in enumerate(graph.node) for o in node.output if o}
    dropped: set[int] = set()
    while waiting:
        name = waiting.pop()
        index = producers.get(name)
        together = {name} if index is None else {o for o in graph.node[index].output if o}
        if name in gone or any(read[o] or o in kept for o in together):
            continue
        gone |= together
        if index is not None:
            dropped.add(index)
            read.subtract(operands(graph.node[index]))
            waiting.extend(operands(graph.node[index]))
    for index in sorted(dropped, reverse=True):
        del graph.node[index]
    drop_entries(graph, gone)
    return gone


def drop_entries(graph: onnx.GraphProto, names: Set[str]) -> None:
    """Take the initializers and the value infos with these names off a graph."""
    for entries in (graph.initializer, graph.value_info):
        for index in reversed([k for k, entry in enumerate(entries) if entry.name in names]):
            del entries[index]


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the default operator set; 1 where the model names none."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)


def is_walkable(proto: onnx.ModelProto) -> bool:
    """Whether bodies are walked: every name is defined once, and Scan is not the batched one of opset 8."""
    if opset_of(proto) < 9 or not any(bodies(n) for n in proto.graph.node):
        return False
    counts = Counter(defined_names(proto.graph))
    return not counts or max(counts.values()) == 1


def defined_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The name of every tensor that a graph and its bodies are given, hold or make."""
    yield from {i.name for i in graph.input} | {t.name for t in graph.initializer}
    for node in graph.node:
        yield from (o for o in node.output if o)
        for body in bodies(node):
            yield from defined_names(body)


def walked_bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The subgraphs of a node whose ties to the outside are known."""
    return bodies(node) if node.op_type in ("If", "Loop", "Scan") and node.domain in ("", "ai.onnx") else []


def by_life(node: onnx.NodeProto, taken: Mapping[str, bool]) -> list[tuple[onnx.GraphProto, bool]]:
    """Those of `walked_bodies`, and whether each may run. `taken`: by the first result of an If, whether it is always
    its `then_branch` that runs, or never; an If that is not there may run both."""
    known = taken.get(node.output[0]) if node.op_type == "If" and node.output else None
    if known is None:
        return [(body, True) for body in walked_bodies(node)]
    return [(a.g, (a.name == "then_branch") is known) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def live_bodies(node: onnx.NodeProto, taken: Mapping[str, bool]) -> list[onnx.GraphProto]:
    """Those of `walked_bodies` that may run."""
    return [body for body, lives in by_life(node, taken) if lives]


def live_nodes(graph: onnx.GraphProto, taken: Mapping[str, bool]) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of its bodies that may run."""
    for node in graph.node:
        for body in live_bodies(node, taken):
            yield from live_nodes(body, taken)
        yield node


def flat_nodes(proto: onnx.ModelProto) -> list[tuple[onnx.GraphProto, onnx.NodeProto]]:
    """Every walked node with the graph it lies in; those of a body come before the node that holds it."""
    return list(_flat(proto.graph, is_walkable(proto)))


def _flat(graph: onnx.GraphProto, walkable: bool) -> Iterator[tuple[onnx.GraphProto, onnx.NodeProto]]:
    for node in graph.node:
        for body in walked_bodies(node) if walkable else ():
            yield from _flat(body, walkable)
        yield graph, node


def numbered_graphs(proto: onnx.ModelProto) -> list[tuple[onnx.GraphProto, list[tuple[int, onnx.NodeProto]]]]:
    """The main graph and every walked body, inner ones first, with their nodes and the numbers of those."""
    found: list[tuple[onnx.GraphProto, list[tuple[int, onnx.NodeProto]]]] = []
    _number(proto.graph, is_walkable(proto), 0, found)
    return found


def _number(
    graph: onnx.GraphProto,
    walkable: bool,
    first: int,
    found: list[tuple[onnx.GraphProto, list[tuple[int, onnx.NodeProto]]]],
) -> int:
    """Append the bodies of a graph, then the graph; returns the number after its last node."""
    own = []
    for node in graph.node:
        for body in walked_bodies(node) if walkable else ():
            first = _number(body, walkable, first, found)
        own.append((first, node))
        first += 1
    found.append((graph, own))
    return first


def graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The main graph and every walked body, inner ones first."""
    return [graph for graph, _ in numbered_graphs(proto)]


def entering(node: onnx.NodeProto, body: onnx.GraphProto) -> list[Link]:
    """How the inputs of a body are tied to the operands of its node."""
    names = [i.name for i in body.input]
    if node.op_type == "Loop":
        return [Link(outer, inner) for outer, inner in zip(node.input[2:], names[2:], strict=True)]
    if node.op_type == "Scan":
        axes = _scan_axes(node, "scan_input_axes", len(names), _states(node, body))
        return [Link(*tie) for tie in zip(node.input, names, axes, strict=True)]
    return []


def leaving(node: onnx.NodeProto, body: onnx.GraphProto) -> list[Link]:
    """How the results of a node are tied to the outputs of its body."""
    names = [o.name for o in body.output]
    axes: list[int | None] = [None] * len(names)
    if node.op_type == "Loop":
        names, states = names[1:], len(node.input) - 2
        axes = [None if k < states else 0 for k in range(len(names))]
    elif node.op_type == "Scan":
        axes = _scan_axes(node, "scan_output_axes", len(names), _states(node, body))
    ties = zip(node.output, names, axes, strict=False)
    return [Link(outer, inner, axis) for outer, inner, axis in ties if outer]


def returning(node: onnx.NodeProto, body: onnx.GraphProto) -> list[tuple[str, str]]:
    """(input, output) of a body that are one state at successive steps."""
    inputs, outputs = [i.name for i in body.input], [o.name for o in body.output]
    if node.op_type == "Loop":
        return list(zip(inputs[2:], outputs[1:], strict=False))
    if node.op_type == "Scan":
        states = _states(node, body)
        return list(zip(inputs[:states], outputs[:states], strict=True))
    return []


def unchanged(node: onnx.NodeProto, body: onnx.GraphProto) -> set[str]:
    """The inputs of a body that every step hands on as they are: what exporters pass weights through a loop as."""
    copies = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Identity"}
    found = set()
    for before, after in returning(node, body):
        last = after
        while last in copies:
            last = copies[last]
        if last == before:
            found.add(before)
    return found


def _states(node: onnx.NodeProto, body: onnx.GraphProto) -> int:
    """How many inputs of the body of a Scan are states; the others are scanned."""
    return len(body.input) - int(next(a.i for a in node.attribute if a.name == "num_scan_inputs"))


def _scan_axes(node: onnx.NodeProto, name: str, count: int, states: int) -> list[int | None]:
    """None for the states, then the scanned axes: attribute `name`, 0 where it is absent."""
    given = next((a.ints for a in node.attribute if a.name == name), [0] * (count - states))
    return [*([None] * states), *given]
