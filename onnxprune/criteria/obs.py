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
    its squared errors, so that several consumers can be added up; `active` (d,): share of each input that is not zero,
    where that is known."""

    weight: Float
    gram: Float
    positions: Index
    scale: float
    active: Float | None = None


@dataclass(frozen=True)
class Path:
    """The order of removal int (n - 1,), and the cost after each removal (n,), beginning with 0 for none removed."""

    order: Index
    cost: Float


RIDGE = 1e-3
EXCHANGES = 8
LARGEST_EXCHANGE = 1200
"""Inputs of a consumer up to which removed indices are exchanged for kept ones, at so many shares of the way."""
POOL = 4
"""Candidates looked at for every index that is removed between two updates of the whole matrices."""


def removal_path(consumers: Sequence[Consumer], size: int, *, least: int = 1, chunk: int = 1) -> Path:
    """Remove indices greedily until `least` are left.

    The whole matrices are updated once for `chunk` indices, which are chosen one by one, with exact updates, among the
    cheapest `POOL` times as many. At every eighth of the way, removed indices are exchanged for kept ones as long as
    that lowers the cost, so the order up to there is one set, in no order of its own.
    """
    states: Sequence[_State] = [_State.of(c) for c in consumers]
    alive = np.ones(size, bool)
    order: list[int] = []
    cost = [0.0]
    exchanges = iter(sorted({round(size * k / EXCHANGES) for k in range(1, EXCHANGES)} - {0}))
    due = next(exchanges, size)
    while alive.sum() > least:
        if len(order) >= due and all(len(c.gram) <= LARGEST_EXCHANGE for c in consumers):
            due = next((d for d in exchanges if d > len(order)), size)
            states, order, lower = _exchanged(states, order, cost[-1])
            cost[-1] = max(cost[-2], lower)
            alive = ~np.isin(np.arange(size), order)
        left = np.flatnonzero(alive)
        count = min(chunk, len(left) - least)
        pool = left[np.argsort(_prices(states, left), kind="stable")[: POOL * count if count > 1 else 1]]
        taken = pool[_cheapest([s.within(pool) for s in states], len(pool), count)]
        prices = np.sum([s.remove(taken) for s in states], axis=0) if states else np.zeros(len(taken))
        cost.extend(cost[-1] + np.cumsum(prices))
        alive[taken] = False
        order.extend(int(i) for i in taken)
    return Path(np.asarray(order, np.int64), np.asarray(cost))


def _exchanged(states: Sequence[_State], order: list[int], cost: float) -> tuple[Sequence[_State], list[int], float]:
    """The states, the removed indices and their cost after taking back, one at a time, the removed index that helps
    most, and removing in its place the cheapest one, while that gains anything."""
    for _ in range(len(order)):
        gains = np.sum([s.gains(np.asarray(order)) for s in states], axis=0) if states else np.zeros(len(order))
        back = int(np.argmax(gains))
        rest = np.asarray(order[:back] + order[back + 1 :], np.int64)
        fresh = [s.anew() for s in states]
        before = sum(float(s.remove(rest).sum()) for s in fresh) if len(rest) else 0.0
        left = np.setdiff1d(np.arange(len(states[0].positions)) if states else rest, rest)
        prices = _prices(fresh, left)
        taken = int(left[np.argmin(prices)]) if len(left) else order[back]
        after = before + float(prices.min()) if len(left) else cost
        if taken == order[back] or not after < cost * (1 - 1e-9):
            break
        for s in fresh:
            s.remove(np.array([taken]))
        states, order, cost = fresh, [*rest.tolist(), taken], after
    return states, order, cost


def _cheapest(states: Sequence[_State], size: int, count: int) -> Index:
    """The `count` of `size` indices that are the cheapest one after the other; removes them from the states."""
    rest = list(range(size))
    taken: list[int] = []
    while len(taken) < count:
        index = rest.pop(int(np.argmin(_prices(states, np.asarray(rest)))))
        taken.append(index)
        for s in states:
            s.remove(np.array([index]))
    return np.asarray(taken, np.int64)


def _prices(states: Sequence[_State], left: Index) -> Float:
    """What removing each of `left`, alone, would cost all consumers together."""
    return np.asarray(np.sum([s.prices(left) for s in states], axis=0) if states else np.zeros(len(left)), np.float64)


class _State:
    """One consumer while indices are removed: a Cholesky factor of the inverse Gram matrix, its pivots the removed
    indices, `done` columns so far. `blocks`: what is left of the inverse between the inputs of each index, (n, s, s);
    `weight`: refitted so far."""

    def __init__(self, inverse: Float, weight: Float, positions: Index, scale: float) -> None:
        self.inverse, self.weight, self.positions, self.scale = inverse, weight, positions, scale
        self.original = weight.copy()
        self.factor = np.empty(inverse.shape, order="F")
        self.done = 0
        self.blocks = inverse[positions[:, :, None], positions[:, None, :]]

    @classmethod
    def of(cls, consumer: Consumer) -> _State:
        """All indices, none removed."""
        gram = consumer.gram + np.eye(len(consumer.gram)) * max(
            RIDGE * float(np.trace(consumer.gram)) / len(consumer.gram), 1e-12
        )
        inverse = np.asarray(np.linalg.inv(gram), np.float64)
        return cls(inverse, consumer.weight.copy(), consumer.positions, consumer.scale)

    def anew(self) -> _State:
        """The state before any was removed."""
        return _State(self.inverse, self.original.copy(), self.positions, self.scale)

    def within(self, indices: Index) -> _State:
        """The part about these indices alone; among them its updates are those of the whole."""
        at = self.positions[indices]
        flat = at.reshape(-1)
        before = self.factor[flat, : self.done]
        inverse = self.inverse[np.ix_(flat, flat)] - before @ before.T
        return _State(inverse, self.weight[:, flat], np.arange(len(flat)).reshape(at.shape), self.scale)

    def prices(self, left: Index) -> Float:
        """What removing each of the indices `left`, alone, would cost."""
        w = np.moveaxis(self.weight[:, self.positions[left]], 1, 0)
        moments = np.matmul(w.transpose(0, 2, 1), w)
        errors: Float = np.trace(np.linalg.solve(self.blocks[left], moments), axis1=1, axis2=2)
        return errors / self.scale

    def gains(self, removed: Index) -> Float:
        """By how much taking back each of the `removed` indices, alone, would lower the cost.

        What the kept inputs leave unexplained of the removed ones has the covariance [(H^-1)_SS]^-1.
        """
        at = self.positions[removed]
        s = at.reshape(-1)
        left = np.linalg.inv(self.inverse[np.ix_(s, s)])
        own = np.arange(len(s)).reshape(at.shape)
        missed = np.moveaxis((self.original[:, s] @ left)[:, own], 1, 0)
        moments = np.matmul(missed.transpose(0, 2, 1), missed)
        found: Float = np.trace(np.linalg.solve(left[own[:, :, None], own[:, None, :]], moments), axis1=1, axis2=2)
        return found / self.scale

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
