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
    joined, windows, time first): then whole batches are held out, as no item may be on both sides.
    """

    rows: Sequence[int]

    @classmethod
    def of(cls, feeds: Sequence[Feed]) -> Holdout:
        """For the batches `feeds`."""
        return cls([max((len(a) for a in feed.values() if a.ndim), default=1) for feed in feeds])

    def mask(self, batch: int, items: int, positions: int) -> npt.NDArray[np.bool_]:
        """Bool (items, positions) of a tensor of a batch, with so many items along its first axis."""
        batch %= len(self.rows)
        if len(self.rows) == 1 and (items != self.rows[0] or items < HELD_OUT):
            return self._blocks(items, positions)
        chosen = self.items(batch) if items == self.rows[batch] else np.full(items, self.is_held(batch))
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
        """Parts of one batch without enough items."""
        if items >= HELD_OUT:
            block = np.arange(items) * 4 * HELD_OUT // items % HELD_OUT == HELD_OUT - 1
            return np.broadcast_to(block[:, None], (items, positions))
        block = np.arange(positions) * 4 * HELD_OUT // max(positions, 1) % HELD_OUT == HELD_OUT - 1
        return np.broadcast_to(block, (items, positions))
