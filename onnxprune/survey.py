"""How sensitive every group of a model is: the damage at the outputs by the share of it that is removed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from onnxprune import choosing, cost, gathering, opening, planning, recovery, wording, worker
from onnxprune.clock import Clock
from onnxprune.config import MEASURED_CRITERIA, Config
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.records import GroupCurve, Sensitivity

LEVELS = (0.1, 0.25, 0.5, 0.75)
"""Shares of a group that are removed."""


def sensitivity(model: str | Path, config: Config) -> Sensitivity:
    """Remove shares of one prunable group at a time, refit what reads it, and measure the outputs. Writes nothing.

    Of `config` count the inputs (`calibration` is needed, with `mean` to `color` and `calibration_size`), `criterion`,
    `keep`, `only`, `seed` and the recovery's threads and memory. Raises an OnnxPruneError.
    """
    config.validate(Path(model))
    if config.calibration is None:
        raise UsageError("sensitivity needs --calibration: the damage is measured on real inputs")
    if config.measure not in MEASURED_CRITERIA:
        raise UsageError(f"sensitivity needs one of {', '.join(MEASURED_CRITERIA)}, got --criterion {config.measure}")
    opened, config = opening.open_for(Path(model), config, Clock())
    prunable = [g for g in opened.analysis.groups if g.refusal is None]
    for option, patterns in (("--keep", config.keep), ("--only", config.only)):
        planning.require_matches(opened.analysis.groups, option, patterns)
    groups = planning.choose(prunable, config.keep, config.only)
    if not groups:
        raise NothingToPruneError("no group that can be pruned is left to measure; see `onnxprune inspect`")
    gathered = gathering.gather(opened, dataclasses.replace(config, recover=False))
    names = [g.id for g in groups]
    wanted = choosing.Wanted(names, "sensitivity", ("macs", 0.5), 0.5, dict.fromkeys(names, 1), config.measure)
    source = recovery.Source(
        str(opened.model.path), config.input_shapes, gathered.fitting, config.seed, config.threads, config.memory_bytes
    )
    rows, curves = worker.call(
        "onnxprune.choosing:measure_curves",
        {"source": source, "wanted": wanted, "levels": LEVELS},
        timeout_s=recovery.LIMIT_S,
        threads=config.threads,
    )
    shares, readers = cost.macs_shares(opened.analysis), wording.readers(opened.model.proto, opened.analysis)
    found = []
    for g in groups:
        curve = curves[g.id]
        words = wording.words(opened.analysis, g, wording.ties(g, readers))
        found.append(
            GroupCurve(
                g.id, words, g.size, shares.get(g.dim, 0.0), tuple(curve.removed), tuple(curve.damage), curve.refitted
            )
        )
    return Sensitivity(str(model), rows, config.seed, config.measure, LEVELS, tuple(found))
