"""The search for the smallest model within a budget, on made-up qualities and on a trained model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune import budget
from onnxprune.budget import Trial

ONE = np.arange(1)


def trials(drop: Callable[[float], float], allowed: float, step: float = 0.0, floor: float = 0.0):
    """A trial function whose metric falls by `drop(share)`; shares are multiples of `step`, none below `floor`."""
    made: dict[float, Trial] = {}

    def trial(share: float) -> Trial | None:
        if share < floor:
            return None
        real = np.floor(share / step) * step if step else share
        if real not in made:
            made[real] = Trial(
                {"g": ONE} if real < 1 else {}, real, drop(real) <= allowed, "m", 1 - drop(real), drop(real)
            )
        return made[real]

    return trial


@pytest.mark.parametrize("limit", [0.2, 0.37, 0.61, 0.9])
def test_the_search_ends_close_above_the_limit(limit: float) -> None:
    best, made = budget.smallest(trials(lambda s: max(0.0, limit - s), 0.0), lowest=0.0, first=0.5)
    assert best is not None
    assert best.within
    assert limit <= best.share <= limit + 0.5**budget.ROUNDS + 1e-9
    assert len(made) <= budget.ROUNDS


def test_no_smaller_model_that_was_measured_is_within() -> None:
    random = np.random.default_rng(0)
    noise = {round(k / 8, 3): random.normal(0, 0.1) for k in range(9)}
    best, made = budget.smallest(
        trials(lambda s: max(0.0, 0.6 - s) + noise[round(s, 3)], 0.1, step=1 / 8), lowest=0.0, first=0.5
    )
    assert best is not None
    assert best.share == min(t.share for t in made if t.within)


def test_a_plan_is_measured_once() -> None:
    _, made = budget.smallest(trials(lambda s: 1 - s, 0.4, step=0.25), lowest=0.0, first=0.5)
    assert len({t.share for t in made}) == len(made) <= 3


def test_a_target_within_the_budget_takes_one_round() -> None:
    best, made = budget.smallest(trials(lambda s: 0.0, 0.1), lowest=0.3, first=0.3)
    assert best is not None
    assert (best.share, len(made)) == (0.3, 1)


def test_a_target_is_never_undercut() -> None:
    best, made = budget.smallest(trials(lambda s: 1 - s, 0.5), lowest=0.3, first=0.3)
    assert best is not None
    assert 0.5 <= best.share < 0.53
    assert min(t.share for t in made) == 0.3


def test_what_cannot_be_reached_costs_no_round() -> None:
    best, made = budget.smallest(trials(lambda s: 0.0, 0.1, floor=0.7), lowest=0.0, first=0.5)
    assert best is not None
    assert 0.7 <= best.share < 0.72
    assert all(t.share >= 0.7 for t in made)


def test_no_model_within_the_budget_is_none() -> None:
    best, made = budget.smallest(trials(lambda s: 0.2, 0.1), lowest=0.0, first=0.5)
    assert best is None
    assert len(made) == budget.ROUNDS
    text = budget.no_model(made, "macs", 0.1, 96)
    assert "--max-drop 0.1: even with 98.4% of the MACs kept, m falls by 0.2000 to 0.8000 on 96 held-out rows" in text


def test_nothing_to_remove_is_said() -> None:
    best, made = budget.smallest(trials(lambda s: 0.0, 0.1, floor=0.999, step=1.0), lowest=0.0, first=0.5)
    assert (best, made) == (None, ())
    assert "nothing can be removed" in budget.no_model(made, "macs", 0.1, 96)
