"""The fusion of a model that was cut, as the options want it."""

from __future__ import annotations

import dataclasses

from onnxprune import fusion
from onnxprune.config import Config, parse_target
from onnxprune.cut import Cut
from onnxprune.opened import Opened


def fused(opened: Opened, config: Config, done: Cut) -> tuple[Cut, int]:
    """What is written of a cut, or of what became of one, and how many nodes are part of others or in other terms."""
    if not config.fuse:
        return done, 0
    is_cpu = config.provider == "cpu"
    found = fusion.fused(done.proto, done.edits, opened.model.reader(), opened.shapes.shape, blocked=is_cpu)
    if found is None or (found.stored > 0 and _counts_weights(config)):
        return done, 0
    return dataclasses.replace(done, proto=found.proto, edits=found.edits), found.nodes


def _counts_weights(config: Config) -> bool:
    """Whether a target says how much may be stored."""
    return config.target is not None and parse_target(config.target)[0] in ("params", "bytes")
