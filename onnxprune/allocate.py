"""How many indices of each group stay: the ratio, the bounds, and rounding to widths the runtime is fast at."""

from __future__ import annotations

import math
from collections.abc import Iterable

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.records import Allocation, Analysis, Group

GEMM_BLOCK = 8
"""Widths of matrix products are rounded to whole vectors of 8 floats."""
FAST_MULTIPLE = 4
"""ONNX Runtime's blocked convolutions need channel counts that are multiples of this."""


def uniform(
    analysis: Analysis, groups: Iterable[Group], *, ratio: float, round_to: int | None, block: int
) -> Allocation:
    """Remove the share `ratio` of every group.

    `round_to`: None for fast widths on a processor with convolution blocks of `block` channels, else the multiple
    that kept counts are rounded up to.
    """
    counts = {}
    for group in groups:
        wanted = max(1, round(group.size * (1 - ratio)))
        step = fast_step(analysis, group, block) if round_to is None else round_to
        counts[group.id] = round_count(wanted, group.size, step)
    return Allocation(counts)


def round_count(wanted: int, size: int, step: int) -> int:
    """Round a kept count up within its step, whose indices cost nothing; never below one step unless the group is.

    Where the group itself ends inside the step it stays whole, unless its own width is a slow one.
    """
    up = math.ceil(wanted / step) * step
    if up <= size:
        return up
    down = size // step * step
    slow = step % FAST_MULTIPLE == 0 and size % FAST_MULTIPLE != 0
    return down if slow and down >= step else size


def fast_step(analysis: Analysis, group: Group, block: int) -> int:
    """The step in which the width of a group is fast: every axis it lies on must be whole blocks."""
    steps = [1]
    for o in group.occurrences:
        axes = analysis.weights[o.tensor]
        multiple = block if len(axes) > 2 else GEMM_BLOCK
        if o.role == "carried":
            continue
        steps += [multiple // math.gcd(multiple, n) for n in _inner_sizes(axes[o.axis], group.dim)]
    return math.lcm(*steps)


def _inner_sizes(axis: Dim, wanted: Dim) -> Iterable[int]:
    """For every place of `wanted` on the axis, how many neighbouring elements one index of it spans."""
    for part in dims.cat_parts(axis):
        inner = 1
        for f in reversed(dims.prod_factors(part)):
            if f is wanted:
                yield inner
            elif f.kind == "cat":
                yield from (n * inner for n in _inner_sizes(f, wanted))
            inner *= f.size


def choose_factors(analysis: Analysis, groups: Iterable[Group]) -> list[Group]:
    """Of groups that multiply each other on one axis (heads x width, groups x channels) keep one, the outermost first.

    Cutting both would remove the share twice.
    """
    candidates = list(groups)
    prunable = {g.dim for g in candidates}
    rivals: dict[Dim, set[Dim]] = {}
    inner: set[Dim] = set()
    for axes in analysis.weights.values():
        for part in (p for d in axes for p in dims.cat_parts(d) if p.kind == "prod"):
            found = [a for a in dims.atoms(part) if a in prunable]
            inner.update(found[1:])
            for a in found:
                rivals.setdefault(a, set()).update(b for b in found if b is not a)
    chosen: set[Dim] = set()
    for group in sorted(candidates, key=lambda g: g.dim in inner):
        if not rivals.get(group.dim, set()) & chosen:
            chosen.add(group.dim)
    return [g for g in candidates if g.dim in chosen]
