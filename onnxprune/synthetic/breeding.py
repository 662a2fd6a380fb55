"""Of images made up, those that a model tells apart: bred, round after round, by what its last layers make of them.

Images that look like nothing leave the deep layers of a network nearly still: their features vary by half of what they
do on data, and along few directions. What is chosen and fitted on such images spares what only data needs. So more are
made than wanted, those are kept that differ most in what enters the last linear operators, variations of these join
them, and so on. Those that differ most are chosen one after the other, as experiments are that say most of a linear
model of the features d (sequential D-optimal design: V. Fedorov, "Theory of Optimal Experiments", 1972),

    argmax  d^T (lambda I + sum of d d^T over those chosen)^-1 d        lambda: mean variance of the features
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxprune.synthetic import images
from onnxprune.synthetic.features import Rows

log = logging.getLogger(__name__)

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
FACTOR = 2
"""Candidates made in every round, for each item that is wanted."""
DIMENSIONS = 128
"""Features beyond so many are mixed at random into so many (Johnson and Lindenstrauss, 1984): distances stay."""
ROUNDS = 10
"""Rounds, at most."""


def affordable(values: int, limit: float) -> int:
    """In how many rounds so many values of images are bred where `limit` values may be looked at; -1: not at all."""
    return min(ROUNDS, int(limit / (FACTOR * max(values, 1))) - 1)


def distinct(features: Float, count: int) -> Index:
    """The numbers of the `count` rows of `features` (n, d) that differ most from the mean and from one another; rows
    with values that are no numbers come last."""
    finite = np.asarray(np.isfinite(features).all(1), np.bool_)
    if finite.sum() < count:
        return np.argsort(~finite, kind="stable")[:count]
    features = np.where(finite[:, None], features - features[finite].mean(0), 0)
    spread = float(np.square(features).mean()) or 1.0
    inverse = np.eye(features.shape[1]) / spread
    worth = np.where(finite, np.square(features).sum(1) / spread, -np.inf)
    chosen: list[int] = []
    for _ in range(count):
        best = int(np.argmax(worth))
        chosen.append(best)
        along = inverse @ features[best]
        scale = 1 + float(features[best] @ along)
        inverse -= np.outer(along, along) / scale
        worth -= np.square(features @ along) / scale
        worth[best] = -np.inf
    return np.asarray(chosen, np.int64)


def bred(
    random: np.random.Generator,
    population: Rows,
    picture: str,
    rows: int,
    rounds: int,
    describe: Callable[[Rows], Float],
) -> Rows:
    """`rows` items, in no order: the most distinct of the population and, after each of so many rounds, of these and
    their variations. `picture`: the input that is an image; the others are those of the item that is varied."""
    told = describe(population)
    mixed = random.standard_normal((told.shape[1], DIMENSIONS)) if told.shape[1] > DIMENSIONS else None
    for number in range(rounds + 1):
        chosen = distinct(told if mixed is None else told @ mixed, rows)
        population, told = _at(population, chosen), told[chosen]
        log.info("bred %d rounds: variance of the features %.4g", number, float(np.nansum(told.var(0))))
        if number == rounds:
            break
        young = varied(random, population, picture, FACTOR * rows)
        told = np.concatenate([told, describe(young)])
        population = {name: np.concatenate([array, young[name]]) for name, array in population.items()}
    return _at(population, random.permutation(rows))


def _at(population: Rows, numbers: Index) -> Rows:
    return {name: array[numbers] for name, array in population.items()}


def varied(random: np.random.Generator, population: Rows, picture: str, count: int) -> Rows:
    """So many variations of items, with pieces of others."""
    size = len(population[picture])
    one, other = random.integers(size, size=count), random.integers(size, size=count)
    result = {name: array[one] for name, array in population.items()}
    for k in range(count):
        result[picture][k] = images.varied(random, result[picture][k], population[picture][other[k]])
    return result
