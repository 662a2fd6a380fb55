"""The walk over a model in which maps are carried ahead: what is known of every tensor, and the new nodes.

A tensor that is a map of another one, its *core*, is not computed until something needs it as it is. Then it is put
together: by its own node where that is the shortest, else by one BatchNormalization between convolutions, which ONNX
Runtime runs in the layout of those, else by Mul and Add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from onnxprune.fusion.affine import Affine, Step, scalar
from onnxprune.fusion.constants import Constants, Float
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

    `fixed`: tensors that must be there as they are. `shapes`: before the
    cut. `blocked`: whether convolutions run in a layout of their own, as on the CPU. `nodes`: the new ones, of which so
    many are `rewritten`; `made`: by what they give out. `views`: maps not computed so far, by tensor; `whole`: those
    that were put together.
    `convolutions`: the one that a tensor has the channels of, where it is computed from results of such element by
    element.
    """

    constants: Constants
    steps: Mapping[str, Step]
    fixed: frozenset[str]
    shapes: Mapping[str, Sequence[int]]
    blocked: bool
    rewritten: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    made: dict[str, onnx.NodeProto] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    convolutions: dict[str, onnx.NodeProto] = field(default_factory=dict)
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
        self.made.update({name: copy for name in copy.output if name})
        self._note_channels(copy)
        return str(copy.output[0]) if copy.output else ""

    def _note_channels(self, node: onnx.NodeProto) -> None:
        if node.op_type in ("Conv", "ConvTranspose") and self.constants.is_stored(node.input[1]):
            self.convolutions[node.output[0]] = node
        elif node.op_type in _SAME_CHANNELS and all(n in self.convolutions for n in _data(node)):
            found = [self.convolutions[n] for n in _data(node)]
            if len({len(self.constants.shape(n.input[1])) for n in found}) == 1:
                # One channel may be spread over those of the other operand.
                self.convolutions[node.output[0]] = max(found, key=lambda n: _channels(n, self.constants))

    def is_read_once(self, name: str) -> bool:
        """Whether one operator alone reads a tensor."""
        return self.constants.readers.get(name) == 1

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
            return self.normalise(found.core, name, found.map, label(found.node, "map"))
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
        count = _channels(self.convolutions[core], self.constants)
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
            last = self.emit(helper.make_node(op, [last, stored], [result], name=label(found.node, what)))
        return last


def _both(map_: Affine) -> list[tuple[str, str, Float]]:
    """A map as operators: (operator, name, constant)."""
    return [("Mul", "scale", map_.scale), ("Add", "shift", map_.shift)]


def _parts(map_: Affine) -> list[tuple[str, str, Float]]:
    """Those of the operators of a map that do anything."""
    scales, shifts = _both(map_)
    return [scales] * map_.scales + [shifts] * map_.shifts


def label(node: onnx.NodeProto, what: str) -> str:
    """The name of a node that is one part of what another was."""
    return f"{node.name}/{what}" if node.name else ""


def _channels(node: onnx.NodeProto, constants: Constants) -> int:
    """How many channels a convolution gives out."""
    first, second = constants.get(node.input[1]).shape[:2]
    return int(first if node.op_type == "Conv" else second * node_attributes(node).get("group", 1))


def _data(node: onnx.NodeProto) -> list[str]:
    """The operands of an operator that works element by element, or pools, but for its settings."""
    return list(node.input[: 2 if node.op_type in _BINARY else 1])


_BINARY = frozenset(("Add", "Sub", "Mul", "Div"))
_POOLS = ("MaxPool", "GlobalMaxPool", "AveragePool", "GlobalAveragePool")
_ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish", "Sigmoid", "BatchNormalization", "Identity")
_SAME_CHANNELS = _BINARY | {*_POOLS, *_ACTIVATIONS}
"""Operators whose results have the channels of their operands, where those are results of convolutions."""
