"""A model file with what was found out about it: what every later stage starts from."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.modelfile import ModelFile
from onnxprune.records import Analysis, Exactness, RemovedBlock
from onnxprune.shapes import Shapes


@dataclass(frozen=True)
class Opened:
    """The skeleton of the file, its shapes, and its groups.

    Where residual blocks were removed first, `removed`, `model.proto` is what is left, `original` the whole, and
    `exactness` that of their removal.
    """

    model: ModelFile
    shapes: Shapes
    analysis: Analysis
    original: Opened | None = None
    removed: tuple[RemovedBlock, ...] = ()
    exactness: Exactness | None = None
