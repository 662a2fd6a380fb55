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
    """One consumer while indices are removed: a Cholesky factor of the inverse Gram matrix, its pivots the removed
    indices, `done` columns so far. `blocks`: what is left of the inverse between the inputs of each index, (n, s, s);
    `weight`: refitted so far."""

    def __init__(self, consumer: Consumer) -> None:
        gram = consumer.gram + np.eye(len(consumer.gram)) * max(
            RIDGE * float(np.trace(consumer.gram)) / len(consumer.gram), 1e-12
        )
        self.inverse = np.linalg.inv(gram)
        self.factor = np.empty(gram.shape, order="F")
        self.done = 0
        self.weight = consumer.weight.copy()
        self.positions = at = consumer.positions
        self.blocks = self.inverse[at[:, :, None], at[:, None, :]]
        self.scale = consumer.scale

    def prices(self, left: Index) -> Float:
        """What removing each of the indices `left`, alone, would cost."""
        w = np.moveaxis(self.weight[:, self.positions[left]], 1, 0)
        moments = np.matmul(w.transpose(0, 2, 1), w)
        errors: Float = np.trace(np.linalg.solve(self.blocks[left], moments), axis1=1, axis2=2)
        return errors / self.scale

    def remove(self, taken: Index) -> Float:
        """Remove these indices one after the other, in place, and refit the rest; what each of them cost."""
        s = self.positions[taken].reshape(-1)
        before = self.factor[:, : self.done]
        panel = self.inverse[:, s] - before @ before[s].T
        inner = np.linalg.cholesky((panel[s] + panel[s].T) / 2)
        new = np.linalg.solve(inner, panel.T).T
        # The squares of inner^-1 w add up, index by index, to the cost of each removal after the last.
        w = np.linalg.solve(inner, self.weight[:, s].T)
        self.weight -= w.T @ new.T
        self.weight[:, s] = 0
        parts = new[self.positions]
        self.blocks -= parts @ parts.transpose(0, 2, 1)
        self.factor[:, self.done : self.done + len(s)] = new
        self.done += len(s)
        prices: Float = np.square(w).reshape(len(taken), -1).sum(1)
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
