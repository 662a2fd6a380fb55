"""The branches of If: inputs alone may never take one of them, so each is also taken by force."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx
from onnx import helper

from onnxprune.bodies import bodies


def has_branches(proto: onnx.ModelProto, settled: Collection[int] = ()) -> bool:
    """Whether there is an If anywhere in the model, other than those with the numbers in `settled`."""
    return any(number not in settled for number, _ in enumerate(_conditionals(proto.graph)))


def settled_numbers(proto: onnx.ModelProto, taken: Collection[str]) -> list[int]:
    """The numbers, among all Ifs, of those whose first result is in `taken`: they run one branch alone."""
    return [number for number, node in enumerate(_conditionals(proto.graph)) if node.output[0] in taken]


def take_branch(proto: onnx.ModelProto, then: bool, settled: Collection[int] = ()) -> None:
    """Change the model so that every If takes its `then_branch`, or its `else_branch`, but those in `settled`."""
    name = "__onnxprune_branch"
    for number, node in enumerate(_conditionals(proto.graph)):
        if number not in settled:
            node.input[0] = name
    value = helper.make_tensor(name, onnx.TensorProto.BOOL, [], [then])
    proto.graph.node.insert(0, helper.make_node("Constant", [], [name], value=value))


def _conditionals(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        if node.op_type == "If" and node.domain in ("", "ai.onnx"):
            yield node
        for body in bodies(node):
            yield from _conditionals(body)
