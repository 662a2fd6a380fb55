"""Cheaper criteria from the second moments of what consumers read.

variance   sum over inputs of the channel of Var(x); E x^2 where the consumer has no bias
wanda      sum of |w| * sqrt(E x^2)  (Sun et al., "A Simple and Effective Pruning Approach for
               Large Language Models", 2023); x about its mean where the consumer has a bias, which takes the mean up
pca        share of the channel in the leading components: its leverage diag((H + lambda I)^-1 H),
               as in column subset selection
apoz       share of the inputs that are not zero: one less the average percentage of zeros
               (Hu et al., "Network Trimming", 2016)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.criteria.obs import Consumer, Path

Float = npt.NDArray[np.float64]


def variance(consumer: Consumer) -> Float:
    """Second moment of the inputs, float64 (n,)."""
    return np.asarray(np.diagonal(consumer.gram)[consumer.positions].sum(1))


def wanda(consumer: Consumer) -> Float:
    """Weight magnitude times the root of the inputs' second moment, float64 (n,)."""
    size = np.sqrt(np.maximum(np.diagonal(consumer.gram), 0))
    return np.asarray((np.abs(consumer.weight).sum(0) * size)[consumer.positions].sum(1))


def pca(consumer: Consumer) -> Float:
    """Leverage of the inputs at a tenth of the mean variance, float64 (n,)."""
    h = consumer.gram
    system = h + np.eye(len(h)) * max(0.1 * float(np.trace(h)) / len(h), 1e-12)
    return np.asarray(np.diagonal(np.linalg.solve(system, h))[consumer.positions].sum(1))


def apoz(consumer: Consumer) -> Float:
    """How often the channel is not zero, float64 (n,)."""
    if consumer.active is None:
        raise ValueError("the share of zeros was not counted")
    return np.asarray(consumer.active[consumer.positions].mean(1))


CRITERIA: dict[str, Callable[[Consumer], Float]] = {"variance": variance, "wanda": wanda, "pca": pca, "apoz": apoz}


def path(consumers: Sequence[Consumer], size: int, criterion: str) -> Path:
    """Removal by rising score; each consumer's scores count as shares of its total."""
    total = np.zeros(size)
    for consumer in consumers:
        found = CRITERIA[criterion](consumer)
        total += found / max(float(found.sum()), 1e-30)
    order = np.argsort(total, kind="stable")[: size - 1]
    return Path(order, np.concatenate([[0.0], np.cumsum(total[order])]))
