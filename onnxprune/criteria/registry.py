"""The table of importance criteria.

A criterion is a pure function of the slices of one weight: any float type (n, k), row i holding every element that
goes with index i of the group, to scores float64 (n,), higher = keep. `generator` is seeded per group.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxprune.errors import UsageError

FloatArray = npt.NDArray[np.floating]
Criterion = Callable[[FloatArray, np.random.Generator], FloatArray]

_CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register the decorated function under `name`; a name taken twice raises ValueError."""

    def register(function: Criterion) -> Criterion:
        if name in _CRITERIA:
            raise ValueError(f"a criterion {name!r} exists already")
        _CRITERIA[name] = function
        return function

    return register


def names() -> list[str]:
    """Every registered criterion, sorted."""
    return sorted(_CRITERIA)


def find(name: str) -> Criterion:
    """The criterion called `name`. Raises UsageError listing the known ones."""
    if name not in _CRITERIA:
        raise UsageError(f"unknown criterion {name!r}; known: {', '.join(names())}")
    return _CRITERIA[name]
