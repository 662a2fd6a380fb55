"""Calibration data: read, checked against the inputs of the model, cut into batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle import model

from onnxprune import UsageError, calibration

MODEL = "(float[N,4] x, int64[N,2] i) => (float[N,3] y) <float[4,3] w> { y = MatMul(x, w) }"


def _feed(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    feed = {"x": np.ones((3, 4), np.float32), "i": np.zeros((3, 2), np.int64), **changes}
    return {name: array for name, array in feed.items() if array is not None}


def test_arrays_of_other_names_are_left_out() -> None:
    (found,) = calibration.fitting([_feed(labels=np.arange(3))], model(MODEL))
    assert sorted(found) == ["i", "x"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "input 'x' has no array; the file has"),
        ({"x": np.ones((3, 4))}, "input 'x' takes float32, and the array is float64"),
        ({"x": np.ones((3, 5), np.float32)}, r"input 'x' has the axes \(\?, 4\), and the array \(3, 5\)"),
        ({"x": np.ones(4, np.float32)}, r"has the axes \(\?, 4\), and the array \(4,\)"),
        ({"x": np.ones((0, 4), np.float32)}, "without a single element"),
        ({"x": np.full((3, 4), np.nan, np.float32)}, "NaN or infinite"),
    ],
    ids=["missing", "type", "size", "rank", "empty", "nan"],
)
def test_what_does_not_fit_is_named(changes: dict[str, np.ndarray | None], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        calibration.fitting([_feed(**changes)], model(MODEL))


def test_the_feed_is_named_where_there_are_several() -> None:
    with pytest.raises(UsageError, match=r"feed 2 of 2\): input 'x' has no array"):
        calibration.fitting([_feed(), _feed(x=None)], model(MODEL))


def test_a_folder_is_read_in_name_order(tmp_path: Path) -> None:
    for k in (2, 1):
        np.savez(tmp_path / f"{k}.npz", x=np.full((1, 4), k, np.float32))
    assert [f["x"][0, 0] for f in calibration.load(tmp_path)] == [1, 2]


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    for name, message in (("a.npy", "a single array"), ("text.npz", "not a .npz"), ("objects.npz", "cannot be read")):
        with pytest.raises(UsageError, match=message):
            calibration.load(tmp_path / name)


def test_batches_have_the_fixed_size_or_at_most_32_rows() -> None:
    feed = {"x": np.arange(70, dtype=np.float32).reshape(70, 1)}
    assert [len(f["x"]) for f in calibration.batches([feed], None, 1000)] == [32, 32, 6]
    assert [len(f["x"]) for f in calibration.batches([feed], 20, 1000)] == [20, 20, 20]
    assert sum(len(f["x"]) for f in calibration.batches([feed], None, 40)) == 40
    with pytest.raises(UsageError, match="too few rows for the batch of 100"):
        calibration.batches([feed], 100, 1000)
