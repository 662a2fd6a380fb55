"""Which channels stay: the groups that options allow, scored, allocated and selected, or as a saved plan says."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxprune import (
    allocate,
    budget,
    choosing,
    compromise,
    cost,
    evaluation,
    pacing,
    processor,
    recovery,
    rungs,
    select,
    widths,
    worker,
)
from onnxprune import plan as plans
from onnxprune import score as scores
from onnxprune import target as targets
from onnxprune.comparison import Conditions
from onnxprune.config import MEASURED_CRITERIA, Config, parse_target
from onnxprune.cut import Cut
from onnxprune.errors import ModelError, NothingToPruneError, UsageError, WorkerError
from onnxprune.opened import Opened
from onnxprune.records import Allocation, FastWidths, Group, Plan, Pursuit, Round

log = logging.getLogger(__name__)

WHOLES = {"macs": "MACs", "params": "parameters", "bytes": "bytes"}
"""What a share of a target is one of."""


@dataclass(frozen=True)
class Decision:
    """The plan; where a budget was searched, the weights recovered for it already, and the rounds of the search; where
    a latency was aimed at, how that went.
    """

    plan: Plan
    recovered: recovery.Recovered | None = None
    rounds: tuple[Round, ...] = ()
    pursuit: Pursuit | None = None


def make(
    opened: Opened,
    config: Config,
    source: recovery.Source | None,
    timed: Conditions,
    measured: evaluation.Evaluation | None = None,
) -> Decision:
    """What stays of every group; measured on the calibration inputs of `source` where the criterion does that, and as
    little as the metric on `measured` allows where there is a budget. A latency is aimed at in measurements as `timed`.
    """
    found = _decide(opened, config, source, timed, measured)
    blocks = tuple(r.block.name for r in opened.removed)
    return dataclasses.replace(found, plan=dataclasses.replace(found.plan, blocks=blocks))


def _decide(
    opened: Opened,
    config: Config,
    source: recovery.Source | None,
    timed: Conditions,
    measured: evaluation.Evaluation | None,
) -> Decision:
    prunable = [g for g in opened.analysis.groups if g.refusal is None]
    if config.plan:
        plan = plans.load(config.plan, {g.id: g for g in prunable}, sha256=opened.model.sha256)
        whole = all(len(kept) == group.size for group in prunable if (kept := plan.kept.get(group.id)) is not None)
        if whole and not plan.blocks:
            raise NothingToPruneError(f"{config.plan}: the plan removes nothing; make one with --save-plan")
        return Decision(plan)
    chosen = _allowed(opened, config, prunable)
    if config.ratio == 0:
        return Decision(Plan({}))
    if config.aims_at_latency:
        return _paced(opened, config, chosen, source, timed, measured)
    if config.max_drop is not None and source is not None and measured is not None:
        return _within_budget(config, source, _wanted(opened, config, chosen), measured)
    plan = _scored_plan(opened, config, chosen, source)
    if not plan.kept:
        raise NothingToPruneError(_why_whole(config, len(chosen)))
    return Decision(plan)


def require_possible(opened: Opened, config: Config) -> None:
    """Refuse at once what needs no inputs to be refused: plans that do not fit, patterns that match nothing,
    options that leave no group, a target below what is left when all groups are as narrow as they get.

    Where residual blocks are to be removed first, that is known only later.
    """
    prunable = [g for g in opened.analysis.groups if g.refusal is None]
    if config.plan and not plans.load_blocks(config.plan):
        plans.load(config.plan, {g.id: g for g in prunable}, sha256=opened.model.sha256)
    if not config.plan and not config.depth:
        _allowed(opened, config, prunable)


def _allowed(opened: Opened, config: Config, prunable: Sequence[Group]) -> list[Group]:
    """The groups that the options allow to shrink. Raises UsageError for patterns that match nothing,
    NothingToPruneError where there are no such groups, or too few for the target."""
    for option, patterns in (("--keep", config.keep), ("--only", config.only)):
        require_matches(opened.analysis.groups, option, patterns)
    if config.ratio == 0:
        return []
    chosen = _chosen(opened, config, prunable)
    if config.target and not config.aims_at_latency:
        _require_reachable(opened, config, config.target, chosen)
    return chosen


def _require_reachable(opened: Opened, config: Config, target: str, chosen: Sequence[Group]) -> None:
    """Raise NothingToPruneError where the target is met already, or, unless a budget may end above it, below the least
    there is; splits by damage may end above that."""
    kind, amount = parse_target(target)
    terms, rest = choosing.terms_of(opened.model, opened.analysis, kind)
    whole = cost.total(terms, {}) + rest

    def least(settings: Config) -> int:
        counts = fewest(opened, settings, chosen)
        return cost.total(terms, {g.dim: counts[g.id] for g in chosen}) + rest

    found, wanted = least(config), amount * whole if amount <= 1 else amount
    if wanted >= whole:
        raise NothingToPruneError(_met_already(kind, amount, whole))
    if found <= wanted or config.max_drop is not None:
        return
    advice = ["give a larger --target"]
    if config.round_to != 1 and least(dataclasses.replace(config, round_to=1)) < found:
        advice.append("--round-to 1 for narrower groups")
    if config.keep or config.only:
        advice.append("fewer groups kept by --keep and --only")
    if amount <= 1:
        share = math.ceil(1000 * found / max(whole, 1)) / 1000
        sides = f"{amount:g} of the {WHOLES[kind]}", f"{share:.3f}"
    else:
        sides = f"{amount:,.0f} bytes", f"{found:,} bytes"
    raise NothingToPruneError(
        f"the target is {sides[0]}, and at least {sides[1]} stay where every group that may shrink is as narrow as it "
        f"gets: {' or '.join(advice)}; `onnxprune inspect` says what cannot be pruned"
    )


def _met_already(kind: str, amount: float, whole: float) -> str:
    """The message for a target that is no smaller than the whole."""
    if amount <= 1:
        return f"the target is met already: a share of {amount:g} is all of the {WHOLES[kind]}; give a smaller --target"
    return (
        f"the target is met already: it is {amount:,.0f} bytes, and the model has {whole:,.0f}; give a smaller --target"
    )


def fewest(opened: Opened, config: Config, chosen: Sequence[Group]) -> Mapping[str, int]:
    """The fewest indices of each group that any split leaves."""
    fast = widths.known(config.provider, config.run_threads)
    narrow = _finest(opened, config, chosen) or steps(opened, config, chosen, fast)
    if config.allocation == "uniform":
        return {g.id: allocate.round_count(g.least, g.size, narrow[g.id]) for g in chosen}
    return {g.id: min(g.size, -(-targets.floor(g, narrow[g.id]) // narrow[g.id]) * narrow[g.id]) for g in chosen}


def _chosen(opened: Opened, config: Config, prunable: Sequence[Group]) -> list[Group]:
    """The groups that the options allow to shrink. Raises NothingToPruneError where there are none."""
    chosen = choose(prunable, config.keep, config.only)
    chosen = allocate.choose_factors(opened.analysis, chosen, heads=config.heads, factors=factors(config))
    if not chosen:
        raise NothingToPruneError(_why_nothing(opened, prunable))
    return chosen


def factors(config: Config) -> allocate.Factors:
    """Which factors of a product the options let go: where damage is measured, that decides between them."""
    if config.head_width:
        return "inner"
    aims = config.target is not None or config.max_drop is not None
    splits = config.allocation == "sensitivity" or config.aims_at_latency
    return "all" if aims and splits and config.measure in MEASURED_CRITERIA else "outer"


def _why_whole(config: Config, groups: int) -> str:
    if config.target:
        return "the target is met already: nothing is removed; give a smaller --target"
    return (
        f"at ratio {config.ratio} every one of the {groups} groups keeps its width after rounding; "
        "give a higher --ratio, or --round-to 1 (which can make the model slower)"
    )


def _scored_plan(opened: Opened, config: Config, chosen: Sequence[Group], source: recovery.Source | None) -> Plan:
    """The plan by the criterion; by the norm where synthetic inputs, which nobody asked for, do not serve."""
    if config.measure not in MEASURED_CRITERIA or source is None:
        return _norm_plan(opened, config, chosen, config.measure)
    try:
        return _measured_plan(opened, config, chosen, source)
    except (ModelError, WorkerError) as error:
        if config.calibration is not None or config.target:
            raise
        note = f"the channels were chosen by the norm of their weights ({str(error).splitlines()[0]})"
        log.warning("%s", note)
        return dataclasses.replace(_norm_plan(opened, config, chosen, "l2"), note=note)


def _norm_plan(opened: Opened, config: Config, chosen: Sequence[Group], criterion: str) -> Plan:
    """The plan by a criterion over the weights alone; a target is met by one ratio for all groups."""
    multiples, note = steps(opened, config, chosen, widths.known(config.provider, config.run_threads)), ""
    if config.target is None:
        counts = allocate.evenly(chosen, config.ratio, multiples)
    else:
        split = functools.partial(_meeting, opened, config.target, chosen)
        ladder = allocate.rungs(chosen, multiples, _finest(opened, config, chosen))
        counts, note = rungs.within_reach(split, ladder, {g.id: g.size for g in chosen})
    found = scores.score(opened.analysis, chosen, opened.model.reader(), criterion=criterion, seed=config.seed)
    return dataclasses.replace(select.select(found, counts), note=note)


def _meeting(opened: Opened, target: str, chosen: Sequence[Group], steps: Mapping[str, int]) -> Allocation:
    """The split of the smallest ratio that meets the target, in these steps."""
    kind, amount = parse_target(target)
    terms, rest = choosing.terms_of(opened.model, opened.analysis, kind)
    limit = (amount * (cost.total(terms, {}) + rest) if amount <= 1 else amount) - rest
    return choosing.evenly_within(chosen, terms, limit, steps)


def choose(groups: Sequence[Group], keep: Sequence[str], only: Sequence[str]) -> list[Group]:
    """The groups that no pattern of `keep` matches and, if there are any, some pattern of `only` does."""
    return [g for g in groups if not _matches(g, keep) and (not only or _matches(g, only))]


def require_matches(groups: Sequence[Group], option: str, patterns: Sequence[str]) -> None:
    """Raise UsageError for a pattern of `option` that no group has a name for."""
    for pattern in patterns:
        if not any(_matches(g, [pattern]) for g in groups):
            raise UsageError(f"{option} {pattern!r} matches no group, tensor or node; see `onnxprune inspect`")


def _matches(group: Group, patterns: Sequence[str]) -> bool:
    names = {group.id, *group.nodes, *(o.tensor for o in group.occurrences)}
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _why_nothing(opened: Opened, prunable: Sequence[Group]) -> str:
    if prunable:
        those = f"none of the {len(prunable)} prunable groups" if len(prunable) > 1 else "out the one prunable group"
        return f"--keep, --only and --no-heads leave {those}"
    if not opened.analysis.groups:
        return "the model has no weights that could be pruned: no Conv, Gemm, MatMul ... with a stored weight was found"
    reasons = {g.refusal for g in opened.analysis.groups if g.refusal}
    listed = "; ".join(sorted({f"{r.op} {r.node!r}: {r.reason}" for r in reasons})[:5])
    return f"none of the {len(opened.analysis.groups)} groups of the model can be pruned: {listed}"


def plan_data(opened: Opened, plan: Plan, done: Cut) -> dict[str, object]:
    """The plan as plain data, for --save-plan."""
    model = opened.model
    return plans.to_json(plan, opened.analysis, done.slices, model=model.path.name, sha256=model.sha256())


def _measured_plan(opened: Opened, config: Config, chosen: Sequence[Group], source: recovery.Source) -> Plan:
    """The plan by what the calibration inputs show, made in a child process."""
    choice: choosing.Choice = worker.call(
        "onnxprune.choosing:choose",
        {"source": source.choosing, "wanted": _wanted(opened, config, chosen)},
        timeout_s=recovery.LIMIT_S if config.calibration or config.target else recovery.QUICK_LIMIT_S,
        threads=config.threads,
    )
    return Plan(dict(choice.kept), note=choice.note)


def _wanted(opened: Opened, config: Config, chosen: Sequence[Group]) -> choosing.Wanted:
    multiples = steps(opened, config, chosen, widths.known(config.provider, config.run_threads))
    target, finest = parse_target(config.target) if config.target else None, _finest(opened, config, chosen)
    names = [g.id for g in chosen]
    return choosing.Wanted(
        names, config.allocation, target, config.ratio, multiples, config.measure, config.recover, finest
    )


def _within_budget(
    config: Config, source: recovery.Source, wanted: choosing.Wanted, measured: evaluation.Evaluation
) -> Decision:
    """The smallest model within the budget, searched in a child process."""
    arguments = {
        "source": source,
        "wanted": wanted,
        "measured": measured,
        "max_drop": config.max_drop,
        "recover": config.recover,
        "tuned": config.tune,
    }
    found: budget.Found = worker.call(
        "onnxprune.budget:search", arguments, timeout_s=recovery.LIMIT_S, threads=config.threads
    )
    return Decision(Plan(dict(found.kept)), found.recovered, found.rounds)


def _finest(opened: Opened, config: Config, groups: Sequence[Group]) -> dict[str, int] | None:
    """The finest steps on the fast path: for targets that the fast widths do not reach, or only at the cost of
    accuracy. A budget measures what widths do."""
    if config.round_to != "auto" or (config.max_drop is not None and not config.aims_at_latency):
        return None
    return steps(opened, config, groups, processor.least(config.provider))


def steps(opened: Opened, config: Config, groups: Sequence[Group], fast: FastWidths) -> dict[str, int]:
    """What the counts of every group are multiples of."""
    if config.round_to != "auto":
        return {g.id: config.round_to for g in groups}
    return {g.id: allocate.fast_step(opened.analysis, g, fast) for g in groups}


def _paced(
    opened: Opened,
    config: Config,
    chosen: Sequence[Group],
    source: recovery.Source | None,
    timed: Conditions,
    measured: evaluation.Evaluation | None,
) -> Decision:
    """The plan that meets a latency target: latency by node, order and damage of removals, candidates measured. Where
    there is a budget of quality, as much of that as it allows."""
    pace, begun = pacing.started(_pace(opened, config, chosen, timed))
    if config.measure in MEASURED_CRITERIA and source is not None:
        wanted = _wanted(opened, config, chosen)
        share = begun.goal / begun.share
        arguments = {"source": source.choosing, "wanted": wanted, "latency": begun.model, "share": share}
        limit, threads = recovery.LIMIT_S, config.threads
        removals = worker.call("onnxprune.ranking:rank", arguments, timeout_s=limit, threads=threads)
    else:
        criterion = "l2" if config.measure in MEASURED_CRITERIA else config.measure
        found = scores.score(opened.analysis, chosen, opened.model.reader(), criterion=criterion, seed=config.seed)
        removals = {name: select.removal(values) for name, values in found.items()}
    plan, pursuit = pacing.reach(pace, begun, removals)
    if config.max_drop is None or source is None or measured is None:
        return Decision(plan, pursuit=pursuit)
    judge = compromise.Judge(source, measured, config, config.max_drop)
    plan, pursuit, recovered, rounds = compromise.find(pace, begun, removals, (plan, pursuit), judge)
    return Decision(plan, recovered, rounds, pursuit)


def _pace(opened: Opened, config: Config, chosen: Sequence[Group], timed: Conditions) -> pacing.Pace:
    """Among the widths that --round-to allows, the fast ones come first."""
    fast = widths.measured(config.provider, config.run_threads)
    allowed = _finest(opened, config, chosen) or steps(opened, config, chosen, fast)
    first = {g.id: math.lcm(allowed[g.id], allocate.fast_step(opened.analysis, g, fast)) for g in chosen}
    return pacing.Pace(opened, config, chosen, first, timed, None if first == allowed else allowed)
