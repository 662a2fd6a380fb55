"""Least squares that knows the activation behind: where the original's ReLU gives 0, any negative value will do.

Below `low` (above `high`) the activation is flat. The loss

    (z - y)^2  where low < y < high,    max(z - low, 0)^2  where y <= low,    min(z - high, 0)^2  where y >= high

is convex in W, b, and is minimised by majorisation: targets in a flat region move to where the prediction lies, then
plain least squares again. Every step can only lower the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxprune.bodies import operands
from onnxprune.recover.moments import Moments, Stream
from onnxprune.recover.solve import Refit, Solution
from onnxprune.shapes import constant_tensor, node_attributes

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

INFINITE = np.float32(np.inf)
STEPS = 8
BLOCK, LEAST_BLOCK = 1 << 16, 256
"""Predictions made at once, which stay in the processor's cache while they are worked on; of so many columns at least,
as the whole weight is read for each block."""


@dataclass(frozen=True)
class Block:
    """Columns `x` (groups, d, n) of a batch, and from where to where outputs are as good as the targets: `least` and
    `most` (groups, o, n), the target itself where nothing hides it. All about the shifts of the moments."""

    x: Array
    least: Array
    most: Array
    held: bool

    def predict(self, weight: Array, offset: Array) -> Array:
        """`weight` (groups, o, d), `offset` (groups, o, 1), float32: of predictions about the shift of y."""
        prediction = weight @ self.x
        prediction += offset
        return prediction

    def moved(self, prediction: Array, out: Array | None = None) -> Array:
        """The targets, those in a flat region moved to the nearest value as good as the prediction."""
        result = np.maximum(prediction, self.least, out=out)
        return np.minimum(result, self.most, out=result)


class Side:
    """The columns to fit to, or those held out, of one layer: their moments, and with `flat` (below, above) themselves
    in `blocks`, until that is set to None."""

    def __init__(self, shift_x: Float, shift_y: Float, flat: tuple[np.float32, np.float32] | None, held: bool) -> None:
        self.moments = Moments.about(shift_x, shift_y)
        self.flat, self.held = flat, held
        self.blocks: list[Block] | None = None if flat is None else []
        self.bytes = 0
        self.stream = Stream(self._take)

    def add(self, x: Array, y: Array, *other: Array) -> None:
        """Columns (groups, d, n), (groups, o, n), and the other operand of a sum behind."""
        self.stream.add(x, y, *other)
        if self.blocks is not None:
            self.bytes += x.nbytes + 2 * y.nbytes

    def _take(self, x: Array, y: Array, *other: Array) -> None:
        x, centred = self.moments.add(x, y)
        if self.blocks is None or self.flat is None:
            return
        low, high = (limit - other[0] if other else limit for limit in self.flat)
        shift = self.moments.shift_y[:, :, None].astype(np.float32)
        least = np.where(y <= low, -INFINITE, np.where(y >= high, high - shift, centred))
        most = np.where(y >= high, INFINITE, np.where(y <= low, low - shift, centred))
        width = max(LEAST_BLOCK, BLOCK // (y.shape[0] * y.shape[1]))
        for start in range(0, x.shape[2], width):
            here = slice(start, start + width)
            self.blocks.append(Block(x[:, :, here], least[:, :, here], most[:, :, here], self.held))


def relax(
    blocks: Sequence[Block],
    train: Moments,
    held: Moments,
    plain: tuple[Float, Float],
    start: Solution,
    prior: Float | None = None,
) -> Solution:
    """Improve `start` for the loss above; its held-out loss decides after each step whether to go on, and against
    `plain`, weight and bias of the cut. `prior`: as of `solve`. What comes back has its errors by that loss."""
    prior, ridge = plain[0] if prior is None else prior, start.ridge or 0.0
    system = Refit(train, prior, ridge)
    weight, bias = system.solve(train.y, train.yx)
    best = loss(blocks, weight, bias, train)
    steps = 0
    for _ in range(STEPS):
        new, shifted = system.solve(*_moved(blocks, weight, bias, train, held_too=False))
        found = loss(blocks, new, shifted, train)
        if not found < best * (1 - 1e-3):
            break
        weight, bias, best, steps = new, shifted, found, steps + 1
    before = loss(blocks, *plain, train)
    if not steps or not best < before:
        return start
    weight, bias = start.weight, start.bias
    del system
    system = Refit(train.plus(held), prior, ridge)
    for _ in range(steps):
        weight, bias = system.solve(*_moved(blocks, weight, bias, train, held_too=True))
    whole = max(float(held.variance.sum()) * held.count, 1e-30)
    return Solution(weight, bias, ridge, before / whole, best / whole)


def loss(blocks: Sequence[Block], weight: Float, bias: Float, like: Moments) -> float:
    """Summed loss over the held-out blocks, which are about the shifts of `like`."""
    total, near = 0.0, _centred(weight, bias, like)
    for block in blocks:
        if block.held:
            prediction = block.predict(*near)
            error = prediction - block.moved(prediction)
            total += float(np.square(error, out=error).sum(dtype=np.float64))
    return total


def _moved(
    blocks: Sequence[Block], weight: Float, bias: Float, like: Moments, *, held_too: bool
) -> tuple[Float, Float]:
    """Sum y and Y X^T of the moved targets, about the shifts of `like`, as the blocks are."""
    y, yx, near = np.zeros_like(like.y), np.zeros_like(like.yx), _centred(weight, bias, like)
    for block in blocks:
        if held_too or not block.held:
            prediction = block.predict(*near)
            part = block.moved(prediction, out=prediction)
            y += part.sum(2)
            yx += part @ block.x.transpose(0, 2, 1)
    return y, yx


def _centred(weight: Float, bias: Float, like: Moments) -> tuple[Array, Array]:
    """Weight and bias (groups, o, 1) of predictions about the shift of y from inputs about theirs, float32."""
    offset = (weight @ like.shift_x[:, :, None]) + (bias - like.shift_y)[:, :, None]
    return weight.astype(np.float32), offset.astype(np.float32)


def flat_regions(proto: onnx.ModelProto) -> dict[str, tuple[np.float32, np.float32]]:
    """For every tensor that only ReLU or Clip read: where that is flat, (below, above)."""
    values = {t.name: t for t in proto.graph.initializer if np.prod(t.dims) <= 1}
    values.update(
        (n.output[0], t) for n in proto.graph.node if n.op_type == "Constant" and (t := constant_tensor(n)) is not None
    )
    regions: dict[str, tuple[np.float32, np.float32] | None] = {o.name: None for o in proto.graph.output}
    for node in proto.graph.node:
        for name in operands(node):
            own = _flat(node, values) if [name] == node.input[:1] else None
            regions[name] = own if regions.get(name, own) == own else None
    return {name: region for name, region in regions.items() if region is not None}


def _flat(node: onnx.NodeProto, values: dict[str, onnx.TensorProto]) -> tuple[np.float32, np.float32] | None:
    if node.op_type == "Relu":
        return np.float32(0), INFINITE
    if node.op_type == "HardSwish":
        return np.float32(-3), INFINITE
    if node.op_type != "Clip":
        return None
    attributes = node_attributes(node)
    bounds = [attributes.get("min", -INFINITE), attributes.get("max", INFINITE)]
    for k, name in enumerate(list(node.input)[1:3]):
        if name:
            if name not in values:
                return None
            bounds[k] = numpy_helper.to_array(values[name]).reshape(-1)[0]
    return np.float32(bounds[0]), np.float32(bounds[1])
