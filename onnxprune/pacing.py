"""Latency: a target is met by widths that a model of latency proposes and measurements correct; and no result that is
not faster is written. All of it runs in one quiet process at a time.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnxprune import allocate, comparison, rungs, wording
from onnxprune import target as targets
from onnxprune.comparison import Conditions
from onnxprune.config import Config, parse_target
from onnxprune.cut import cut
from onnxprune.dims import Dim
from onnxprune.errors import NotFasterError, NothingToPruneError
from onnxprune.fusing import UNFUSED, fused
from onnxprune.latency import model as latency_model
from onnxprune.latency import profile, pursuit
from onnxprune.modelfile import skeleton, write
from onnxprune.opened import Opened
from onnxprune.records import (
    Allocation,
    Feed,
    Group,
    IndexArray,
    Latency,
    LatencyModel,
    Plan,
    Profile,
    Pursuit,
    Removal,
)

log = logging.getLogger(__name__)

LEVELS = (1.0, 0.75, 0.5, 0.25, 0.125)
"""Shares of every group that the model of latency is made at."""
_LEAST_RISE = 1e-3
_NAMED = 5
"""Layers named where a result is not faster."""


def conditions(config: Config, feeds: Sequence[Feed]) -> Conditions:
    """What latency is measured with: the options, and the first of the calibration inputs where there are any."""
    sample = feeds[0] if feeds else None
    given, threads = dict(config.input_shapes), config.run_threads
    return Conditions(given, config.batch, config.provider, threads, config.budget_s, config.seed, sample)


# ---- A target --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """A latency target for the groups `chosen`, whose counts are multiples of `steps`; of `finer` ones, which are not
    as fast for their size, only where those do not meet it."""

    opened: Opened
    config: Config
    chosen: Sequence[Group]
    steps: Mapping[str, int]
    timed: Conditions
    finer: Mapping[str, int] | None = None

    @property
    def original(self) -> Path:
        """The file that latency is compared with."""
        return (self.opened.original or self.opened).model.path


@dataclass(frozen=True)
class Start:
    """What was measured before anything is cut: the model of latency; `share`: of the original's latency, what is left
    where residual blocks were removed; `goal`: the share wanted.
    """

    model: LatencyModel
    share: float
    goal: float


def started(pace: Pace) -> tuple[Pace, Start]:
    """The start of a target; without fusion from here on where the runtime does not take the fused model."""
    try:
        return pace, start(pace)
    except UNFUSED as error:
        if not pace.config.fuse:
            raise
        log.warning("nothing is fused, as the model does not stand it: %s", str(error).splitlines()[0])
    pace = dataclasses.replace(pace, config=dataclasses.replace(pace.config, fuse=False))
    return pace, start(pace)


def start(pace: Pace, goal: float | None = None) -> Start:
    """Cut all groups to a few widths, profile those, and fit the model of latency; `goal` where it is known already."""
    plans = [{g.id: _level_count(pace, g, level) for g in pace.chosen} for level in LEVELS]
    named = latency_model.labelled(pace.opened.model.proto)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        paths = [Path(folder) / f"{k}.onnx" for k in range(len(plans))]
        for counts, path in zip(plans, paths, strict=True):
            kept = {g.id: np.arange(counts[g.id]) for g in pace.chosen if counts[g.id] < g.size}
            _write(pace, kept, path, named)
        first, *profiles = comparison.profile_files([pace.original, *paths], pace.timed)
    atoms = [_by_atom(pace.chosen, counts) for counts in plans]
    found = latency_model.fit(pace.opened.model.proto, pace.opened.analysis, atoms, profiles, LEVELS)
    ratios = ", ".join(f"{level:g}: {ratio:.2f}" for level, ratio in zip(LEVELS, found.ratios, strict=True))
    log.info("latency model of %d nodes; whole over sum of nodes by share kept: %s", len(found.nodes), ratios)
    return Start(found, profiles[0].whole / first.whole, _goal(pace) if goal is None else goal)


def _goal(pace: Pace) -> float:
    """The target as a share of the original's latency, which is measured where the target is in milliseconds."""
    kind, amount = parse_target(pace.config.target or "")
    if kind != "milliseconds":
        return amount
    pair = [pace.original, pace.original]
    now = comparison.compare_files(pair, pace.timed, self_test=False)[0].before.p50
    if now <= amount:
        raise NothingToPruneError(f"the target is met already: the original takes {now:.3g} ms at the median")
    return amount / now


def _level_count(pace: Pace, group: Group, level: float) -> int:
    wanted = max(group.least, round(group.size * level))
    return allocate.round_count(wanted, group.size, pace.steps[group.id])


def _by_atom(groups: Iterable[Group], counts: Mapping[str, int]) -> dict[Dim, int]:
    return {g.dim: counts[g.id] for g in groups if g.id in counts}


def reach(pace: Pace, begun: Start, removals: Mapping[str, Removal]) -> tuple[Plan, Pursuit]:
    """The plan whose measured latency is the goal; weights do not change latency, so none are recovered on the way.

    Raises NothingToPruneError where the goal cannot be reached.
    """
    models = [begun.model]

    def measure(allocation: Allocation) -> float:
        share = _measured(pace, _kept(pace.chosen, removals, allocation))
        log.info("candidate: %.3f of the original's latency (wanted: %.3f)", share, begun.goal)
        return share

    def proposers() -> Iterator[pursuit.Propose]:
        yield _Proposer(pace, begun, removals)
        if pace.finer is not None:
            log.info("fast widths do not meet the target; others may")
            finer = dataclasses.replace(pace, steps=pace.finer, finer=None)
            again = start(finer, begun.goal)
            models.append(again.model)
            yield _Proposer(finer, again, removals)

    outcome = pursuit.pursue(begun.goal, proposers(), measure)
    kept = _kept(pace.chosen, removals, outcome.allocation)
    notes = _notes(pace, begun.goal, outcome)
    if not kept and pace.config.fuse and pace.opened.original is None:
        notes = (f"the fused model takes {outcome.reached:.3f} of the original's latency, so no channel is removed",)
    found = Pursuit(begun.goal, outcome.reached, outcome.attempts, models[-1], notes)
    return Plan(kept), found


def _notes(pace: Pace, goal: float, outcome: pursuit.Outcome) -> tuple[str, ...]:
    slow = rungs.off_steps(outcome.allocation, pace.steps, {g.id: g.size for g in pace.chosen})
    finest = max((pace.finer or pace.steps).values(), default=1) == 1
    taken = f"widths that are fast here do not give the target latency: {wording.plural(slow, 'group')} took others"
    missed = _coarse(goal, outcome.reached, finest=finest)
    return (*([taken] if slow else []), *([] if outcome.met else [missed]))


def _measured(pace: Pace, kept: Mapping[str, IndexArray]) -> float:
    """The share of the original's latency that the model cut to a plan takes."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "candidate.onnx"
        _write(pace, kept, path)
        return 1.0 / comparison.compare_files([pace.original, path], pace.timed, self_test=False)[0].speedup


Relaxed = Callable[[float], tuple[dict[str, IndexArray], float]]
"""By a share of latency above the one met: a plan, and the share that is expected of it."""


def relaxed(pace: Pace, begun: Start, removals: Mapping[str, Removal], met: Pursuit) -> Iterator[Relaxed]:
    """Plans of fast widths, then of all that are allowed. What was measured of the plan met corrects the model of
    latency: on a line from there to the original."""
    yield _relaxed(pace, begun, removals, met)
    if pace.finer is not None:
        finer = dataclasses.replace(pace, steps=pace.finer, finer=None)
        yield _relaxed(finer, start(finer, begun.goal), removals, met)


def _relaxed(pace: Pace, begun: Start, removals: Mapping[str, Removal], met: Pursuit) -> Relaxed:
    propose = _Proposer(pace, begun, removals)
    base = next(a.predicted for a in reversed(met.attempts) if a.measured == met.reached)
    rise = max(1.0 - base, _LEAST_RISE) / max(1.0 - met.reached, _LEAST_RISE)

    def plan(share: float) -> tuple[dict[str, IndexArray], float]:
        found = propose(base + (share - met.reached) * rise)
        return _kept(pace.chosen, removals, found.allocation), met.reached + (found.predicted - base) / rise

    return plan


def fallen_back(pace: Pace, met: Pursuit, kept: Mapping[str, IndexArray], max_drop: float) -> Pursuit:
    """The record of a plan that was taken in place of the one `met`, because of the budget; its latency is measured."""
    share = _measured(pace, kept)
    note = (
        f"--max-drop {max_drop:g} does not allow the target latency ({met.goal:.3f} of the original's): this model, "
        f"the fastest measured within it, takes {share:.3f}"
    )
    return dataclasses.replace(met, reached=share, notes=(note,))


def _coarse(goal: float, reached: float, *, finest: bool) -> str:
    wanted = f"{goal:.3f} of the original's"
    said = f"no widths give the target latency ({wanted}): this model takes {reached:.3f}"
    return said if finest else f"{said}; --round-to 1 allows more widths, the fast ones first"


class _Proposer:
    """Allocations of least damage under a predicted share of latency."""

    def __init__(self, pace: Pace, begun: Start, removals: Mapping[str, Removal]) -> None:
        self.pace, self.start = pace, begun
        self.groups = [g for g in pace.chosen if g.id in removals]
        self.damage = {name: _damage(removal) for name, removal in removals.items()}
        self.terms = latency_model.costs(pace.opened.model.proto, pace.opened.analysis, begun.model.nodes)
        self.full = self._milliseconds({})

    def __call__(self, aim: float) -> pursuit.Candidate:
        model, target = self.start.model, aim / self.start.share * self.full
        limit = max((target - model.overhead) / max(model.factor, 1e-12), 0.0)
        allocation = self._allocate(limit)
        share = self._milliseconds(_by_atom(self.groups, allocation.counts)) / self.full * self.start.share
        return pursuit.Candidate(allocation, share)

    def _milliseconds(self, kept: Mapping[Dim, int]) -> float:
        model = self.start.model
        return model.overhead + model.factor * targets.total(self.terms, kept)

    def _allocate(self, limit: float) -> Allocation:
        if self.pace.config.allocation != "uniform":
            return targets.nearest(self.groups, self.damage, self.terms, limit, self.pace.steps)

        def price(allocation: Allocation) -> float:
            return targets.total(self.terms, _by_atom(self.groups, allocation.counts))

        return targets.ratio_for(lambda ratio: allocate.evenly(self.groups, ratio, self.pace.steps), price, limit)


def _damage(removal: Removal) -> targets.Damage:
    return lambda removed: float(removal.damage[min(removed, len(removal.damage) - 1)])


def _kept(groups: Iterable[Group], removals: Mapping[str, Removal], allocation: Allocation) -> dict[str, IndexArray]:
    return {
        g.id: np.setdiff1d(np.arange(g.size), removals[g.id].order[: g.size - allocation.counts[g.id]])
        for g in groups
        if g.id in removals and allocation.counts.get(g.id, g.size) < g.size
    }


def _write(pace: Pace, kept: Mapping[str, IndexArray], path: Path, proto: onnx.ModelProto | None = None) -> None:
    opened = pace.opened
    done, _ = fused(opened, pace.config, cut(proto or opened.model.proto, opened.analysis, opened.shapes, kept))
    write(opened.model, done.proto, done.edits, path)


# ---- A result --------------------------------------------------------------------------------------------------------


def timed_result(original: Path, result: Path, timed: Conditions, *, force: bool) -> Latency:
    """The latency of the `result` against the original's.

    Raises NotFasterError, with the layers responsible, where it is not shown to be faster; `force` lets it pass.
    """
    found = comparison.compare_files([original, result], timed)[0]
    if force or (found.significant and found.speedup > 1.0):
        return found
    profiles = comparison.profile_files([original, result], timed)
    paths = (original, result)
    before, after = (latency_model.named(p, skeleton(path)) for p, path in zip(profiles, paths, strict=True))
    raise NotFasterError(not_faster_words(found, before, after))


def not_faster_words(found: Latency, before: Profile, after: Profile) -> str:
    """Why a result is refused: the measurement, and the layers that did not get faster."""
    low, high = found.ci95
    verdict = "slower than the original" if found.significant else "not measurably faster than the original"
    slow = profile.not_faster(before, after)[:_NAMED]
    layers = "; ".join(f"{name} {was:.3g} -> {now:.3g} ms" for name, was, now in slow)
    blame = f" Layers that did not get faster: {layers}." if layers else ""
    warnings = "".join(f" ({warning})" for warning in found.warnings)
    return (
        f"the pruned model is {verdict}: {found.speedup:.2f}x (95% interval {low:.2f} to {high:.2f}), so it was not "
        f"written{warnings}.{blame} Remove more, keep --round-to auto, or write it all the same with --force"
    )
