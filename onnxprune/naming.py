"""Unique names for the tensors of bodies: what two bodies, or a body and the graph around it, call the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import onnx

from onnxprune.bodies import bodies


def make_names_unique(proto: onnx.ModelProto) -> None:
    """Rename tensors of bodies, in place, so that no name is defined twice. The main graph keeps all its names.

    A body sees the tensors around it; where it defines a name anew, what follows in it means the new one.
    """
    taken = set(_defined(proto.graph))
    for node in proto.graph.node:
        for body in bodies(node):
            _rename(body, {}, taken)


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    """The names a graph defines itself, those before its first node first."""
    yield from dict.fromkeys([*(i.name for i in graph.input), *_stored(graph)])
    for node in graph.node:
        yield from filter(None, node.output)


def _stored(graph: onnx.GraphProto) -> list[str]:
    return [*(t.name for t in graph.initializer), *(t.values.name for t in graph.sparse_initializer)]


def _rename(graph: onnx.GraphProto, around: Mapping[str, str], taken: set[str]) -> None:
    """Rename what a body defines; `around` holds the new names of renamed tensors outside."""
    new = dict(around)
    own = {name: unique(name, taken) for name in dict.fromkeys([*(i.name for i in graph.input), *_stored(graph)])}
    new.update(own)
    for value in graph.input:
        value.name = own[value.name]
    for tensor in (*graph.initializer, *(s.values for s in graph.sparse_initializer)):
        tensor.name = own[tensor.name]
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        for body in bodies(node):
            _rename(body, new, taken)
        made = {name: unique(name, taken) for name in node.output if name}
        new.update(made)
        node.output[:] = [made.get(name, name) for name in node.output]
    for value in (*graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = new.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = new.get(entry.value, entry.value)


def unique(name: str, taken: set[str]) -> str:
    """The name, or the first of name_1, name_2 ... that is free; it is taken from now on."""
    free = next(n for n in itertools.chain([name], (f"{name}_{k}" for k in itertools.count(1))) if n not in taken)
    taken.add(free)
    return free
