"""The order of the stages, on one screen; and the public functions that run them."""

from __future__ import annotations

import dataclasses
import fnmatch
import gc
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import (
    allocate,
    analysis,
    calibration,
    depth,
    masking,
    processor,
    recovery,
    select,
    shapes,
    summary,
    verify,
    worker,
)
from onnxprune import plan as plans
from onnxprune import score as scores
from onnxprune.comparison import benchmark
from onnxprune.config import MEASURED_CRITERIA, Config, parse_target
from onnxprune.cut import Cut, cut
from onnxprune.dims import Dim
from onnxprune.errors import ModelError, NothingToPruneError, UsageError, VerificationError
from onnxprune.modelfile import ModelFile, preflight, skeleton, write
from onnxprune.opened import Opened
from onnxprune.records import Analysis, Exactness, Feed, Group, Latency, Plan, Proof, Report

log = logging.getLogger(__name__)

PROBE_LIMIT_S = 120.0
VERIFY_LIMIT_S = 1800.0
RECOVERY_LIMIT_S = 4 * 3600.0
"""Time limits of the child processes that look for a provider and that run the models."""


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


def prune(model: str | Path, config: Config | None = None) -> Report:
    """Prune the ONNX file `model` as `config` says and write the result, proved exact, to `config.output`.

    The default output is MODEL_pruned.onnx beside the input. Raises an OnnxPruneError; then nothing is written.
    """
    config = config or Config()
    config.validate(Path(model))
    clock = _Clock()
    opened = _open(Path(model), config.input_shapes, clock)
    output = config.output_for(opened.model.path)
    if not config.dry_run:
        preflight(opened.model, output, config.force)
    if config.provider != "cpu":
        worker.call("onnxprune.runtime:require_provider", {"provider": config.provider}, timeout_s=PROBE_LIMIT_S)
    with clock("calibrate"):
        fitting, feeds = recovery.split(_batches(opened, config))
    if config.depth or config.plan:
        with clock("depth"):
            opened = _without_blocks(opened, config, fitting)
    source = _source(opened, config, fitting) if fitting else None
    with clock("score"):
        plan = dataclasses.replace(_plan(opened, config, source), blocks=tuple(r.block.name for r in opened.removed))
    with clock("cut"):
        done = cut(opened.model.proto, opened.analysis, opened.shapes, plan.kept)
    proof = None
    if not config.dry_run:
        recovering = source if config.recover and plan.kept else None
        proof = _write(opened, config, plan, done, output, feeds, clock, recovering)
    if config.save_plan:
        plans.save(plan_data(opened, plan, done), config.save_plan)
    measured = _benchmark([opened.model.path, output], config, clock) if config.benchmark else None
    written = None if config.dry_run else output
    return summary.report(opened, config, plan, clock.seconds, output=written, proof=proof, measured=measured)


def inspect(model: str | Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Report:
    """Analyse the ONNX file `model` and report its groups and refusals. Writes nothing."""
    clock = _Clock()
    opened = _open(Path(model), input_shapes or {}, clock)
    return summary.report(opened, Config(input_shapes=input_shapes or {}, dry_run=True), Plan({}), clock.seconds)


def _open(path: Path, given: Mapping[str, tuple[int, ...]], clock: _Clock) -> Opened:
    with clock("load"):
        model = ModelFile.load(path)
    with clock("shapes"), unhurried_collector():
        found = shapes.infer(model.proto, given, model.base_dir)
    with clock("analyse"), unhurried_collector():
        return Opened(model, found, analysis.analyse(model.proto, found))


@contextmanager
def unhurried_collector() -> Iterator[None]:
    """Analysis makes many small objects and no garbage; looking for some again and again takes a third of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# ---- Depth -----------------------------------------------------------------------------------------------------------


def _without_blocks(opened: Opened, config: Config, feeds: Sequence[Feed]) -> Opened:
    """The model without the residual blocks that the plan names, or that matter least; proved equal to the original
    with the branches of those at zero.
    """
    model, found = opened.model, opened.shapes
    blocks = depth.find_blocks(model.proto, found)
    if config.plan:
        removed = depth.named(blocks, plans.load_blocks(config.plan))
    else:
        removed = depth.choose(
            model.proto,
            blocks,
            config.depth,
            shapes=found,
            folder=model.base_dir,
            feeds=depth.first_rows(feeds),
            seed=config.seed,
            sizes=_run_shapes(opened, config),
            bounds=calibration.index_bounds(model.graph, found.shape),
        )
    if not removed:
        return opened
    chosen = [r.block for r in removed]
    proto = depth.remove(model.proto, chosen)
    exactness = _verify_removal(opened, config, depth.silenced(model.proto, chosen, found.element_types), proto)
    left = shapes.infer(proto, config.input_shapes, model.base_dir)
    kept = dataclasses.replace(model, proto=proto, _graph=None)
    return Opened(
        kept, left, analysis.analyse(proto, left), original=opened, removed=tuple(removed), exactness=exactness
    )


def _verify_removal(opened: Opened, config: Config, silenced: onnx.ModelProto, left: onnx.ModelProto) -> Exactness:
    tolerance = verify.tolerance_for(opened.model.path)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        reference, result = Path(folder) / "silenced.onnx", Path(folder) / "left.onnx"
        reference.write_bytes(silenced.SerializeToString())
        result.write_bytes(left.SerializeToString())
        exactness: Exactness = worker.call(
            "onnxprune.verify:prove_equal",
            {
                "reference": str(reference),
                "result": str(result),
                "original": str(opened.model.path),
                "folder": str(opened.model.base_dir),
                "sizes": _run_shapes(opened, config),
                "bounds": calibration.index_bounds(opened.model.graph, opened.shapes.shape),
                "seed": config.seed,
                "tolerance": tolerance,
            },
            timeout_s=VERIFY_LIMIT_S,
        )
    verify.require_equal(exactness, tolerance)
    return exactness


# ---- Plan ------------------------------------------------------------------------------------------------------------


def _plan(opened: Opened, config: Config, source: recovery.Source | None) -> Plan:
    prunable = [g for g in opened.analysis.groups if g.refusal is None]
    if config.plan:
        plan = plans.load(config.plan, {g.id: g for g in prunable})
        whole = all(len(kept) == group.size for group in prunable if (kept := plan.kept.get(group.id)) is not None)
        if whole and not plan.blocks:
            raise NothingToPruneError(f"{config.plan}: the plan removes nothing; make one with --save-plan")
        return plan
    for option, patterns in (("--keep", config.keep), ("--only", config.only)):
        _require_matches(opened.analysis.groups, option, patterns)
    if config.ratio == 0:
        return Plan({})
    chosen = choose(prunable, config.keep, config.only)
    chosen = allocate.choose_factors(opened.analysis, chosen, heads=config.heads, head_width=config.head_width)
    if not chosen:
        raise NothingToPruneError(_why_nothing(opened, prunable))
    if config.measure in MEASURED_CRITERIA and source is not None:
        plan = _measured_plan(opened, config, chosen, source)
    else:
        plan = _norm_plan(opened, config, chosen, config.measure)
    if plan.kept:
        return plan
    if config.target:
        raise NothingToPruneError("the target is met already: nothing is removed; give a smaller --target")
    raise NothingToPruneError(
        f"at ratio {config.ratio} every one of the {len(chosen)} groups keeps its width after rounding; "
        "give a higher --ratio, or --round-to 1 (which can make the model slower)"
    )


def _norm_plan(opened: Opened, config: Config, chosen: Sequence[Group], criterion: str) -> Plan:
    """The plan by a criterion over the weights alone."""
    round_to = None if config.round_to == "auto" else int(config.round_to)
    block = processor.convolution_block(config.provider)
    counts = allocate.uniform(opened.analysis, chosen, ratio=config.ratio, round_to=round_to, block=block)
    found = scores.score(opened.analysis, chosen, reader(opened.model), criterion=criterion, seed=config.seed)
    return select.select(found, counts)


def choose(groups: Sequence[Group], keep: Sequence[str], only: Sequence[str]) -> list[Group]:
    """The groups that no pattern of `keep` matches and, if there are any, some pattern of `only` does."""
    return [g for g in groups if not _matches(g, keep) and (not only or _matches(g, only))]


def _require_matches(groups: Sequence[Group], option: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(_matches(g, [pattern]) for g in groups):
            raise UsageError(f"{option} {pattern!r} matches no group, tensor or node; see `onnxprune inspect`")


def _matches(group: Group, patterns: Sequence[str]) -> bool:
    names = {group.id, *group.nodes, *(o.tensor for o in group.occurrences)}
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _why_nothing(opened: Opened, prunable: Sequence[Group]) -> str:
    if prunable:
        return f"--keep, --only and --no-heads leave none of the {len(prunable)} prunable groups"
    if not opened.analysis.groups:
        return "the model has no weights that could be pruned: no Conv, Gemm, MatMul ... with a stored weight was found"
    reasons = {g.refusal for g in opened.analysis.groups if g.refusal}
    listed = "; ".join(sorted({f"{r.op} {r.node!r}: {r.reason}" for r in reasons})[:5])
    return f"none of the {len(opened.analysis.groups)} groups of the model can be pruned: {listed}"


def reader(model: ModelFile) -> scores.Read:
    """A function that reads one stored weight by name; None for a weight that a node makes."""
    tensors = model.tensors()
    return lambda name: model.read(tensors[name]) if name in tensors else None


def plan_data(opened: Opened, plan: Plan, done: Cut) -> dict[str, object]:
    """The plan as plain data, for --save-plan."""
    model = opened.model
    return plans.to_json(plan, opened.analysis, done.slices, model=model.path.name, sha256=model.sha256())


# ---- Write and verify ------------------------------------------------------------------------------------------------


def _write(
    opened: Opened,
    config: Config,
    plan: Plan,
    done: Cut,
    output: Path,
    feeds: Sequence[Feed],
    clock: _Clock,
    source: recovery.Source | None,
) -> Proof:
    proofs: list[Proof] = []

    def check(path: Path) -> None:
        with clock("verify"):
            proofs.append(_verify(opened, config, plan, path, feeds))

    if source is not None:
        return _write_recovered(opened, config, plan, done, output, feeds, clock, source, check, proofs)
    start = time.perf_counter()
    write(opened.model, done.proto, done.edits, output, check=check, force=config.force)
    clock.seconds["save"] = time.perf_counter() - start - clock.seconds["verify"]
    return proofs[0]


def _batches(opened: Opened, config: Config) -> list[Feed]:
    """The calibration data, checked against the inputs of the model, in batches that it takes."""
    if config.calibration is None:
        return []
    proto = opened.model.proto
    feeds = calibration.fitting(calibration.load(config.calibration), proto)
    return calibration.batches(feeds, calibration.fixed_rows(proto), config.calibration_size)


def _source(opened: Opened, config: Config, feeds: Sequence[Feed]) -> recovery.Source:
    skeleton_bytes = opened.model.proto.SerializeToString() if opened.removed else None
    return recovery.Source(
        str(opened.model.path),
        config.input_shapes,
        feeds,
        config.seed,
        config.threads,
        config.memory_bytes,
        skeleton_bytes,
    )


def _measured_plan(opened: Opened, config: Config, chosen: Sequence[Group], source: recovery.Source) -> Plan:
    """The plan by what the calibration inputs show, made in a child process."""
    block = processor.convolution_block(config.provider)
    step = None if config.round_to == "auto" else int(config.round_to)
    steps = {g.id: step or allocate.fast_step(opened.analysis, g, block) for g in chosen}
    target = parse_target(config.target) if config.target else None
    names = [g.id for g in chosen]
    wanted = recovery.Wanted(names, config.allocation, target, config.ratio, steps, config.measure)
    choice: recovery.Choice = worker.call(
        "onnxprune.recovery:choose", {"source": source, "wanted": wanted}, timeout_s=RECOVERY_LIMIT_S
    )
    if config.target:
        return Plan(dict(choice.kept))
    # Groups that no layer to be refitted reads (the hidden units of a recurrent cell) go by their weights.
    others = [g for g in chosen if g.id not in choice.kept]
    return Plan({**_norm_plan(opened, config, others, "l2").kept, **choice.kept})


def _write_recovered(
    opened: Opened,
    config: Config,
    plan: Plan,
    done: Cut,
    output: Path,
    feeds: Sequence[Feed],
    clock: _Clock,
    source: recovery.Source,
    check: Callable[[Path], None],
    proofs: list[Proof],
) -> Proof:
    """Prove the cut alone in a temporary folder, recover, write, and measure the quality of what was written."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        write(opened.model, done.proto, done.edits, Path(folder) / "cut.onnx", check=check)
    with clock("recover"):
        recovered: recovery.Recovered = worker.call(
            "onnxprune.recovery:recover",
            {"source": source, "kept": plan.kept, "tuned": config.tune},
            timeout_s=RECOVERY_LIMIT_S,
        )
    for note in recovered.notes:
        log.warning("%s", note)
    final = recovery.install(done, recovered)
    original = opened.original.model.path if opened.original else opened.model.path

    def measure(path: Path) -> None:
        verify.check_file(path, opened.model.path)
        arguments = {"original": str(original), "pruned": str(path), "feeds": list(feeds), "data": "calibration"}
        quality = worker.call("onnxprune.verify:compare_quality", arguments, timeout_s=VERIFY_LIMIT_S)
        proofs[0] = dataclasses.replace(proofs[0], quality=quality)

    with clock("save"):
        write(opened.model, final.proto, final.edits, output, check=measure, force=config.force)
    return proofs[0]


def _verify(opened: Opened, config: Config, plan: Plan, path: Path, feeds: Sequence[Feed]) -> Proof:
    verify.check_file(path, opened.model.path)
    _check_arithmetic(path, config)
    masked = masking.masked_model(
        opened.model.proto, opened.analysis, keep_masks(opened.analysis, plan), opened.shapes.element_types
    )
    tolerance = verify.tolerance_for(opened.model.path)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        reference = Path(folder) / "masked.onnx"
        reference.write_bytes(masked.SerializeToString())
        proof: Proof = worker.call(
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
    verify.require_exact(proof.exactness, tolerance)
    if opened.exactness is None:
        return proof
    return dataclasses.replace(proof, exactness=verify.worst_of(opened.exactness, proof.exactness))


def _check_arithmetic(path: Path, config: Config) -> None:
    """Every linear operator of the written model must have weights that fit its operands."""
    pruned = skeleton(path)
    try:
        analysis.analyse(pruned, shapes.infer(pruned, config.input_shapes, path.parent))
    except ModelError as error:
        raise VerificationError(f"the pruned model is not consistent: {error}; nothing was written") from error


def _run_shapes(opened: Opened, config: Config) -> list[dict[str, tuple[int, ...]]]:
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


def _benchmark(models: Sequence[Path], config: Config, clock: _Clock) -> Latency:
    with clock("benchmark"):
        return benchmark(
            models,
            input_shapes=config.input_shapes,
            calibration=config.calibration,
            provider=config.provider,
            seed=config.seed,
        )[0]
