"""The fusion of a model that was cut, as the options want it."""

from __future__ import annotations

import dataclasses
import logging

import onnx

from onnxprune import fusion
from onnxprune.config import Config, parse_target
from onnxprune.cut import Cut
from onnxprune.errors import ModelError, VerificationError, WorkerError
from onnxprune.opened import Opened

log = logging.getLogger(__name__)

_SINGLE = onnx.TensorProto.FLOAT
UNFUSED = (ModelError, VerificationError, WorkerError)
"""What a model that does not stand its fusion ends in where it is checked or run: then it is left as it is."""


def fused(opened: Opened, config: Config, done: Cut) -> tuple[Cut, int]:
    """What is written of a cut, or of what became of one, and how many nodes are part of others or in other terms."""
    if not config.fuse:
        return done, 0
    is_cpu, types = config.provider == "cpu", opened.shapes.element_types
    shapes = {n: s for n, s in opened.shapes.shape.items() if types.get(n, _SINGLE) == _SINGLE}
    try:
        found = fusion.fused(done.proto, done.edits, opened.model.reader(), shapes, blocked=is_cpu)
    except Exception as error:  # noqa: BLE001 - the model is whole without it
        log.warning("nothing was fused: %s: %s", type(error).__name__, error)
        return done, 0
    if found is None or (found.stored > 0 and _counts_weights(config)):
        return done, 0
    return dataclasses.replace(done, proto=found.proto, edits=found.edits), found.nodes


def _counts_weights(config: Config) -> bool:
    """Whether a target says how much may be stored."""
    return config.target is not None and parse_target(config.target)[0] in ("params", "bytes")
