"""Operators that put axes end to end or take parts of them: Concat, Split, Slice, Gather, Pad."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.rules.layout import state_same_order
from onnxprune.rules.registry import Operator, rule


@rule("Concat")
def concat(op: Operator) -> None:
    """Operands of one index each are the indices of a new dimension; else their dimensions lie end to end."""
    state_concat(op, [i for i in range(len(op.inputs)) if op.has(i)])
    axis = op.attribute("axis", 1) % len(op.outputs[0])
    stacked = [found[axis] for found in op.inputs if found is not None]
    free = all(d.size == 1 and dims.resolve(d).frozen is None for d in stacked)
    if len(stacked) > 1 and free and not any(op.constant):
        dimension = dims.atom(len(stacked))
        op.outputs[0] = (*op.outputs[0][:axis], dimension, *op.outputs[0][axis + 1 :])
        op.state_stack(dimension)


def state_concat(op: Operator, operands: Iterable[int]) -> None:
    """The operands lie end to end along attribute `axis`."""
    present = [op.dims(i) for i in operands]
    axis = op.attribute("axis", 1) % len(present[0])
    for other in present[1:]:
        for k, (a, b) in enumerate(zip(present[0], other, strict=True)):
            if k != axis:
                op.unify(a, b)
    result = list(present[0])
    result[axis] = dims.cat([x[axis] for x in present])
    op.outputs[0] = tuple(result)


@rule("Split")
def split(op: Operator) -> None:
    x = op.dims(0)
    axis = op.attribute("axis", 0) % len(x)
    op.keep_stretching(0, axis)
    parts = op.split(x[axis], [out[axis].size for out in op.outputs])
    op.sizes(1 if op.has(1) else "split", parts)
    op.outputs = [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


@rule("Slice")
def slice_(op: Operator) -> None:
    """Constant bounds cut the axis; a stride s keeps every s-th index, the outer factor of (n/s, s)."""
    x = op.dims(0)
    result = list(op.outputs[0])
    starts, ends = _bounds(op, 1, "starts"), _bounds(op, 2, "ends")
    axes = _bounds(op, 3, "axes")
    steps = _bounds(op, 4, "steps")
    if axes is None and (op.has(3) or "axes" in op.attributes):
        op.freeze_all("Slice with computed axes")
        return
    sliced = {a % len(x): k for k, a in enumerate(axes if axes is not None else range(len(starts or x)))}
    start_sizes: list[Dim | None] = [None] * len(sliced)
    end_sizes: list[Dim | None] = [None] * len(sliced)
    for axis, d in enumerate(x):
        if axis not in sliced:
            result[axis] = d
            continue
        k = sliced[axis]
        if starts is None or ends is None or (steps is None and op.has(4)):
            op.freeze(d, "Slice with computed bounds")
            op.freeze(result[axis], "Slice with computed bounds")
            continue
        op.keep_stretching(0, axis)
        step = steps[k] if steps else 1
        result[axis], start_sizes[k], end_sizes[k] = _slice_axis(op, d, (starts[k], ends[k], step), result[axis])
        if end_sizes[k] is None and ends[k] == d.size and op.has(2) and not op.constant[2]:
            end_sizes[k] = d
    operand = len(op.inputs) > 1
    op.sizes(1 if operand else "starts", start_sizes)
    op.sizes(2 if operand else "ends", end_sizes)
    op.outputs[0] = tuple(result)


def _bounds(op: Operator, operand: int, name: str) -> list[int] | None:
    """Constant bounds of a Slice (attribute before opset 10), None where absent or computed."""
    if name in op.attributes:
        return [int(v) for v in op.attributes[name]]
    value = op.fixed(operand)
    return None if value is None else [int(v) for v in value.reshape(-1)]


def _slice_axis(op: Operator, d: Dim, bounds: tuple[int, int, int], out: Dim) -> tuple[Dim, Dim | None, Dim | None]:
    start, stop, step = slice(*bounds).indices(d.size)
    if step == 1:
        stop = max(start, stop)
        before, middle, after = op.split(d, [start, stop - start, d.size - stop])
        if d.size == middle.size:
            return d, None, None
        end = dims.cat([before, middle]) if after.size else None
        return middle, before if start else None, end
    if step > 1 and start < step and d.size % step == 0 and stop > d.size - step + start:
        outer, inner = op.factor(d, [d.size // step, step])
        op.freeze(inner, "Slice with a stride")
        return outer, None, d if bounds[1] == d.size else None
    op.freeze(d, "Slice with a stride that does not divide the axis")
    op.freeze(out, "Slice with a stride that does not divide the axis")
    return out, None, None


@rule("Gather")
def gather(op: Operator) -> None:
    """Constant indices that are a run, a stride or a shuffle of the axis cut and reorder it; places on the axis follow
    it; any others need it whole. Indices that count all of a flat tensor in order only give it other axes.

    A lookup in a weight produces the other axes.
    """
    data, index = op.dims(0), op.dims(1)
    if _counts_all(op):
        if state_same_order(op):
            op.sizes(1, list(op.outputs[0]))
        return
    axis = op.attribute("axis", 0) % len(data)
    op.keep_stretching(0, axis)
    followed = op.follows(1, data[axis])
    picked = None if followed else _picked(op, data[axis])
    if picked is None:
        if not followed:
            op.freeze(data[axis], "Gather picks from this axis")
        for k in range(len(data)):
            if k != axis:
                op.role(0, k, "produced")
    else:
        op.pick(1, data[axis], picked)
        if dims.resolve(index[0]).frozen is None:
            op.unify(index[0], picked)
    op.outputs[0] = (*data[:axis], *(index if picked is None else (picked,)), *data[axis + 1 :])


def _counts_all(op: Operator) -> bool:
    """Whether a flat tensor is read from first to last (a view with strides), at most one new axis following the
    input: that is a Reshape.
    """
    value, following = op.values[1], op.stretched[0]
    if value is None or value.ndim < 2 or len(op.dims(0)) != 1 or value.size != op.dims(0)[0].size:
        return False
    in_order = np.array_equal(value.reshape(-1), np.arange(value.size))
    return in_order and (following is None or int(following.sum()) <= 1)


def _picked(op: Operator, d: Dim) -> Dim | None:
    """What constant indices pick from `d`, where the algebra can say it."""
    index = op.fixed(1)
    if index is None or index.ndim != 1 or index.size < 2:
        return None
    index = index % d.size
    step = int(index[1] - index[0])
    if step > 0 and np.array_equal(index, index[0] + step * np.arange(index.size)):
        if step == 1:
            return op.split(d, [int(index[0]), index.size, d.size - int(index[0]) - index.size])[1]
        if d.size == step * index.size:
            outer, inner = op.factor(d, [index.size, step])
            op.freeze(inner, "Gather with a stride")
            return outer
    shuffles = step > 1 and index.size == d.size and d.size % step == 0
    if shuffles and np.array_equal(index, np.arange(d.size).reshape(-1, step).T.reshape(-1)):
        outer, inner = op.factor(d, [d.size // step, step])
        return dims.prod([inner, outer])
    return None


@rule("Pad")
@rule("Pad", domain="com.microsoft")
def pad(op: Operator) -> None:
    """Constant padding puts fixed parts around the axis; every other mode copies from it."""
    x = op.dims(0)
    amounts = _bounds(op, 1, "pads") or op.attribute("paddings")
    axes = _bounds(op, 3, "axes") if op.has(3) else list(range(len(x)))
    if axes is None or (amounts is None and op.has(3)):
        raise ValueError("Pad along computed axes")
    if amounts is None:
        _pad_computed(op)
        return
    result = list(x)
    for k, axis in enumerate(axes):
        head, tail = amounts[k], amounts[k + len(axes)]
        result[axis % len(x)] = _pad_axis(op, x[axis % len(x)], head, tail, op.outputs[0][axis % len(x)])
    op.outputs[0] = tuple(result)


def _pad_axis(op: Operator, d: Dim, head: int, tail: int, out: Dim) -> Dim:
    if head == tail == 0:
        return d
    if min(head, tail) < 0 or op.attribute("mode", "constant") != "constant":
        op.freeze(d, "Pad copies or cuts along this axis")
        op.freeze(out, "Pad copies or cuts along this axis")
        return out
    filled = [dims.atom(n, frozen=op.refusal("padding")) for n in (head, tail)]
    return dims.cat([filled[0], d, filled[1]])


def _pad_computed(op: Operator) -> None:
    """Amounts that depend on the input: an axis whose own amounts are always 0 passes through."""
    rank = len(op.dims(0))
    amounts, moving = op.values[1], op.moving[1]
    result = list(op.outputs[0])
    for k, (d, out) in enumerate(zip(op.dims(0), result, strict=True)):
        if amounts is not None and moving is not None and not any(amounts[j] or moving[j] for j in (k, k + rank)):
            result[k] = d
        else:
            op.freeze(d, "Pad with a computed amount")
            op.freeze(out, "Pad with a computed amount")
    op.outputs[0] = tuple(result)
