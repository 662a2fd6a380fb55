"""Names of tensors in graphs and their bodies: each is defined once, before it is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from onnx import GraphProto, NodeProto

from onnxprune.errors import ModelError
from onnxprune.modelfile.weights import subgraphs


def check_graph(path: Path, graph: GraphProto, outer: Sequence[set[str]]) -> None:
    """Every name is defined once, and before it is read; else ModelError. Linear: `outer` is never copied."""
    weights: set[str] = set()
    for name in (*(t.name for t in graph.initializer), *(s.values.name for s in graph.sparse_initializer)):
        if name in weights:
            raise ModelError(f"{path}: two initializers are named '{name}'. Rename one of them or export again.")
        weights.add(name)
    inputs: set[str] = set()
    for value in graph.input:
        if value.name in inputs:
            raise ModelError(f"{path}: two graph inputs are named '{value.name}'. Rename one of them or export again.")
        inputs.add(value.name)
    check_nodes(path, graph.node, [*outer, weights | inputs], [value.name for value in graph.output])


def check_nodes(path: Path, nodes: Sequence[NodeProto], scopes: Sequence[set[str]], outputs: Iterable[str]) -> None:
    """The same of nodes alone; what they define is added to the last of `scopes`. Raises ModelError."""
    own = scopes[-1]
    for index, node in enumerate(nodes):
        for name in node.input:
            if name and not any(name in scope for scope in scopes):
                _raise_undefined(path, nodes, index, name)
        for attribute in node.attribute:
            for graph in subgraphs(attribute):
                check_graph(path, graph, scopes)
        for name in filter(None, node.output):
            if name in own:
                raise ModelError(
                    f"{path}: {_describe(node, index)} defines tensor '{name}' again. Export the model again."
                )
            own.add(name)
    for name in outputs:
        if not any(name in scope for scope in scopes):
            raise ModelError(f"{path}: graph output '{name}' is defined by nothing. Export the model again.")


def _raise_undefined(path: Path, nodes: Sequence[NodeProto], index: int, name: str) -> NoReturn:
    reader = _describe(nodes[index], index)
    for later in range(index, len(nodes)):
        if name in nodes[later].output:
            raise ModelError(
                f"{path}: the graph has a cycle: {reader} reads tensor '{name}', and "
                f"{_describe(nodes[later], later)}, which defines it, needs what follows. Export the model again."
            )
    raise ModelError(
        f"{path}: {reader} reads tensor '{name}', which no input, initializer or earlier node defines. Export it again."
    )


def _describe(node: NodeProto, index: int) -> str:
    return f"node '{node.name or f'#{index}'}' ({node.op_type})"
