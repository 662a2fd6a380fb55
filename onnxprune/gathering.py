"""The inputs of a run: read, checked, split into those that are fitted to and those held out to measure on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune import calibration, evaluation, recovery
from onnxprune.config import Config
from onnxprune.evaluation import Evaluation
from onnxprune.opened import Opened
from onnxprune.records import Feed, Inputs

log = logging.getLogger(__name__)


EVERY, BUDGET_EVERY = 10, 4
"""One batch in so many of the calibration data is held out; more of them where they decide how much is removed."""
MOST_ROWS = 1 << 40


@dataclass(frozen=True)
class Gathered:
    """Batches to fit to, those to measure closeness on, and what a metric is measured on, if any.

    `inputs` says what the calibration data is, None where there is none.
    """

    fitting: Sequence[Feed] = ()
    held: Sequence[Feed] = ()
    inputs: Inputs | None = None
    evaluation: Evaluation | None = None


def gather(opened: Opened, config: Config) -> Gathered:
    """Calibration and evaluation data, if there is any, in batches that the model takes. UsageError where it does not
    fit, and where a metric is asked for and too few rows are there to hold some out."""
    found = _calibration(opened, config, config.calibration) if config.calibration else Gathered()
    if config.evaluation is None:
        return found
    proto = opened.model.proto
    loaded = _load(opened, config, config.evaluation, MOST_ROWS, config.memory_bytes)
    rows = calibration.batches(evaluation.labelled(loaded, config), calibration.fixed_rows(proto), MOST_ROWS)
    if not loaded.whole:
        log.warning("--evaluation: only %d rows fit into --memory; the rest is left out", calibration.rows_of(rows))
    measured = evaluation.of_feeds(proto, config, "evaluation", rows)
    return dataclasses.replace(found, evaluation=measured)


def _calibration(opened: Opened, config: Config, place: Path) -> Gathered:
    proto, fixed = opened.model.proto, calibration.fixed_rows(opened.model.proto)
    found = _load(opened, config, place, config.calibration_size, config.memory_bytes // 2)
    measured = config.evaluation is None and (config.metric is not None or config.max_drop is not None)
    feeds = evaluation.labelled(found, config) if measured else found.feeds
    batches = calibration.batches(feeds, fixed, config.calibration_size)
    if measured:
        batches = evaluation.enough(batches, fixed)
    fitting, held = recovery.split(batches, BUDGET_EVERY if measured and config.max_drop is not None else EVERY)
    own = evaluation.of_feeds(proto, config, "calibration", held) if measured else None
    batches, fitting, held = evaluation.bare(batches), evaluation.bare(fitting), evaluation.bare(held)
    remarks = calibration.remarks(batches)
    for remark in remarks:
        log.warning("%s", remark)
    return Gathered(fitting, held, _inputs(found.words, batches, held, remarks), own)


def _load(opened: Opened, config: Config, place: Path, limit: int, memory_bytes: int) -> calibration.Loaded:
    found = calibration.load(
        place,
        opened.model.proto,
        limit=limit,
        memory_bytes=memory_bytes,
        preparation=config.preparation,
        given=config.input_shapes,
        seed=config.seed,
        extra=evaluation.LABELS,
    )
    calibration.check_indices(found.feeds, calibration.index_bounds(opened.model.graph, opened.shapes.shape))
    return found


def _inputs(words: str, batches: Sequence[Feed], held: Sequence[Feed], remarks: Sequence[str]) -> Inputs:
    return Inputs(
        kind="calibration",
        words=words,
        rows=calibration.rows_of(batches),
        held_out=calibration.rows_of(held) if len(held) < len(batches) else 0,
        ranges=calibration.ranges(batches),
        remarks=tuple(remarks),
    )
