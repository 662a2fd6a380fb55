"""Changed copies of few images."""

from __future__ import annotations

import numpy as np

from onnxprune import augmentation
from onnxprune.records import Feed


def images(count: int = 4, height: int = 12, width: int = 40) -> Feed:
    """Images that each have one value everywhere, so that the pieces of one tell which image they are from."""
    values = np.arange(1, count + 1, dtype=np.float32)
    return {"x": np.broadcast_to(values[:, None, None, None], (count, 3, height, width)).copy()}


def test_copies_have_the_shape_type_and_range_of_the_images() -> None:
    feed = {"x": np.random.default_rng(0).normal(size=(5, 3, 9, 20)).astype(np.float32)}
    for seed in range(5):
        found = augmentation.augment(feed, np.random.default_rng(seed))["x"]
        assert found.shape == feed["x"].shape and found.dtype == np.float32
        assert feed["x"].min() <= found.min() and found.max() <= feed["x"].max()
        assert not np.array_equal(found, feed["x"])


def test_half_precision_images_do_not_overflow() -> None:
    feed = {"x": np.random.default_rng(0).random((2, 3, 224, 224)).astype(np.float16)}
    found = augmentation.augment(feed, np.random.default_rng(0))["x"]
    assert found.dtype == np.float16 and found.std(dtype=np.float64) > 0.05


def test_low_images_are_not_cut_into_pieces() -> None:
    feed = images(height=2)
    found = [augmentation._of_pieces(feed["x"], np.random.default_rng(seed)) for seed in range(8)]
    assert all(len(np.unique(image)) == 1 for image in found)


def test_pieces_of_several_images_lie_side_by_side() -> None:
    feed = images()
    random = np.random.default_rng(0)
    found = [augmentation._of_pieces(feed["x"], random) for _ in range(10)]
    assert all(image.shape == (3, 12, 40) for image in found)
    assert all((image == image[:1, :1]).all() for image in found)
    assert max(len(np.unique(image)) for image in found) > 1


def test_without_zoom_an_image_moves_by_whole_pixels() -> None:
    image = np.random.default_rng(0).normal(size=(3, 30, 30)).astype(np.float32)
    found = augmentation._moved(image, 1.0, np.random.default_rng(1))
    padded = np.pad(image, [(0, 0), (3, 3), (3, 3)], mode="edge")
    windows = [padded[:, y : y + 30, x : x + 30] for y in range(7) for x in range(7)]
    assert any(np.array_equal(found, window) for window in windows)
