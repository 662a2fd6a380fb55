"""Maps carried on to where a linear operator takes them in: one walk over the nodes in their order.

A tensor that is a map of another one, its *core*, is not computed until something needs it as it is. Operators that
commute with maps hand them on, those that take them in read the core; before all others the tensor is put together:
by its own node where that is the shortest, else by one BatchNormalization between convolutions, which ONNX Runtime runs
in the layout of those, else by Mul and Add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from onnxprune.fusion.affine import MOST, Affine, Step, per_channel, scalar
from onnxprune.fusion.constants import Constants, Float
from onnxprune.fusion.linear import LINEAR, linear
from onnxprune.shapes import node_attributes

IDENTITY = scalar(1.0, 0.0)


@dataclass(frozen=True)
class View:
    """A tensor that is a map of `core`. `node`: the one that gave it out; `is_step`: which was a map itself, so that it
    can still do so."""

    core: str
    map: Affine
    node: onnx.NodeProto
    is_step: bool


@dataclass
class Walk:
    """What is known on the way.

    `fixed`: tensors that must be there as they are. `readers`: how often each tensor was read. `shapes`: before the
    cut. `blocked`: whether convolutions run in a layout of their own, as on the CPU. `nodes`: the new ones, of which so
    many are `rewritten`. `views`: maps not computed so far, by tensor; `whole`: those that were put together.
    `convolutions`: those that a tensor is computed from element by element, and so has the channels of.
    """

    constants: Constants
    steps: Mapping[str, Step]
    fixed: frozenset[str]
    readers: Mapping[str, int]
    shapes: Mapping[str, Sequence[int]]
    blocked: bool
    rewritten: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    views: dict[str, View] = field(default_factory=dict)
    convolutions: dict[str, tuple[onnx.NodeProto, ...]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)

    def view(self, name: str) -> tuple[str, Affine]:
        """A tensor as a map of another."""
        found = self.views.get(name)
        return (name, IDENTITY) if found is None else (found.core, found.map)

    def defer(self, node: onnx.NodeProto, core: str, map_: Affine, *, is_step: bool) -> bool:
        """Let the result of a node be a map of `core`, computed where that is needed."""
        if not map_.is_sound:
            return False
        self.views[node.output[0]] = View(core, map_, node, is_step)
        return True

    def emit(self, node: onnx.NodeProto, inputs: Sequence[str] | None = None, result: str | None = None) -> str:
        """Append a node, reading `inputs` and giving out `result` where these are given."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if inputs is not None:
            del copy.input[:]
            copy.input.extend(inputs)
        if result is not None:
            copy.output[0] = result
        self.nodes.append(copy)
        if copy.op_type in ("Conv", "ConvTranspose") and self.constants.is_stored(copy.input[1]):
            self.convolutions[copy.output[0]] = (copy,)
        elif copy.op_type in _SAME_CHANNELS and all(n in self.convolutions for n in _data(copy)):
            self.convolutions[copy.output[0]] = tuple(c for n in _data(copy) for c in self.convolutions[n])
        return str(copy.output[0]) if copy.output else ""

    def core_of(self, node: onnx.NodeProto, inputs: Sequence[str]) -> str:
        """Append a node that reads other tensors than it did; the name of its result."""
        return self.emit(node, inputs, self.constants.fresh(f"{node.output[0]}_core"))

    def put_together(self, name: str) -> str:
        """The name of a tensor that holds what `name` held, computed if need be."""
        found = self.views.get(name)
        if found is None or name in self.whole:
            return name
        if found.map.is_identity:
            return found.core
        self.whole.add(name)
        own = self._own_nodes(name)
        is_convolved = found.core in self.convolutions
        if own and len(own) <= (1 if is_convolved else len(_parts(found.map))):
            self.whole.update(n.output[0] for n in own)
            return [self.emit(node) for node in own][-1]
        if is_convolved:
            return self.normalise(found.core, name, found.map, _label(found.node, "map"))
        return self._arithmetic(name, found)

    def _own_nodes(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that compute a view from what is there, if maps alone do, in their order."""
        found: list[onnx.NodeProto] = []
        view = self.views[name]
        while view.is_step:
            found.append(view.node)
            operand = self.steps[view.node.output[0]].x
            if operand not in self.views or operand in self.whole:
                return found[::-1]
            view = self.views[operand]
        return []

    def normalise(self, core: str, name: str, map_: Affine, label: str) -> str:
        """Append the map `name` of a tensor that has the channels of convolutions; its name."""
        count = max(_channels(c, self.constants) for c in self.convolutions[core])
        stored = [self._vector(f"{name}_{what}", value, count) for _, what, value in _both(map_)]
        stored += [self.constants.filled(value, count) for value in (0.0, 1.0)]
        return self.emit(helper.make_node("BatchNormalization", [core, *stored], [name], name=label, epsilon=0.0))

    def _vector(self, name: str, value: Float, count: int) -> str:
        if np.all(value == value[0]) and value[0] in (0.0, 1.0):
            return self.constants.filled(float(value[0]), count)
        return self.constants.add(name, np.broadcast_to(value, count))

    def _arithmetic(self, name: str, found: View) -> str:
        last, parts = found.core, _parts(found.map)
        for k, (op, what, value) in enumerate(parts):
            result = name if k == len(parts) - 1 else self.constants.fresh(f"{name}_{what}d")
            shape = () if value.size == 1 else (value.size, *[1] * (len(self.shapes[name]) - 2))
            stored = self.constants.add(f"{name}_{what}", value.reshape(shape))
            last = self.emit(helper.make_node(op, [last, stored], [result], name=_label(found.node, what)))
        return last


def _both(map_: Affine) -> list[tuple[str, str, Float]]:
    """A map as operators: (operator, name, constant)."""
    return [("Mul", "scale", map_.scale), ("Add", "shift", map_.shift)]


def _parts(map_: Affine) -> list[tuple[str, str, Float]]:
    """Those of the operators of a map that do anything."""
    scales, shifts = _both(map_)
    return [scales] * bool(np.any(map_.scale != 1)) + [shifts] * map_.shifts


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


def _label(node: onnx.NodeProto, what: str) -> str:
    """The name of a node that is one part of what another was."""
    return f"{node.name}/{what}" if node.name else ""


def _channels(node: onnx.NodeProto, constants: Constants) -> int:
    """How many channels a convolution gives out."""
    first, second = constants.get(node.input[1]).shape[:2]
    return int(first if node.op_type == "Conv" else second * node_attributes(node).get("group", 1))


def _data(node: onnx.NodeProto) -> list[str]:
    """The operands of an operator that works element by element, or pools, but for its settings."""
    return list(node.input[: 2 if node.op_type in _BINARY else 1])


# ---- Rules -----------------------------------------------------------------------------------------------------------


def _linear(walk: Walk, node: onnx.NodeProto) -> bool:
    """y = W x + b takes the map of x in, wherever its result goes."""
    core, map_ = walk.view(node.input[0])
    target = None if map_.is_identity else linear(node, walk.constants)
    if target is None or not target.takes_operand(map_):
        return False
    walk.emit(node, [core, *node.input[1:]])
    target = linear(walk.nodes[-1], walk.constants)
    if target is not None:
        target.take_operand(map_)
    return True


def _map(walk: Walk, node: onnx.NodeProto) -> bool:
    """A map of a map is a map."""
    step = walk.steps.get(node.output[0])
    if step is None:
        return _product(walk, node) if node.op_type == "Mul" else False
    core, before = walk.view(step.x)
    sizes = {size for m in (before, step.map) for size in (m.scale.size, m.shift.size)} - {1}
    return len(sizes) < 2 and walk.defer(node, core, before.then(step.map), is_step=True)


def _product(walk: Walk, node: onnx.NodeProto) -> bool:
    """(s x) (t y) = s t (x y)"""
    (x, s), (y, t) = (walk.view(n) for n in node.input)
    if (s.is_identity and t.is_identity) or s.shifts or t.shifts or not (s.is_scalar and t.is_scalar):
        return False
    return _commuted(walk, node, [x, y], _scaling(s.scale * t.scale))


def _clip(walk: Walk, node: onnx.NodeProto) -> bool:
    """clip(s x, l, h) = s clip(x, l / s, h / s);  clip(s x + b, 0, h) = h HardSigmoid(x; s / h, b / h)"""
    core, map_ = walk.view(node.input[0])
    bounds = _bounds(walk, node)
    if map_.is_identity or not map_.is_scalar or map_.scale[0] < 0 or bounds is None or bounds[0] != 0:
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
    if map_.is_identity or not map_.is_scalar:
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
    if map_.is_identity or map_.shifts or np.any(map_.scale < 0):
        return False
    return _commuted(walk, node, [core, *node.input[1:]], map_)


def _slopes(walk: Walk, node: onnx.NodeProto) -> bool:
    """PRelu, for which ONNX Runtime leaves the layout of its convolutions, at a cost near that of one of them: with one
    slope LeakyRelu, with one per channel  PRelu(x; s) = s x + (1 - s) max(x, 0)  in that layout."""
    name = node.input[1]
    if not walk.constants.is_short(name):
        return False
    slopes = per_channel(walk.constants, name, walk.shapes.get(node.input[0], ()))
    if slopes is None:
        return False
    if slopes.size == 1:
        walk.rewritten += 1
        made = helper.make_node("LeakyRelu", [node.input[0]], [node.output[0]], name=node.name, alpha=float(slopes[0]))
        return _rectifier(walk, made) or bool(walk.emit(made, [walk.put_together(node.input[0])]))
    if not walk.blocked or walk.put_together(node.input[0]) not in walk.convolutions:
        return False
    walk.rewritten += 1
    x, y = walk.put_together(node.input[0]), node.output[0]
    kept = walk.emit(helper.make_node("Relu", [x], [walk.constants.fresh(f"{y}_kept")], name=_label(node, "kept")))
    sloped = walk.normalise(x, walk.constants.fresh(f"{y}_sloped"), _scaling(slopes), _label(node, "sloped"))
    lifted = walk.normalise(kept, walk.constants.fresh(f"{y}_lifted"), _scaling(1.0 - slopes), _label(node, "lifted"))
    walk.emit(helper.make_node("Add", [sloped, lifted], [y], name=node.name))
    return True


def _scaling(scale: Float) -> Affine:
    return Affine(scale, np.zeros(1))


def _maximum(walk: Walk, node: onnx.NodeProto) -> bool:
    """max(s x + b) = s max(x) + b for s > 0"""
    core, map_ = walk.view(node.input[0])
    return not map_.is_identity and not np.any(map_.scale < 0) and _commuted(walk, node, [core], map_)


def _mean(walk: Walk, node: onnx.NodeProto) -> bool:
    """mean(s x + b) = s mean(x) + b, but for the shift where zeros around x count"""
    core, map_ = walk.view(node.input[0])
    attributes = node_attributes(node)
    is_padded = any(attributes.get("pads", ())) or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    unsure = is_padded or attributes.get("ceil_mode", 0)
    if map_.is_identity or (unsure and map_.shifts):
        return False
    return _commuted(walk, node, [core], map_)


def _move(walk: Walk, node: onnx.NodeProto) -> bool:
    """Elements that only change their places: f(s x + b) = s f(x) + b, of numbers that all channels share."""
    core, map_ = walk.view(node.input[0])
    if map_.is_identity or not map_.is_scalar or walk.readers.get(node.input[0]) != 1:
        return False
    return _commuted(walk, node, [core, *node.input[1:]], map_)


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
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "BatchNormalization"), _map),
    **dict.fromkeys(("Relu", "LeakyRelu"), _rectifier),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), _maximum),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _mean),
    **dict.fromkeys(("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"), _move),
    "PRelu": _slopes,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
}
CARRYING = frozenset(_RULES) - set(LINEAR)
"""Operators that hand maps on."""
_BINARY = frozenset(("Add", "Sub", "Mul", "Div"))
_POOLS = ("MaxPool", "GlobalMaxPool", "AveragePool", "GlobalAveragePool")
_ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish", "Sigmoid", "BatchNormalization", "Identity")
_SAME_CHANNELS = _BINARY | {*_POOLS, *_ACTIVATIONS}
"""Operators whose results have the channels of their operands, where those are results of convolutions."""
