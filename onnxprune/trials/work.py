"""One trial, wherever it runs: prune, keep what the search needs to know, forget the model."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from onnxprune.api import prune
from onnxprune.errors import NothingToPruneError, OnnxPruneError
from onnxprune.records import Measured, OutputQuality, Report, Trial, TrialResult
from onnxprune.trials import space
from onnxprune.trials.cargo import Cargo


@dataclass(frozen=True)
class Task:
    """A trial and its key."""

    trial: Trial
    key: str


@dataclass(frozen=True)
class Attempt:
    """What became of a task: its result, and its plan as text where there is a model."""

    result: TrialResult
    plan: str | None = None


def attempt(cargo: Cargo, task: Task) -> Attempt:
    """Try one way to prune the model. Errors of this trial alone are in the result; UsageError and ModelError, which
    would end all the others too, are raised."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="onnxprune-trial-") as name:
        folder = Path(name)
        (folder / "in").mkdir()
        model, config = cargo.unpacked(folder / "in")
        plan = folder / "plan.json"
        config = dataclasses.replace(space.of(config, task.trial), output=folder / "pruned.onnx", save_plan=plan)
        try:
            report = prune(model, config)
        except OnnxPruneError as error:
            if error.exit_code in (2, 3):
                raise
            text = str(error).replace(f"{name}/", "")
            return Attempt(TrialResult(task.trial, task.key, text, error.exit_code))
        found = summarised(report, task, time.perf_counter() - start)
        return Attempt(found, plan.read_text(encoding="utf-8"))


def summarised(report: Report, task: Task, seconds: float) -> TrialResult:
    """What a search keeps of the report of a trial."""
    if report.after is None:
        raise NothingToPruneError("the trial removes nothing")
    name, quality, original, rows = _quality(report)
    return TrialResult(
        task.trial,
        task.key,
        metric=name,
        quality=quality,
        original=original,
        rows=rows,
        after=report.after,
        seconds=seconds,
    )


def _quality(report: Report) -> tuple[str, Measured, Measured, int]:
    """(name, value of the result, value of the original, rows): the metric, else the closeness of the worst output."""
    if report.metric is not None:
        return report.metric.name, report.metric.final, report.metric.original, report.metric.rows
    outputs = report.quality.outputs.values() if report.quality else ()
    rows = report.quality.samples if report.quality else 0
    whole = Measured(1.0, None)
    if outputs and all(o.top1_agreement is not None for o in outputs):
        return "same top-1", Measured(min(map(_agreement, outputs)), None), whole, rows
    return "cosine", Measured(min((o.cosine for o in outputs), default=1.0), None), whole, rows


def _agreement(output: OutputQuality) -> float:
    return output.top1_agreement or 0.0
