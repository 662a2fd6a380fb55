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
LEAF = 1024
"""Size of a matrix that is inverted in one piece."""


@dataclass(frozen=True)
class Solution:
    """New weight (groups, o, d) and bias (groups, o). `ridge` is None where the plain cut was no worse, 0 where its
    weight was best with another bias.

    `before`, `after`: held-out error of the plain cut and of the solution, as shares of the target's variance.
    """

    weight: Float
    bias: Float
    ridge: float | None
    before: float
    after: float


def solve(
    train: Moments,
    held: Moments,
    cut: Float,
    bias: Float,
    *,
    prior: Float | None = None,
    fit_bias: bool = True,
    widened: bool = False,
) -> Solution:
    """Choose the ridge on `held` (fitted on `train`), then fit on both. `cut`, `bias`: the plain cut. `prior`: the
    weight W0 to stay near, None for the cut's. `widened`: give every output the spread of its target back, where that
    is still better than the plain cut and than the prior with its bias refitted.

    Where nothing is held out, nothing is chosen: the plain cut, with its error on `train`."""
    if not held.count:
        error = train.error(cut, bias) / max(float(train.variance.sum()), 1e-30)
        return Solution(cut, bias, None, error, error)
    given, prior = None if fit_bias else bias, cut if prior is None else prior
    plain = held.error(cut, bias)
    equations = Equations.of(train, given)
    shifted = held.error(prior, equations.intercept(prior))
    best, after, chosen = None, plain if np.isfinite(plain) else np.inf, prior
    if shifted < after:
        best, after = 0.0, shifted
    for ridge in GRID:
        weight = equations.fit(prior, ridge)
        error = held.error(weight, equations.intercept(weight))
        if error < after:
            best, after, chosen = ridge, error, weight
    if best is not None and widened:
        wide = chosen * equations.widening(chosen)
        error = held.error(wide, equations.intercept(wide))
        widened = error < min(plain, shifted, float(held.variance.sum()))
        after = error if widened else after
    del equations  # as large as the moments
    whole = train.plus(held)
    scale = max(float(whole.variance.sum()), 1e-30)
    if best is None:
        return Solution(cut, bias, None, plain / scale, plain / scale)
    both = Equations.of(whole, given)
    del whole
    weight = both.fit(prior, best) if best else prior
    if widened:
        weight = weight * both.widening(weight)
    return Solution(weight, both.intercept(weight), best, plain / scale, after / scale)


def requantized(train: Moments, held: Moments, plain: tuple[Float, Float], found: Solution) -> Solution:
    """`found`, whose weight was rounded, with its bias to go with it; `plain` (weight and bias of the cut), where that
    is no worse on held-out columns."""
    bias = _intercept(train, found.weight)
    error, before = held.error(found.weight, bias), held.error(*plain)
    whole = train.plus(held)
    scale = max(float(whole.variance.sum()), 1e-30)
    if error >= before:
        return Solution(*plain, None, before / scale, before / scale)
    return Solution(found.weight, _intercept(whole, found.weight), found.ridge, before / scale, error / scale)


def _intercept(columns: Moments | Equations, weight: Float) -> Float:
    """The bias that makes the mean error zero."""
    mean: Float = (weight @ columns.mean_x[:, :, None])[:, :, 0]
    return columns.mean_y - mean


@dataclass(frozen=True)
class Equations:
    """The normal equations of one set of columns: X X^T, Y X^T and the mean of y^2, about the means, or, where the bias
    (groups, o) is given, of x and y - bias about zero."""

    xx: Float
    yx: Float
    yy: Float
    mean_x: Float
    mean_y: Float
    bias: Float | None

    @classmethod
    def of(cls, moments: Moments, bias: Float | None) -> Equations:
        """`bias` None: it is fitted."""
        xx, yx, yy = moments.covariance(bias is None)
        if bias is not None:
            yx = yx - bias[:, :, None] * moments.mean_x[:, None, :]
            yy = yy - 2 * bias * moments.mean_y + bias * bias
        return cls(xx, yx, yy, moments.mean_x, moments.mean_y, bias)

    def fit(self, prior: Float, ridge: float) -> Float:
        """W = (Y X^T + lambda W0) (X X^T + lambda I)^-1, lambda = ridge * mean diagonal, group by group."""
        return np.stack([_fit(a, b, w, ridge) for a, b, w in zip(self.xx, self.yx, prior, strict=True)])

    def intercept(self, weight: Float) -> Float:
        """The bias: as given, or that which makes the mean error zero."""
        if self.bias is not None:
            return self.bias
        return _intercept(self, weight)

    def widening(self, weight: Float) -> Float:
        """Factors (groups, o, 1) that give W X the spread of Y.

        The best guess from inputs that say only a part R^2 of Y has R times its spread (regression dilution: W. Fuller,
        "Measurement Error Models", 1987). What is rare is said least of and shrinks most, and of classes the common one
        wins then: a recogniser of text leaves characters out.
        """
        own = np.einsum("god,god->go", weight @ self.xx, weight)
        found = np.divide(self.yy, own, out=np.ones_like(own), where=(own > 0) & (self.yy > 0))
        return np.asarray(np.clip(np.sqrt(found), 1 / MOST, MOST)[:, :, None], np.float64)


def _fit(xx: Float, yx: Float, prior: Float, ridge: float) -> Float:
    mean = float(np.trace(xx)) / len(xx)
    if mean <= 0:
        return prior
    added, diagonal = ridge * mean, xx.diagonal().copy()
    xx[np.diag_indices_from(xx)] += added  # in place: a copy may be hundreds of megabytes
    weight = np.linalg.solve(xx, (yx + added * prior).T).T
    xx[np.diag_indices_from(xx)] = diagonal
    return np.asarray(weight, np.float64)


class Refit:
    """Solves for changing targets y over the same inputs: the system is inverted once. As `Equations.fit` otherwise."""

    def __init__(self, moments: Moments, prior: Float, ridge: float) -> None:
        self.moments, self.prior = moments, prior
        system = moments.covariance()[0]
        mean = np.trace(system, axis1=1, axis2=2) / system.shape[1]
        self.diagonal = np.where(mean > 0, ridge * mean, 1.0)[:, None, None]
        index = np.arange(system.shape[1])
        system[:, index, index] += self.diagonal[:, 0]
        for matrix in system:
            invert(matrix)
        self.inverse = system

    def solve(self, y: Float, yx: Float) -> tuple[Float, Float]:
        """Weight and bias for the sums `y` (groups, o) and `yx` (groups, o, d), about the shifts of the moments."""
        m = self.moments
        n = max(m.count, 1)
        mixed = yx / n - (y / n)[:, :, None] * (m.x / n)[:, None, :]
        weight: Float = (mixed + self.diagonal * self.prior) @ self.inverse
        mean: Float = (weight @ m.mean_x[:, :, None])[:, :, 0]
        return weight, m.shift_y + y / n - mean


def invert(matrix: Float) -> None:
    """Replace a symmetric positive definite matrix (d, d) by its inverse, block by block (Schur complements): in little
    more memory than its own."""
    size = len(matrix)
    if size <= LEAF:
        matrix[...] = np.linalg.inv(matrix)
        return
    half = size // 2
    first, across, last = matrix[:half, :half], matrix[:half, half:], matrix[half:, half:]
    invert(first)
    mixed = first @ across
    last -= across.T @ mixed
    invert(last)
    across[...] = mixed @ last
    first += across @ mixed.T
    across *= -1
    matrix[half:, :half] = across.T
