"""How many indices of each group stay: the ratio, the bounds, and rounding to widths the runtime is fast at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Literal

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.processor import LEAST_MULTIPLE
from onnxprune.records import Allocation, Analysis, FastWidths, Group

Factors = Literal["outer", "inner", "all"]
"""Which of the groups that multiply each other on one axis are cut."""


WIDTHS = (2, 4, 8)
"""How many widths a group has at least in steps between the fast ones and the finest."""


def uniform(
    analysis: Analysis, groups: Iterable[Group], *, ratio: float, round_to: int | None, widths: FastWidths
) -> Allocation:
    """Remove the share `ratio` of every group.

    `round_to`: None for the fast `widths`, else the multiple that kept counts are rounded up to.
    """
    groups = list(groups)
    steps = {g.id: fast_step(analysis, g, widths) if round_to is None else round_to for g in groups}
    return evenly(groups, ratio, steps)


def evenly(groups: Iterable[Group], ratio: float, steps: Mapping[str, int]) -> Allocation:
    """Remove the share `ratio` of every group, kept counts rounded up to multiples of `steps` (by group id)."""
    wanted = {g.id: max(g.least, round(g.size * (1 - ratio))) for g in groups}
    return Allocation({g.id: round_count(wanted[g.id], g.size, steps[g.id]) for g in groups})


def rungs(
    groups: Iterable[Group], fast: Mapping[str, int], finest: Mapping[str, int] | None
) -> list[Mapping[str, int]]:
    """Steps by group id, from the fast ones down to the finest (None: the fast ones alone).

    Narrow groups have few widths in fast steps, and wide ones lose little by them: in every rung between, a group's
    step is halved until the group has at least so many widths, `WIDTHS`.
    """
    if finest is None:
        return [fast]
    sizes = {g.id: g.size for g in groups}
    between = [{name: _halved(fast[name], finest[name], size // n) for name, size in sizes.items()} for n in WIDTHS]
    found = [fast, *between, finest]
    return [steps for k, steps in enumerate(found) if steps not in found[:k]]


def _halved(step: int, finest: int, most: int) -> int:
    """The largest of a step and its halves that is `most` at most, or `finest`."""
    while step > most and step != finest:
        step = step // 2 if step % (2 * finest) == 0 else finest
    return step


def round_count(wanted: int, size: int, step: int) -> int:
    """Round a kept count up within its step, whose indices cost nothing; never below one step unless the group is.

    Where the group itself ends inside the step it stays whole, unless its own width is a slow one.
    """
    up = math.ceil(wanted / step) * step
    if up <= size:
        return up
    down = size // step * step
    slow = step % LEAST_MULTIPLE == 0 and size % LEAST_MULTIPLE != 0
    return down if slow and down >= step else size


def fast_step(analysis: Analysis, group: Group, widths: FastWidths) -> int:
    """The step in which a group is fast: every axis it lies on must be whole steps of its kind; parts are single."""
    steps = [1]
    if group.parts:
        return 1
    for o in group.occurrences:
        if o.role == "carried":
            continue
        axes = analysis.weights[o.tensor]
        multiple = _multiple(axes, widths)
        steps += [multiple // math.gcd(multiple, n) for n in _inner_sizes(axes[o.axis], group.dim)]
    return math.lcm(*steps)


def _multiple(axes: Sequence[Dim], widths: FastWidths) -> int:
    """The step of the kind of layer that a weight with these axes belongs to.

    Outputs in groups are the mark of a grouped convolution, or of a layer that feeds one: both have to suit it. Only
    convolutions over two axes have a layout of blocks; those over three are products with a row for each channel.
    """
    if len(axes) <= 3:
        return widths.product
    if len(axes) > 4:
        return LEAST_MULTIPLE
    if axes[1].size == 1:
        return widths.depthwise
    own = widths.pointwise if all(d.size == 1 for d in axes[2:]) else widths.convolution
    return math.lcm(own, widths.grouped) if len(dims.prod_factors(axes[0])) > 1 else own


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


def choose_factors(
    analysis: Analysis, groups: Iterable[Group], *, heads: bool = True, factors: Factors = "outer"
) -> list[Group]:
    """Which of the groups that multiply each other on one axis (heads x width, groups x channels) may be cut.

    One ratio for all would remove the share twice, so of such it cuts the outermost one, or the innermost; a split by
    measured damage is given all. Parts of the model give way to a width that they share: a few branches are a coarser
    choice than many channels. Without `heads` no outer factor of a produced axis is cut, and the whole product stays
    but for "inner".
    """
    candidates = list(groups)
    rivals, depth = _products(analysis, {g.dim for g in candidates})
    outer = set() if heads else {g.dim for g in candidates if _is_outer(analysis, g)}
    inner = factors == "inner"
    chosen: dict[Dim, bool] = {}
    for group in sorted(candidates, key=lambda g: (g.parts, -depth[g.dim] if inner else min(depth[g.dim], 1))):
        others = rivals[group.dim]
        whole = group.dim in outer or (not inner and bool(others & outer))
        beside = factors == "all" and all(chosen[d] == group.parts for d in others & chosen.keys())
        if not whole and (beside or not others & chosen.keys()):
            chosen[group.dim] = group.parts
    return [g for g in candidates if g.dim in chosen]


def _products(analysis: Analysis, prunable: Set[Dim]) -> tuple[dict[Dim, set[Dim]], dict[Dim, int]]:
    """The other prunable atoms that each one multiplies on some axis, and the most of them that lie outside of it.

    A vector is passed over: it may be a matrix written as one axis (the scales of packed weights).
    """
    rivals: dict[Dim, set[Dim]] = {d: set() for d in prunable}
    depth = dict.fromkeys(prunable, 0)
    for axes in (found for found in analysis.weights.values() if len(found) > 1):
        for part in (p for d in axes for p in dims.cat_parts(d) if p.kind == "prod"):
            found = [a for a in dims.atoms(part) if a in prunable]
            for position, a in enumerate(found):
                rivals[a].update(b for b in found if b is not a)
                depth[a] = max(depth[a], position)
    return rivals, depth


def _is_outer(analysis: Analysis, group: Group) -> bool:
    """Whether something produces the group as an outer factor: heads with a width, groups of channels."""
    produced = [analysis.weights[o.tensor][o.axis] for o in group.occurrences if o.role == "produced"]
    return any(inner > 1 for axis in produced for inner in _inner_sizes(axis, group.dim))
