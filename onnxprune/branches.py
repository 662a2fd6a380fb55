"""The branches of If: inputs alone may never take one of them, so each is also taken by force."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

from onnxprune.bodies import bodies


def has_branches(proto: onnx.ModelProto) -> bool:
    """Whether there is an If anywhere in the model."""
    return any(True for _ in _conditionals(proto.graph))


def take_branch(proto: onnx.ModelProto, then: bool) -> None:
    """Change the model so that every If takes its `then_branch`, or its `else_branch`."""
    name = "__onnxprune_branch"
    for node in _conditionals(proto.graph):
        node.input[0] = name
    value = helper.make_tensor(name, onnx.TensorProto.BOOL, [], [then])
    proto.graph.node.insert(0, helper.make_node("Constant", [], [name], value=value))


def _conditionals(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        if node.op_type == "If" and node.domain in ("", "ai.onnx"):
            yield node
        for body in bodies(node):
            yield from _conditionals(body)
