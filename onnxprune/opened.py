"""A model file with what was found out about it: what every later stage starts from."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.modelfile import ModelFile
from onnxprune.records import Analysis
from onnxprune.shapes import Shapes


@dataclass(frozen=True)
class Opened:
    """The skeleton of the file, its shapes, and its groups."""

    model: ModelFile
    shapes: Shapes
    analysis: Analysis
