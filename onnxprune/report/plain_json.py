"""Results as plain data for programs. The keys are a contract: `SCHEMA` rises when one of them changes its meaning.

Numbers that JSON cannot hold (NaN, infinities) are null, and so is every part that the run did not produce.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune import __version__
from onnxprune.records import (
    GroupReport,
    Latency,
    LatencySide,
    Pruned,
    Quality,
    Report,
    SearchReport,
    Sensitivity,
    Totals,
    TrialResult,
    WidthCalibration,
)

SCHEMA = 1


def report_data(report: Report) -> dict[str, Any]:
    """The report as plain data.

    `after.bytes` is null where no file was written; shares are of the original model, 0 to 1; latencies are in
    milliseconds, `seconds` in seconds.
    """
    data = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "model": report.model,
        "output": report.output,
        "seed": report.seed,
        "options": report.options,
        "before": _totals(report.before, has_file=True),
        "after": _totals(report.after, has_file=report.output is not None) if report.after else None,
        "reach": dataclasses.asdict(report.reach) if report.reach else None,
        "groups": [_group(group) for group in report.groups],
        "refusals": [
            {
                **dataclasses.asdict(entry.refusal),
                "groups": entry.groups,
                "macs_share": entry.macs_share,
                "parameters_share": entry.parameters_share,
            }
            for entry in report.refusals
        ],
        "inputs": dataclasses.asdict(report.inputs) if report.inputs else None,
        "fused": report.fused,
        "exactness": dataclasses.asdict(report.exactness) if report.exactness else None,
        "quality": _quality(report),
        "layers": [dataclasses.asdict(layer) for layer in report.layers],
        "distillation": _distillation(report),
        "metric": dataclasses.asdict(report.metric) if report.metric else None,
        "rounds": [dataclasses.asdict(entry) for entry in report.rounds],
        "latency": latency_data(report.latency) if report.latency else None,
        "latency_target": _pursuit(report),
        "notes": list(report.notes),
        "seconds": report.seconds,
    }
    return {key: _valid(value) for key, value in data.items()}


def comparison_data(models: Sequence[str | Path], results: Sequence[Latency], *, seed: int) -> dict[str, Any]:
    """The result of `benchmark` as plain data: every further model against the first."""
    entries = [{"model": str(m), **latency_data(r)} for m, r in zip(models[1:], results, strict=True)]
    data = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "model": str(models[0]),
        "seed": seed,
        "comparisons": entries,
    }
    return {key: _valid(value) for key, value in data.items()}


def many_data(found: Sequence[Pruned]) -> list[dict[str, Any]]:
    """The results of several models as plain data: the report of each, or its error."""
    return [
        {
            "model": entry.model,
            "exit_code": entry.exit_code,
            "error": entry.error,
            "report": report_data(entry.report) if entry.report else None,
        }
        for entry in found
    ]


def search_data(found: SearchReport) -> dict[str, Any]:
    """The result of `search` as plain data: every trial in the order asked for."""
    data = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "model": found.model,
        "folder": found.folder,
        "seed": found.seed,
        "options": found.options,
        "before": _totals(found.before, has_file=True),
        "trials": [_trial(result, number in found.front) for number, result in enumerate(found.results)],
    }
    return {key: _valid(value) for key, value in data.items()}


def _trial(result: TrialResult, on_front: bool) -> dict[str, Any]:
    return {
        "amount": result.trial.amount,
        "criterion": result.trial.criterion,
        "front": on_front,
        "error": result.error,
        "plan": result.plan,
        "metric": {
            "name": result.metric,
            "rows": result.rows,
            "original": dataclasses.asdict(result.original) if result.original else None,
            "final": dataclasses.asdict(result.quality) if result.quality else None,
        },
        "after": _totals(result.after, has_file=True) if result.after else None,
        "latency": latency_data(result.latency) if result.latency else None,
        "seconds": result.seconds,
    }


def widths_data(found: WidthCalibration) -> dict[str, Any]:
    """The result of `calibrate-widths` as plain data."""
    data = {"schema": SCHEMA, "tool_version": __version__, **found.key, **dataclasses.asdict(found.staircases)}
    return {key: _valid(value) for key, value in data.items()}


def sensitivity_data(found: Sensitivity) -> dict[str, Any]:
    """The result of `sensitivity` as plain data."""
    data = {"schema": SCHEMA, "tool_version": __version__, **dataclasses.asdict(found)}
    return {key: _valid(value) for key, value in data.items()}


def latency_data(latency: Latency) -> dict[str, Any]:
    """One comparison: the keys of `latency` in the report."""
    return {
        "provider": latency.provider,
        "batch": latency.batch,
        "threads": latency.threads,
        "inputs": latency.inputs,
        "runtime": latency.runtime,
        "processor": latency.processor,
        "before_ms": _side(latency.before),
        "after_ms": _side(latency.after),
        "speedup": latency.speedup,
        "ci95": list(latency.ci95),
        "noise_floor": list(latency.noise_floor),
        "significant": latency.significant,
        "pairs": latency.pairs,
        "nodes_per_provider": latency.nodes_per_provider,
        "warnings": list(latency.warnings),
    }


def dumps(data: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON text with a final line break."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _totals(totals: Totals, *, has_file: bool) -> dict[str, Any]:
    return {
        "nodes": totals.nodes,
        "parameters": totals.parameters,
        "bytes": totals.bytes if has_file else None,
        "macs": totals.macs,
    }


def _group(entry: GroupReport) -> dict[str, Any]:
    return {
        "id": entry.group.id,
        "words": entry.words,
        "size": entry.group.size,
        "kept": entry.kept,
        "status": entry.status,
        "reason": entry.reason,
        "renormalised": entry.group.renormalised,
        "occurrences": [dataclasses.asdict(occurrence) for occurrence in entry.group.occurrences],
        "macs_share": entry.macs_share,
        "parameters_share": entry.parameters_share,
    }


def _quality(report: Report) -> dict[str, Any] | None:
    if report.quality is None:
        return None
    found = report.quality
    before = _output_data(report.cut_quality) if report.cut_quality else None
    return {"data": found.data, "samples": found.samples, "outputs": _output_data(found), "before_recovery": before}


def _distillation(report: Report) -> dict[str, Any] | None:
    found = report.distillation
    return {**dataclasses.asdict(found), "kept": found.kept} if found else None


def _output_data(quality: Quality) -> dict[str, Any]:
    return {name: dataclasses.asdict(found) for name, found in quality.outputs.items()}


def _pursuit(report: Report) -> dict[str, Any] | None:
    found = report.pursuit
    if found is None:
        return None
    model = found.model
    return {
        "goal": found.goal,
        "reached": found.reached,
        "attempts": [dataclasses.asdict(attempt) for attempt in found.attempts],
        "model": {
            "nodes": len(model.nodes),
            "factor": model.factor,
            "overhead_ms": model.overhead,
            "whole_over_sum": [{"kept": k, "ratio": r} for k, r in zip(model.levels, model.ratios, strict=True)],
        },
    }


def _side(side: LatencySide) -> dict[str, float]:
    return {"p50": side.p50, "p90": side.p90, "p99": side.p99, "min": side.min}


def _valid(value: Any) -> Any:
    """Plain data that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _valid(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
