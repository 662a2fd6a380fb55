"""The smallest model within a budget of quality: bisection over the size, each round allocated, recovered, measured.

Where removing more never helps the metric, the smallest size within the budget lies between one that keeps it and one
that does not; each round halves what lies between. The model is opened once, and statistics, orders of removal and
damage are measured once, in one child process.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxprune import choosing, evaluation, recovery
from onnxprune.choosing import Wanted
from onnxprune.config import check_max_drop
from onnxprune.errors import NothingToPruneError
from onnxprune.evaluation import Evaluation
from onnxprune.metric import Outputs, fitting
from onnxprune.records import Feed, IndexArray, Round
from onnxprune.recover import damage
from onnxprune.recover.execution import Read
from onnxprune.recover.layers import Weights
from onnxprune.recovery import OpenedSource, Recovered, Source

log = logging.getLogger(__name__)

ROUNDS = 6
"""Models recovered and measured, at most."""
FIRST = 0.5
"""The share kept in the first round, where no target is given."""
CLOSE = 0.01
"""The search ends where the bounds of the share are as close."""
TRIES = 40
"""Allocations looked at, at most: what cannot be reached, and what was measured already, costs no round."""
BATCHES = 16
"""Batches that the outputs are computed for at a time."""
WORDS = {"macs": "MACs", "params": "parameters", "bytes": "size", "latency": "latency"}

Kept = Mapping[str, IndexArray]


@dataclass(frozen=True)
class Found:
    """The smallest model within the budget: its plan, its weights (None without recovery), and the rounds to it."""

    kept: Kept
    recovered: Recovered | None
    rounds: tuple[Round, ...]


@dataclass(frozen=True)
class Trial:
    """A plan, the share it really keeps, and what the metric `name` says of it; where `kept` is empty nothing."""

    kept: Kept
    share: float
    within: bool = True
    name: str = ""
    value: float = 0.0
    drop: float = 0.0
    recovered: Recovered | None = None


def widths_of(kept: Kept) -> tuple[tuple[str, int], ...]:
    """How many indices stay, by group id: what tells two plans of one order of removal apart."""
    return tuple((name, len(indices)) for name, indices in sorted(kept.items()))


def smallest(
    trial: Callable[[float], Trial | None], *, lowest: float, first: float
) -> tuple[Trial | None, tuple[Trial, ...]]:
    """The smallest trial within the budget (None: there is none) of at least the share `lowest`, and all trials.

    `trial(share)` is one of at most that share, the same object for the same plan, or None where the share cannot be
    reached.
    """
    low, high, share = lowest, 1.0, first
    best: Trial | None = None
    made: list[Trial] = []
    for _ in range(TRIES):
        found = trial(share)
        if found is not None and found.kept and not any(found is other for other in made):
            made.append(found)
        if found is None or not found.within:
            low = share
        else:
            high = min(share, found.share)
            best = found if found.kept and (best is None or found.share < best.share) else best
        if high <= lowest or high - low <= CLOSE or len(made) == ROUNDS:
            break
        share = (low + high) / 2
    return best, tuple(made)


def search(
    source: Source, wanted: Wanted, measured: Evaluation, *, max_drop: float, recover: bool, tuned: bool
) -> Found:
    """The smallest model, of the share in `wanted.target` at least, whose metric falls by at most `max_drop`.

    Raises NothingToPruneError where even the least that was removed costs more. Run in a child process.
    """
    kind, least = wanted.target or ("macs", 0.0)
    wanted = dataclasses.replace(wanted, target=(kind, least or FIRST))
    prepared = choosing.prepare(source, wanted)
    lowest = least if least <= 1 else least / prepared.model.file.bytes
    original = _originals(source, prepared.model, measured, max_drop)
    known: dict[tuple[tuple[str, int], ...], Trial] = {}

    def trial(share: float) -> Trial | None:
        try:
            kept = choosing.allocated(prepared, dataclasses.replace(wanted, target=(kind, share)))
        except NothingToPruneError:
            return None
        key = widths_of(kept)
        if key not in known:
            found = Trial(kept, choosing.share_kept(prepared, kind, kept))
            known[key] = judged(found) if kept else found
        return known[key]

    def judged(plan: Trial) -> Trial:
        made = _made(source, prepared.model, plan.kept, recover, tuned)
        return _judged(source, plan, made, (measured, original), max_drop, kind)

    best, made = smallest(trial, lowest=lowest, first=lowest or FIRST)
    if best is None:
        raise NothingToPruneError(no_model(made, kind, max_drop, evaluation.rows_of(measured)))
    return Found(best.kept, best.recovered, tuple(Round(t.share, t.value, t.drop, t.within) for t in made))


def judge(source: Source, plan: Trial, measured: Evaluation, *, max_drop: float, recover: bool, tuned: bool) -> Trial:
    """What the metric says of a plan that keeps a share of the latency. Run in a child process."""
    model = recovery.open_source(source)
    original = _originals(source, model, measured, max_drop)
    made = _made(source, model, plan.kept, recover, tuned)
    return _judged(source, plan, made, (measured, original), max_drop, "latency")


def _originals(source: Source, model: OpenedSource, measured: Evaluation, max_drop: float) -> list[Outputs]:
    """The original's outputs. Raises UsageError where the metric that fits them cannot fall by `max_drop`."""
    found = list(_outputs(model.original, model.read, measured.feeds, source))
    if measured.metric is None and found:
        check_max_drop(max_drop, fitting(found[0]))
    return found


def _judged(
    source: Source,
    plan: Trial,
    made: tuple[Weights, Recovered | None],
    against: tuple[Evaluation, Sequence[Outputs]],
    max_drop: float,
    kind: str,
) -> Trial:
    (weights, recovered), (measured, original) = made, against
    outputs = _outputs(weights.proto, weights.get, measured.feeds, source)
    metric, (before, after) = evaluation.tables(measured, original, outputs)
    start, value = metric.value(before), metric.value(after)
    drop = start - value
    log.info("%.1f%% of the %s kept: %s %.4f, drop %.4f", 100 * plan.share, WORDS[kind], metric.name, value, drop)
    within = drop <= max_drop
    return Trial(plan.kept, plan.share, within, metric.name, value, drop, recovered if within else None)


def _made(
    source: Source, model: OpenedSource, kept: Kept, recover: bool, tuned: bool
) -> tuple[Weights, Recovered | None]:
    if recover:
        return recovery.refitted(source, model, kept, tuned=tuned)
    return recovery.cut_weights(model, kept), None


def _outputs(proto: onnx.ModelProto, read: Read, feeds: Sequence[Feed], source: Source) -> Iterator[Outputs]:
    names = [o.name for o in proto.graph.output]
    for first in range(0, len(feeds), BATCHES):
        chosen = feeds[first : first + BATCHES]
        limits = {"threads": source.threads, "memory_bytes": source.memory_bytes}
        for found in damage.tensors_of(proto, read, names, chosen, **limits):
            yield dict(zip(names, found, strict=True))


def no_model(made: Sequence[Trial], kind: str, max_drop: float, rows: int) -> str:
    """Why no model that was made will do."""
    if not made:
        return "--max-drop: nothing can be removed, whatever the budget; see `onnxprune inspect`"
    least = max(made, key=lambda t: t.share)
    return (
        f"--max-drop {max_drop:g}: even with {least.share:.1%} of the {WORDS[kind]} kept, {least.name} falls by "
        f"{least.drop:.4f} to {least.value:.4f} on {rows} held-out rows; allow a larger drop, give more --calibration "
        "inputs, or measure on more rows with --evaluation"
    )
