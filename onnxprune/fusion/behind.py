"""Maps that follow a linear operator, taken into its weight and bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from onnxprune.fusion.affine import Step
from onnxprune.fusion.constants import Constants
from onnxprune.fusion.linear import LINEAR, linear


def taken_in(nodes: Sequence[onnx.NodeProto], steps: Mapping[str, Step], constants: Constants) -> list[onnx.NodeProto]:
    """The nodes without the maps that the operators before them take in. `steps`: maps by what they give out."""
    by_operand = {s.x: s for s in steps.values()}
    gone: set[str] = set()
    for node in nodes:
        chain = _chain(node.output[0], by_operand, constants.readers) if node.op_type in LINEAR else []
        if not chain or all(left_to_runtime(node, s) for s in chain):
            continue
        target = linear(node, constants)
        if target is None or not all(s.map.widths <= {target.outputs} for s in chain):
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


def left_to_runtime(node: onnx.NodeProto, found: Step) -> bool:
    """Whether ONNX Runtime takes a map behind a linear operator in by itself: copies, normalisations, and behind a Conv
    the vectors that are the second operand."""
    if found.node.op_type == "Identity":
        return True
    if found.node.op_type == "BatchNormalization":
        return node.op_type in ("Conv", "ConvTranspose")
    is_second = found.node.op_type in ("Add", "Mul") and found.node.input[0] == found.x
    return node.op_type == "Conv" and is_second and not found.map.is_scalar
