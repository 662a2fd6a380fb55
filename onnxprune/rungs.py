"""How fine the widths of a split have to be: the first rung, from fast steps to the finest, that is good enough.

Widths that a processor is fast at are few for narrow groups. Where those do not reach a target, or cost accuracy that
finer ones do not, finer steps are taken, and no finer than that needs: what stays in fast steps stays fast.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from onnxprune import wording
from onnxprune.errors import NothingToPruneError
from onnxprune.records import Allocation

Made = TypeVar("Made")
Steps = Mapping[str, int]
"""What the counts of every group are multiples of, by group id."""

TOLD_FROM, SOME_FROM, FINER_FROM = 0.01, 0.02, 0.05
"""By how much more, as a share of what the outputs say, coarse widths may err than the finest ones before that is said,
and before finer ones are taken: than widths of which some are fast, and than those that all are. About the half of it
is lost in accuracy, of segmentation the whole."""


@dataclass(frozen=True)
class Judge:
    """`errors` of several allocations, None where that would be too much work; `items` that they were measured on."""

    errors: Callable[[Sequence[Allocation]], list[float] | None]
    items: int

    def best(self, candidates: Sequence[Allocation]) -> int:
        """Of several allocations, the more even the later, the number of the one that errs least; of the last one where
        that would be too much work.

        An error of n items is known to about one part in sqrt(n), so of those that are as close as that to the best the
        last is taken: what is measured on few inputs flatters uneven ones.
        """
        different = [k for k, c in enumerate(candidates) if c not in candidates[k + 1 :]]
        errors = self.errors([candidates[k] for k in different]) if len(different) > 1 else None
        return len(candidates) - 1 if errors is None else different[self.most_even(errors)]

    def most_even(self, errors: Sequence[float]) -> int:
        """The last of the errors that is as good as the least, as far as the items can tell."""
        return max(k for k, error in enumerate(errors) if error <= self._told_apart(min(errors)))

    def dearer(self, error: float, least: float) -> float:
        """By how much an error is above the least one; 0 where the items do not tell them apart."""
        return error - least if error > self._told_apart(least) else 0.0

    def _told_apart(self, error: float) -> float:
        """From where on an error is larger than `error`, as far as the items can tell."""
        return error * (1 + 1 / math.sqrt(max(self.items, 1)))


def within_reach(
    split: Callable[[Steps], Allocation], rungs: Sequence[Steps], sizes: Mapping[str, int]
) -> tuple[Allocation, str]:
    """A split in the first of `rungs` that reaches the target; a word about it where those are not the fast steps.
    `sizes`: of the groups, by id. Raises NothingToPruneError where none does."""
    made, number = _first(split, rungs)
    return made, _out_of_reach(rungs, off_steps(made, rungs[0], sizes)) if number else ""


def cheapest(
    split: Callable[[Steps], list[Allocation]], rungs: Sequence[Steps], sizes: Mapping[str, int], judge: Judge
) -> tuple[Allocation, str]:
    """The best of the splits in the first of `rungs` that reaches the target and errs by little more than the last one;
    a word about it. `sizes`: of the groups, by id. Raises NothingToPruneError where none reaches it."""
    made, first = _first(split, rungs)
    finest = split(rungs[-1]) if first + 1 < len(rungs) else []
    errors = judge.errors([*made, *finest]) if finest else None
    if errors is None:
        taken = made[judge.best(made)]
        return taken, _out_of_reach(rungs, off_steps(taken, rungs[0], sizes)) if first else ""
    coarse, errors = errors[: len(made)], errors[len(made) :]
    least = min(errors)
    if judge.dearer(min(coarse), least) <= (SOME_FROM if first else FINER_FROM):
        best = judge.most_even(coarse)
        sides = _sides(coarse[best], least) if judge.dearer(min(coarse), least) > TOLD_FROM else ""
        return made[best], _note(rungs, off_steps(made[best], rungs[0], sizes) if first else None, sides)
    for between in range(first + 1, len(rungs) - 1):
        candidates = split(rungs[between])
        found = judge.errors(candidates)
        if found is not None and judge.dearer(min(found), least) <= SOME_FROM:
            finest, errors = candidates, found
            break
    taken = finest[judge.most_even(errors)]
    finer = off_steps(taken, rungs[0], sizes)
    return taken, _out_of_reach(rungs, finer) if first else _too_dear(rungs, finer, _sides(min(coarse), min(errors)))


def _first(split: Callable[[Steps], Made], rungs: Sequence[Steps]) -> tuple[Made, int]:
    """A split in the first of `rungs` that reaches the target, and its number."""
    for number, steps in enumerate(rungs[:-1]):
        with contextlib.suppress(NothingToPruneError):
            return split(steps), number
    return split(rungs[-1]), len(rungs) - 1


def _note(rungs: Sequence[Steps], finer: int | None, sides: str) -> str:
    """What the steps taken, the coarsest that reach the target, cost; "" where that is little and all are fast."""
    reach = "" if finer is None else _out_of_reach(rungs, finer)
    closer = f"--round-to {min(rungs[-1].values())} is closer to the original, and slower"
    if reach and sides:
        return f"{reach}; {closer} ({sides})"
    return f"{_fast(rungs)}, cost some accuracy at this target ({sides}): {closer}" if sides else reach


def _out_of_reach(rungs: Sequence[Steps], finer: int) -> str:
    return f"the target is out of reach in {_fast(rungs)}: {_taken(finer)}"


def _too_dear(rungs: Sequence[Steps], finer: int, sides: str) -> str:
    return (
        f"{_fast(rungs)}, would cost too much at this target ({sides}): {_taken(finer)}; --round-to "
        f"{max(rungs[0].values())} takes the fast ones, --target latency=... asks for speed"
    )


def _fast(rungs: Sequence[Steps]) -> str:
    return f"widths that are fast here, in steps of up to {max(rungs[0].values())}"


def off_steps(made: Allocation, fast: Steps, sizes: Mapping[str, int]) -> int:
    """How many groups are cut to widths that are no whole fast steps."""
    return sum(count < sizes[name] and count % fast[name] > 0 for name, count in made.counts.items())


def _taken(finer: int) -> str:
    groups = wording.plural(finer, "group")
    return f"{groups} took others, and the speed-up is less than the work removed promises"


def _sides(error: float, least: float) -> str:
    return f"error {error:.3g} on inputs left out of a quick refit, {least:.3g} in finer steps"
