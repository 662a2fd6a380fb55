"""The split of a target: costs that are no products, and coming near."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import target
from onnxprune.dims import Dim
from onnxprune.errors import NothingToPruneError
from onnxprune.records import Allocation, Group
from onnxprune.target import Cost, Damage


def _groups(*sizes: int) -> list[Group]:
    return [Group(f"g{k}", size, Dim(size), (), (), None, False) for k, size in enumerate(sizes)]


def _staircase(size: int) -> float:
    return float(np.ceil(size / 16) * 16)


def _even(groups: list[Group]) -> dict[str, Damage]:
    return {g.id: (lambda removed, size=g.size: -float(np.log(1 - removed / size))) for g in groups}  # type: ignore[misc]


def test_a_cost_may_be_any_function_of_the_size() -> None:
    groups = _groups(64, 64)
    terms: list[Cost] = [((g.dim,), _staircase) for g in groups]
    assert target.total(terms, {}) == 128
    assert target.total(terms, {groups[0].dim: 33}) == 48 + 64
    found = target.by_damage(groups, _even(groups), terms, 96, {g.id: 16 for g in groups})
    assert found.counts == {"g0": 48, "g1": 48}


def test_the_smallest_split_where_the_target_is_out_of_reach() -> None:
    groups = _groups(64)
    terms: list[Cost] = [((groups[0].dim,), 1)]
    found = target.by_damage(groups, _even(groups), terms, 1, {"g0": 16}, strict=False)
    assert found.counts == {"g0": 16}


def test_groups_without_a_measure_are_told_of() -> None:
    groups = _groups(64, 64)
    terms: list[Cost] = [((g.dim,), 1) for g in groups]
    with pytest.raises(NothingToPruneError, match="allow 0.625 at least.*--allocation uniform: 1 of the groups"):
        target.by_damage(groups, _even(groups[:1]), terms, 20, {g.id: 16 for g in groups})
    with pytest.raises(NothingToPruneError, match="--keep$"):
        target.by_damage(groups, _even(groups), terms, 20, {g.id: 16 for g in groups})


@pytest.mark.parametrize("seed", range(20))
def test_refining_comes_nearer_and_keeps_the_steps(seed: int) -> None:
    random = np.random.default_rng(seed)
    groups = _groups(*(int(n) * 16 for n in random.integers(2, 9, 6)))
    steps = {g.id: 16 for g in groups}
    units = [int(u) for u in random.integers(1, 40, 6)]
    terms: list[Cost] = [((g.dim,), u) for g, u in zip(groups, units, strict=True)]
    goal = 0.6 * target.total(terms, {})
    start = target.by_damage(groups, _even(groups), terms, goal, steps)
    found = target.refine(groups, _even(groups), terms, goal, steps, start)

    def gap(allocation: Allocation) -> float:
        return abs(target.total(terms, {g.dim: allocation.counts[g.id] for g in groups}) - goal) / goal

    assert gap(found) <= min(gap(start), 0.02)
    assert all(
        count % 16 == 0 and 16 <= count <= g.size for g, count in zip(groups, found.counts.values(), strict=True)
    )


def test_of_changes_that_come_near_the_least_harmful_is_made() -> None:
    """Both groups would do; the second hurts less."""
    groups = _groups(160, 160)
    damage: dict[str, Damage] = {"g0": lambda removed: 2.0 * removed, "g1": lambda removed: 1.0 * removed}
    terms: list[Cost] = [((g.dim,), 1) for g in groups]
    found = target.refine(groups, damage, terms, 304, {"g0": 16, "g1": 16}, Allocation({"g0": 160, "g1": 160}))
    assert found.counts == {"g0": 160, "g1": 144}


def test_groups_without_damage_stay() -> None:
    groups = _groups(64, 64)
    terms: list[Cost] = [((g.dim,), 1) for g in groups]
    steps = {"g0": 16, "g1": 16}
    found = target.refine(groups, {"g0": lambda n: n}, terms, 100, steps, Allocation({"g0": 64, "g1": 64}))
    assert found.counts["g1"] == 64


def test_splits_that_pairs_of_steps_cannot_reach_are_found_from_elsewhere() -> None:
    """b (a + c) is nearly 56 at 4 * 14, three steps away from 3 * 16."""
    a, b, c = _groups(8, 12, 8)
    terms: list[Cost] = [((a.dim, b.dim), 1), ((b.dim, c.dim), 1)]
    groups, steps = [a, b, c], {"g0": 1, "g1": 1, "g2": 1}
    damage = _even(groups)
    damage["g1"] = lambda removed: 0.1 * removed
    found = target.nearest(groups, damage, terms, 56.1, steps).counts
    assert found["g1"] * (found["g0"] + found["g2"]) == 56


def test_where_nothing_comes_near_the_nearest_is_taken() -> None:
    (a,) = _groups(64)
    found = target.nearest([a], _even([a]), [((a.dim,), 1)], 50, {"g0": 16})
    assert found.counts == {"g0": 48}
