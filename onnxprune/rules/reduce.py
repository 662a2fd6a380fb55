"""Reductions. A sum over an axis contracts it (what is masked adds nothing), a mean renormalises it; a maximum, an arg
max or the k largest compare along it; a product needs the whole axis.

Results of ArgMax and TopK are places on the axis. They stay right where everything they reach takes them as such.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.rules.registry import Operator, rule

SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
COMPARISONS = ("ReduceMax", "ReduceMin", "ReduceLogSumExp")
WHOLE = ("ReduceProd", "ReduceLogSum")


@rule(*SUMS, *COMPARISONS, *WHOLE, "ReduceMean")
def reduce(op: Operator) -> None:
    axes = _axes(op)
    if axes is None:
        op.freeze_all("the axes of the reduction are not constant")
        return
    shrinking = [a for a in axes if op.dims(0)[a].size > 1]
    if op.kind in WHOLE:
        for a in shrinking:
            op.freeze(op.dims(0)[a], f"{op.kind} over this axis")
    elif op.kind in COMPARISONS and shrinking:
        op.compare(0, shrinking, f"{op.kind} over this axis")
    elif shrinking:
        op.contract(0, shrinking, average=op.kind == "ReduceMean", weighted=False)
    state_reduced(op, axes, bool(op.attribute("keepdims", 1)))


def _axes(op: Operator) -> list[int] | None:
    """The reduced axes: attribute, operand 1, or all."""
    given: Sequence[int] | None = op.attribute("axes")
    if op.has(1):
        value = op.fixed(1)
        if value is None:
            return None
        given = value.reshape(-1).tolist()
    rank = len(op.dims(0))
    if not given:
        return [] if op.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(a) % rank for a in given)


def state_reduced(op: Operator, axes: Sequence[int], keepdims: bool) -> None:
    """The result has the axes of operand 0 without (or with size 1 at) `axes`."""
    result = list(op.outputs[0])
    kept = [k for k in range(len(op.dims(0))) if k not in axes]
    for position, k in enumerate(kept):
        result[k if keepdims else position] = op.dims(0)[k]
    op.outputs[0] = tuple(result)


@rule("ArgMax", "ArgMin")
def arg(op: Operator) -> None:
    axis = op.attribute("axis", 0) % len(op.dims(0))
    op.compare(0, [axis], f"{op.kind} over this axis")
    op.state_places(0, op.dims(0)[axis])
    state_reduced(op, [axis], bool(op.attribute("keepdims", 1)))


@rule("TopK")
def top_k(op: Operator) -> None:
    """The k largest or smallest of an axis, and their places; k is the same at every input."""
    axis = op.attribute("axis", -1) % len(op.dims(0))
    if op.has(1) and op.fixed(1) is None:
        op.freeze(op.dims(0)[axis], "TopK over this axis with a computed count")
    else:
        op.compare(0, [axis], "TopK over this axis", least=op.outputs[0][axis].size)
    op.state_places(1, op.dims(0)[axis])
    for output, fresh in enumerate(op.outputs):
        op.freeze(fresh[axis], "TopK over this axis")
        op.outputs[output] = (*op.dims(0)[:axis], fresh[axis], *op.dims(0)[axis + 1 :])
