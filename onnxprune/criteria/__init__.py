"""Importance criteria, one file per family; importing this package fills the table in `registry`."""

from onnxprune.criteria import norms
from onnxprune.criteria.registry import Criterion, criterion, find, names

__all__ = ["Criterion", "criterion", "find", "names", "norms"]
