"""The grids of quantized weights: q = round(w / scale) + zero point, between the least and the largest integer.

Refitted weights take over for what is gone, and outgrow the grid of the original ones: its scale is raised then as far
as that makes the sum of squared errors, of rounding and of clipping, smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

STEPS = 16
"""Scales that are tried between the present one and that at which nothing is clipped."""


def limits(stored: Array) -> tuple[int, int]:
    """The least and the largest integer to use. Where a quantizer has left a bit unused, against sums that overflow in
    16 bits, so does this. `stored`: all that the quantizer wrote of a tensor."""
    kind = np.iinfo(stored.dtype)
    low, high = int(kind.min), int(kind.max)
    half = (low // 2, -(low // 2)) if low else (0, high // 2)
    is_half = stored.size > 0 and half[0] <= int(stored.min()) and int(stored.max()) <= half[1] and bool(stored.any())
    return half if is_half else (low, high)


def quantized(array: Array, scale: Array, zero: Array, bounds: tuple[int, int]) -> npt.NDArray[np.int64]:
    """The integers nearest to `array` that lie within `bounds`."""
    return np.asarray(np.clip(np.rint(array / scale) + zero, *bounds), np.int64)


def widened(array: Array, scale: Array, zero: Array, bounds: tuple[int, int]) -> Array:
    """The scales, shaped like `scale`, of least squared error that are no smaller than these."""
    axes = tuple(k for k in range(array.ndim) if scale.ndim == 0 or scale.shape[k] == 1)
    values = np.asarray(array, np.float64)

    def gathered(found: Array, reduce: np.ufunc) -> Array:
        return np.asarray(reduce.reduce(found, axes, keepdims=scale.ndim > 0))

    room = [np.where(zero == bound, np.inf, (bound - zero).astype(np.float64)) for bound in bounds]
    least = [np.where(np.isinf(r), 0.0, gathered(values / r, np.maximum)) for r in room]
    full = np.maximum(scale, np.maximum(*least))
    best, fewest = scale.astype(np.float64), np.full(scale.shape, np.inf)
    for share in np.linspace(0, 1, STEPS + 1):
        tried = scale + share * (full - scale)
        rebuilt = (quantized(values, tried, zero, bounds) - zero) * tried
        error = gathered((rebuilt - values) ** 2, np.add)
        better = error < fewest
        best, fewest = np.where(better, tried, best), np.where(better, error, fewest)
    return best.astype(scale.dtype)
