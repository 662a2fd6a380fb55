"""Why groups that may be pruned keep all their indices."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune import allocate, planning, widths
from onnxprune.config import Config
from onnxprune.opened import Opened
from onnxprune.records import Group, Plan


def reasons(opened: Opened, config: Config, plan: Plan) -> dict[str, str]:
    """The reason in words, by the id of every prunable group that `plan` leaves whole."""
    prunable = [g for g in opened.analysis.groups if g.refusal is None]
    left = [g for g in prunable if g.id not in plan.kept]
    if config.plan or not plan.kept:
        reason = "the plan keeps all of it" if config.plan else "no channels are removed"
        return dict.fromkeys((g.id for g in left), reason)
    found = dict(_by_options(opened, config, prunable))
    chosen = [g for g in prunable if g.id not in found]
    steps = planning.steps(opened, config, chosen, widths.known(config.provider, config.run_threads))
    least = planning.fewest(opened, config, chosen)
    for group in chosen:
        found[group.id] = _by_amount(config, group, steps[group.id], least[group.id])
    return {g.id: found[g.id] for g in left}


def rounded_up(opened: Opened, config: Config, plan: Plan) -> tuple[int, int]:
    """How many groups keep all their indices as what the ratio leaves of them is rounded up, and the largest of their
    steps; (0, 0) where there are none, or where no ratio decides."""
    if config.plan or not plan.kept or config.target is not None or config.max_drop is not None:
        return 0, 0
    prunable = [g for g in opened.analysis.groups if g.refusal is None]
    kept_by_options = dict(_by_options(opened, config, prunable))
    chosen = [g for g in prunable if g.id not in kept_by_options]
    multiples = planning.steps(opened, config, chosen, widths.known(config.provider, config.run_threads))
    found = [multiples[g.id] for g in chosen if g.id not in plan.kept]
    return len(found), max(found, default=0)


def _by_options(opened: Opened, config: Config, prunable: list[Group]) -> Iterator[tuple[str, str]]:
    """The groups that options leave whole, and which."""
    named = {g.id for g in planning.choose(prunable, config.keep, ())}
    chosen = planning.choose(prunable, config.keep, config.only)
    allowed = {g.id for g in chosen}
    taken = {
        heads: {
            g.id
            for g in allocate.choose_factors(opened.analysis, chosen, heads=heads, factors=planning.factors(config))
        }
        for heads in (True, config.heads)
    }
    for group in prunable:
        if group.id not in allowed:
            yield group.id, "--only names others" if group.id in named else "--keep names it"
        elif group.id not in taken[config.heads]:
            factor = "it multiplies another group on one axis, and one of the two is cut"
            yield group.id, "--no-heads keeps it" if group.id in taken[True] else factor


def _by_amount(config: Config, group: Group, step: int, least: int) -> str:
    if config.target is None and config.max_drop is None:
        return f"what --ratio {config.ratio:g} leaves of its {group.size}, in steps of {step}, is all of it"
    if least == group.size:
        return f"it has {group.size}, and gets no narrower in steps of {step}"
    return "the split takes from other groups alone"
