"""Which indices of each group stay, given their scores and how many may."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.criteria.obs import Path
from onnxprune.records import Allocation, FloatArray, Plan, Removal


def select(scores: Mapping[str, FloatArray], allocation: Allocation) -> Plan:
    """Keep the highest scores of each group; of equal scores the lower index. Groups that keep all are left out."""
    kept = {}
    for name, count in allocation.counts.items():
        found = scores[name]
        if count < len(found):
            kept[name] = np.sort(np.argsort(-found, kind="stable")[:count])
    return Plan(kept)


def path(scores: FloatArray) -> Path:
    """The indices in the order in which `select` gives them up. The cost of each is its share of the squared scores: of
    the variance, if every index had as much of it as its weights say.
    """
    order = np.argsort(-scores, kind="stable")[::-1]
    squares = scores[order] ** 2
    gone = np.concatenate([[0.0], np.cumsum(squares)[:-1]]) / max(float(squares.sum()), 1e-30)
    return Path(order[:-1], gone)


def removal(scores: FloatArray) -> Removal:
    """The indices in the order of rising scores, and the damage of removing the first n: -log of the share of the
    scores that stays. Damages of several groups add up to that of the product of their shares.
    """
    order = np.argsort(scores, kind="stable")
    rising = np.maximum(scores[order], 0.0)
    total = float(rising.sum())
    gone = np.concatenate([[0.0], np.cumsum(rising)[:-1]]) / total if total > 0 else np.zeros(len(scores))
    even = np.arange(len(scores)) / len(scores)
    # Channels that are worth nothing cost nothing; a trace of their number keeps the order of groups determined.
    return Removal(order, -np.log(np.maximum(1.0 - gone, 1e-12)) - 1e-6 * np.log(1.0 - even))
