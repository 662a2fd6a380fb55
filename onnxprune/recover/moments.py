"""First and second moments of columns, summed in float64 over batches: all that least squares needs.

n, sum x, sum y, X X^T, Y X^T, sum y^2      about a shift (the mean of the first batch), so that nothing cancels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Columns = npt.NDArray[np.float32]


@dataclass
class Moments:
    """Sums over columns x (groups, d, n) and y (groups, o, n); `add` accumulates in place.

    `xx` (groups, d, d), `yx` (groups, o, d), `yy` (groups, o), all float64 and about the shifts.
    """

    count: int
    shift_x: Float
    shift_y: Float
    x: Float
    y: Float
    xx: Float
    yx: Float
    yy: Float

    @classmethod
    def about(cls, shift_x: Float, shift_y: Float) -> Moments:
        """No columns yet, shifts (groups, d) and (groups, o)."""
        g, d = shift_x.shape
        o = shift_y.shape[1]
        return cls(
            0,
            shift_x,
            shift_y,
            np.zeros((g, d)),
            np.zeros((g, o)),
            np.zeros((g, d, d)),
            np.zeros((g, o, d)),
            np.zeros((g, o)),
        )

    def add(self, x: Columns, y: Columns) -> tuple[Columns, Columns]:
        """`x` (groups, d, n), `y` (groups, o, n), which come back about the shifts. Products of a batch in float32,
        sums in float64."""
        if x.shape[2] == 0:
            return x, y
        x = x - self.shift_x[:, :, None].astype(np.float32)
        y = y - self.shift_y[:, :, None].astype(np.float32)
        self.count += x.shape[2]
        self.x += x.sum(2, dtype=np.float64)
        self.y += y.sum(2, dtype=np.float64)
        self.xx += x @ x.transpose(0, 2, 1)
        self.yx += y @ x.transpose(0, 2, 1)
        self.yy += np.einsum("gon,gon->go", y, y, dtype=np.float64)
        return x, y

    def plus(self, other: Moments) -> Moments:
        """The moments of both sets together; the shifts must be the same."""
        fields = ("x", "y", "xx", "yx", "yy")
        sums = {f: getattr(self, f) + getattr(other, f) for f in fields}
        return Moments(self.count + other.count, self.shift_x, self.shift_y, **sums)

    @property
    def mean_x(self) -> Float:
        """(groups, d)"""
        return self.shift_x + self.x / max(self.count, 1)

    @property
    def mean_y(self) -> Float:
        """(groups, o)"""
        return self.shift_y + self.y / max(self.count, 1)

    @property
    def variance(self) -> Float:
        """Variance of y (groups, o)."""
        n = max(self.count, 1)
        return np.maximum(self.yy / n - np.square(self.y / n), 0)

    def covariance(self, centred: bool = True) -> tuple[Float, Float, Float]:
        """Mean of x x^T, y x^T and y^2 (groups, ...), about the means, or about zero."""
        n = max(self.count, 1)
        x, y = self.x / n, self.y / n
        xx, yx = self.xx / n, self.yx / n
        xx -= x[:, :, None] * x[:, None, :]
        yx -= y[:, :, None] * x[:, None, :]
        yy = self.variance
        if centred:
            return xx, yx, yy
        mx, my = self.mean_x, self.mean_y
        xx += mx[:, :, None] * mx[:, None, :]
        yx += my[:, :, None] * mx[:, None, :]
        return xx, yx, yy + my * my

    def error(self, weight: Float, bias: Float) -> float:
        """Mean squared error of y ~ weight x + bias per column, summed over groups and outputs."""
        n = max(self.count, 1)
        x, y = self.x / n, self.y / n
        along = (weight @ x[:, :, None])[:, :, 0]
        offset = self.mean_y - (weight @ self.mean_x[:, :, None])[:, :, 0] - bias
        squares = self.yy / n - y * y
        mixed = np.einsum("god,god->go", weight, self.yx) / n - along * y
        spread = squares - 2 * mixed + np.einsum("god,god->go", weight @ self.xx, weight) / n - along * along
        return float(np.sum(np.maximum(spread, 0) + offset * offset))


CHUNK_BYTES = 1 << 26
"""Columns gathered before one product is taken: many batches of few columns cost as little as one of many."""


class Stream:
    """Hands columns (groups, d, n) on to `sink` in chunks joined along their last axis; `flush` hands on the rest."""

    def __init__(self, sink: Callable[..., object]) -> None:
        self.sink = sink
        self._parts: list[tuple[Columns, ...]] = []
        self._bytes = 0

    def add(self, *columns: Columns) -> None:
        """One array per argument of `sink`, all of the same n."""
        if not columns[0].shape[2]:
            return
        self._parts.append(columns)
        self._bytes += sum(c.nbytes for c in columns)
        if self._bytes >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        parts, self._parts, self._bytes = self._parts, [], 0
        if len(parts) == 1:
            self.sink(*parts[0])
        elif parts:
            self.sink(*(np.concatenate(side, axis=2) for side in zip(*parts, strict=True)))
