"""Operators that pick or place by index: the indexed axes must stay whole, the others pass through. An axis shrinks
where the indices are places on it that a TopK or ArgMax over the shrunken axis tells, or a constant run."""

from __future__ import annotations

import numpy as np

from onnxprune import dims
from onnxprune.rules.registry import Operator, rule


@rule("GatherND")
@rule("GatherND", domain="com.microsoft")
def gather_nd(op: Operator) -> None:
    """data: B, indexed, rest; indices: B, I, k -> B, I, rest."""
    data, index = op.dims(0), op.dims(1)
    batch = op.attribute("batch_dims", 0)
    picked = index[-1].size
    op.freeze(index[-1], "GatherND picks from this axis")
    if picked != 1 or not op.follows(1, data[batch]):
        for d in data[batch : batch + picked]:
            op.freeze(d, "GatherND picks from this axis")
    op.unify_all(data[:batch], index[:batch])
    op.outputs[0] = (*index[:-1], *data[batch + picked :])


@rule("ScatterND")
def scatter_nd(op: Operator) -> None:
    """data: indexed, rest; indices: I, k; updates: I, rest -> as data. Constant indices that are a run of the
    first axis write one part of it.
    """
    data, index, updates = op.dims(0), op.dims(1), op.dims(2)
    if _write_run(op):
        return
    picked = index[-1].size
    op.freeze(index[-1], "ScatterND places into this axis")
    if picked != 1 or not op.follows(1, data[0]):
        for d in data[:picked]:
            op.freeze(d, "ScatterND places into this axis")
    op.unify_all(updates, (*index[:-1], *data[picked:]))
    op.broadcast([0])


def _write_run(op: Operator) -> bool:
    """State that the updates are one part of the first axis, where constant indices say so."""
    data, value, (index, *_) = op.dims(0), op.fixed(1), op.dims(1)
    if value is None or value.ndim != 2 or value.shape[1] != 1 or not value.size:
        return False
    start = int(value[0, 0]) % data[0].size
    if not np.array_equal(value[:, 0] % data[0].size, np.arange(start, start + len(value))):
        return False
    op.keep_stretching(0, 0)
    part = op.split(data[0], [start, len(value), data[0].size - start - len(value)])[1]
    op.pick(1, data[0], part)
    if dims.resolve(index).frozen is None:
        op.unify(index, part)
    op.unify_all(op.dims(2), (part, *data[1:]))
    op.broadcast([0])
    return True


@rule("GatherElements", "ScatterElements", "Scatter")
def elements(op: Operator) -> None:
    """Every operand has an entry per element, so all axes but the indexed one are the same where they are as long."""
    data = op.dims(0)
    axis = op.attribute("axis", 0) % len(data)
    followed = op.follows(1, data[axis])
    for operand in range(1, len(op.inputs)):
        for k, (a, b) in enumerate(zip(data, op.dims(operand), strict=True)):
            if k == axis and followed:
                op.freeze(b, f"{op.kind} picks so many")
            elif k == axis or a.size != b.size:
                op.freeze(a, f"{op.kind} picks from this axis")
                op.freeze(b, f"{op.kind} picks from this axis")
            else:
                op.unify(a, b)
    op.outputs[0] = op.dims(1 if op.kind == "GatherElements" else 0)


@rule("TensorScatter", since=24)
def tensor_scatter(op: Operator) -> None:
    """A cache, what is written into it along `axis`, and where, for every b -> the cache."""
    cache, update = op.dims(0), op.dims(1)
    axis = op.attribute("axis", -2) % len(cache)
    for k, (a, b) in enumerate(zip(cache, update, strict=True)):
        if k == axis:
            op.freeze(a, "TensorScatter writes along this axis")
            op.freeze(b, "TensorScatter writes along this axis")
        else:
            op.unify(a, b)
    if op.has(2):
        op.unify(op.dims(2)[0], cache[0])
    op.broadcast([0])


@rule("Compress")
def compress(op: Operator) -> None:
    """A condition picks from one axis; without `axis`, from all elements in a row."""
    axis = op.attribute("axis")
    if axis is None:
        raise ValueError("Compress of all elements in a row")
    axis %= len(op.dims(0))
    op.freeze(op.dims(0)[axis], "Compress picks from this axis")
    op.freeze(op.outputs[0][axis], "Compress picks from this axis")
    op.outputs[0] = tuple(op.outputs[0][k] if k == axis else d for k, d in enumerate(op.dims(0)))


@rule("ReverseSequence")
def reverse_sequence(op: Operator) -> None:
    x = op.dims(0)
    op.freeze(x[op.attribute("time_axis", 0)], "ReverseSequence turns this axis round")
    op.unify(op.dims(1)[0], x[op.attribute("batch_axis", 1)])
    op.broadcast([0])


@rule("Det")
@rule("Inverse", domain="com.microsoft")
def square_matrix(op: Operator) -> None:
    """The last two axes are a matrix."""
    for d in op.dims(0)[-2:]:
        op.freeze(d, f"{op.kind} works on whole matrices")
    op.outputs[0] = op.dims(0) if op.kind == "Inverse" else op.dims(0)[:-2]


@rule("OneHot")
def one_hot(op: Operator) -> None:
    axis = op.attribute("axis", -1) % len(op.outputs[0])
    classes = op.outputs[0][axis]
    if op.follows(0, classes):
        op.sizes(1, [classes])
    else:
        op.freeze(classes, "the classes of OneHot")
    op.outputs[0] = (*op.dims(0)[:axis], classes, *op.dims(0)[axis:])


@rule("Trilu")
@rule("Trilu", domain="com.microsoft")
def trilu(op: Operator) -> None:
    for d in op.dims(0)[-2:]:
        op.freeze(d, "Trilu compares positions on this axis")
    op.broadcast([0])


@rule("DFT")
def dft(op: Operator) -> None:
    """Along one axis; the last axis holds the real and imaginary parts."""
    axis = op.attribute("axis", 1) if op.opset < 20 else op.fixed(2)
    if axis is None and op.has(2):
        raise ValueError("DFT along a computed axis")
    position = int(-2 if axis is None else axis.item() if hasattr(axis, "item") else axis) % len(op.dims(0))
    result = list(op.outputs[0])
    for k, d in enumerate(op.dims(0)):
        if k in (position, len(op.dims(0)) - 1):
            op.freeze(d, "DFT works along this axis")
            op.freeze(result[k], "DFT works along this axis")
        else:
            result[k] = d
    op.outputs[0] = tuple(result)
