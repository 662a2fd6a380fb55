"""Operators of so many inputs that their Gram matrix is too large: least squares over the columns, and over channels.

With n columns X (d, n) and n far below d, the ridge solution near W0 is found in the space of the columns,

    W = W0 + (Y - W0 X) (X^T X + n lambda I)^-1 X^T

With few columns that says little about d inputs. But the same channel occurs at every tap (at every position, behind
a Flatten), and over those there are columns in plenty: with Z all channels in the original, Z^ the channels that are
left,

    A = C_ZZ^ (C_Z^Z^ + lambda I)^-1,      W0 = W A at every tap

which for Z^ a part of Z is the channel form B = C_HP (C_PP + lambda I)^-1. Held-out columns choose W0 and lambda.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.recover.solve import GRID, Solution

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

COLUMNS = 3072
"""Columns looked at, at most."""
CHANNEL_RIDGE = 1e-3
"""Share of the mean variance of the channels added to their covariance."""


def channel_map(whole: Float, left: Float, kept: Index) -> Float:
    """A (channels, kept): how all channels of the original follow from those left.

    `whole`: covariance of the original's channels with those left (channels, k); `left`: of those left (k, k); `kept`:
    their numbers among the original's channels, to which A is drawn by the ridge.
    """
    ridge = max(CHANNEL_RIDGE * float(np.trace(left)) / len(left), 1e-12)
    plain = np.zeros_like(whole)
    plain[kept, np.arange(len(kept))] = ridge
    return np.asarray(np.linalg.solve(left + ridge * np.eye(len(left)), (whole + plain).T).T, np.float64)


def spread(weight: Float, mapping: Float, source: Index, result: Index) -> Float:
    """`weight` (o, d) times `mapping` (channels, k) at every tap: (o, k * taps).

    `source` int (channels, taps), `result` int (k, taps): the inputs that belong to each channel.
    """
    found = np.empty((len(weight), result.size))
    for tap in range(result.shape[1]):
        found[:, result[:, tap]] = weight[:, source[:, tap]] @ mapping
    return found


def solve(
    train: tuple[Array, Array], held: tuple[Array, Array], starts: Sequence[Float], bias: Float, *, fit_bias: bool
) -> Solution:
    """The best of the ridge solutions near each of `starts` (groups, o, d), the first of which is the plain cut.

    `train`, `held`: columns x (groups, d, n) and y (groups, o, n), few enough for a matrix (n, n). Where nothing is
    held out, the plain cut, with its error on `train`.
    """
    judged = held if held[1].shape[2] else train
    plain = _error(judged[1] - _times(starts[0], judged[0]) - bias[:, :, None])
    scale = max(_error(judged[1] - judged[1].mean(2, keepdims=True)), 1e-30)
    if judged is train:
        return Solution(starts[0], bias, None, plain / scale, plain / scale)
    best: tuple[float, int, float | None] = (plain, 0, None)
    for number, start in enumerate(starts):
        system = _Columns(*train, start, bias, fit_bias)
        rest, likeness = system.test(*held)
        for ridge in (0.0, *GRID):
            miss = rest - system.answer(likeness, ridge) if ridge else rest
            error = _error(miss)
            if np.isfinite(error) and error < best[0]:
                best = error, number, ridge
    if best[2] is None:
        return Solution(starts[0], bias, None, plain / scale, plain / scale)
    both = [np.concatenate(side, axis=2) for side in zip(train, held, strict=True)]
    weight, shifted = _Columns(both[0], both[1], starts[best[1]], bias, fit_bias).solution(best[2])
    return Solution(weight, shifted, best[2], plain / scale, best[0] / scale)


def _error(miss: Array) -> float:
    return float(np.square(miss, dtype=np.float64).sum() / max(miss.shape[2], 1))


def _times(weight: Float, x: Array) -> Array:
    return np.asarray(weight.astype(np.float32) @ x)


class _Columns:
    """The system over the columns x (groups, d, n), and what the start leaves of y (groups, o, n)."""

    def __init__(self, x: Array, y: Array, start: Float, bias: Float, fit_bias: bool) -> None:
        self.start, self.bias, self.fit_bias = start, bias, fit_bias
        self.mean = x.mean(2, keepdims=True, dtype=np.float64).astype(np.float32) * np.float32(fit_bias)
        self.x = x - self.mean
        rest = y - _times(start, x)
        self.level: Float = rest.mean(2, dtype=np.float64) if fit_bias else bias
        self.rest = rest - self.level[:, :, None].astype(np.float32)
        self.system = (self.x.transpose(0, 2, 1) @ self.x).astype(np.float64)

    def _weights(self, right: Array, ridge: float) -> Float:
        """(X^T X + n lambda I)^-1 `right`, lambda = ridge * mean variance of the inputs."""
        total = np.trace(self.system, axis1=1, axis2=2) / self.x.shape[1]
        system = self.system + np.eye(self.x.shape[2]) * np.maximum(ridge * total, 1e-30)[:, None, None]
        return np.linalg.solve(system, right.astype(np.float64))

    def test(self, x: Array, y: Array) -> tuple[Array, Array]:
        """What the start leaves of other columns, and X^T x."""
        rest = y - _times(self.start, x) - self.level[:, :, None].astype(np.float32)
        return rest, self.x.transpose(0, 2, 1) @ (x - self.mean)

    def answer(self, likeness: Array, ridge: float) -> Array:
        """What the fit adds to the start on the columns of `likeness`."""
        return np.asarray(self.rest @ self._weights(likeness, ridge).astype(np.float32))

    def solution(self, ridge: float) -> tuple[Float, Float]:
        """Weight (groups, o, d) and bias (groups, o); `ridge` 0: the start with its bias refitted."""
        weight, level = self.start, self.level
        if ridge:
            weights = self._weights(self.x.transpose(0, 2, 1), ridge)
            change = self.rest.astype(np.float64) @ weights
            weight = weight + change
            level = level - (change @ self.mean.astype(np.float64))[:, :, 0]
        return weight, level if self.fit_bias else self.bias
