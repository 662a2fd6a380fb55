"""Puts together the report of a run from the records of its stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from onnxprune import cost
from onnxprune.config import Config
from onnxprune.dims import Dim, resolve
from onnxprune.modelfile import ModelFile
from onnxprune.opened import Opened
from onnxprune.records import Analysis, GroupReport, Latency, Plan, Proof, Quality, Refusal, Report, Totals
from onnxprune.shapes import graph_inputs

POOR_COSINE = 0.95
POOR_AGREEMENT = 0.9


def report(
    opened: Opened,
    config: Config,
    plan: Plan,
    seconds: Mapping[str, float],
    *,
    output: Path | None = None,
    proof: Proof | None = None,
    measured: Latency | None = None,
) -> Report:
    """The report; without `proof` of a run that wrote nothing. MACs are counted for a batch of one."""
    found = opened.analysis
    single = _single_batch(opened)
    kept = single | {g.dim: len(plan.kept[g.id]) for g in found.groups if g.id in plan.kept}
    weights = _parameter_names(opened)
    before = Totals(len(found.nodes), cost.parameters(found, weights), opened.model.bytes, cost.macs(found, single))
    after = None
    if plan.kept:
        size = ModelFile.load(output).bytes if output else 0
        after = Totals(len(found.nodes), cost.parameters(found, weights, kept), size, cost.macs(found, kept))
    return Report(
        model=str(opened.model.path),
        output=str(output) if output else None,
        seed=config.seed,
        options={**dataclasses.asdict(config), "macs_input_shapes": _macs_shapes(opened)},
        before=before,
        after=after,
        groups=tuple(_group_reports(opened, plan, weights, before.parameters)),
        refusals=_refusals(found),
        exactness=proof.exactness if proof else None,
        quality=proof.quality if proof else None,
        latency=measured,
        seconds=dict(seconds),
        notes=tuple(_notes(opened, config, plan, proof)),
    )


def _parameter_names(opened: Opened) -> list[str]:
    whole = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
    return [n for n in opened.analysis.weights if opened.shapes.element_types.get(n) not in whole]


def _group_reports(opened: Opened, plan: Plan, weights: Sequence[str], parameters: int) -> Iterator[GroupReport]:
    shares = cost.macs_shares(opened.analysis)
    counted = set(weights)
    for g in opened.analysis.groups:
        tensors = {o.tensor for o in g.occurrences} & counted
        amount = cost.parameters(opened.analysis, tensors)
        pruned = g.id in plan.kept
        yield GroupReport(
            group=g,
            kept=len(plan.kept[g.id]) if pruned else g.size,
            status="frozen" if g.refusal else "pruned" if pruned else "kept",
            reason=f"{g.refusal.op} {g.refusal.node}: {g.refusal.reason}" if g.refusal else "",
            macs_share=shares.get(g.dim, 0.0),
            parameters_share=amount / parameters if parameters else 0.0,
        )


def _refusals(found: Analysis) -> tuple[tuple[Refusal, float], ...]:
    shares = cost.refusal_shares(found)
    return tuple(sorted(shares.items(), key=lambda entry: (-entry[1], entry[0].node)))


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


def _notes(opened: Opened, config: Config, plan: Plan, proof: Proof | None) -> Iterator[str]:
    if config.recover and plan.kept:
        yield "recovery is not built yet: the accuracy is that of the cut alone"
    if opened.model.inlined:
        yield "the local functions of the model were inlined"
    if proof and _is_poor(proof.quality):
        yield (
            "the outputs are far from the original's (see quality): measure the accuracy before use; "
            "a lower --ratio keeps more of it"
        )


def _is_poor(quality: Quality) -> bool:
    return any(
        o.cosine < POOR_COSINE or (o.top1_agreement is not None and o.top1_agreement < POOR_AGREEMENT)
        for o in quality.outputs.values()
    )
