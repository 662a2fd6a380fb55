"""Which columns judge a fit, and which it is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.records import Feed

HELD_OUT = 5
"""Every fifth item is held out."""


@dataclass(frozen=True)
class Holdout:
    """Every fifth item of the first batches is held out, of which `rows` has the numbers of items; those after them are
    made from them, in the same order, and on the same side.

    A tensor has the items of its batch along its first axis, or nobody knows where they are (sequences that were
    joined, windows): then whole batches are held out, as no item may be on both sides. So they are of all tensors
    where the first axis of the inputs counts the steps of a sequence (`steps_first`).
    """

    rows: Sequence[int]
    steps_first: bool = False

    @classmethod
    def of(cls, feeds: Sequence[Feed], steps_first: bool = False) -> Holdout:
        """For the batches `feeds`."""
        return cls([max((len(a) for a in feed.values() if a.ndim), default=1) for feed in feeds], steps_first)

    def mask(self, batch: int, items: int, positions: int) -> npt.NDArray[np.bool_]:
        """Bool (items, positions) of a tensor of a batch, with so many items along its first axis."""
        batch %= len(self.rows)
        if len(self.rows) == 1 and (self.steps_first or items != self.rows[0] or items < HELD_OUT):
            return self._blocks(items, positions)
        has_items = items == self.rows[batch] and not self.steps_first
        chosen = self.items(batch) if has_items else np.full(items, self.is_held(batch))
        return np.broadcast_to(chosen[:, None], (items, positions))

    def items(self, batch: int) -> npt.NDArray[np.bool_]:
        """Which items of a batch are held out."""
        every = min(HELD_OUT, max(2, sum(self.rows)))
        first = sum(self.rows[:batch])
        return np.asarray(np.arange(first, first + self.rows[batch]) % every == every - 1, np.bool_)

    def is_held(self, batch: int) -> bool:
        """Whether a batch is held out as a whole."""
        every = min(HELD_OUT, max(2, len(self.rows)))
        return batch % len(self.rows) % every == every - 1

    @staticmethod
    def _blocks(items: int, positions: int) -> npt.NDArray[np.bool_]:
        """Parts of one batch without enough items: of the items where there are five, else of the positions, else the
        last item; nothing of one item with fewer than five positions."""
        if items >= HELD_OUT:
            return np.broadcast_to(_fifths(items)[:, None], (items, positions))
        if positions < HELD_OUT and items > 1:
            return np.broadcast_to(np.arange(items)[:, None] == items - 1, (items, positions))
        return np.broadcast_to(_fifths(positions), (items, positions))


def _fifths(count: int) -> npt.NDArray[np.bool_]:
    """Four blocks of consecutive numbers, a fifth of all; none of fewer than five."""
    return np.asarray(np.arange(count) * 4 * HELD_OUT // max(count, 1) % HELD_OUT == HELD_OUT - 1, np.bool_)
