"""Least squares from moments: min ||Y - W X - b||^2 + lambda ||W - W0||^2, lambda chosen by held-out error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.recover.moments import Moments

Float = npt.NDArray[np.float64]

GRID: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges tried, as shares of the mean diagonal of the Gram matrix."""
MOST = 2.0
"""A row is made larger by this factor at most: what it takes more for is noise."""


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


def solve(
    train: Moments, held: Moments, prior: Float, bias: Float, *, fit_bias: bool = True, widened: bool = False
) -> Solution:
    """Choose the ridge on `held` (fitted on `train`), then fit on both. `prior`, `bias`: the plain cut. `widened`: give
    every output the spread of its target back, where that is no worse than the plain cut."""
    plain = held.error(prior, bias)
    best, after, chosen = None, plain if np.isfinite(plain) else np.inf, prior
    if fit_bias and (error := held.error(prior, intercept(train, prior))) < after:
        best, after = 0.0, error
    equations = _equations(train, bias, fit_bias)
    for ridge in GRID:
        weight = _fit_all(equations, prior, ridge)
        error = held.error(weight, intercept(train, weight) if fit_bias else bias)
        if error < after:
            best, after, chosen = ridge, error, weight
    del equations
    whole = train.plus(held)
    scale = max(float(whole.variance.sum()), 1e-30)
    if best is None:
        return Solution(prior, bias, None, plain / scale, plain / scale)
    weight = fit(whole, prior, bias, best, centred=fit_bias) if best else prior
    if widened:
        wide = chosen * widening(train, chosen, centred=fit_bias)
        error = held.error(wide, intercept(train, wide) if fit_bias else bias)
        if error < plain:
            weight, after = weight * widening(whole, weight, centred=fit_bias), error
    return Solution(weight, intercept(whole, weight) if fit_bias else bias, best, plain / scale, after / scale)


def widening(moments: Moments, weight: Float, *, centred: bool = True) -> Float:
    """Factors (groups, o, 1) that give W X the spread of Y.

    The best guess from inputs that say only a part R^2 of Y has R times its spread (regression dilution: W. Fuller,
    "Measurement Error Models", 1987). What is rare is said least of and shrinks most, and of classes the common one
    wins then: a recogniser of text leaves characters out.
    """
    xx, _, yy = moments.covariance(centred)
    own = np.einsum("god,god->go", weight @ xx, weight)
    found = np.divide(yy, own, out=np.ones_like(yy), where=(own > 0) & (yy > 0))
    return np.asarray(np.clip(np.sqrt(found), 1 / MOST, MOST)[:, :, None], np.float64)


def requantized(train: Moments, held: Moments, plain: tuple[Float, Float], found: Solution) -> Solution:
    """`found`, whose weight was rounded, with its bias to go with it; `plain` (weight and bias of the cut), where that
    is no worse on held-out columns."""
    bias = intercept(train, found.weight)
    error, before = held.error(found.weight, bias), held.error(*plain)
    whole = train.plus(held)
    scale = max(float(whole.variance.sum()), 1e-30)
    if error >= before:
        return Solution(*plain, None, before / scale, before / scale)
    return Solution(found.weight, intercept(whole, found.weight), found.ridge, before / scale, error / scale)


def intercept(moments: Moments, weight: Float) -> Float:
    """The bias that makes the mean error zero."""
    mean: Float = (weight @ moments.mean_x[:, :, None])[:, :, 0]
    return moments.mean_y - mean


def fit(moments: Moments, prior: Float, bias: Float, ridge: float, *, centred: bool = True) -> Float:
    """W = (Y X^T + lambda W0) (X X^T + lambda I)^-1, lambda = ridge * mean diagonal, group by group."""
    return _fit_all(_equations(moments, bias, centred), prior, ridge)


def _equations(moments: Moments, bias: Float, centred: bool) -> tuple[Float, Float]:
    """X X^T and Y X^T, about the means or with the bias as it is."""
    xx, yx, _ = moments.covariance(centred)
    return xx, yx if centred else yx - bias[:, :, None] * moments.mean_x[:, None, :]


def _fit_all(equations: tuple[Float, Float], prior: Float, ridge: float) -> Float:
    return np.stack([_fit(a, b, w, ridge) for a, b, w in zip(*equations, prior, strict=True)])


def _fit(xx: Float, yx: Float, prior: Float, ridge: float) -> Float:
    mean = float(np.trace(xx)) / len(xx)
    if mean <= 0:
        return prior
    diagonal = ridge * mean
    system = xx.copy()
    system[np.diag_indices_from(system)] += diagonal
    return np.asarray(np.linalg.solve(system, (yx + diagonal * prior).T).T, np.float64)


class Refit:
    """Solves for changing targets y over the same inputs: the system is inverted once. As `fit` otherwise."""

    def __init__(self, moments: Moments, prior: Float, ridge: float) -> None:
        self.moments, self.prior = moments, prior
        system = moments.covariance()[0]
        mean = np.trace(system, axis1=1, axis2=2) / system.shape[1]
        self.diagonal = np.where(mean > 0, ridge * mean, 1.0)[:, None, None]
        index = np.arange(system.shape[1])
        system[:, index, index] += self.diagonal[:, 0]
        self.inverse = np.linalg.inv(system)

    def solve(self, y: Float, yx: Float) -> tuple[Float, Float]:
        """Weight and bias for the sums `y` (groups, o) and `yx` (groups, o, d), about the shifts of the moments."""
        m = self.moments
        n = max(m.count, 1)
        mixed = yx / n - (y / n)[:, :, None] * (m.x / n)[:, None, :]
        weight: Float = (mixed + self.diagonal * self.prior) @ self.inverse
        mean: Float = (weight @ m.mean_x[:, :, None])[:, :, 0]
        return weight, m.shift_y + y / n - mean
