"""Opening a model: the first stages, and the removal of whole residual blocks before the channels are looked at."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from onnxprune import analysis, calibration, depth, proving, shapes
from onnxprune import plan as plans
from onnxprune.clock import Clock
from onnxprune.config import Config
from onnxprune.errors import ModelError, UsageError
from onnxprune.modelfile import ModelFile
from onnxprune.opened import Opened
from onnxprune.records import Feed

log = logging.getLogger(__name__)


def open_model(path: Path, given: Mapping[str, tuple[int, ...]], clock: Clock, *, lean: bool = False) -> Opened:
    """Load (`lean`: as in `modelfile.skeleton`), infer shapes, analyse: three stages."""
    with clock("load"):
        model = ModelFile.load(path, unique_names=True, lean=lean)
    with clock("shapes"), unhurried_collector():
        found = shapes.infer(model.proto, given, model.base_dir)
    with clock("analyse"), unhurried_collector():
        return Opened(model, found, analysis.analyse(model.proto, found))


def open_for(path: Path, config: Config, clock: Clock) -> tuple[Opened, Config]:
    """The model, and the config with the sizes it was opened at.

    A model that cannot be analysed at sizes of our choosing (an export that fixed a length it declares free) is tried
    at those of the calibration data before it is refused.
    """
    # Without some of its blocks the model is handed to other processes, weights included.
    lean = not (config.depth or config.plan)
    try:
        return open_model(path, config.input_shapes, clock, lean=lean), config
    except ModelError:
        given = _calibrated_sizes(path, config)
        if not given:
            raise
        log.info("opened at the sizes of the calibration data: %s", given)
        return open_model(path, given, clock, lean=lean), dataclasses.replace(config, input_shapes=given)


def _calibrated_sizes(path: Path, config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of two rows of the calibration data by input; {} where there is none that fits."""
    if config.calibration is None or config.input_shapes:
        return {}
    proto = ModelFile.load(path, lean=True).proto
    try:
        found = calibration.load(config.calibration, proto, limit=2, preparation=config.preparation)
    except UsageError:
        return {}
    return {name: array.shape for name, array in found.feeds[0].items()}


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


def without_blocks(opened: Opened, config: Config, feeds: Sequence[Feed]) -> Opened:
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
            sizes=proving.run_shapes(opened, config),
            bounds=calibration.index_bounds(model.graph, found),
        )
    if not removed:
        return opened
    chosen = [r.block for r in removed]
    proto = depth.remove(model.proto, chosen)
    exactness = proving.prove_removal(opened, config, depth.silenced(model.proto, chosen, found.element_types), proto)
    left = shapes.infer(proto, config.input_shapes, model.base_dir)
    kept = dataclasses.replace(model, proto=proto, _graph=None)
    return Opened(
        kept, left, analysis.analyse(proto, left), original=opened, removed=tuple(removed), exactness=exactness
    )
