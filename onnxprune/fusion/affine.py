"""Maps y = scale * x + shift, each one number or one per channel (axis 1), and the operators that are such maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.fusion.constants import Constants, Float
from onnxprune.shapes import node_attributes

LEAST, MOST = 1e-6, 1e6
"""Scales and shifts beyond these sizes are not moved: in float32 they would cost digits."""
NEAR = 2.0**-22
"""How far a scale may be from 1 and do nothing."""


@dataclass(frozen=True)
class Affine:
    """`scale`, `shift`: float64 of shape (1,) or (channels,)."""

    scale: Float
    shift: Float

    def then(self, other: Affine) -> Affine:
        """First this, then the other."""
        return Affine(other.scale * self.scale, other.scale * self.shift + other.shift)

    @property
    def is_scalar(self) -> bool:
        """Whether all channels share one scale and one shift."""
        return not self.widths

    @property
    def widths(self) -> set[int]:
        """The numbers of channels that it has numbers for."""
        return {self.scale.size, self.shift.size} - {1}

    @property
    def scales(self) -> bool:
        """Whether the scale does anything: constants of float32 are seldom the inverse of others to the last digit."""
        return bool(np.any(np.abs(self.scale - 1) > NEAR))

    @property
    def shifts(self) -> bool:
        """Whether the shift does anything."""
        return bool(np.any(self.shift != 0))

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return not self.scales and not self.shifts

    @property
    def is_sound(self) -> bool:
        """Whether float32 holds what becomes of weights under it."""
        sizes = np.abs(np.concatenate([self.scale, self.shift]))
        scales = sizes[: self.scale.size]
        return bool(np.all(np.isfinite(sizes)) and np.all((scales >= LEAST) | (scales == 0)) and np.all(sizes <= MOST))


def scalar(scale: float, shift: float) -> Affine:
    """The map with the same numbers for all channels."""
    return Affine(np.array([scale], np.float64), np.array([shift], np.float64))


def scaling(scale: Float) -> Affine:
    """The map without a shift."""
    return Affine(scale, np.zeros(1))


@dataclass(frozen=True)
class Step:
    """A node that maps the tensor `x` in this way."""

    node: onnx.NodeProto
    x: str
    map: Affine


def step(node: onnx.NodeProto, constants: Constants, shapes: Mapping[str, Sequence[int]]) -> Step | None:
    """What a node does if that is such a map of one tensor, else None."""
    reading = _STEPS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    found = reading(node, constants, shapes) if reading is not None else None
    return found if found is not None and found.map.is_sound else None


def _copy(node: onnx.NodeProto, constants: Constants, shapes: Mapping[str, Sequence[int]]) -> Step | None:
    x = node.input[0]
    return None if constants.holds(x) else Step(node, x, scalar(1.0, 0.0))


def _arithmetic(node: onnx.NodeProto, constants: Constants, shapes: Mapping[str, Sequence[int]]) -> Step | None:
    left, right = node.input
    if constants.is_stored(left) == constants.is_stored(right):
        return None
    name, x = (left, right) if constants.is_stored(left) else (right, left)
    number = per_channel(constants, name, shapes.get(x, ())) if constants.is_short(name) else None
    found = None if number is None else _ARITHMETIC[node.op_type](number, name == left)
    return None if found is None else Step(node, x, found)


def per_channel(constants: Constants, name: str, shape: Sequence[int]) -> Float | None:
    """A constant as one number, or one for each index of axis 1 of an operand of that shape before the cut; else
    None."""
    sizes = constants.shape(name)
    aligned = (1,) * (len(shape) - len(sizes)) + tuple(sizes)
    if not shape or len(aligned) != len(shape):
        return None
    if any(size != 1 and (axis != 1 or size != shape[1]) for axis, size in enumerate(aligned)):
        return None
    return constants.get(name).astype(np.float64).reshape(-1)


def _add(c: Float, first: bool) -> Affine:
    return Affine(np.ones(1), c)


def _sub(c: Float, first: bool) -> Affine:
    return Affine(-np.ones(1), c) if first else Affine(np.ones(1), -c)


def _mul(c: Float, first: bool) -> Affine:
    return Affine(c, np.zeros(1))


def _div(c: Float, first: bool) -> Affine | None:
    return None if first or np.any(c == 0) else Affine(1.0 / c, np.zeros(1))


_ARITHMETIC: dict[str, Callable[[Float, bool], Affine | None]] = {"Add": _add, "Sub": _sub, "Mul": _mul, "Div": _div}
"""By operator: the map, of the constant and of whether that is the first operand."""


def _normalisation(node: onnx.NodeProto, constants: Constants, shapes: Mapping[str, Sequence[int]]) -> Step | None:
    """scale * (x - mean) / sqrt(variance + epsilon) + bias, of channels, in inference."""
    attributes = node_attributes(node)
    is_plain = len(node.output) == 1 and not attributes.get("training_mode", 0) and attributes.get("spatial", 1)
    is_known = len(shapes.get(node.input[0], ())) > 1 and all(map(constants.is_stored, node.input[1:]))
    if not is_plain or not is_known:
        return None
    scale, bias, mean, variance = (constants.get(n).astype(np.float64).reshape(-1) for n in node.input[1:])
    factor = scale / np.sqrt(variance + np.float64(attributes.get("epsilon", 1e-5)))
    return Step(node, node.input[0], Affine(factor, bias - mean * factor))


_STEPS = {"Identity": _copy, "BatchNormalization": _normalisation, **dict.fromkeys(_ARITHMETIC, _arithmetic)}
"""How operators that may be such maps are read."""
