"""Images changed at random: put together of pieces of several, moved, zoomed, brighter or darker.

What the original gives for them is the target, so they need not look like anything; they need to show what the layers
see in other contexts. Putting pieces together as in S. Yun et al., "CutMix" (2019), without labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.records import Feed

Array = npt.NDArray[Any]

PIECES = 0.5
"""Share of the images that are put together of pieces, those of one batch."""
LOWEST = 8
"""Pixels that images with pieces are high, at least."""
ZOOM, ZOOMED = 1.25, 0.5
"""Largest zoom either way, and the share of the images that are zoomed."""
SHIFT = 0.1
"""Largest shift as a share of the size, at most `FARTHEST` pixels."""
FARTHEST = 16
GAIN, OFFSET = 0.3, 0.4
"""Contrast by 1 +- GAIN, brightness by +- OFFSET deviations, channel by channel."""


def is_image(array: Array) -> bool:
    """Whether an array is images: (n, 1 or 3, h, w) of floats."""
    return array.ndim == 4 and array.shape[1] in (1, 3) and array.dtype.kind == "f"


def augment(feed: Feed, random: np.random.Generator) -> Feed:
    """The feed with every image (n, 1 or 3, h, w) changed, no value beyond those of the feed; the rest as it is."""
    return {name: _augmented(array, random) if is_image(array) else array for name, array in feed.items()}


def _augmented(images: Array, random: np.random.Generator) -> Array:
    n, channels = images.shape[:2]
    whole = [_of_pieces(images, random) if random.random() < PIECES else image for image in images]
    moved = np.stack([_moved(image, ZOOM if random.random() < ZOOMED else 1.0, random) for image in whole])
    gain = random.uniform(1 - GAIN, 1 + GAIN, (n, channels, 1, 1))
    offset = random.uniform(-OFFSET, OFFSET, (n, channels, 1, 1)) * float(images.std(dtype=np.float64))
    return np.asarray(np.clip(moved * gain + offset, images.min(), images.max()), images.dtype)


def _of_pieces(images: Array, random: np.random.Generator) -> Array:
    """One image (channels, h, w): strips of any of `images`, a third to four thirds as wide as high, side by side; one
    of them whole where they are lower than `LOWEST`."""
    height, width = images.shape[2:]
    if height < LOWEST:
        return np.asarray(images[random.integers(len(images))])
    parts, filled = [], 0
    while filled < width:
        size = min(width - filled, int(random.integers(max(1, height // 3), max(2, 4 * height // 3))))
        at = int(random.integers(0, width - size + 1))
        parts.append(images[random.integers(len(images)), :, :, at : at + size])
        filled += size
    return np.concatenate(parts, axis=2)


def _moved(image: Array, most: float, random: np.random.Generator) -> Array:
    """An image (channels, h, w) shifted by whole pixels and zoomed by up to `most` along both axes, its edges repeated,
    by linear interpolation."""
    image = image.astype(np.promote_types(image.dtype, np.float32))
    for axis in (1, 2):
        size = image.shape[axis]
        reach = min(int(size * SHIFT), FARTHEST)
        zoom, shift = most ** random.uniform(-1, 1), int(random.integers(-reach, reach + 1))
        middle = (size - 1) / 2
        at = np.clip((np.arange(size) - middle) / zoom + middle + shift, 0, size - 1)
        low = at.astype(int)
        share = (at - low).astype(np.float32)
        share = share[:, None] if axis == 1 else share
        above = np.take(image, np.minimum(low + 1, size - 1), axis)
        image = np.take(image, low, axis) * (1 - share) + above * share
    return image
