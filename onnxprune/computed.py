"""Numbers that a model computes from sizes: how they follow a width that shrinks, and which widths change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.folding import evaluate
from onnxprune.records import SizeUse
from onnxprune.shapes import Shapes, node_attributes

Array = npt.NDArray[Any]
Tensors = Mapping[str, Sequence[Dim]]
SIZED = {"ConstantOfShape", "Expand", "Reshape"}
"""Operators whose result has the sizes that they are given."""


def recompute(
    node: onnx.NodeProto,
    changed: Mapping[str, Array],
    known: Mapping[str, Array],
    tensors: Tensors,
    counts: Mapping[Dim, int],
) -> list[Array] | None:
    """What a node of shape arithmetic gives where each atom in `counts` has that many indices left, and its operands
    are those of `known`, or of `changed` where they are there; None where that cannot be computed."""
    if node.op_type not in ("Shape", "Size"):
        inputs = [changed.get(n, known.get(n)) if n else None for n in node.input]
        return evaluate(node.op_type, inputs, node_attributes(node), len(node.output))
    sizes = [dims.size(d, counts) for d in tensors[node.input[0]]]
    if node.op_type == "Size":
        return [np.asarray(np.prod(sizes), np.int64)]
    bounds = {a.name: a.i for a in node.attribute}
    return [np.asarray(sizes[bounds.get("start", 0) : bounds.get("end", len(sizes))], np.int64)]


def unstatable(shapes: Shapes, node: onnx.NodeProto, use: SizeUse) -> list[Dim]:
    """The dimensions among the sizes a node is given that cannot be stated anew: none where the sizes are known or
    `are_replaceable`; else those that follow the input, or all where they are not the sizes of the result."""
    if not isinstance(use.where, int) or node.input[use.where] in shapes.values or are_replaceable(shapes, node, use):
        return []
    moving = shapes.dynamic_axes.get(node.output[0])
    if moving is None or node.op_type not in SIZED or shapes.shape[node.input[use.where]] != moving.shape:
        moving = np.ones(len(use.dims), bool)
    return [d for d, follows in zip(use.dims, moving, strict=True) if d is not None and follows]


def are_replaceable(shapes: Shapes, node: onnx.NodeProto, use: SizeUse) -> bool:
    """Whether sizes that only the data tells can be told from the result: no axis moves, or one of a Reshape."""
    moving = shapes.dynamic_axes.get(node.output[0])
    return moving is not None and None not in use.dims and bool(moving.sum() <= (node.op_type == "Reshape"))


class Numbers:
    """The nodes of shape arithmetic among `nodes`, which are in order."""

    def __init__(self, nodes: Sequence[onnx.NodeProto], tensors: Tensors, shapes: Shapes) -> None:
        self.shapes, self.tensors = shapes, tensors
        derived = shapes.derived
        self.nodes = [n for n in nodes if any(o in derived for o in n.output)]
        self.maker = {o: k for k, n in enumerate(self.nodes) for o in n.output if o}

    def widths(self, name: str) -> list[Dim]:
        """The atoms not frozen that change the number `name` when they shrink."""
        chain = self._chain(name)
        read = [n.input[0] for n in chain if n.op_type in ("Shape", "Size")]
        atoms = dict.fromkeys(a for tensor in read for d in self.tensors.get(tensor, ()) for a in dims.atoms(d))
        return [a for a in atoms if a.size > 1 and a.frozen is None and self._changes(chain, name, a)]

    def _chain(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that `name` is computed by, in order."""
        found: set[int] = set()
        queue = [name]
        while queue:
            made_by = self.maker.get(queue.pop())
            if made_by is not None and made_by not in found:
                found.add(made_by)
                if self.nodes[made_by].op_type not in ("Shape", "Size"):
                    queue.extend(self.nodes[made_by].input)
        return [self.nodes[k] for k in sorted(found)]

    def _changes(self, chain: Sequence[onnx.NodeProto], name: str, atom: Dim) -> bool:
        for left in {1, atom.size - 1}:
            changed: dict[str, Array] = {}
            for node in chain:
                results = recompute(node, changed, self.shapes.values, self.tensors, {atom: left})
                if results is None:
                    return True
                changed.update(zip(node.output, results, strict=False))
            if not np.array_equal(changed[name], self.shapes.values[name]):
                return True
        return False
