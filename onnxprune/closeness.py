"""How close one output of a model is to that of the original: cosine, relative error, noise, same top class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.records import OutputQuality

Array = npt.NDArray[Any]

SQNR_CAP_DB = 120.0


def quality_of(reference: Sequence[Array], result: Sequence[Array]) -> OutputQuality:
    """Quality of one output over batches of equal or different shapes.

    Where the data tells how long a result is, that of one side may be longer: the other counts as zeros there.
    """
    pairs = [_padded(x, y) for x, y in zip(reference, result, strict=True)]
    reference, result = [x for x, _ in pairs], [y for _, y in pairs]
    a = np.concatenate([np.ravel(x) for x in reference]).astype(np.float64)
    b = np.concatenate([np.ravel(x) for x in result]).astype(np.float64)
    if not np.isfinite(a).any() or (np.isfinite(a) & ~np.isfinite(b)).any():
        return OutputQuality(0.0, math.inf, 0.0, _agreement(reference, result))
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    error = float(np.linalg.norm(a - b))
    relative = error / norms[0] if norms[0] > 0 else (0.0 if error == 0 else math.inf)
    cosine = float(a @ b) / (norms[0] * norms[1]) if all(norms) else float(norms[0] == norms[1])
    sqnr = (
        SQNR_CAP_DB if relative == 0 else min(SQNR_CAP_DB, -20 * math.log10(relative)) if relative < math.inf else 0.0
    )
    return OutputQuality(cosine, relative, sqnr, _agreement(reference, result))


def _padded(a: Array, b: Array) -> tuple[Array, Array]:
    """Both arrays with zeros up to the larger size of every axis."""
    if a.shape == b.shape:
        return a, b
    sizes = np.maximum(a.shape, b.shape)
    first, second = (np.pad(x, [(0, int(n - k)) for n, k in zip(sizes, x.shape, strict=True)]) for x in (a, b))
    return first, second


def _agreement(reference: Sequence[Array], result: Sequence[Array]) -> float | None:
    shape = reference[0].shape
    axis = 1 if len(shape) == 4 else -1
    if len(shape) < 2 or shape[axis] < 2:
        return None
    same = [np.ravel(a.argmax(axis) == b.argmax(axis)) for a, b in zip(reference, result, strict=True)]
    return float(np.concatenate(same).mean())
