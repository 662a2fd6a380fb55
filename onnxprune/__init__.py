"""onnxprune: structural pruning of ONNX models, after training and before deployment.

The public names are imported when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxprune.api import inspect, prune
    from onnxprune.comparison import benchmark
    from onnxprune.config import Config
    from onnxprune.distribution import Workers
    from onnxprune.errors import (
        ModelError,
        NotFasterError,
        NothingToPruneError,
        OnnxPruneError,
        OutputError,
        UsageError,
        VerificationError,
        WorkerError,
    )
    from onnxprune.many import prune_many
    from onnxprune.preparation import Preparation
    from onnxprune.records import Latency, Pruned, Report, SearchReport, Sensitivity
    from onnxprune.survey import sensitivity
    from onnxprune.trials.run import search

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Latency",
    "ModelError",
    "NotFasterError",
    "NothingToPruneError",
    "OnnxPruneError",
    "OutputError",
    "Preparation",
    "Pruned",
    "Report",
    "SearchReport",
    "Sensitivity",
    "UsageError",
    "VerificationError",
    "WorkerError",
    "Workers",
    "__version__",
    "benchmark",
    "inspect",
    "prune",
    "prune_many",
    "search",
    "sensitivity",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_home(name)), name)
    globals()[name] = value
    return value


def _home(name: str) -> str:
    """The module that defines a public name."""
    homes = {
        "prune": "api",
        "inspect": "api",
        "benchmark": "comparison",
        "prune_many": "many",
        "sensitivity": "survey",
        "search": "trials.run",
        "Config": "config",
        "Preparation": "preparation",
        "Workers": "distribution",
    }
    records = {"Latency", "Pruned", "Report", "SearchReport", "Sensitivity"}
    return f"{__name__}.{homes.get(name, 'records' if name in records else 'errors')}"


def __dir__() -> list[str]:
    return sorted(__all__)
