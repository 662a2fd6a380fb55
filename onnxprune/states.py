"""Recurrent cells that are given a state of zeros to start from: they start from one by themselves.

Exporters cut the states of stacked cells out of one tensor of zeros, whose width would tie the cells' to each other.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.bodies import drop_unread

CELLS = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Operands that are states, zeros where they are absent."""
_PASSING = {
    "Cast",
    "Concat",
    "Expand",
    "Flatten",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}
"""Operators that give nothing but elements of their first operand (Concat: of all)."""
LARGEST = 1 << 20
"""Elements of a stored state that is looked at, at most."""


def drop_zero_states(proto: onnx.ModelProto) -> None:
    """Take, in place, states that are known to be zero off the cells of the main graph, and what nothing reads then."""
    cells = [n for n in proto.graph.node if n.op_type in CELLS and n.domain in ("", "ai.onnx")]
    if not cells:
        return
    found, dropped = _Zeros(proto.graph), set[str]()
    for node in cells:
        for operand in CELLS[node.op_type]:
            if operand < len(node.input) and found.is_zero(node.input[operand]):
                dropped.add(node.input[operand])
                node.input[operand] = ""
        while len(node.input) and not node.input[-1]:
            del node.input[-1]
    drop_unread(proto.graph, dropped)


class _Zeros:
    """Which tensors of a graph are known to be zero."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.made = {o: n for n in graph.node for o in n.output if o}
        given = {value.name for value in graph.input}
        self.stored = {t.name: t for t in graph.initializer if t.name not in given}

    def is_zero(self, name: str) -> bool:
        """Whether every element is."""
        if name in self.stored:
            return _is_zero(self.stored[name])
        node = self.made.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in ("Constant", "ConstantOfShape"):
            values = [a.t for a in node.attribute if a.name == "value"]
            return _is_zero(values[0]) if values else node.op_type == "ConstantOfShape"
        if node.op_type not in _PASSING:
            return False
        return all(self.is_zero(n) for n in (node.input if node.op_type == "Concat" else node.input[:1]))


def _is_zero(tensor: onnx.TensorProto) -> bool:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or int(np.prod(tensor.dims)) > LARGEST:
        return False
    return not np.any(numpy_helper.to_array(tensor))
