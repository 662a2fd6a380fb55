"""Maps carried on to where a linear operator takes them in: one walk over the nodes in their order.

Operators that commute with maps hand them on, those that take them in read the core; before all others the tensor is
put together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
from onnx import helper

from onnxprune.fusion import cheaper
from onnxprune.fusion.affine import MOST, Affine, per_channel, scalar, scaling
from onnxprune.fusion.linear import LINEAR, is_padded, linear
from onnxprune.fusion.walk import Walk
from onnxprune.shapes import node_attributes

Rule = Callable[[Walk, onnx.NodeProto], bool]
"""Says whether it dealt with the node; else its operands are put together and the node is as it was."""


def carried(nodes: Iterable[onnx.NodeProto], walk: Walk) -> list[onnx.NodeProto]:
    """The nodes with maps carried ahead as far as they go."""
    for node in nodes:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") and len(node.output) == 1 else None
        stays = node.op_type not in LINEAR and bool(walk.fixed.intersection(node.output))
        if rule is None or stays or not rule(walk, node):
            walk.emit(node, [walk.put_together(name) for name in node.input])
    return walk.nodes


# ---- Rules -----------------------------------------------------------------------------------------------------------


def _linear(walk: Walk, node: onnx.NodeProto) -> bool:
    """y = W x + b takes the map of x in, wherever its result goes."""
    core, map_ = walk.view(node.input[0])
    target = None if map_.is_identity else linear(node, walk.constants)
    if target is None or not target.takes_operand(map_):
        return False
    walk.emit(node, [core, *node.input[1:]])
    dataclasses.replace(target, node=walk.nodes[-1]).take_operand(map_)
    return True


def _map(walk: Walk, node: onnx.NodeProto) -> bool:
    """A map of a map is a map."""
    step = walk.steps.get(node.output[0])
    if step is None:
        return node.op_type == "Mul" and (cheaper.spelled_mish(walk, node) or _product(walk, node))
    core, before = walk.view(step.x)
    return len(before.widths | step.map.widths) < 2 and walk.defer(node, core, before.then(step.map), is_step=True)


def _product(walk: Walk, node: onnx.NodeProto) -> bool:
    """(s x) (t y) = s t (x y)"""
    (x, s), (y, t) = (walk.view(n) for n in node.input)
    if (s.is_identity and t.is_identity) or s.shifts or t.shifts or not (s.is_scalar and t.is_scalar):
        return False
    shape = walk.shapes.get(node.output[0])
    if any(n in walk.views and (walk.shapes.get(n) != shape or not walk.is_read_once(n)) for n in node.input):
        return False
    return _commuted(walk, node, [x, y], scaling(s.scale * t.scale))


def _clip(walk: Walk, node: onnx.NodeProto) -> bool:
    """clip(s x + b, 0, h) = h HardSigmoid(x; s / h, b / h)"""
    core, map_ = walk.view(node.input[0])
    bounds = _bounds(walk, node)
    if not _commutes(walk, node, map_) or not map_.is_scalar or bounds is None or bounds[0] != 0:
        return False
    height, scale, shift = float(bounds[1]), float(map_.scale[0]), float(map_.shift[0])
    made = helper.make_node(
        "HardSigmoid", [core], [node.output[0]], name=node.name, alpha=scale / height, beta=shift / height
    )
    return _commuted(walk, node, [core], scalar(height, 0.0), made)


def _bounds(walk: Walk, node: onnx.NodeProto) -> tuple[float, float] | None:
    """The bounds of a Clip, where both are stored and the upper one is above the lower."""
    attributes = node_attributes(node)
    found = [attributes.get("min"), attributes.get("max")]
    for k, name in enumerate(node.input[1:3]):
        if walk.constants.is_short(name):
            found[k] = walk.constants.get(name).reshape(-1)[0]
    if found[0] is None or found[1] is None or not found[0] < found[1] <= MOST:
        return None
    return float(found[0]), float(found[1])


def _hard_sigmoid(walk: Walk, node: onnx.NodeProto) -> bool:
    """HardSigmoid(s x + b; alpha, beta) = HardSigmoid(x; alpha s, alpha b + beta)"""
    core, map_ = walk.view(node.input[0])
    if not _commutes(walk, node, map_) or not map_.is_scalar:
        return False
    attributes = node_attributes(node)
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    scale, shift = float(map_.scale[0]), float(map_.shift[0])
    made = helper.make_node(
        "HardSigmoid", [core], [node.output[0]], name=node.name, alpha=alpha * scale, beta=alpha * shift + beta
    )
    walk.emit(made)
    return True


def _rectifier(walk: Walk, node: onnx.NodeProto) -> bool:
    """f(s x) = s f(x) for s > 0"""
    core, map_ = walk.view(node.input[0])
    if not _commutes(walk, node, map_) or map_.shifts or np.any(map_.scale < 0):
        return False
    return _commuted(walk, node, [core, *node.input[1:]], map_)


def _prelu(walk: Walk, node: onnx.NodeProto) -> bool:
    """PRelu with one slope is LeakyRelu, which ONNX Runtime takes into a convolution."""
    x, name = node.input
    slopes = per_channel(walk.constants, name, walk.shapes.get(x, ())) if walk.constants.is_short(name) else None
    if slopes is None:
        return False
    if slopes.size > 1:
        return cheaper.prelu(walk, node, slopes)
    walk.rewritten += 1
    made = helper.make_node("LeakyRelu", [x], [node.output[0]], name=node.name, alpha=float(slopes[0]))
    return _rectifier(walk, made) or bool(walk.emit(made, [walk.put_together(x)]))


def _maximum(walk: Walk, node: onnx.NodeProto) -> bool:
    """max(s x + b) = s max(x) + b for s > 0"""
    core, map_ = walk.view(node.input[0])
    return _commutes(walk, node, map_) and not np.any(map_.scale < 0) and _commuted(walk, node, [core], map_)


def _mean(walk: Walk, node: onnx.NodeProto) -> bool:
    """mean(s x + b) = s mean(x) + b, but for the shift where zeros around x count"""
    core, map_ = walk.view(node.input[0])
    attributes = node_attributes(node)
    unsure = is_padded(attributes) or attributes.get("ceil_mode", 0)
    if map_.is_identity or (unsure and map_.shifts):
        return False
    return _commuted(walk, node, [core], map_)


def _move(walk: Walk, node: onnx.NodeProto) -> bool:
    """Elements that only change their places: f(s x + b) = s f(x) + b, of numbers that all channels share."""
    core, map_ = walk.view(node.input[0])
    if not _commutes(walk, node, map_) or not map_.is_scalar:
        return False
    return _commuted(walk, node, [core, *node.input[1:]], map_)


def _commutes(walk: Walk, node: onnx.NodeProto, map_: Affine) -> bool:
    """Whether there is a map to hand on, and nothing else reads its result: else it would be computed twice."""
    return not map_.is_identity and walk.is_read_once(node.input[0])


def _commuted(
    walk: Walk, node: onnx.NodeProto, inputs: Sequence[str], map_: Affine, made: onnx.NodeProto | None = None
) -> bool:
    """Append `made`, or the node with other inputs, and let its result be the map of what that gives out."""
    if not map_.is_sound:
        return False
    core = walk.emit(made or node, inputs, walk.constants.fresh(f"{node.output[0]}_core"))
    return walk.defer(node, core, map_, is_step=False)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(LINEAR, _linear),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "BatchNormalization", "Identity"), _map),
    **dict.fromkeys(("Relu", "LeakyRelu"), _rectifier),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), _maximum),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _mean),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"), _move),
    "PRelu": _prelu,
    "Mish": cheaper.mish,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
}
CARRYING = frozenset(_RULES) - set(LINEAR)
"""Operators that hand maps on."""
