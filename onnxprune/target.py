"""The split of a target over the groups: least damage under a limit on MACs, parameters, bytes or latency."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.errors import NothingToPruneError
from onnxprune.records import Allocation, Group

Damage = Callable[[int], float]
"""Damage of a group when so many of its indices are removed."""
Amount = int | float | Fraction
Cost = tuple[tuple[Dim, ...], int | Fraction | Callable[[int], float]]
"""One term of a total: a product of dimensions, and how much each unit costs, or what a product of that size costs."""

LEAST_SHARE = 1 / 16
"""No group is cut below this share of its indices."""
NEAR = 0.003
"""An allocation within this share of its target is near enough."""
_REFINEMENTS = 4
_PAIRS = 200
_AROUND = (1.0, 1.06, 0.94, 1.15, 1.3)
"""Where splits by damage are refined from, as shares of the target."""
STRIDE_SHARE = 1 / 64
"""Indices taken off a large group at once."""


def by_damage(
    groups: Sequence[Group],
    damage: Mapping[str, Damage],
    terms: Sequence[Cost],
    target: float,
    steps: Mapping[str, int],
    *,
    strict: bool = True,
) -> Allocation:
    """The split with the least summed damage under which the terms add up to at most `target`.

    Greedy: again and again one step off the group with the least damage per unit saved; then steps are given back
    where the target still holds. Counts are multiples of `steps` (or the whole group). Raises NothingToPruneError where
    the target cannot be reached; unless `strict`, the smallest split is returned there.
    """
    split = _Split({g.id: g for g in groups}, terms)
    able = [g for g in groups if g.id in damage]
    while split.total > target:
        moves = [m for g in able if (m := split.move(g, damage[g.id], steps[g.id])) is not None]
        if not moves and not strict:
            return Allocation(split.counts)
        if not moves:
            raise NothingToPruneError(_out_of_reach(split, target, len(groups) - len(able)))
        _, name, count = min(moves)
        split.set(name, count)
    for group in able:
        split.give_back(group, steps[group.id], target)
    return Allocation(split.counts)


def _out_of_reach(split: _Split, target: float, unmeasured: int) -> str:
    wanted, least = (float(amount / max(split.whole, 1)) for amount in (target, split.total))
    share = f"{wanted:.3f} of the original" if wanted > 0 else "less than what no cut changes"
    hint = (
        f", or --allocation uniform: {unmeasured} of the groups keep their width because it is not measured what their "
        "removal harms (what reads them is recurrent, quantized or the like)"
    )
    return (
        f"the target is {share}, and the groups that may shrink allow {least:.3f} at least; give a larger "
        f"target, or free groups kept by --keep{hint if unmeasured else ''}"
    )


def nearest(
    groups: Sequence[Group],
    damage: Mapping[str, Damage],
    terms: Sequence[Cost],
    target: float,
    steps: Mapping[str, int],
) -> Allocation:
    """The split under which the terms add up to the target, nearly, at little damage; to more where they cannot.

    Of the refined splits by damage around the target, the least harmful that is near enough, else the nearest.
    """
    found: list[tuple[bool, float, int, Mapping[str, int]]] = []
    for share in _AROUND:
        start = by_damage(groups, damage, terms, share * target, steps, strict=False)
        counts = refine(groups, damage, terms, target, steps, start).counts
        gap = abs(total(terms, {g.dim: counts[g.id] for g in groups}) - target)
        harm = sum(harmed(g.size - counts[g.id]) for g in groups if (harmed := damage.get(g.id)) is not None)
        near = gap <= NEAR * target
        found.append((not near, harm if near else gap, len(found), counts))
        if near and share == 1.0:
            break
    return Allocation(min(found)[3])


def refine(
    groups: Sequence[Group],
    damage: Mapping[str, Damage],
    terms: Sequence[Cost],
    target: float,
    steps: Mapping[str, int],
    found: Allocation,
) -> Allocation:
    """An allocation whose terms add up to the target, nearly, from one that adds up to less.

    One step of one group, or of one group against one of another, is changed again and again while that comes nearer;
    of the changes within `NEAR` the least harmful is made.
    """
    split = _Split({g.id: g for g in groups}, terms)
    for name, count in found.counts.items():
        split.set(name, count)
    for _ in range(_REFINEMENTS):
        gap = abs(split.total - target)
        if gap <= NEAR * target:
            break
        changes = [
            (split.gap_after(change, target), change) for change in _changes(groups, damage, steps, split, target)
        ]
        near = [(_harm(change, damage, split), change) for after, change in changes if after <= NEAR * target]
        after, change = min(changes, key=lambda c: c[0], default=(gap, {}))
        if near:
            _, change = min(near, key=lambda c: c[0])
        elif after >= gap:
            break
        for name, count in change.items():
            split.set(name, count)
    return Allocation(split.counts)


def _changes(
    groups: Sequence[Group], damage: Mapping[str, Damage], steps: Mapping[str, int], split: _Split, target: float
) -> list[dict[str, int]]:
    """One step up or down of a group, and pairs of such steps of two groups: those that promise to come nearest."""
    single = []
    for g in groups:
        now, step = split.counts[g.id], steps[g.id]
        up, down = min((now // step + 1) * step, g.size), (now - 1) // step * step
        single += [(g.id, up)] if g.id in damage and now < g.size else []
        single += [(g.id, down)] if g.id in damage and down >= floor(g, step) else []
    saved = {change: float(split.saving(*change)) for change in single}
    gap = float(split.total) - target
    pairs = [
        (abs(gap - saved[a] - saved[b]), {a[0]: a[1], b[0]: b[1]}) for k, a in enumerate(single) for b in single[:k]
    ]
    nearest = heapq.nsmallest(_PAIRS, (p for p in pairs if len(p[1]) == 2), key=lambda p: p[0])
    return [{name: count} for name, count in single] + [change for _, change in nearest]


def _harm(change: Mapping[str, int], damage: Mapping[str, Damage], split: _Split) -> float:
    """How much more damage a change does."""
    return sum(
        damage[n](split.size[n] - count) - damage[n](split.size[n] - split.counts[n]) for n, count in change.items()
    )


def floor(group: Group, step: int) -> int:
    """No split leaves fewer indices of a group, unless one ratio is taken for all."""
    return max(step, group.least, math.ceil(group.size * LEAST_SHARE))


def uniformly(make: Callable[[float], Allocation], price: Callable[[Allocation], float], target: float) -> Allocation:
    """`ratio_for`; raises NothingToPruneError where the target is out of reach."""
    found = ratio_for(make, price, target)
    if price(found) > target:
        raise NothingToPruneError("the target cannot be reached: too little of the model may shrink")
    return found


def ratio_for(make: Callable[[float], Allocation], price: Callable[[Allocation], float], target: float) -> Allocation:
    """The allocation of the smallest ratio (bisected) whose price is at most `target`, or that of ratio 1.

    At that ratio many groups may take a step at once: as many of the first ones as the target allows do not take it.
    """
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if price(make(middle)) <= target else (middle, high)
    found, looser = make(high).counts, make(low).counts
    names = list(found)

    def mixed(count: int) -> Allocation:
        return Allocation({**found, **{name: looser[name] for name in names[:count]}})

    least, most = 0, len(names)
    while least < most:
        half = (least + most + 1) // 2
        least, most = (half, most) if price(mixed(half)) <= target else (least, half - 1)
    return mixed(least)


class _Split:
    """Counts by group id, and the total they come to, kept up to date term by term."""

    def __init__(self, groups: Mapping[str, Group], terms: Sequence[Cost]) -> None:
        self.size = {name: g.size for name, g in groups.items()}
        self.counts = dict(self.size)
        self.dims = {name: dims.resolve(g.dim) for name, g in groups.items()}
        names = {d: name for name, d in self.dims.items()}
        self.terms: dict[str, list[Cost]] = {name: [] for name in groups}
        for term in terms:
            for a in {a for d in term[0] for a in dims.atoms(d)} & set(names):
                self.terms[names[a]].append(term)
        self.kept = {self.dims[name]: n for name, n in self.counts.items()}
        self.total = self.whole = _exact_total(terms, self.kept)

    def saving(self, name: str, count: int) -> Amount:
        changed = {**self.kept, self.dims[name]: count}
        return sum(_price(t, self.kept) - _price(t, changed) for t in self.terms[name])

    def set(self, name: str, count: int) -> None:
        self.total -= self.saving(name, count)
        self.counts[name] = self.kept[self.dims[name]] = count

    def gap_after(self, change: Mapping[str, int], target: float) -> float:
        """How far from the target the total would be."""
        before = self.total
        old = {name: self.counts[name] for name in change}
        for name, count in change.items():
            self.set(name, count)
        gap = abs(self.total - target)
        for name, count in old.items():
            self.set(name, count)
        self.total = before
        return gap

    def move(self, group: Group, damage: Damage, step: int) -> tuple[float, str, int] | None:
        """(damage per unit saved, group, new count) of the next step down."""
        now = self.counts[group.id]
        stride = max(1, round(group.size * STRIDE_SHARE / step)) * step
        count = (now - 1) // step * step - (stride - step)
        if count < floor(group, step):
            return None
        saved = self.saving(group.id, count)
        if saved <= 0:
            return None
        return (damage(group.size - count) - damage(group.size - now)) / float(saved), group.id, count

    def give_back(self, group: Group, step: int, target: float) -> None:
        while self.counts[group.id] < group.size:
            count = min(self.counts[group.id] + step, group.size)
            if self.total - self.saving(group.id, count) > target:
                return
            self.set(group.id, count)


def total(terms: Sequence[Cost], kept: Mapping[Dim, int]) -> float:
    """What the terms add up to when each atom in `kept` has that many indices left."""
    return float(_exact_total(terms, kept))


def _exact_total(terms: Sequence[Cost], kept: Mapping[Dim, int]) -> Amount:
    return sum(_price(t, kept) for t in terms)


def _price(term: Cost, kept: Mapping[Dim, int]) -> Amount:
    size = math.prod(dims.size(d, kept) for d in term[0])
    return term[1](size) if callable(term[1]) else term[1] * size
