"""The order of the stages, on one screen; and the public functions that run them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from onnxprune import gathering, opening, pacing, planning, recovery, saving, summary, worker
from onnxprune import plan as plans
from onnxprune.clock import Clock
from onnxprune.config import Config
from onnxprune.cut import cut
from onnxprune.gathering import Gathered, steps_first
from onnxprune.modelfile import preflight
from onnxprune.opened import Opened
from onnxprune.records import Plan, Report

PROBE_LIMIT_S = 120.0
"""Time limit of the child process that looks for a provider."""


def prune(model: str | Path, config: Config | None = None) -> Report:
    """Prune the ONNX file `model` as `config` says and write the result, proved exact, to `config.output`.

    The default output is MODEL_pruned.onnx beside the input. Raises an OnnxPruneError; then nothing is written.
    """
    config = config or Config()
    config.validate(Path(model))
    with contextlib.nullcontext() if config.dry_run else worker.ready("onnxprune.verify"):
        return _prune(Path(model), config)


def _prune(model: Path, config: Config) -> Report:
    clock = Clock()
    opened, config = opening.open_for(model, config, clock)
    output = config.output_for(opened.model.path)
    if not config.dry_run:
        preflight(opened.model, output, config.force)
    if config.provider != "cpu":
        worker.call("onnxprune.runtime:require_provider", {"provider": config.provider}, timeout_s=PROBE_LIMIT_S)
    planning.require_possible(opened, config)
    with clock("calibrate"):
        gathered = gathering.gather(opened, config)
        config = gathering.settled(opened, config, gathered)
    if config.depth or config.plan:
        with clock("depth"):
            opened = opening.without_blocks(opened, config, gathered.fitting)
    source = _source(opened, config, gathered) if gathered.fitting else None
    timed = pacing.conditions(config, gathered.real)
    with clock("score"):
        decision = planning.make(opened, config, source, timed, gathered.evaluation)
    plan = decision.plan
    with clock("cut"):
        done = cut(opened.model.proto, opened.analysis, opened.shapes, plan.kept)
    proof = None
    if not config.dry_run:
        recovering = source if config.recover and (plan.kept or plan.blocks) else None
        proof = saving.save(saving.Job(opened, config, decision, done, output, gathered, clock, timed), recovering)
    if config.save_plan:
        plans.save(planning.plan_data(opened, plan, done), config.save_plan)
    return summary.report(
        opened,
        config,
        plan,
        clock.seconds,
        output=None if config.dry_run else output,
        proof=proof,
        pursuit=decision.pursuit,
        inputs=gathered.inputs,
        rounds=decision.rounds,
        lack=gathered.lack,
    )


def inspect(model: str | Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Report:
    """Analyse the ONNX file `model` and report its groups and refusals. Writes nothing."""
    clock = Clock()
    opened = opening.open_model(Path(model), input_shapes or {}, clock, lean=True)
    return summary.report(opened, Config(input_shapes=input_shapes or {}, dry_run=True), Plan({}), clock.seconds)


def _source(opened: Opened, config: Config, gathered: Gathered) -> recovery.Source:
    skeleton_bytes = opened.model.proto.SerializeToString() if opened.removed else None
    is_held_out = gathered.inputs is not None and gathered.inputs.held_out > 0
    return recovery.Source(
        str(opened.model.path),
        config.input_shapes,
        [*gathered.fitting, *(gathered.joined.feeds if gathered.joined.bred else ())],
        config.seed,
        config.threads,
        config.memory_bytes,
        skeleton_bytes,
        gathered.held if is_held_out else (),
        len(gathered.fitting),
        () if gathered.joined.bred else gathered.joined.feeds,
        steps_first(opened),
    )
