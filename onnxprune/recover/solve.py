"""Least squares from moments: min ||Y - W X - b||^2 + lambda ||W - W0||^2, lambda chosen by held-out error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.recover.moments import Moments

Float = npt.NDArray[np.float64]

GRID: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges tried, as shares of the mean diagonal of the Gram matrix."""


@dataclass(frozen=True)
class Solution:
    """New weight (groups, o, d) and bias (groups, o). `ridge` is None where the plain cut (bias refitted) was no worse.

    `before`, `after`: held-out error of the plain cut and of the solution, as shares of the target's variance.
    """

    weight: Float
    bias: Float
    ridge: float | None
    before: float
    after: float


def solve(train: Moments, held: Moments, prior: Float, bias: Float, *, fit_bias: bool = True) -> Solution:
    """Choose the ridge on `held` (fitted on `train`), then fit on both. `prior`, `bias`: the plain cut."""
    plain = held.error(prior, bias)
    candidates: list[tuple[float, float | None]] = [(plain, None)]
    if fit_bias:
        candidates.append((held.error(prior, intercept(train, prior)), 0.0))
    for ridge in GRID:
        weight = fit(train, prior, bias, ridge, centred=fit_bias)
        shifted = intercept(train, weight) if fit_bias else bias
        candidates.append((held.error(weight, shifted), ridge))
    after, best = min((c for c in candidates if np.isfinite(c[0])), key=lambda c: c[0])
    whole = train.plus(held)
    scale = max(float(whole.covariance()[2].sum()), 1e-30)
    if best is None:
        return Solution(prior, bias, None, plain / scale, plain / scale)
    weight = fit(whole, prior, bias, best, centred=fit_bias) if best else prior
    return Solution(weight, intercept(whole, weight) if fit_bias else bias, best, plain / scale, after / scale)


def intercept(moments: Moments, weight: Float) -> Float:
    """The bias that makes the mean error zero."""
    mean: Float = np.einsum("god,gd->go", weight, moments.mean_x)
    return moments.mean_y - mean


def fit(moments: Moments, prior: Float, bias: Float, ridge: float, *, centred: bool = True) -> Float:
    """W = (Y X^T + lambda W0) (X X^T + lambda I)^-1, lambda = ridge * mean diagonal, group by group."""
    xx, yx, _ = moments.covariance(centred)
    if not centred:
        yx = yx - bias[:, :, None] * moments.mean_x[:, None, :]
    return np.stack([_fit(a, b, w, ridge) for a, b, w in zip(xx, yx, prior, strict=True)])


def _fit(xx: Float, yx: Float, prior: Float, ridge: float) -> Float:
    mean = float(np.trace(xx)) / len(xx)
    if mean <= 0:
        return prior
    diagonal = ridge * mean
    system = xx.copy()
    system[np.diag_indices_from(system)] += diagonal
    return np.asarray(np.linalg.solve(system, (yx + diagonal * prior).T).T, np.float64)
