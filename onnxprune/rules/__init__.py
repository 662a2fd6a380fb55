"""Operator rules, one file per operator family. Importing this package fills the table in `registry`."""

from onnxprune.rules import conv, join, layout, linear, norm, pointwise, reduce
from onnxprune.rules.registry import Operator, find, rule, supported

__all__ = ["Operator", "conv", "find", "join", "layout", "linear", "norm", "pointwise", "reduce", "rule", "supported"]
