"""The split of a target over the groups: least damage under a limit on MACs, parameters or bytes, exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.errors import NothingToPruneError
from onnxprune.records import Allocation, Group

Damage = Callable[[int], float]
"""Damage of a group when so many of its indices are removed."""
Cost = tuple[tuple[Dim, ...], int | Fraction]
"""One term of a total: a product of dimensions, and how much each unit costs."""

LEAST_SHARE = 1 / 16
"""No group is cut below this share of its indices."""
STRIDE_SHARE = 1 / 64
"""Indices taken off a large group at once."""


def by_damage(
    groups: Sequence[Group],
    damage: Mapping[str, Damage],
    terms: Sequence[Cost],
    target: float,
    steps: Mapping[str, int],
) -> Allocation:
    """The split with the least summed damage under which the terms add up to at most `target`.

    Greedy: again and again one step off the group with the least damage per unit saved; then steps are given back
    where the target still holds. Counts are multiples of `steps` (or the whole group). Raises NothingToPruneError where
    the target cannot be reached.
    """
    split = _Split({g.id: g for g in groups}, terms)
    able = [g for g in groups if g.id in damage]
    while split.total > target:
        moves = [m for g in able if (m := split.move(g, damage[g.id], steps[g.id])) is not None]
        if not moves:
            raise NothingToPruneError(
                f"the target is {target / max(split.whole, 1):.3f} of the original, and the groups that may shrink "
                f"allow {split.total / max(split.whole, 1):.3f} at least; give a larger target, or free groups kept "
                "by --keep"
            )
        _, name, count = min(moves)
        split.set(name, count)
    for group in able:
        split.give_back(group, steps[group.id], target)
    return Allocation(split.counts)


def ratio_for(make: Callable[[float], Allocation], price: Callable[[Allocation], float], target: float) -> Allocation:
    """The allocation of the smallest ratio (bisected) whose price is at most `target`, or that of ratio 1."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if price(make(middle)) <= target else (middle, high)
    return make(high)


class _Split:
    """Counts by group id, and the total they come to, kept up to date term by term."""

    def __init__(self, groups: Mapping[str, Group], terms: Sequence[Cost]) -> None:
        self.counts = {name: g.size for name, g in groups.items()}
        self.dims = {name: dims.resolve(g.dim) for name, g in groups.items()}
        names = {d: name for name, d in self.dims.items()}
        self.terms: dict[str, list[Cost]] = {name: [] for name in groups}
        for term in terms:
            for a in {a for d in term[0] for a in dims.atoms(d)} & set(names):
                self.terms[names[a]].append(term)
        self.kept = {self.dims[name]: n for name, n in self.counts.items()}
        self.total = self.whole = sum(_price(t, self.kept) for t in terms)

    def saving(self, name: str, count: int) -> int | Fraction:
        changed = {**self.kept, self.dims[name]: count}
        return sum(_price(t, self.kept) - _price(t, changed) for t in self.terms[name])

    def set(self, name: str, count: int) -> None:
        self.total -= self.saving(name, count)
        self.counts[name] = self.kept[self.dims[name]] = count

    def move(self, group: Group, damage: Damage, step: int) -> tuple[float, str, int] | None:
        """(damage per unit saved, group, new count) of the next step down."""
        now = self.counts[group.id]
        stride = max(1, round(group.size * STRIDE_SHARE / step)) * step
        count = (now - 1) // step * step - (stride - step)
        if count < max(step, group.least, math.ceil(group.size * LEAST_SHARE)):
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


def _price(term: Cost, kept: Mapping[Dim, int]) -> int | Fraction:
    return term[1] * math.prod(dims.size(d, kept) for d in term[0])
