"""Activations whose kernels in ONNX Runtime cost as much as a convolution on the CPU, in terms of quick ones.

PRelu(x; s) = s x + (1 - s) max(x, 0)
Mish(x)     = x q / (2 - q),  q = s (2 - s),  s = Sigmoid(x)
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from onnxprune.fusion.affine import scaling
from onnxprune.fusion.constants import Float
from onnxprune.fusion.walk import Walk, label


def spelled_mish(walk: Walk, node: onnx.NodeProto) -> bool:
    """x Tanh(Softplus(x))"""
    for x, gate in (node.input, node.input[::-1]):
        outer = walk.made.get(gate)
        inner = walk.made.get(outer.input[0]) if outer is not None and outer.op_type == "Tanh" else None
        if inner is not None and inner.op_type == "Softplus" and inner.input[0] == x:
            return mish(walk, helper.make_node("Mish", [x], [node.output[0]], name=node.name))
    return False


def mish(walk: Walk, node: onnx.NodeProto) -> bool:
    """Mish without its Softplus, between convolutions."""
    x, y = node.input[0], node.output[0]
    if not walk.blocked or x in walk.views or x not in walk.convolutions:
        return False
    walk.rewritten += 1
    two = walk.constants.filled(2.0, 1)

    def part(op: str, inputs: Sequence[str], what: str) -> str:
        made = helper.make_node(op, inputs, [walk.constants.fresh(f"{y}_{what}")], name=label(node, what))
        return walk.emit(made)

    s = part("Sigmoid", [x], "sigmoid")
    q = part("Mul", [s, part("Sub", [two, s], "rest")], "part")
    gate = part("Div", [q, part("Sub", [two, q], "whole")], "gate")
    walk.emit(helper.make_node("Mul", [x, gate], [y], name=node.name))
    return True


def prelu(walk: Walk, node: onnx.NodeProto, slopes: Float) -> bool:
    """PRelu with a slope for each channel, in the layout of convolutions."""
    x, y = walk.put_together(node.input[0]), node.output[0]
    if not walk.blocked or x not in walk.convolutions:
        return False
    walk.rewritten += 1
    kept = walk.emit(helper.make_node("Relu", [x], [walk.constants.fresh(f"{y}_kept")], name=label(node, "kept")))
    sloped = walk.normalise(x, walk.constants.fresh(f"{y}_sloped"), scaling(slopes), label(node, "sloped"))
    lifted = walk.normalise(kept, walk.constants.fresh(f"{y}_lifted"), scaling(1.0 - slopes), label(node, "lifted"))
    walk.emit(helper.make_node("Add", [sloped, lifted], [y], name=node.name))
    return True
