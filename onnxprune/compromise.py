"""A latency target under a budget of quality: the target where that is allowed, else the least latency that is.

Widths go by the model of latency, and the metric decides. The plan that meets the target is recovered and measured;
where the metric falls by too much, plans of more latency are, by bisection: of fast widths first, then of all that are
allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from onnxprune import budget, evaluation, pacing, worker
from onnxprune.budget import Kept, Trial
from onnxprune.config import Config
from onnxprune.errors import NothingToPruneError
from onnxprune.evaluation import Evaluation
from onnxprune.pacing import Pace, Start
from onnxprune.records import Plan, Pursuit, Removal, Round
from onnxprune.recovery import LIMIT_S, Recovered, Source


def find(
    pace: Pace, begun: Start, removals: Mapping[str, Removal], met: tuple[Plan, Pursuit], judge: Judge
) -> tuple[Plan, Pursuit, Recovered | None, tuple[Round, ...]]:
    """The plan `met`, which meets the target, or the one of least latency whose metric falls by no more than allowed.

    Raises NothingToPruneError where even the least that was removed costs more.
    """
    plan, pursuit = met
    known: dict[tuple[tuple[str, int], ...], Trial] = {}

    def tried(kept: Kept, expected: float) -> Trial:
        key = budget.widths_of(kept)
        if key not in known:
            known[key] = judge(kept, expected) if kept else Trial(kept, expected)
        return known[key]

    best: Trial | None = None
    for relaxed in pacing.relaxed(pace, begun, removals, pursuit):

        def trial(share: float, relaxed: pacing.Relaxed = relaxed) -> Trial:
            met_it = share <= pursuit.reached
            return tried(plan.kept, pursuit.reached) if met_it else tried(*relaxed(share))

        best, _ = budget.smallest(trial, lowest=pursuit.reached, first=pursuit.reached)
        if best is not None:
            break
    made = tuple(found for found in known.values() if found.kept)
    if best is None:
        raise NothingToPruneError(judge.refusal(made))
    if best.kept is not plan.kept:
        pursuit = pacing.fallen_back(pace, pursuit, best.kept, judge.max_drop)
    rounds = tuple(Round(t.share, t.value, t.drop, t.within) for t in made)
    return dataclasses.replace(plan, kept=best.kept), pursuit, best.recovered, rounds


@dataclasses.dataclass(frozen=True)
class Judge:
    """Recovers a plan and measures the metric, in a child process."""

    source: Source
    measured: Evaluation
    config: Config
    max_drop: float

    def __call__(self, kept: Kept, share: float) -> Trial:
        """What the metric says of a plan that keeps `share` of the latency."""
        arguments = {
            "source": self.source,
            "plan": Trial(kept, share),
            "measured": self.measured,
            "max_drop": self.max_drop,
            "recover": self.config.recover,
            "tuned": self.config.tune,
        }
        found: Trial = worker.call("onnxprune.budget:judge", arguments, timeout_s=LIMIT_S, threads=self.config.threads)
        return dataclasses.replace(found, kept=kept)

    def refusal(self, made: tuple[Trial, ...]) -> str:
        """Why none of the plans that were made will do."""
        return budget.no_model(made, "latency", self.max_drop, evaluation.rows_of(self.measured))
