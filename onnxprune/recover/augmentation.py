"""More inputs from few: images moved a little, brighter or darker. What the original gives for them is the target."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.records import Feed

Array = npt.NDArray[Any]


def is_image(array: Array) -> bool:
    """Whether an array is images: (n, 1 or 3, h, w) of floats."""
    return array.ndim == 4 and array.shape[1] in (1, 3) and array.dtype.kind == "f"


def augment(feed: Feed, random: np.random.Generator) -> Feed:
    """Images (n, 1 or 3, h, w) shifted by up to a tenth, contrast and brightness moved per channel; the rest as is."""
    result = {}
    for name, array in feed.items():
        result[name] = _augmented(array, random) if is_image(array) else array
    return result


def _augmented(images: Array, random: np.random.Generator) -> Array:
    n, channels, height, width = images.shape
    reach = (min(height // 10, 16), min(width // 10, 16))
    padded = np.pad(images, [(0, 0), (0, 0), (reach[0],) * 2, (reach[1],) * 2], mode="edge")
    at = random.integers(0, [2 * reach[0] + 1, 2 * reach[1] + 1], (n, 2))
    moved = np.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, at, strict=True)])
    gain = random.uniform(0.7, 1.3, (n, channels, 1, 1))
    offset = random.uniform(-0.4, 0.4, (n, channels, 1, 1)) * float(images.std())
    return np.asarray(moved * gain + offset, images.dtype)
