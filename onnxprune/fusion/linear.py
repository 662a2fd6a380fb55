"""Linear operators with a stored weight, and what becomes of weight and bias when a map moves into them.

Conv            weight (g o) i *, bias (g o)
ConvTranspose   weight (g i) o *, bias (g o)
Gemm            weight i o (transB: o i), bias (o), y = alpha x W + beta b
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune.fusion.affine import Affine
from onnxprune.fusion.constants import Array, Constants, Float
from onnxprune.shapes import node_attributes

LINEAR = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class Linear:
    """One such node. `groups`, `inputs` and `outputs`: of channels, the last two in all groups together."""

    node: onnx.NodeProto
    constants: Constants
    groups: int
    inputs: int
    outputs: int
    turned: bool
    """Whether the outputs are axis 1 of the weight."""
    is_padded: bool
    alpha: float

    @property
    def weight(self) -> str:
        """The name of the weight."""
        return str(self.node.input[1])

    def take_result(self, map_: Affine) -> None:
        """Let the node give out scale * y + shift in place of y."""
        self._scale(map_.scale, self.outputs, inner=self.turned)
        if self._has_bias or map_.shifts:
            self._put_bias(np.broadcast_to(map_.scale * self._bias() + map_.shift, self.outputs))

    def takes_operand(self, map_: Affine) -> bool:
        """Whether the node can read x where it reads scale * x + shift now: at a border of zeros no shift can be told
        from none."""
        return map_.widths <= {self.inputs} and not (self.is_padded and map_.shifts)

    def take_operand(self, map_: Affine) -> None:
        """Let the node do to x what it does to scale * x + shift now."""
        if map_.shifts:
            self._put_bias(self._bias() + self.alpha * self._response(np.broadcast_to(map_.shift, self.inputs)))
        self._scale(map_.scale, self.inputs, inner=not self.turned)

    def _response(self, x: Float) -> Float:
        """What the weight makes of inputs that are the same everywhere; float64 (outputs,)."""
        weight = self.constants.get(self.weight).astype(np.float64)
        if self.node.op_type == "Gemm":
            return np.asarray((weight if not self.turned else weight.T) @ x)
        taps = weight.reshape(self.groups, self.outputs // self.groups, self.inputs // self.groups, -1).sum(-1)
        return np.asarray(np.einsum("goi,gi->go", taps, x.reshape(self.groups, -1)).reshape(-1))

    def _scale(self, factor: Float, size: int, *, inner: bool) -> None:
        """Multiply the weight by a factor for each of its `size` inputs or outputs: on axis 1 in groups, if `inner`."""
        if np.all(factor == 1):
            return
        factor, groups = np.broadcast_to(factor, size), self.groups if inner else 1

        def change(weight: Array) -> Array:
            each = factor.reshape(groups, 1, -1) if inner else factor.reshape(1, -1, 1)
            parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            scaled = parts * each[..., None]
            return np.ascontiguousarray(scaled.reshape(weight.shape), weight.dtype)

        self.constants.edit(self.weight, change)

    @property
    def has_plain_bias(self) -> bool:
        """Whether the bias can be put anew: there is none, or one number for each output (that of Gemm may be more)."""
        if not self._has_bias:
            return True
        name = self.node.input[2]
        shape = self.constants.get(name).shape if self.constants.is_stored(name) else (0,)
        return math.prod(shape) in (1, self.outputs) and all(size == 1 for size in shape[:-1])

    @property
    def _has_bias(self) -> bool:
        return len(self.node.input) > 2 and bool(self.node.input[2])

    def _bias(self) -> Float:
        bias = self.constants.get(self.node.input[2]).astype(np.float64).reshape(-1) if self._has_bias else np.zeros(1)
        return np.broadcast_to(bias, self.outputs)

    def _put_bias(self, bias: Float) -> None:
        name = self.constants.add(f"{self.node.output[0]}_bias", bias)
        self.node.input.extend([""] * (3 - len(self.node.input)))
        self.node.input[2] = name


def linear(node: onnx.NodeProto, constants: Constants) -> Linear | None:
    """The node as a linear operator whose weight and bias can be changed; None where it is none."""
    if node.op_type not in LINEAR or node.domain not in ("", "ai.onnx") or not constants.is_own(node.input[1]):
        return None
    attributes = node_attributes(node)
    first, second = constants.get(node.input[1]).shape[:2]
    if node.op_type == "Gemm":
        if attributes.get("beta", 1.0) != 1 or attributes.get("transA", 0):
            return None
        turned = not attributes.get("transB", 0)
        inputs, outputs = (first, second) if turned else (second, first)
        found = Linear(node, constants, 1, inputs, outputs, turned, False, float(attributes.get("alpha", 1.0)))
        return found if found.has_plain_bias else None
    groups = int(attributes.get("group", 1))
    if node.op_type == "ConvTranspose":
        found = Linear(node, constants, groups, first, second * groups, True, True, 1.0)
    else:
        found = Linear(node, constants, groups, second * groups, first, False, is_padded(attributes), 1.0)
    return found if found.has_plain_bias else None


def is_padded(attributes: Mapping[str, Any]) -> bool:
    """Whether a convolution or a pool may see zeros around its operand."""
    return attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(attributes.get("pads", ()))
