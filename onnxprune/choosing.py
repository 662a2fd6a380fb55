"""Which channels stay: how much every removal harms, measured, and the best split of a target under that.

Statistics of what every layer reads give the order of removal in each group; a few removals of each, refitted, the
damage at the outputs; splits of the target by that damage are refitted quickly and the one that errs least is taken.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune import allocate, calibration, cost, rungs, score, select
from onnxprune import target as targets
from onnxprune.criteria import obs
from onnxprune.modelfile import ModelFile
from onnxprune.records import Allocation, Analysis, Feed, Group, IndexArray
from onnxprune.recover import damage, divergence
from onnxprune.recover.execution import Shelf
from onnxprune.recover.layers import Weights
from onnxprune.recover.reconstruct import find_sites
from onnxprune.recovery import OpenedSource, Source, cut_weights, macs_per_item, open_source, reconstructed
from onnxprune.target import Damage

log = logging.getLogger(__name__)

BIAS_FIELDS = 24
"""Bytes of a small tensor in a file beside its data and its name, at most."""
CURVE_ITEMS = 128
"""Items that damage curves are measured on."""
CURVE_WORK = 1e12
"""Multiply-accumulates spent on damage curves, about."""
MIXES = (0.0, 0.1, 1.0, 10.0)
"""Weights of removed / kept tried beside the measured damage; the one whose whole model errs least is taken."""


@dataclass(frozen=True)
class Wanted:
    """`groups`: ids of those that may shrink. `target`: (macs | params | bytes, share kept) or None for `ratio` of each
    group. `steps`: what counts are multiples of, by group id; `finest`: what they may be multiples of where those cost
    too much (`rungs.FINER_FROM`), None for no choice. `refits`: whether recovery follows, which adds biases."""

    groups: Sequence[str]
    allocation: str
    target: tuple[str, float] | None
    ratio: float
    steps: Mapping[str, int]
    criterion: str
    refits: bool = False
    finest: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Choice:
    """`kept` indices by group id; `curves`: (removed, damage) by group id where damage was measured; `note`: what
    the user should know about it, or ""."""

    kept: Mapping[str, IndexArray]
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    note: str = ""


@dataclass(frozen=True)
class Prepared:
    """What is measured once: the groups that may shrink, with the order of removal and the damage of each."""

    source: Source
    model: OpenedSource
    groups: Sequence[Group]
    order: Mapping[str, obs.Path]
    measured: Mapping[str, damage.Curve]


def choose(source: Source, wanted: Wanted) -> Choice:
    """Which indices stay. Run in a child process."""
    found = prepare(source, wanted)
    curves = {name: (c.removed, c.damage) for name, c in found.measured.items()}
    counts, note = _allocate(found, wanted)
    return Choice(_kept(found, counts), curves, note)


def prepare(source: Source, wanted: Wanted, levels: Sequence[float] | None = None) -> Prepared:
    """Statistics, the order of removal in every group, and where a target is split by it, the measured damage (at the
    shares `levels`). Groups that nothing with statistics reads go by the norm of their weights.

    Raises ModelError where a weight of a group holds no number.
    """
    model = open_source(source)
    names = set(wanted.groups)
    groups = [g for g in model.analysis.groups if g.id in names]
    norms = score.score(model.analysis, groups, model.stored, criterion="l2", seed=source.seed)
    by_norm = {name: select.path(values) for name, values in norms.items()}
    measured: dict[str, damage.Curve] = {}
    with contextlib.closing(Shelf(source.memory_bytes)) as shelf:
        found = damage.collect(
            model.proto, model.read, model.analysis, groups, source.feeds,
            shelf=shelf, seed=source.seed, threads=source.threads,
        )  # fmt: skip
        order = {**by_norm, **damage.orders(model.analysis, groups, found, wanted.criterion)}
        if wanted.allocation == "sensitivity" and wanted.target is not None:
            few, affordable = _effort(source, model, len(order))
            measured = damage.curves(
                Weights(model.proto, model.read), model.analysis, groups, found, order, few,
                memory_bytes=source.memory_bytes, threads=source.threads, levels=levels or affordable,
                without=lambda group, gone: cut_weights(model, {group.id: np.setdiff1d(np.arange(group.size), gone)}),
            )  # fmt: skip
    return Prepared(source, model, groups, order, measured)


def measure_curves(source: Source, wanted: Wanted, levels: Sequence[float]) -> tuple[int, Mapping[str, damage.Curve]]:
    """The rows measured on, and the damage of every group by its id. Run in a child process."""
    found = prepare(source, wanted, levels)
    few, _ = _effort(source, found.model, len(found.order))
    return calibration.rows_of(few), found.measured


def allocated(found: Prepared, wanted: Wanted) -> dict[str, IndexArray]:
    """The indices that stay of every group that shrinks, by group id."""
    return _kept(found, _allocate(found, wanted)[0])


def _kept(found: Prepared, counts: Allocation) -> dict[str, IndexArray]:
    kept = {}
    for group in found.groups:
        removed = group.size - counts.counts[group.id]
        if removed:
            kept[group.id] = np.setdiff1d(np.arange(group.size), found.order[group.id].order[:removed])
    return kept


def _effort(source: Source, model: OpenedSource, groups: int) -> tuple[list[Feed], Sequence[float]]:
    """Inputs and levels for the damage curves: as many as `CURVE_WORK` allows."""
    runs = CURVE_WORK / max(1.0, macs_per_item(source, model) * groups)
    levels = damage.LEVELS if runs >= CURVE_ITEMS * len(damage.LEVELS) / 4 else damage.FEW_LEVELS
    items = int(max(1, min(CURVE_ITEMS, runs / len(levels))))
    return limited(source.feeds, items), levels


def limited(feeds: Sequence[Feed], items: int) -> list[Feed]:
    """The first feeds that hold so many items together, at least one."""
    chosen: list[Feed] = []
    count = 0
    for feed in feeds:
        if count >= items:
            break
        chosen.append(feed)
        count += calibration.rows_of([feed])
    return chosen


def share_kept(found: Prepared, kind: str, kept: Mapping[str, IndexArray]) -> float:
    """The share that a plan keeps of a total (macs, params, bytes)."""
    terms, rest = terms_of(found.model.file, found.model.analysis, kind)
    counts = {g.dim: len(kept[g.id]) for g in found.groups if g.id in kept}
    return (cost.total(terms, counts) + rest) / max(1, cost.total(terms, {}) + rest)


def terms_of(model: ModelFile, found: Analysis, kind: str) -> tuple[list[cost.Term], int]:
    """The terms of a total (macs, params, bytes), and what of it does not depend on any group."""
    if kind == "macs":
        return cost.work_terms(found), 0
    types = {n: t.data_type for n, t in model.tensors().items() if n in found.weights}
    if kind == "params":
        return cost.weight_terms(found, cost.parameter_names(types)), 0
    counted = zip(cost.weight_terms(found, types), types.values(), strict=True)
    terms: list[cost.Term] = [(factors, unit * cost.bytes_of_one(element)) for (factors, unit), element in counted]
    return terms, model.bytes - cost.total(terms, {})


def bias_terms(model: OpenedSource, kind: str) -> list[cost.Term]:
    """What the biases that a refit may add would add to a total (params, bytes; to macs nothing)."""
    if kind == "macs":
        return []
    types, terms = {n: t.data_type for n, t in model.file.tensors().items()}, list[cost.Term]()
    for (output, _), name in model.places.items():
        unit = cost.bytes_of_one(onnx.TensorProto.INT32) if kind == "bytes" else 1
        terms.append((model.analysis.weights[name], unit))
        terms.append(((), BIAS_FIELDS + 2 * len(output) if kind == "bytes" else 0))
    for site in find_sites(model.proto, model.analysis):
        node = model.proto.graph.node[site.node]
        if site.bias_node != site.node or (len(node.input) > 2 and node.input[2]):
            continue
        element = types.get(site.weight, onnx.TensorProto.FLOAT)
        unit = cost.bytes_of_one(element) if kind == "bytes" else 1
        terms.append(((model.analysis.tensors[site.out][site.axis],), unit))
        terms.append(((), BIAS_FIELDS + 2 * len(site.out) if kind == "bytes" else 0))
    return terms


def _allocate(found: Prepared, wanted: Wanted) -> tuple[Allocation, str]:
    """How many indices of every group stay, and what the user should know about that."""
    groups = found.groups
    if wanted.target is None:
        return allocate.evenly(groups, wanted.ratio, wanted.steps), ""
    kind, limit = wanted.target
    terms, rest = terms_of(found.model.file, found.model.analysis, kind)
    whole = cost.total(terms, {}) + rest
    target = (limit * whole if limit <= 1 else limit) - rest
    terms = [*terms, *(bias_terms(found.model, kind) if wanted.refits else ())]
    ladder, sizes = allocate.rungs(groups, wanted.steps, wanted.finest), {g.id: g.size for g in groups}
    if wanted.allocation == "uniform":
        return rungs.within_reach(functools.partial(evenly_within, groups, terms, target), ladder, sizes)
    mixes = damages(groups, wanted, found.order, found.measured)

    def split(steps: Mapping[str, int]) -> list[Allocation]:
        return [targets.by_damage(groups, own, terms, target, steps) for own in mixes]

    return rungs.cheapest(split, ladder, sizes, judge(found))


def evenly_within(
    groups: Sequence[Group], terms: Sequence[cost.Term], limit: float, steps: Mapping[str, int]
) -> Allocation:
    """The split of the smallest ratio for all groups, in these steps, under which the terms add up to at most `limit`.
    Raises NothingToPruneError where there is none."""
    atoms = {g.id: g.dim for g in groups}

    def price(allocation: Allocation) -> float:
        return cost.total(terms, {atoms[name]: count for name, count in allocation.counts.items()})

    return targets.uniformly(lambda ratio: allocate.evenly(groups, ratio, steps), price, limit)


def damages(
    groups: Sequence[Group], wanted: Wanted, order: Mapping[str, obs.Path], measured: Mapping[str, damage.Curve]
) -> list[Mapping[str, Damage]]:
    """The damage of removing indices, by group id: one for every mix where it was measured."""
    if wanted.allocation != "sensitivity":
        return [{g.id: _path_damage(order[g.id], wanted.allocation != "global") for g in groups}]
    return [{g.id: _mixed(measured[g.id], g.size, mix) for g in groups} for mix in MIXES]


def _path_damage(path: obs.Path, share: bool) -> Damage:
    costs = path.cost / max(float(path.cost[-1]), 1e-30) if share else path.cost
    return lambda removed: float(costs[min(removed, len(costs) - 1)])


def _mixed(curve: damage.Curve, size: int, mix: float) -> Damage:
    return lambda removed: curve.at(removed) + mix * removed / max(size - removed, 0.5)


def judge(found: Prepared) -> rungs.Judge:
    """Of allocations, by the error of the quickly reconstructed models."""
    feeds, held = _judging(found)
    return rungs.Judge(functools.partial(judged, found), calibration.rows_of(feeds[-held:]))


def judged(found: Prepared, candidates: Sequence[Allocation]) -> list[float] | None:
    """The error of every quickly reconstructed model on batches it was not fitted to; None where that would be too much
    work, or there are no such batches. Where few images were joined by bred ones those batches are relatives of the
    others: judged on the few alone, MobileNetV2 with half of its work removed loses two points more (16 images).
    """
    source, model = found.source, found.model
    feeds, held = _judging(found)
    work = len(candidates) * macs_per_item(source, model) * calibration.rows_of(feeds)
    if len(feeds) < 2 or work > CURVE_WORK:
        return None
    probes = divergence.probes(model.proto)
    limits = {"threads": source.threads, "memory_bytes": source.memory_bytes}
    reference = damage.probed(model.proto, model.read, feeds[-held:], **limits)
    errors: list[float] = []
    for number, candidate in enumerate(candidates):
        if candidate in candidates[:number]:
            errors.append(errors[candidates.index(candidate)])
            continue
        kept = _kept(found, candidate)
        weights = cut_weights(model, kept)
        reconstructed(source, model, weights, kept, feeds[:-held], relaxed=False)
        result = damage.probed(weights.proto, weights.get, feeds[-held:], **limits)
        error = divergence.divergence(probes, reference, result)
        errors.append(error if math.isfinite(error) else math.inf)
        log.info("allocation %d: held-out error %.5f", number + 1, errors[-1])
    return errors


def _judging(found: Prepared) -> tuple[list[Feed], int]:
    """Batches to judge allocations with, and how many of the last of them a quick refit leaves out."""
    feeds = limited(found.source.feeds, 4 * CURVE_ITEMS)
    return feeds, max(1, len(feeds) // 4)
