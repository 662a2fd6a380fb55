"""What is held out of a fit: whole items, on one side only."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.holdout import HELD_OUT, Holdout


def test_every_fifth_item_across_batches() -> None:
    holdout = Holdout([4, 4, 4])
    held = np.concatenate([holdout.mask(b, 4, 3) for b in range(3)])
    assert held.shape == (12, 3)
    assert np.flatnonzero(held.all(1)).tolist() == [4, 9]
    assert (held.all(1) == held.any(1)).all()


@pytest.mark.parametrize("items", [8, 6, 2])
def test_a_tensor_whose_first_axis_is_no_items_is_held_out_by_the_batch(items: int) -> None:
    """Two sequences of four steps joined, windows, time first: what belongs together stays on one side."""
    holdout = Holdout([4] * 6)
    masks = [holdout.mask(b, items, 5) for b in range(6)]
    assert [bool(m.all()) for m in masks] == [b == HELD_OUT - 1 for b in range(6)]
    assert [bool(m.any()) for m in masks] == [b == HELD_OUT - 1 for b in range(6)]


def test_copies_are_on_the_side_of_their_originals() -> None:
    holdout = Holdout([7, 6, 7])
    for batch, items in enumerate((7, 6, 7)):
        np.testing.assert_array_equal(holdout.mask(batch, items, 2), holdout.mask(batch + 3, items, 2))
        assert holdout.is_held(batch) == holdout.is_held(batch + 3)


@pytest.mark.parametrize(("rows", "items", "positions"), [([2], 2, 100), ([1], 1, 40), ([3], 60, 1)])
def test_of_a_single_small_batch_parts_are_held_out(rows: list[int], items: int, positions: int) -> None:
    held = Holdout(rows).mask(0, items, positions)
    assert held.shape == (items, positions)
    assert 0.1 < held.mean() < 0.3


@pytest.mark.parametrize(("items", "positions", "held"), [(2, 1, 1), (4, 3, 3), (1, 4, 0), (1, 5, 1)])
def test_of_very_few_columns_the_last_item_is_held_out(items: int, positions: int, held: int) -> None:
    assert Holdout([items]).mask(0, items, positions).sum() == held


def test_where_the_first_axis_counts_steps_whole_batches_are_held_out() -> None:
    """A batch of 7 steps of 3 sequences: no step of a sequence may judge a fit to the others."""
    holdout = Holdout.of([{"x": np.zeros((7, 3, 2))}] * 5, steps_first=True)
    masks = [holdout.mask(b, 7, 3) for b in range(5)]
    assert [bool(m.all()) for m in masks] == [bool(m.any()) for m in masks] == [False] * 4 + [True]
    assert 0 < Holdout([40], steps_first=True).mask(0, 40, 3).mean() < 0.5


def test_of_two_items_one_is_held_out() -> None:
    holdout = Holdout([1, 1])
    assert [bool(holdout.mask(b, 1, 7).all()) for b in range(2)] == [False, True]
    assert [holdout.items(b).tolist() for b in range(2)] == [[False], [True]]
