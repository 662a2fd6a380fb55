"""The order of the stages, on one screen; and the public functions that run them."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import allocate, analysis, calibration, cost, latency, masking, processor, select, shapes, verify, worker
from onnxprune import plan as plans
from onnxprune import score as scores
from onnxprune.config import Config
from onnxprune.cut import Cut, cut
from onnxprune.dims import Dim
from onnxprune.errors import NothingToPruneError
from onnxprune.modelfile import ModelFile, preflight, skeleton, write
from onnxprune.records import (
    Analysis,
    Exactness,
    Feed,
    Group,
    GroupReport,
    Latency,
    Plan,
    Quality,
    Refusal,
    Report,
    Totals,
)
from onnxprune.shapes import Shapes

log = logging.getLogger(__name__)

VERIFY_LIMIT_S = 1800.0
"""Time limit of the child process that runs the models."""


class _Clock:
    """Wall-clock seconds by stage; a stage is announced when it starts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        log.info("%s ...", stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class _Opened:
    model: ModelFile
    shapes: Shapes
    analysis: Analysis


def prune(model: str | Path, config: Config | None = None) -> Report:
    """Prune the ONNX file `model` as `config` says and write the result, proved exact, to `config.output`.

    The default output is MODEL_pruned.onnx beside the input. Raises an OnnxPruneError; then nothing is written.
    """
    config = config or Config()
    config.validate()
    clock = _Clock()
    opened = _open(Path(model), config.input_shapes, clock)
    output = config.output or opened.model.path.with_name(f"{opened.model.path.stem}_pruned.onnx")
    if not config.dry_run:
        preflight(opened.model, output, config.force)
    with clock("calibrate"):
        feeds = calibration.load(config.calibration) if config.calibration else []
    with clock("score"):
        plan = _plan(opened, config)
    with clock("cut"):
        done = cut(opened.model.proto, opened.analysis, opened.shapes, plan.kept)
    if config.save_plan:
        plans.save(plan_data(opened, plan, done), config.save_plan)
    if config.dry_run:
        return _report(opened, config, plan, clock)
    proof = _write(opened, config, plan, done, output, feeds, clock)
    measured = _benchmark([opened.model.path, output], proof.feed, config, clock) if config.benchmark else None
    return _report(opened, config, plan, clock, output=output, proof=proof, measured=measured)


def inspect(model: str | Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Report:
    """Analyse the ONNX file `model` and report its groups and refusals. Writes nothing."""
    clock = _Clock()
    opened = _open(Path(model), input_shapes or {}, clock)
    return _report(opened, Config(input_shapes=input_shapes or {}, dry_run=True), Plan({}), clock)


def _open(path: Path, given: Mapping[str, tuple[int, ...]], clock: _Clock) -> _Opened:
    with clock("load"):
        model = ModelFile.load(path)
    with clock("shapes"):
        found = shapes.infer(model.proto, given, model.base_dir)
    with clock("analyse"):
        return _Opened(model, found, analysis.analyse(model.proto, found))


# ---- Plan ------------------------------------------------------------------------------------------------------------


def _plan(opened: _Opened, config: Config) -> Plan:
    prunable = [g for g in opened.analysis.groups if g.refusal is None]
    if config.plan:
        return plans.load(config.plan, {g.id: g for g in prunable})
    chosen = choose(prunable, config.keep, config.only)
    chosen = allocate.choose_factors(opened.analysis, chosen)
    if not chosen:
        raise NothingToPruneError(_why_nothing(opened, prunable))
    round_to = None if config.round_to == "auto" else int(config.round_to)
    block = processor.convolution_block(config.provider)
    counts = allocate.uniform(opened.analysis, chosen, ratio=config.ratio, round_to=round_to, block=block)
    found = scores.score(
        opened.analysis, chosen, reader(opened.model), criterion=config.criterion, seed=config.seed
    )
    plan = select.select(found, counts)
    if not plan.kept:
        raise NothingToPruneError(
            f"at ratio {config.ratio} every one of the {len(chosen)} groups keeps its width after rounding; "
            "give a higher --ratio, or --round-to 1 (which can make the model slower)"
        )
    return plan


def choose(groups: Sequence[Group], keep: Sequence[str], only: Sequence[str]) -> list[Group]:
    """The groups that no pattern of `keep` matches and, if there are any, some pattern of `only` does."""
    return [g for g in groups if not _matches(g, keep) and (not only or _matches(g, only))]


def _matches(group: Group, patterns: Sequence[str]) -> bool:
    names = {group.id, *group.nodes, *(o.tensor for o in group.occurrences)}
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _why_nothing(opened: _Opened, prunable: Sequence[Group]) -> str:
    if prunable:
        return f"--keep and --only leave none of the {len(prunable)} prunable groups"
    if not opened.analysis.groups:
        return "the model has no weights that could be pruned: no Conv, Gemm, MatMul ... with a stored weight was found"
    reasons = {g.refusal for g in opened.analysis.groups if g.refusal}
    listed = "; ".join(sorted({f"{r.op} {r.node!r}: {r.reason}" for r in reasons})[:5])
    return f"none of the {len(opened.analysis.groups)} groups of the model can be pruned: {listed}"


def reader(model: ModelFile) -> scores.Read:
    """A function that reads one stored weight by name; None for a weight that a node makes."""
    tensors = model.tensors()
    return lambda name: model.read(tensors[name]) if name in tensors else None


def plan_data(opened: _Opened, plan: Plan, done: Cut) -> dict[str, object]:
    """The plan as plain data, for --save-plan."""
    model = opened.model
    return plans.to_json(plan, opened.analysis, done.slices, model=model.path.name, sha256=model.sha256())


# ---- Write and verify ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Proof:
    exactness: Exactness
    quality: Quality
    feed: Feed


def _write(
    opened: _Opened, config: Config, plan: Plan, done: Cut, output: Path, feeds: Sequence[Feed], clock: _Clock
) -> _Proof:
    proofs: list[_Proof] = []

    def check(path: Path) -> None:
        with clock("verify"):
            proofs.append(_verify(opened, config, plan, path, feeds))

    start = time.perf_counter()
    write(opened.model, done.proto, done.edits, output, check=check, force=config.force)
    clock.seconds["save"] = time.perf_counter() - start - clock.seconds["verify"]
    return proofs[0]


def _verify(opened: _Opened, config: Config, plan: Plan, path: Path, feeds: Sequence[Feed]) -> _Proof:
    verify.check_file(path)
    pruned = skeleton(path)
    analysis.analyse(pruned, shapes.infer(pruned, config.input_shapes, path.parent))
    masked = masking.masked_model(
        opened.model.proto, opened.analysis, keep_masks(opened.analysis, plan), opened.shapes.element_types
    )
    tolerance = verify.tolerance_for(opened.shapes.element_types)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        reference = Path(folder) / "masked.onnx"
        reference.write_bytes(masked.SerializeToString())
        exactness, quality, feed = worker.call(
            "onnxprune.verify:prove",
            {
                "original": str(opened.model.path),
                "masked": str(reference),
                "pruned": str(path),
                "folder": str(opened.model.base_dir),
                "sizes": _run_shapes(opened, config),
                "bounds": calibration.index_bounds(opened.model.graph, opened.shapes.shape),
                "feeds": list(feeds),
                "seed": config.seed,
                "tolerance": tolerance,
            },
            timeout_s=VERIFY_LIMIT_S,
        )
    verify.require_exact(exactness, tolerance)
    return _Proof(exactness, quality, feed)


def _run_shapes(opened: _Opened, config: Config) -> list[dict[str, tuple[int, ...]]]:
    proto = opened.model.proto
    if not shapes.is_dynamic(proto, config.input_shapes):
        return [dict(opened.shapes.inputs)]
    return [shapes.concrete_inputs(proto, config.input_shapes, sizes) for sizes in shapes.RUN_SIZES]


def keep_masks(found: Analysis, plan: Plan) -> dict[Dim, npt.NDArray[np.bool_]]:
    """The plan as a bool mask by atom."""
    masks = {}
    for group in found.groups:
        if group.id in plan.kept:
            masks[group.dim] = np.isin(np.arange(group.size), plan.kept[group.id])
    return masks


def _benchmark(models: Sequence[Path], feed: Feed, config: Config, clock: _Clock) -> Latency:
    with clock("benchmark"):
        return latency.measure(models, feed, provider=config.provider, seed=config.seed)[0]


# ---- Report ----------------------------------------------------------------------------------------------------------


def _report(
    opened: _Opened,
    config: Config,
    plan: Plan,
    clock: _Clock,
    *,
    output: Path | None = None,
    proof: _Proof | None = None,
    measured: Latency | None = None,
) -> Report:
    found = opened.analysis
    kept = {g.dim: len(plan.kept[g.id]) for g in found.groups if g.id in plan.kept}
    weights = _parameter_names(opened)
    before = Totals(
        len(found.nodes), cost.parameters(found, weights), opened.model.bytes, cost.macs(found)
    )
    after = None
    if plan.kept:
        size = ModelFile.load(output).bytes if output else 0
        after = Totals(len(found.nodes), cost.parameters(found, weights, kept), size, cost.macs(found, kept))
    return Report(
        model=str(opened.model.path),
        output=str(output) if output else None,
        seed=config.seed,
        options=dataclasses.asdict(config),
        before=before,
        after=after,
        groups=tuple(_group_reports(opened, plan, weights, before.parameters)),
        refusals=_refusals(found),
        exactness=proof.exactness if proof else None,
        quality=proof.quality if proof else None,
        latency=measured,
        seconds=clock.seconds,
        notes=_notes(config),
    )


def _parameter_names(opened: _Opened) -> list[str]:
    whole = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
    return [n for n in opened.analysis.weights if opened.shapes.element_types.get(n) not in whole]


def _group_reports(opened: _Opened, plan: Plan, weights: Sequence[str], parameters: int) -> Iterator[GroupReport]:
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


def _notes(config: Config) -> tuple[str, ...]:
    return ("recovery is not built yet: the accuracy is that of the cut alone",) if config.recover else ()
