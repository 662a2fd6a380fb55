"""Structured optimal brain surgeon: which channels can the consumers spare, once their other weights make up for it?

For a consumer y = W x with Gram matrix H = E[x x^T], removing the inputs S and refitting the rest costs

    tr( W_S [(H^-1)_SS]^-1 W_S^T )

in squared error (Hassibi and Stork, "Optimal Brain Surgeon", 1993; structured as in Kurtic et al.,
"ZipLM", 2023). After each removal W and H^-1 are updated by their Schur complements, so the next costs are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Consumer:
    """What one linear operator needs of a group: `weight` (o, d), `gram` (d, d) of its inputs (about their mean where
    the bias is refitted), `positions` int (n, s): the inputs that belong to each index of the group. `scale` divides
    its squared errors, so that several consumers can be added up."""

    weight: Float
    gram: Float
    positions: Index
    scale: float


@dataclass(frozen=True)
class Path:
    """The order of removal int (n - 1,), and the cost after each removal (n,), beginning with 0 for none removed."""

    order: Index
    cost: Float


RIDGE = 1e-3


def removal_path(consumers: Sequence[Consumer], size: int, *, least: int = 1, chunk: int = 1) -> Path:
    """Remove indices greedily until `least` are left; `chunk` at a time between updates."""
    states = [_State(c) for c in consumers]
    alive = np.ones(size, bool)
    order: list[int] = []
    cost = [0.0]
    while alive.sum() > least:
        left = np.flatnonzero(alive)
        prices = np.sum([s.prices(left) for s in states], axis=0) if states else np.zeros(len(left))
        taken = left[np.argsort(prices, kind="stable")[: min(chunk, len(left) - least)]]
        prices = np.sum([s.remove(taken) for s in states], axis=0) if states else np.zeros(len(taken))
        cost.extend(cost[-1] + np.cumsum(prices))
        alive[taken] = False
        order.extend(int(i) for i in taken)
    return Path(np.asarray(order, np.int64), np.asarray(cost))


class _State:
    """One consumer while indices are removed: the inverse Gram matrix and the weight, both refitted so far."""

    def __init__(self, consumer: Consumer) -> None:
        gram = consumer.gram + np.eye(len(consumer.gram)) * max(
            RIDGE * float(np.trace(consumer.gram)) / len(consumer.gram), 1e-12
        )
        self.inverse = np.linalg.inv(gram)
        self.weight = consumer.weight.copy()
        self.positions = consumer.positions
        self.scale = consumer.scale

    def prices(self, left: Index) -> Float:
        """What removing each of the indices `left`, alone, would cost."""
        at = self.positions[left]
        blocks = self.inverse[at[:, :, None], at[:, None, :]]
        w = np.moveaxis(self.weight[:, at], 1, 0)
        moments = np.matmul(w.transpose(0, 2, 1), w)
        errors: Float = np.trace(np.linalg.solve(blocks, moments), axis1=1, axis2=2)
        return errors / self.scale

    def remove(self, taken: Index) -> Float:
        """Remove these indices one after the other, in place, and refit the rest; what each of them cost."""
        s = self.positions[taken].reshape(-1)
        inner = self.inverse[np.ix_(s, s)]
        # With inner = L L^T the squares of L^-1 w add up, index by index, to the cost of each removal after the last.
        lower = np.linalg.cholesky((inner + inner.T) / 2)
        w = np.linalg.solve(lower, self.weight[:, s].T)
        prices: Float = np.square(w).reshape(len(taken), -1).sum(1)
        factor = np.linalg.solve(inner, self.inverse[s])
        self.weight -= self.weight[:, s] @ factor
        self.inverse -= self.inverse[:, s] @ factor
        # The removed rows are zero up to rounding; one on the diagonal keeps later blocks regular.
        self.inverse[s, :] = 0
        self.inverse[:, s] = 0
        self.inverse[s, s] = 1
        self.weight[:, s] = 0
        return prices / self.scale


def refit(weight: Float, gram: Float, kept: Index, ridge: float = RIDGE) -> Float:
    """The weight (o, d) that imitates `weight` best with the inputs `kept` alone; zero elsewhere."""
    result = np.zeros_like(weight)
    inner = gram[np.ix_(kept, kept)].copy()
    mean = max(float(np.trace(gram)) / len(gram), 1e-12)
    inner[np.diag_indices_from(inner)] += ridge * mean
    right = weight @ gram[:, kept] + ridge * mean * weight[:, kept]
    result[:, kept] = np.linalg.solve(inner, right.T).T
    return result
