"""Meeting a latency target: predict, cut, measure, correct. All latencies are shares of the original's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from onnxprune.errors import NothingToPruneError
from onnxprune.records import Allocation, Attempt

TOLERANCE = 0.02
"""How far, as a share of the goal, the measured latency may be from it."""
NEAR = 0.05
"""The nearest there is to the goal is taken within this share of it; farther off, only what is below."""
ROUNDS = 8
RESOLUTION = 0.004
"""Aims closer than this are not told apart."""
_MARGIN = 0.1
"""Interpolated aims keep this share of the bracket away from its ends: a measurement is never exact."""


@dataclass(frozen=True)
class Candidate:
    """An allocation, with the share of latency the model predicts for it."""

    allocation: Allocation
    predicted: float


@dataclass(frozen=True)
class Outcome:
    """The allocation that was taken, with the measured share; every attempt; whether it is within TOLERANCE."""

    allocation: Allocation
    reached: float
    attempts: tuple[Attempt, ...]
    met: bool


Propose = Callable[[float], Candidate]
Measure = Callable[[Allocation], float]
Tried = tuple[Attempt, Allocation]


def pursue(goal: float, proposers: Iterable[Propose], measure: Measure, *, rounds: int = ROUNDS) -> Outcome:
    """Find an allocation whose measured share of latency is `goal`.

    A proposer gives an allocation that its model puts at or below a share (or the smallest there is); the next one is
    asked where the allocations of those before do not meet the goal. Where none does, the nearest within NEAR is taken,
    else the nearest below. Raises NothingToPruneError where there is none of them.
    """
    tried: list[Tried] = []
    for propose in proposers:
        if _search(goal, propose, measure, tried, rounds):
            break
    return _choose(goal, tried)


def _search(goal: float, propose: Propose, measure: Measure, tried: list[Tried], rounds: int) -> bool:
    """Whether one of the allocations that are proposed is near enough; all of them join those `tried`."""
    own: list[Tried] = []

    def attempt(aim: float, candidate: Candidate) -> Attempt:
        known = next((a.measured for a, found in tried if found.counts == candidate.allocation.counts), None)
        measured = measure(candidate.allocation) if known is None else known
        own.append((Attempt(aim, candidate.predicted, measured), candidate.allocation))
        if known is None:
            tried.append(own[-1])
        return own[-1][0]

    def is_new(candidate: Candidate) -> bool:
        return all(candidate.allocation.counts != allocation.counts for _, allocation in own)

    def next_candidate(aim: float) -> tuple[float, Candidate]:
        """That of the aim, or where that was measured already, one between it and the nearest above the goal."""
        candidate, highest = propose(aim), _above(goal, [made for made, _ in own])[1]
        while not is_new(candidate) and highest - aim > RESOLUTION:
            aim = (aim + highest) / 2.0
            candidate = propose(aim)
        return aim, candidate

    aim = goal
    while len(own) < rounds:
        aim, candidate = next_candidate(aim)
        if not is_new(candidate):
            break
        if abs(attempt(aim, candidate).measured - goal) <= TOLERANCE * goal:
            return True
        aim = next_aim(goal, [made for made, _ in own])
    if all(made.measured > goal for made, _ in own) and is_new(smallest := propose(0.0)):
        return abs(attempt(0.0, smallest).measured - goal) <= TOLERANCE * goal
    return False


def next_aim(goal: float, attempts: list[Attempt]) -> float:
    """The predicted share to ask for next: on the line between the nearest attempts above and below the goal.

    The original itself is the attempt (1, 1). Without one below, the line goes on past the lowest.
    """
    above = _above(goal, attempts)
    below = max(((a.measured, a.predicted) for a in attempts if a.measured <= goal), default=None)
    if below is None:
        return _beyond(goal, above)
    (high, high_aim), (low, low_aim) = above, below
    if high_aim <= low_aim:  # the model has them in the wrong order
        return low_aim + (goal - low) * (1.0 - low_aim) / max(1.0 - low, goal - low)
    part = (goal - low) / (high - low)
    return low_aim + min(max(part, _MARGIN), 1.0 - _MARGIN) * (high_aim - low_aim)


def _above(goal: float, attempts: list[Attempt]) -> tuple[float, float]:
    """(measured, predicted) of the attempt nearest above the goal."""
    found = ((a.measured, a.predicted) for a in attempts if a.measured > goal and a.predicted < 1.0)
    return min(found, default=(1.0, 1.0))


def _beyond(goal: float, above: tuple[float, float]) -> float:
    measured, predicted = above
    half = predicted / 2.0  # no further at once: near the original the line says little
    if measured >= 1.0:
        return half
    slope = (1.0 - predicted) / (1.0 - measured)
    return max(half, min(predicted - (measured - goal) * slope, predicted * goal / measured))


def _choose(goal: float, tried: list[Tried]) -> Outcome:
    attempts = tuple(attempt for attempt, _ in tried)
    near = [t for t in tried if abs(t[0].measured - goal) <= NEAR * goal and t[0].measured <= 1.0]
    taken = near or [t for t in tried if t[0].measured <= goal]
    if not taken:
        lowest = min(a.measured for a in attempts)
        raise NothingToPruneError(
            f"the target latency cannot be reached: it is {goal:.3f} of the original's latency, and the least that the "
            f"groups that may shrink allow was measured at {lowest:.3f}; give a larger target, or free groups kept by "
            "--keep"
        )
    best, allocation = min(taken, key=lambda t: abs(t[0].measured - goal))
    return Outcome(allocation, best.measured, attempts, abs(best.measured - goal) <= TOLERANCE * goal)
