"""The order of the stages, on one screen; and the public functions that run them."""

from __future__ import annotations

import fnmatch
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxprune import allocate, analysis, calibration, masking, processor, select, shapes, summary, verify, worker
from onnxprune import plan as plans
from onnxprune import score as scores
from onnxprune.comparison import benchmark
from onnxprune.config import Config
from onnxprune.cut import Cut, cut
from onnxprune.dims import Dim
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.modelfile import ModelFile, preflight, skeleton, write
from onnxprune.opened import Opened
from onnxprune.records import Analysis, Feed, Group, Latency, Plan, Proof, Report

log = logging.getLogger(__name__)

PROBE_LIMIT_S = 120.0
VERIFY_LIMIT_S = 1800.0
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
        feeds = calibration.load(config.calibration) if config.calibration else []
    with clock("score"):
        plan = _plan(opened, config)
    with clock("cut"):
        done = cut(opened.model.proto, opened.analysis, opened.shapes, plan.kept)
    proof = None if config.dry_run else _write(opened, config, plan, done, output, feeds, clock)
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
    with clock("shapes"):
        found = shapes.infer(model.proto, given, model.base_dir)
    with clock("analyse"):
        return Opened(model, found, analysis.analyse(model.proto, found))


# ---- Plan ------------------------------------------------------------------------------------------------------------


def _plan(opened: Opened, config: Config) -> Plan:
    prunable = [g for g in opened.analysis.groups if g.refusal is None]
    if config.plan:
        plan = plans.load(config.plan, {g.id: g for g in prunable})
        if all(len(kept) == group.size for group in prunable if (kept := plan.kept.get(group.id)) is not None):
            raise NothingToPruneError(f"{config.plan}: the plan removes nothing; make one with --save-plan")
        return plan
    for option, patterns in (("--keep", config.keep), ("--only", config.only)):
        _require_matches(opened.analysis.groups, option, patterns)
    chosen = choose(prunable, config.keep, config.only)
    chosen = allocate.choose_factors(opened.analysis, chosen)
    if not chosen:
        raise NothingToPruneError(_why_nothing(opened, prunable))
    round_to = None if config.round_to == "auto" else int(config.round_to)
    block = processor.convolution_block(config.provider)
    counts = allocate.uniform(opened.analysis, chosen, ratio=config.ratio, round_to=round_to, block=block)
    found = scores.score(opened.analysis, chosen, reader(opened.model), criterion=config.criterion, seed=config.seed)
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


def _require_matches(groups: Sequence[Group], option: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(_matches(g, [pattern]) for g in groups):
            raise UsageError(f"{option} {pattern!r} matches no group, tensor or node; see `onnxprune inspect`")


def _matches(group: Group, patterns: Sequence[str]) -> bool:
    names = {group.id, *group.nodes, *(o.tensor for o in group.occurrences)}
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _why_nothing(opened: Opened, prunable: Sequence[Group]) -> str:
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


def plan_data(opened: Opened, plan: Plan, done: Cut) -> dict[str, object]:
    """The plan as plain data, for --save-plan."""
    model = opened.model
    return plans.to_json(plan, opened.analysis, done.slices, model=model.path.name, sha256=model.sha256())


# ---- Write and verify ------------------------------------------------------------------------------------------------


def _write(
    opened: Opened, config: Config, plan: Plan, done: Cut, output: Path, feeds: Sequence[Feed], clock: _Clock
) -> Proof:
    proofs: list[Proof] = []

    def check(path: Path) -> None:
        with clock("verify"):
            proofs.append(_verify(opened, config, plan, path, feeds))

    start = time.perf_counter()
    write(opened.model, done.proto, done.edits, output, check=check, force=config.force)
    clock.seconds["save"] = time.perf_counter() - start - clock.seconds["verify"]
    return proofs[0]


def _verify(opened: Opened, config: Config, plan: Plan, path: Path, feeds: Sequence[Feed]) -> Proof:
    verify.check_file(path, opened.model.path)
    pruned = skeleton(path)
    analysis.analyse(pruned, shapes.infer(pruned, config.input_shapes, path.parent))
    masked = masking.masked_model(
        opened.model.proto, opened.analysis, keep_masks(opened.analysis, plan), opened.shapes.element_types
    )
    tolerance = verify.tolerance_for(opened.shapes.element_types)
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
    return proof


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
