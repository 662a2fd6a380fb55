"""Operators that move elements without changing them: reshape, transpose, squeeze, expand, tile, depth to space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.rules.registry import Operator, rule

Axis = tuple[Dim, bool]
"""A dimension, and whether its size follows the size of the input."""


@rule("Reshape")
def reshape(op: Operator) -> None:
    """Row-major order does not change, so runs of axes with equal products are equal products of dimensions."""
    if state_same_order(op):
        op.sizes(1 if op.has(1) else "shape", _stated(op, 1 if op.has(1) else "shape"))


def state_same_order(op: Operator) -> bool:
    """The result has the elements of operand 0 in the same order, on other axes. False where they cannot be."""
    before = _axes(op.dims(0), op.stretching[0])
    after = _axes(op.outputs[0], op.stretched[0])
    if _regroup(op, before, after):
        return True
    op.freeze_all("the axes of the two shapes do not multiply to the same size")
    return False


def _stated(op: Operator, where: int | str) -> list[Dim | None]:
    """The result dimensions, None where the target says -1 (what is left) or 0 (as it was, and it is the same)."""
    target = op.values[where] if isinstance(where, int) else op.attribute(where)
    if target is None:
        return list(op.outputs[0])
    stated: list[Dim | None] = []
    for axis, (t, d) in enumerate(zip(target, op.outputs[0], strict=True)):
        copied = int(t) == 0 and d.size > 0 and dims.same(op.dims(0)[axis], d)
        stated.append(None if int(t) == -1 or copied else d)
    return stated


def _axes(found: Sequence[Dim], follow: npt.NDArray[np.bool_] | None) -> list[Axis]:
    return [(d, follow is not None and bool(follow[k])) for k, d in enumerate(found)]


def _regroup(op: Operator, before: Sequence[Axis], after: Sequence[Axis]) -> bool:
    """Unify the shortest runs of axes that have equal products. False where the totals differ."""
    left, right = list(before), list(after)
    while left or right:
        a, b = left[:1], right[:1]
        x, y = _product(a), _product(b)
        while x.size != y.size:
            side, run = (left, a) if x.size < y.size else (right, b)
            if len(run) == len(side):
                return False
            run.append(side[len(run)])
            x, y = _product(a), _product(b)
        if not _always_divides(a, b):
            for d in (x, y):
                op.freeze(d, "sizes that follow the input are not divided alike at every size")
        op.unify(x, y)
        left, right = left[len(a) :], right[len(b) :]
    return True


def _product(run: Sequence[Axis]) -> Dim:
    return dims.prod([d for d, _ in run])


def _always_divides(before: Sequence[Axis], after: Sequence[Axis]) -> bool:
    """Whether two runs of axes are the same product at every input size, factor by factor.

    With s and t the products of their fixed sizes, the sizes that follow the input are known to divide by
    t / gcd(s, t) before and by s / gcd(s, t) after, and by nothing else. Only where one axis alone follows, and t
    divides s, it is known to be s / t times all that follow on the other side: what these leave of it is fixed. An axis
    without indices tells nothing.
    """
    runs = [[(d.size, follows) for d, follows in run] for run in (before, after)]
    if any(n == 0 for run in runs for n, _ in run):
        return False
    fixed = [math.prod(n for n, follows in run if not follows) for run in runs]
    known = [n // max(math.gcd(*fixed), 1) for n in reversed(fixed)]
    if any(follows for _, follows in runs[0]) != any(follows for _, follows in runs[1]):
        return False
    alone = [sum(f for _, f in run) == 1 and fixed[1 - k] % max(fixed[k], 1) == 0 for k, run in enumerate(runs)]
    left, right = ([axis for axis in run if axis[0] != 1] for run in runs)
    sides = [(left, 0), (right, 1)]
    while left and right:
        (inner, outer) = sorted(sides, key=lambda side: side[0][-1])
        (n, small_follows), (m, follows) = inner[0].pop(), outer[0].pop()
        if m % n:
            return True
        if small_follows and not follows:
            return False
        if follows and not small_follows:
            if known[outer[1]] % n:
                return False
            known[outer[1]] //= n
        if m > n:
            is_left = alone[outer[1]] and small_follows and not any(f for _, f in inner[0])
            outer[0].append((m // n, follows and not is_left))
    return True


@rule("Flatten")
def flatten(op: Operator) -> None:
    axis = op.attribute("axis", 1)
    x = op.dims(0)
    axis = axis + len(x) if axis < 0 else axis
    op.outputs[0] = (dims.prod(x[:axis]), dims.prod(x[axis:]))


@rule("Transpose")
def transpose(op: Operator) -> None:
    x = op.dims(0)
    op.outputs[0] = tuple(x[k] for k in op.attribute("perm", range(len(x))[::-1]))


@rule("Squeeze", "Unsqueeze")
def squeeze(op: Operator) -> None:
    """Axes of size 1 come and go; the others keep their order."""
    if [d.size for d in op.dims(0) if d.size != 1] != [d.size for d in op.outputs[0] if d.size != 1]:
        op.freeze_all("the result does not have the axes of the operand")
        return
    if op.kind == "Squeeze" and not op.has(1) and op.attribute("axes") is None:
        for d in op.dims(0):
            op.freeze(d, "Squeeze without axes would drop it at size 1")
    others = iter([d for d in op.dims(0) if d.size != 1])
    op.outputs[0] = tuple(d if d.size == 1 else next(others) for d in op.outputs[0])


@rule("Expand")
def expand(op: Operator) -> None:
    op.broadcast([0])
    target = op.values[1]
    stated = list(op.outputs[0]) if target is None else op.outputs[0][len(op.outputs[0]) - target.size :]
    ones = [] if target is None else target.reshape(-1).tolist()
    op.sizes(1, [None if ones and ones[k] == 1 else d for k, d in enumerate(stated)])


@rule("Tile", since=6)
def tile(op: Operator) -> None:
    """Repeating an axis n times is the product (n, axis)."""
    repeats: list[Dim | None] = []
    result = []
    for d, out in zip(op.dims(0), op.outputs[0], strict=True):
        times = dims.atom(out.size // max(d.size, 1))
        repeats.append(None if times.size == 1 else times)
        result.append(dims.prod([times, d]))
    op.sizes(1, repeats)
    op.outputs[0] = tuple(result)


@rule("ConstantOfShape")
def constant_of_shape(op: Operator) -> None:
    op.sizes(0, list(op.outputs[0]))


@rule("DepthToSpace")
def depth_to_space(op: Operator) -> None:
    """DCR: channels are (b b c); CRD: (c b b)."""
    n, channel, *space = op.dims(0)
    b = op.attribute("blocksize")
    depth_first = op.attribute("mode", "DCR") == "DCR"
    sizes = [b, b, channel.size // b**2] if depth_first else [channel.size // b**2, b, b]
    found = op.factor(channel, sizes)
    c = found.pop(2 if depth_first else 0)
    for d in (*found, *space, *op.outputs[0][2:]):
        op.freeze(d, "DepthToSpace fixes the block")
    op.outputs[0] = (n, c, *op.outputs[0][2:])


@rule("SpaceToDepth")
def space_to_depth(op: Operator) -> None:
    """The new channels are (b b c)."""
    n, channel, *space = op.dims(0)
    block = dims.atom(op.attribute("blocksize") ** 2)
    for d in (block, *space, *op.outputs[0][2:]):
        op.freeze(d, "SpaceToDepth fixes the block")
    op.outputs[0] = (n, dims.prod([block, channel]), *op.outputs[0][2:])


@rule("Resize", "Upsample")
def resize(op: Operator) -> None:
    """An axis that keeps its size passes through; a resized one stays."""
    if op.attribute("coordinate_transformation_mode") == "tf_crop_and_resize":
        op.freeze_all("Resize with a region of interest")
        return
    result = []
    scales = _scales(op)
    for axis, (d, out) in enumerate(zip(op.dims(0), op.outputs[0], strict=True)):
        if d.size != out.size or scales.get(axis, 1.0) != 1.0:
            op.freeze(d, f"{op.kind} works along this axis")
            op.freeze(out, f"{op.kind} works along this axis")
        result.append(d if d.size == out.size and scales.get(axis, 1.0) == 1.0 else out)
    op.outputs[0] = tuple(result)
    if op.has(3):
        axes = op.attribute("axes", range(len(result)))
        op.sizes(3, [result[a] for a in axes])


def _scales(op: Operator) -> dict[int, float]:
    """The known scale of each axis: operand 2 (1 before opset 11) or the attribute."""
    given = op.attribute("scales")
    operand = 2 if op.opset >= 11 else 1
    if given is None and op.has(operand) and op.values[operand] is not None:
        given = op.values[operand]
    if given is None or not len(given):
        return {}
    axes = op.attribute("axes") or range(len(op.dims(0)))
    return {a % len(op.dims(0)): float(s) for a, s in zip(axes, given, strict=True)}


@rule("CenterCropPad", since=18)
def center_crop_pad(op: Operator) -> None:
    """Works along `axes`, or all axes."""
    rank = len(op.dims(0))
    axes = {a % rank for a in op.attribute("axes", range(rank))}
    for axis in axes:
        op.freeze(op.dims(0)[axis], "CenterCropPad cuts or pads this axis")
        op.freeze(op.outputs[0][axis], "CenterCropPad cuts or pads this axis")
    op.outputs[0] = tuple(op.outputs[0][k] if k in axes else d for k, d in enumerate(op.dims(0)))


@rule("ExpandDims", domain="com.microsoft")
def expand_dims(op: Operator) -> None:
    axis = op.fixed(1)
    if axis is None:
        raise ValueError("ExpandDims at a computed axis")
    at = int(axis.item()) % len(op.outputs[0])
    op.outputs[0] = (*op.dims(0)[:at], op.outputs[0][at], *op.dims(0)[at:])


@rule("Shape", "Size")
def shape(op: Operator) -> None:
    """Only reached where the shape is not known; known ones are folded."""
    op.freeze_all("its shape is read but not known")
