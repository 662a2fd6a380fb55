"""Meeting a latency target on machines whose latency is a function of the width. No real time passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from onnxprune.errors import NothingToPruneError
from onnxprune.latency import pursuit
from onnxprune.records import Allocation


def _proposer(step: int = 1, least: int = 8) -> Callable[[float], pursuit.Candidate]:
    """Widths up to 1000; the model predicts latency in proportion to them."""

    def propose(aim: float) -> pursuit.Candidate:
        width = max(least, int(aim * 1000) // step * step)
        return pursuit.Candidate(Allocation({"a": width}), width / 1000)

    return propose


def _machine(curve: Callable[[float], float], noise: float = 0.0) -> Callable[[Allocation], float]:
    random = np.random.default_rng(0)
    return lambda allocation: curve(allocation.counts["a"] / 1000) * float(np.exp(noise * random.normal()))


MACHINES: list[Callable[[float], float]] = [
    lambda w: w,
    lambda w: 0.3 + 0.7 * w,
    lambda w: 0.05 + 0.95 * w**2,
    lambda w: w**0.5,
    lambda w: 1.0 - 0.9 * (1.0 - w) ** 2,
]


@pytest.mark.parametrize(("curve", "goal"), list(itertools.product(MACHINES, (0.4, 0.6, 0.9))))
def test_a_wrong_model_is_corrected_by_measurements(curve: Callable[[float], float], goal: float) -> None:
    outcome = pursuit.pursue(goal, [_proposer()], _machine(curve))
    assert outcome.met
    assert outcome.reached == pytest.approx(goal, rel=pursuit.TOLERANCE)
    assert curve(outcome.allocation.counts["a"] / 1000) == outcome.reached
    assert len(outcome.attempts) <= 6


@pytest.mark.parametrize("goal", [0.4, 0.6, 0.9])
def test_noise_of_one_percent_does_not_matter(goal: float) -> None:
    for curve in MACHINES:
        outcome = pursuit.pursue(goal, [_proposer()], _machine(curve, 0.01))
        assert curve(outcome.allocation.counts["a"] / 1000) == pytest.approx(goal, rel=0.05)


def test_a_model_that_is_right_needs_one_candidate() -> None:
    outcome = pursuit.pursue(0.6, [_proposer()], _machine(lambda w: w))
    assert [a.measured for a in outcome.attempts] == [0.6]


def test_out_of_reach_is_said_with_the_best_there_is() -> None:
    with pytest.raises(NothingToPruneError, match="0.300 of the original's latency, and .* measured at 0.504"):
        pursuit.pursue(0.3, [_proposer()], _machine(lambda w: 0.5 + 0.5 * w))


@pytest.mark.parametrize(("curve", "within"), [(0.31, True), (0.32, False)])
def test_the_least_there_is_is_taken_where_it_is_near(curve: float, within: bool) -> None:
    machine = _machine(lambda w: curve + 0.7 * (w - 0.008))
    if not within:
        with pytest.raises(NothingToPruneError, match="cannot be reached"):
            pursuit.pursue(0.3, [_proposer()], machine)
        return
    outcome = pursuit.pursue(0.3, [_proposer()], machine)
    assert not outcome.met
    assert outcome.reached == pytest.approx(0.31)
    assert outcome.allocation.counts["a"] == 8


def test_a_model_that_is_no_faster_does_not_meet_a_goal_near_one() -> None:
    with pytest.raises(NothingToPruneError, match="cannot be reached"):
        pursuit.pursue(0.97, [_proposer()], _machine(lambda w: 1.01))


def test_the_smallest_is_tried_before_a_goal_is_given_up() -> None:
    """Only widths below 20 are fast at all."""
    outcome = pursuit.pursue(0.5, [_proposer()], _machine(lambda w: 0.2 if w < 0.02 else 0.99), rounds=3)
    assert outcome.reached == 0.2
    assert not outcome.met


def test_steps_too_coarse_give_the_nearest_below() -> None:
    outcome = pursuit.pursue(0.6, [_proposer(step=250)], _machine(lambda w: w))
    assert not outcome.met
    assert outcome.reached == 0.5


def test_a_gap_between_allocations_does_not_end_the_search() -> None:
    """Aims from 0.4 to 0.66 all give the smallest."""

    def propose(aim: float) -> pursuit.Candidate:
        width = max((w for w in (400, 660, 700, 900) if w <= aim * 1000), default=400)
        return pursuit.Candidate(Allocation({"a": width}), width / 1000)

    outcome = pursuit.pursue(0.6, [propose], _machine(lambda w: w - 0.07))
    assert outcome.met
    assert outcome.allocation.counts == {"a": 660}


def test_no_candidate_is_measured_twice() -> None:
    measured: list[int] = []

    def measure(allocation: Allocation) -> float:
        measured.append(allocation.counts["a"])
        return 0.9

    with pytest.raises(NothingToPruneError):
        pursuit.pursue(0.5, [_proposer(step=100, least=100)], measure)
    assert len(measured) == len(set(measured)) <= pursuit.ROUNDS + 1
    assert measured[-1] == 100


def test_the_next_proposer_is_asked_where_the_first_does_not_meet_the_goal() -> None:
    asked: list[str] = []

    def proposers() -> Iterator[pursuit.Propose]:
        asked.append("coarse")
        yield _proposer(step=400)
        asked.append("fine")
        yield _proposer()

    assert pursuit.pursue(0.4, proposers(), _machine(lambda w: w)).met and asked == ["coarse"]
    asked.clear()
    assert pursuit.pursue(0.6, proposers(), _machine(lambda w: w)).met and asked == ["coarse", "fine"]


def test_narrow_widths_that_are_slow_do_not_hide_fast_ones() -> None:
    """Only multiples of 100 are fast."""
    machine = _machine(lambda w: w if round(w * 1000) % 100 == 0 else 1.5 * w + 0.3)
    with pytest.raises(NothingToPruneError, match=r"measured at 0\.312"):
        pursuit.pursue(0.25, [_proposer()], machine)
    outcome = pursuit.pursue(0.25, [_proposer(step=100, least=100), _proposer()], machine)
    assert outcome.reached == 0.2 and not outcome.met
    counts = [attempt.measured for attempt in outcome.attempts]
    assert len(counts) == len(set(counts)), "none is measured again for the second"
