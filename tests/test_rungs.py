"""How fine the widths of a split have to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pytest

from onnxprune import allocate
from onnxprune.dims import Dim
from onnxprune.errors import NothingToPruneError
from onnxprune.records import Allocation, Group
from onnxprune.rungs import Judge, cheapest, within_reach

SIZES = {"g": 64}
FAST, BETWEEN, FINEST = {"g": 16}, {"g": 8}, {"g": 4}
KEPT = {16: 32, 8: 40, 4: 36}
"""What the split in steps of so many keeps."""


def split(steps: Mapping[str, int]) -> list[Allocation]:
    return [Allocation({"g": KEPT[steps["g"]]})]


def reaching(*able: int) -> Callable[[Mapping[str, int]], list[Allocation]]:
    """A split that only these steps allow."""

    def found(steps: Mapping[str, int]) -> list[Allocation]:
        if steps["g"] not in able:
            raise NothingToPruneError("the target is out of reach")
        return split(steps)

    return found


def one(split: Callable[[Mapping[str, int]], list[Allocation]]) -> Callable[[Mapping[str, int]], Allocation]:
    return lambda steps: split(steps)[0]


def test_groups_that_keep_whole_fast_steps_or_all_are_not_said_to_take_others() -> None:
    sizes = {"a": 64, "b": 64, "odd": 20}
    fast, finest = dict.fromkeys(sizes, 16), dict.fromkeys(sizes, 4)

    def found(steps: Mapping[str, int]) -> Allocation:
        if steps is fast:
            raise NothingToPruneError("the target is out of reach")
        return Allocation({"a": 20, "b": 32, "odd": 20})

    assert "1 group took others" in within_reach(found, [fast, finest], sizes)[1]


def judge(errors: Mapping[int, float] | None, items: int = 64) -> Judge:
    """Errors by step."""
    by_kept = {KEPT[step]: error for step, error in (errors or {}).items()}

    def measured(candidates: Sequence[Allocation]) -> list[float] | None:
        return None if errors is None else [by_kept[c.counts["g"]] for c in candidates]

    return Judge(measured, items)


def test_narrow_groups_take_finer_steps_first() -> None:
    sizes = {"a": 16, "b": 32, "c": 64, "d": 200, "odd": 48}
    groups = [Group(name, size, Dim(size), (), (), None, False) for name, size in sizes.items()]
    fast, finest = {**dict.fromkeys(sizes, 16), "odd": 24}, dict.fromkeys(sizes, 4)
    found = [list(steps.values()) for steps in allocate.rungs(groups, fast, finest)]
    assert found == [[16, 16, 16, 16, 24], [8, 16, 16, 16, 24], [4, 8, 16, 16, 12], [4, 4, 8, 16, 4], [4, 4, 4, 4, 4]]
    assert allocate.rungs(groups, fast, None) == [fast]
    assert allocate.rungs(groups, fast, fast) == [fast]


@pytest.mark.parametrize(
    ("errors", "step", "told"),
    [
        ({16: 0.020, 4: 0.015}, 16, ""),
        ({16: 0.060, 4: 0.030}, 16, "cost some accuracy"),
        ({16: 0.230, 8: 0.140, 4: 0.040}, 4, "would cost too much"),
        ({16: 0.230, 8: 0.055, 4: 0.040}, 8, "would cost too much"),
        ({16: 0.530, 4: 0.500}, 16, ""),
        ({16: math.inf, 8: math.inf, 4: 0.5}, 4, "would cost too much"),
        (None, 16, ""),
    ],
)
def test_finer_widths_are_taken_where_fast_ones_cost_too_much_and_no_finer_than_that_needs(
    errors: Mapping[int, float] | None, step: int, told: str
) -> None:
    """What the items cannot tell apart is no reason."""
    found, note = cheapest(split, [FAST, BETWEEN, FINEST], SIZES, judge(errors))
    assert found.counts == {"g": KEPT[step]}
    assert told in note and bool(told) == bool(note)
    assert ("1 group took others" in note) == (step != 16)


@pytest.mark.parametrize(
    ("errors", "step", "told"),
    [
        ({8: 0.020, 4: 0.015}, 8, "less than the work removed promises"),
        ({8: 0.045, 4: 0.030}, 8, "--round-to 4 is closer to the original"),
        ({8: 0.060, 4: 0.030}, 4, "less than the work removed promises"),
        ({8: 0.230, 4: 0.040}, 4, "less than the work removed promises"),
        (None, 8, "less than the work removed promises"),
    ],
)
def test_where_fast_widths_do_not_reach_the_target_the_coarsest_that_do_come_first(
    errors: Mapping[int, float] | None, step: int, told: str
) -> None:
    found, note = cheapest(reaching(8, 4), [FAST, BETWEEN, FINEST], SIZES, judge(errors))
    assert found.counts == {"g": KEPT[step]}
    assert "out of reach in widths that are fast here, in steps of up to 16: 1 group took others" in note
    assert told in note


def test_the_only_steps_that_reach_the_target_are_taken() -> None:
    found, note = cheapest(reaching(4), [FAST, BETWEEN, FINEST], SIZES, judge({4: 0.3}))
    assert found.counts == {"g": 36} and "1 group took others" in note
    made, note = within_reach(one(reaching(4)), [FAST, BETWEEN, FINEST], SIZES)
    assert made == Allocation({"g": 36}) and "1 group took others" in note
    for function in (
        lambda: within_reach(one(reaching()), [FAST, FINEST], SIZES),
        lambda: cheapest(reaching(), [FAST], SIZES, judge({})),
    ):
        with pytest.raises(NothingToPruneError):
            function()


def test_fast_widths_stay_where_there_is_no_choice() -> None:
    assert cheapest(split, [FAST], SIZES, judge({16: 0.9})) == (Allocation({"g": 32}), "")
    assert within_reach(one(split), [FAST, FINEST], SIZES) == (Allocation({"g": 32}), "")


@pytest.mark.parametrize(
    ("errors", "items", "chosen"),
    [
        ([0.1, 0.1, 0.1], 100, 2),
        ([0.1, 0.109, 0.111], 100, 1),
        ([0.2, 0.1, 0.121], 25, 1),
        ([0.2, 0.1, 0.119], 25, 2),
        ([math.inf, 0.1, 0.3], 25, 1),
        ([math.inf] * 2, 25, 1),
    ],
)
def test_the_most_even_of_the_best_allocations_is_taken(errors: list[float], items: int, chosen: int) -> None:
    assert judge(None, items).most_even(errors) == chosen


def test_of_allocations_of_which_some_are_the_same_the_best_is_taken() -> None:
    candidates = [Allocation({"g": kept}) for kept in (40, 40, 32, 36)]
    assert judge({16: 0.1, 8: 0.5, 4: 0.5}).best(candidates) == 2
    assert judge({16: 0.1}).best(candidates[2:3] * 2) == 1
    assert judge(None).best(candidates) == 3
