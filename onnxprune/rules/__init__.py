"""Operator rules, one file per operator family. Importing this package fills the table in `registry`."""

from onnxprune.rules import (
    attention,
    conv,
    join,
    layout,
    linear,
    norm,
    pointwise,
    quantized,
    recurrent,
    reduce,
    sampling,
    scatter,
)
from onnxprune.rules.registry import Operator, find, rule, supported

__all__ = [
    "Operator",
    "attention",
    "conv",
    "find",
    "join",
    "layout",
    "linear",
    "norm",
    "pointwise",
    "quantized",
    "recurrent",
    "reduce",
    "rule",
    "sampling",
    "scatter",
    "supported",
]
