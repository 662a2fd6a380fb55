"""Maps that follow a linear operator, taken into its weight and bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from onnxprune.fusion.affine import Step
from onnxprune.fusion.constants import Constants
from onnxprune.fusion.linear import LINEAR, linear


def taken_in(
    nodes: Sequence[onnx.NodeProto], steps: Mapping[str, Step], readers: Mapping[str, int], constants: Constants
) -> list[onnx.NodeProto]:
    """The nodes without the maps that the operators before them take in.

    `steps`: maps by what they give out. `readers`: how often each tensor is read, graph outputs included.
    """
    by_operand = {s.x: s for s in steps.values()}
    gone: set[str] = set()
    for node in nodes:
        chain = _chain(node.output[0], by_operand, readers) if node.op_type in LINEAR else []
        if not chain or _left_to_runtime(node, chain, constants):
            continue
        target = linear(node, constants)
        sizes = {size for s in chain for size in (s.map.scale.size, s.map.shift.size)} - {1}
        if target is None or not sizes <= {target.outputs}:
            continue
        for step in chain:
            target.take_result(step.map)
            gone.add(step.node.output[0])
        node.output[0] = chain[-1].node.output[0]
    return [node for node in nodes if node.op_type in LINEAR or not gone.intersection(node.output)]


def _chain(name: str, by_operand: Mapping[str, Step], readers: Mapping[str, int]) -> list[Step]:
    """The maps behind a tensor, as long as nothing else reads what is between them."""
    found: list[Step] = []
    while readers.get(name) == 1 and name in by_operand:
        found.append(by_operand[name])
        name = found[-1].node.output[0]
    return found


def _left_to_runtime(node: onnx.NodeProto, chain: Sequence[Step], constants: Constants) -> bool:
    """ONNX Runtime takes normalisations and vectors behind a Conv in by itself."""
    return node.op_type == "Conv" and all(
        s.node.op_type == "BatchNormalization" or max(s.map.scale.size, s.map.shift.size) > 1 for s in chain
    )
