"""Puts together the report of a run from the records of its stages."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from onnxprune import allocate, cost, processor, unpruned, widths, wording
from onnxprune.bodies import flat_nodes
from onnxprune.config import Config, parse_target
from onnxprune.dims import Dim, resolve
from onnxprune.modelfile import ModelFile
from onnxprune.opened import Opened
from onnxprune.records import (
    Analysis,
    GroupReport,
    Inputs,
    Latency,
    Plan,
    Proof,
    Pursuit,
    Quality,
    Reach,
    Refusal,
    RefusalReport,
    Report,
    Round,
    Totals,
)
from onnxprune.shapes import graph_inputs

log = logging.getLogger(__name__)

SYNTHETIC_SHARE = 0.3
"""Share of the MACs beyond which models recovered on synthetic inputs are warned about."""
FEW_HELD_OUT = 16
"""Rows held out, fewer than which are warned about."""
POOR_COSINE = 0.95
POOR_AGREEMENT = 0.9
POOR_DROP = 0.03
"""Share of the original's metric whose loss is worth a note."""
AMISS = 0.05
"""A share of latency that differs by more than this share from the one before is worth a word."""


def report(
    opened: Opened,
    config: Config,
    plan: Plan,
    seconds: Mapping[str, float],
    *,
    output: Path | None = None,
    proof: Proof | None = None,
    pursuit: Pursuit | None = None,
    inputs: Inputs | None = None,
    rounds: tuple[Round, ...] = (),
    lack: str | None = None,
) -> Report:
    """The report; without `proof` of a run that wrote nothing. MACs are counted for a batch of one."""
    found = opened.analysis
    poor = list(_result_notes(config, proof)) if proof else []
    for note in poor:
        log.warning("%s", note)
    single = _single_batch(opened)
    kept = single | {g.dim: len(plan.kept[g.id]) for g in found.groups if g.id in plan.kept}
    weights = _parameter_names(opened)
    before = _before(opened.original or opened)
    after = _after(opened, plan, weights, kept, output, proof.fused if proof else 0)
    return Report(
        model=str(opened.model.path),
        output=str(output) if output else None,
        seed=config.seed,
        options=_options(opened, config, plan),
        before=before,
        after=after,
        groups=tuple(_group_reports(opened, config, plan, weights, before.parameters)),
        refusals=_refusals(found, weights),
        exactness=proof.exactness if proof else None,
        quality=proof.quality if proof else None,
        latency=proof.latency if proof else None,
        seconds=dict(seconds),
        notes=(
            *_notes(opened, plan, proof),
            *poor,
            *_latency_notes(config, proof.latency if proof else None, pursuit),
            *_rounding_notes(opened, config, plan),
            *_size_notes(config, before, after if output else None),
            *_input_notes(config, plan, before, after, inputs, lack),
        ),
        reach=_reach(found, weights, single),
        inputs=inputs,
        cut_quality=proof.cut_quality if proof else None,
        layers=proof.layers if proof else (),
        metric=proof.metric if proof else None,
        distillation=proof.distillation if proof else None,
        rounds=rounds,
        pursuit=pursuit,
        fused=proof.fused if proof else 0,
    )


def _after(
    opened: Opened, plan: Plan, weights: Sequence[str], kept: Mapping[Dim, int], output: Path | None, fused: int
) -> Totals | None:
    """What the model comes to that was written to `output`, or would be; None where nothing is removed."""
    if not plan.kept and not plan.blocks and not fused:
        return None
    found, file = opened.analysis, ModelFile.load(output, lean=True) if output else None
    parameters = _written(opened, weights, file, kept) if file else cost.parameters(found, weights, kept)
    nodes = len(flat_nodes(file.proto)) if file else len(found.nodes) - _dropped(found, plan)
    return Totals(nodes, parameters, file.bytes if file else 0, cost.macs(found, kept))


def _dropped(found: Analysis, plan: Plan) -> int:
    """How many nodes fall with operands of stacks."""
    kept = {g.dim: set(plan.kept[g.id].tolist()) for g in found.groups if g.id in plan.kept}
    stacks = [(s.owned, kept[s.dim]) for s in found.stacks if s.dim in kept]
    return len({node for owned, left in stacks for k, o in enumerate(owned) if k not in left for node in o.nodes})


def _before(original: Opened) -> Totals:
    found = original.analysis
    macs = cost.macs(found, _single_batch(original))
    return Totals(len(found.nodes), cost.parameters(found, _parameter_names(original)), original.model.bytes, macs)


def _options(opened: Opened, config: Config, plan: Plan) -> dict[str, object]:
    """The options of the run, and what they led to."""
    blocks = {"removed_blocks": list(plan.blocks)} if plan.blocks else {}
    return {
        **dataclasses.asdict(config),
        "criterion": config.measure,
        **_fast_widths(config),
        **blocks,
        "macs_input_shapes": _macs_shapes(opened),
    }


def _fast_widths(config: Config) -> dict[str, object]:
    """The steps that "auto" rounds to."""
    return (
        {"fast_widths": dataclasses.asdict(widths.known(config.provider, config.run_threads))}
        if config.round_to == "auto"
        else {}
    )


def _left(opened: Opened) -> float:
    """The share of the original's MACs that is left after whole blocks were removed."""
    before = cost.macs(opened.original.analysis) if opened.original else 0
    return cost.macs(opened.analysis) / before if before else 1.0


def _parameter_names(opened: Opened) -> list[str]:
    types = opened.shapes.element_types
    return cost.parameter_names({n: types.get(n, onnx.TensorProto.UNDEFINED) for n in opened.analysis.weights})


def _written(opened: Opened, weights: Sequence[str], file: ModelFile, kept: Mapping[Dim, int]) -> int:
    """Parameters of the file that was written: what is left of `weights`, and what was added. Those that nodes make
    are counted by their axes, of which `kept` indices are left."""
    stored, known = file.tensors(), opened.model.tensors()
    added = cost.parameter_names({n: t.data_type for n, t in stored.items() if n not in known})
    made = cost.parameters(opened.analysis, [n for n in weights if n not in known], kept)
    return made + sum(int(math.prod(stored[n].dims)) for n in {*weights, *added} & stored.keys())


def _group_reports(
    opened: Opened, config: Config, plan: Plan, weights: Sequence[str], parameters: int
) -> Iterator[GroupReport]:
    shares, left = cost.macs_shares(opened.analysis), _left(opened)
    counted = set(weights)
    readers = wording.readers(opened.model.proto, opened.analysis)
    reasons = unpruned.reasons(opened, config, plan)
    for g in opened.analysis.groups:
        tensors = {o.tensor for o in g.occurrences} & counted
        amount = cost.parameters(opened.analysis, tensors)
        pruned = g.id in plan.kept
        ties = wording.ties(g, readers)
        yield GroupReport(
            group=g,
            kept=len(plan.kept[g.id]) if pruned else g.size,
            status="frozen" if g.refusal else "pruned" if pruned else "kept",
            reason=f"{g.refusal.op} {g.refusal.node}: {g.refusal.reason}" if g.refusal else reasons.get(g.id, ""),
            macs_share=shares.get(g.dim, 0.0) * left,
            parameters_share=amount / parameters if parameters else 0.0,
            words=wording.words(opened.analysis, g, ties),
            ties=ties,
        )


def _refusals(found: Analysis, weights: Sequence[str]) -> tuple[RefusalReport, ...]:
    held = cost.refusal_parameter_shares(found, weights)
    counts: dict[Refusal | None, int] = {}
    for g in found.groups:
        counts[g.refusal] = counts.get(g.refusal, 0) + 1
    reports = [RefusalReport(r, counts[r], share, held[r]) for r, share in cost.refusal_shares(found).items()]
    return tuple(sorted(reports, key=lambda r: (-r.macs_share, -r.parameters_share, r.refusal.node)))


def _reach(found: Analysis, weights: Sequence[str], single: Mapping[Dim, int]) -> Reach:
    free = [g for g in found.groups if g.refusal is None]
    atoms = {g.dim for g in free}
    chosen = allocate.choose_factors(found, free)
    counts = allocate.uniform(found, chosen, ratio=0.5, round_to=1, widths=processor.table("cpu")).counts
    half = {**single, **{g.dim: counts[g.id] for g in chosen}}
    parameters, macs = cost.parameters(found, weights), cost.macs(found, single)
    return Reach(
        parameters=_share(cost.reachable_parameters(found, weights, atoms), parameters),
        macs=_share(cost.reachable_macs(found, atoms, single), macs),
        parameters_at_half=_share(parameters - cost.parameters(found, weights, half), parameters),
        macs_at_half=_share(macs - cost.macs(found, half), macs),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _single_batch(opened: Opened) -> dict[Dim, int]:
    """Size 1 for the dynamic first axes of the inputs, so that costs are those of one sample."""
    batches = {}
    for value in graph_inputs(opened.model.proto):
        axes, moving = opened.analysis.tensors.get(value.name, ()), opened.shapes.dynamic_axes.get(value.name)
        if axes and moving is not None and len(moving) and moving[0]:
            batches[resolve(axes[0])] = 1
    return batches


def _macs_shapes(opened: Opened) -> dict[str, list[int]]:
    """The input sizes that MACs are counted at."""
    single = _single_batch(opened)
    return {
        name: [single.get(resolve(d), d.size) for d in opened.analysis.tensors.get(name, ())]
        for name in opened.shapes.inputs
    }


def _notes(opened: Opened, plan: Plan, proof: Proof | None) -> Iterator[str]:
    for entry in opened.removed:
        damage = "" if entry.damage is None else f", damage {entry.damage:.2g} of the outputs"
        parts = (len(entry.block.nodes), "node"), (entry.block.parameters, "parameter")
        size = " and ".join(wording.plural(*part) for part in parts)
        yield f"removed the residual block {entry.block.name!r}: {size}{damage}"
    yield from (note for note in (plan.note, proof.note if proof else "") if note)
    if opened.model.inlined:
        yield "the local functions of the model were inlined"
    if proof and not proof.exactness.shown:
        removed = "channels or residual blocks" if plan.blocks else "channels"
        yield f"no output changes with the removed {removed} at the inputs tried, so the proof of exactness says little"


def _rounding_notes(opened: Opened, config: Config, plan: Plan) -> Iterator[str]:
    """Where less goes than the ratio says."""
    count, step = unpruned.rounded_up(opened, config, plan)
    if count:
        finer = (
            f", or --round-to {processor.LEAST_MULTIPLE} (slower for its work),"
            if step > processor.LEAST_MULTIPLE
            else ""
        )
        groups = wording.plural(count + len(plan.kept), "group")
        yield (
            f"less goes than --ratio {config.ratio:g} says: {count} of {groups} "
            f"stay whole, as widths are rounded up in steps of up to {step}; a higher --ratio{finer} removes more"
        )


def _size_notes(config: Config, before: Totals, after: Totals | None) -> Iterator[str]:
    """Where the file that was written is larger than it was to be."""
    kind, amount = parse_target(config.target) if config.target else ("", 0.0)
    limit = amount * before.bytes if amount <= 1 else amount
    if kind == "bytes" and after is not None and after.bytes > limit:
        yield (
            f"the file has {after.bytes:,} bytes and was to have {limit:,.0f} at most: recovery gave weights that "
            "several layers share one of their own; a smaller --target leaves room for them"
        )


def _input_notes(
    config: Config, plan: Plan, before: Totals, after: Totals | None, inputs: Inputs | None, lack: str | None
) -> Iterator[str]:
    yield from inputs.remarks if inputs else ()
    if not plan.kept:
        return
    if config.recover and inputs is None:
        why = lack or "there are no inputs"
        yield f"nothing was recovered ({why}): the accuracy is that of the cut alone; give inputs with --calibration"
    if inputs is not None and inputs.kind == "calibration" and not inputs.held_out:
        yield (
            f"too few to hold some out ({wording.plural(inputs.rows, 'calibration row')}): closeness is measured on "
            "what was fitted to, and says less; some hundred rows do better"
        )
    elif inputs is not None and inputs.kind == "calibration" and inputs.held_out < FEW_HELD_OUT:
        yield (
            f"closeness is measured on {wording.plural(inputs.held_out, 'row')} held out, so one more or less changes "
            "it much; some hundred calibration rows do better"
        )
    if inputs is None or inputs.kind == "calibration":
        return
    yield "synthetic inputs only; nothing is known about accuracy. Some hundred real inputs (--calibration) do better"
    removed = 1 - after.macs / before.macs if after and before.macs else 0.0
    if removed > SYNTHETIC_SHARE:
        yield (
            f"{removed:.0%} of the MACs are removed on synthetic inputs only; beyond about {SYNTHETIC_SHARE:.0%} "
            f"accuracy falls: give --calibration, or {_milder(config)}"
        )


def _result_notes(config: Config, proof: Proof) -> Iterator[str]:
    """What must be said where the result is poor, or not as sure as its figures look."""
    found = proof.metric
    if _is_poor(proof.quality):
        advice = "measure the accuracy before use" if found is None else f"see whether {found.name} says all you need"
        yield f"the outputs are far from the original's (see quality): {advice}; {_milder(config)} keeps more of it"
    if found is None:
        return
    if config.max_drop is None and found.drop.value > POOR_DROP * abs(found.original.value):
        yield (
            f"{found.name} falls by {found.drop.value:.4f}: {_milder(config)} keeps more of it, "
            "--max-drop as much as you say, and --tune or more --calibration inputs recover more"
        )
    if config.max_drop is not None and found.drop.ci95 is not None and found.drop.ci95[1] > config.max_drop:
        yield (
            f"the drop of {found.name} is within --max-drop {config.max_drop:g} on the {found.rows} rows that decided "
            f"how much is removed; on others it may be up to {found.drop.ci95[1]:.4f}: more rows (--evaluation) tell"
        )


def _milder(config: Config) -> str:
    """What removes less."""
    if config.plan:
        return "a plan that removes less"
    if config.max_drop is not None:
        return "a smaller --max-drop"
    if config.target:
        return "a larger --target"
    return "a lower --depth" if config.ratio == 0 else "a lower --ratio"


def _latency_notes(config: Config, measured: Latency | None, pursuit: Pursuit | None) -> Iterator[str]:
    if measured and not (measured.significant and measured.speedup > 1.0):
        yield "the pruned model is not shown to be faster; it was written because of --force"
    if pursuit is None:
        return
    yield from pursuit.notes
    share = 1.0 / measured.speedup if measured else pursuit.reached
    if abs(share / pursuit.reached - 1.0) > AMISS and parse_target(config.target or "")[0] == "latency":
        yield (
            f"the written model takes {share:.3f} of the original's latency, {pursuit.reached:.3f} when widths were "
            "chosen: the machine was not quiet; run again when it is"
        )


def _is_poor(quality: Quality) -> bool:
    return any(
        o.cosine < POOR_COSINE or (o.top1_agreement is not None and o.top1_agreement < POOR_AGREEMENT)
        for o in quality.outputs.values()
    )
