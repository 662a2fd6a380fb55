"""The inputs of a run: read, checked, split into those that are fitted to and those held out to measure on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune import calibration, recovery
from onnxprune.config import Config
from onnxprune.opened import Opened
from onnxprune.records import Feed, Inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gathered:
    """Batches to fit to, and those to measure on; `inputs` says what they are, None where there are none."""

    fitting: Sequence[Feed] = ()
    held: Sequence[Feed] = ()
    inputs: Inputs | None = None


def gather(opened: Opened, config: Config) -> Gathered:
    """The calibration data, if there is any, in batches that the model takes. UsageError where it does not fit."""
    if config.calibration is None:
        return Gathered()
    return _calibration(opened, config, config.calibration)


def _calibration(opened: Opened, config: Config, place: Path) -> Gathered:
    proto = opened.model.proto
    found = calibration.load(
        place,
        proto,
        limit=config.calibration_size,
        memory_bytes=config.memory_bytes // 2,
        preparation=config.preparation,
        given=config.input_shapes,
        seed=config.seed,
    )
    calibration.check_indices(found.feeds, calibration.index_bounds(opened.model.graph, opened.shapes.shape))
    batches = calibration.batches(found.feeds, calibration.fixed_rows(proto), config.calibration_size)
    fitting, held = recovery.split(batches)
    remarks = calibration.remarks(batches)
    for remark in remarks:
        log.warning("%s", remark)
    return Gathered(fitting, held, _inputs(found.words, batches, held, remarks))


def _inputs(words: str, batches: Sequence[Feed], held: Sequence[Feed], remarks: Sequence[str]) -> Inputs:
    return Inputs(
        kind="calibration",
        words=words,
        rows=calibration.rows_of(batches),
        held_out=calibration.rows_of(held) if len(held) < len(batches) else 0,
        ranges=calibration.ranges(batches),
        remarks=tuple(remarks),
    )
