"""Why the shape of a tensor is not known."""

from __future__ import annotations

from collections.abc import Container, Mapping

import onnx

from onnxprune.bodies import flat_nodes, graphs
from onnxprune.rules.opaque import REASONS


class Makers:
    """The nodes that make the tensors of a model, and the names of its sparse tensors."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes: Mapping[str, onnx.NodeProto] = {o: n for _, n in flat_nodes(proto) for o in n.output if o}
        self.sparse = {t.values.name for g in graphs(proto) for t in g.sparse_initializer}
        self.sparse |= {o for o, n in self.nodes.items() if any(a.name == "sparse_value" for a in n.attribute)}

    def why_unknown(self, tensor: str, known: Container[str]) -> str:
        """In words why `tensor` has no shape; those in `known` have one."""
        name = self._first_unknown(tensor, known)
        if name in self.sparse:
            return f"{name!r} is a sparse tensor; only dense weights are supported"
        node = self.nodes.get(name)
        start = f"the shape of {tensor!r} is not known: "
        if node is None:
            return f"{start}input {name!r} has none in the model"
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        where = f"{kind} {node.name!r}" if node.name else f"the {kind} that makes {name!r}"
        if not node.domain and node.op_type in REASONS:
            return f"{start}it comes from {where}, and {REASONS[node.op_type]}"
        return f"{start}neither onnx nor a run of the model tells what {where} gives"

    def _first_unknown(self, tensor: str, known: Container[str]) -> str:
        """The tensor furthest back that has no shape although all before it have."""
        passed: set[str] = set()
        while tensor not in passed:
            passed.add(tensor)
            node = self.nodes.get(tensor)
            before = [] if node is None else [n for n in node.input if n and n not in known and n not in passed]
            tensor = before[0] if before else tensor
        return tensor
