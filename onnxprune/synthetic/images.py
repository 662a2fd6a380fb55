"""Images that look like nothing and have the statistics of photographs: float32 (n, channels, height, width) in [0, 1].

Dead leaves: shapes of one colour that hide each other, radius r with density proportional to r^-3, which makes the
image look alike at all scales (Ruderman, "Origins of scaling in natural images", 1997; Lee, Mumford and Huang,
"Occlusion models for natural images", 2001). 1/f noise: amplitude f^-a. Networks trained on such images alone learn
features that carry over to photographs (Baradad et al., "Learning to see by looking at noise", 2021).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Random = np.random.Generator
Size = tuple[int, int, int]
"""Channels, height, width."""

LEAVES, RADII = 150, (0.04, 0.5)
"""Shapes of one image; least and largest radius as shares of the shorter side, never below one pixel."""
FEWEST, MOST = 8, 300
SMALLEST, LARGEST = (0.02, 0.2), (0.3, 0.8)
"""Bounds of all that where images are as busy as they like."""
SLOPES = 0.5, 2.0
"""Least and largest exponent of the noise."""
ZOOMS, PIECES, GAINS, SHIFT = (-0.3, 0.7), (0.15, 0.5), (0.6, 1.6), 51.0
"""Of variations: logarithm of the zoom, radius of a piece as a share of the shorter side, contrast, brightness."""


def dead_leaves(random: Random, count: int, size: Size) -> Image:
    """Discs, boxes and triangles, painted one over the other; every image has a palette of its own."""
    return np.stack([_leaves(random, size, LEAVES, RADII) for _ in range(count)])


def scattered(random: Random, count: int, size: Size) -> Image:
    """The same with another number of shapes, and other radii, for every image: from a few large ones to a crowd."""
    found = []
    for _ in range(count):
        leaves = int(np.exp(random.uniform(np.log(FEWEST), np.log(MOST))))
        least, most = np.exp(random.uniform(*np.log(SMALLEST))), random.uniform(*LARGEST)
        found.append(_leaves(random, size, leaves, (float(least), float(most))))
    return np.stack(found)


def _leaves(random: Random, size: Size, leaves: int, radii: tuple[float, float]) -> Image:
    channels, height, width = size
    rows, columns = _grid(height, width)
    image = np.empty(size, np.float32)
    colours = _palette(random, channels, leaves + 1)
    image[:] = colours[-1][:, None, None]
    for k, (y, x, radius) in enumerate(_places(random, height, width, leaves, radii)):
        reach = 1.5 * radius + 1
        window = _window(y, reach, height), _window(x, reach, width)
        inside = _shape(random, rows[window] - y, columns[window] - x, radius)
        image[:, window[0], window[1]][:, inside] = colours[k][:, None]
    return image


@functools.lru_cache(maxsize=4)
def _grid(height: int, width: int) -> tuple[Image, Image]:
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return rows, columns


def _palette(random: Random, channels: int, count: int) -> Image:
    centre, spread = random.uniform(0.2, 0.8, channels), random.uniform(0.1, 0.5)
    return np.clip(centre + random.uniform(-spread, spread, (count, channels)), 0, 1).astype(np.float32)


def _places(random: Random, height: int, width: int, count: int, radii: tuple[float, float]) -> npt.NDArray[np.float64]:
    """(count, 3): centre (y, x), a little beyond the edges too, and radius."""
    side = min(height, width)
    least, most = max(1.0, radii[0] * side), max(1.5, radii[1] * side)
    radius = (most**-2 + (least**-2 - most**-2) * random.random(count)) ** -0.5
    places = random.uniform(-0.1, 1.1, (count, 2)) * (height, width)
    return np.column_stack([places, radius])


def _window(centre: float, reach: float, length: int) -> slice:
    return slice(min(length, max(0, int(centre - reach))), max(0, min(length, int(centre + reach) + 2)))


def _shape(random: Random, dy: Image, dx: Image, radius: float) -> npt.NDArray[np.bool_]:
    kind, angle, flatness = random.integers(3), random.uniform(0, np.pi), random.uniform(0.15, 1)
    if kind == 0:
        return np.asarray(dy * dy + dx * dx <= radius * radius)
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    if kind == 1:
        return np.asarray((np.abs(along) <= radius) & (np.abs(across) <= radius * flatness))
    return np.asarray((across >= -radius / 2) & (across <= radius - 2 * np.abs(along)))


def noise(random: Random, count: int, size: Size) -> Image:
    """Amplitude f^-a with another `a`, mean, contrast and saturation for every image."""
    channels, height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    images = np.empty((count, *size), np.float32)
    for image in images:
        grey = random.uniform(0, 1)
        layers = random.standard_normal((channels + 1, height, width))
        spectrum = np.fft.rfft2(layers) / frequency ** random.uniform(*SLOPES)
        fields = np.fft.irfft2(spectrum, s=(height, width))
        mixed = grey * fields[:1] + (1 - grey) * fields[1:]
        mixed /= np.maximum(mixed.std((1, 2), keepdims=True), 1e-12)
        centre = random.uniform(0.2, 0.8, (channels, 1, 1))
        image[:] = np.clip(mixed * random.uniform(0.1, 0.35) + centre, 0, 1)
    return images


KINDS: tuple[Callable[[Random, int, Size], Image], ...] = (scattered, noise, dead_leaves)


def mixture(random: Random, count: int, size: Size) -> Pixels:
    """All kinds in turn, in 256 levels; of fewer images any."""
    found = np.empty((count, *size), np.uint8)
    first = int(random.integers(len(KINDS))) if count < len(KINDS) else 0
    for k, kind in enumerate(KINDS):
        part = found[(k + first) % len(KINDS) :: len(KINDS)]
        if len(part):
            part[:] = np.rint(kind(random, len(part), size) * 255)
    return found


def varied(random: Random, image: Pixels, other: Pixels) -> Pixels:
    """An image (channels, height, width) zoomed, mirrored, with a piece of another one in it, in other colours: each
    of that half of the times or less."""
    channels, height, width = image.shape
    if random.random() < 0.5:
        zoom = float(np.exp(random.uniform(*ZOOMS)))
        image = image[:, _zoomed(random, height, zoom)][:, :, _zoomed(random, width, zoom)]
    if random.random() < 0.5:
        image = image[:, :, ::-1]
    if random.random() < 0.5:
        rows, columns = _grid(height, width)
        y, x = random.uniform(0, height), random.uniform(0, width)
        radius = min(height, width) * random.uniform(*PIECES)
        image = np.where(_shape(random, rows - np.float32(y), columns - np.float32(x), radius), other, image)
    if random.random() < 0.5:
        whole = random.random() < 0.5
        gain = random.uniform(*GAINS, (1 if whole else channels, 1, 1)).astype(np.float32)
        shift = random.uniform(-SHIFT, SHIFT, (channels, 1, 1)).astype(np.float32) * random.integers(0, 2)
        mean = image.mean((1, 2), keepdims=True, dtype=np.float32)
        image = np.rint(np.clip(mean + (image - mean) * gain + shift, 0, 255)).astype(np.uint8)
    if random.random() < 0.2:
        image = image[random.permutation(channels)]
    if random.random() < 0.2:
        image = 255 - image
    return np.ascontiguousarray(image)


def _zoomed(random: Random, length: int, zoom: float) -> npt.NDArray[np.int64]:
    """Which pixels of an axis are seen; beyond the edges the last one."""
    first = random.uniform(0, 1) * (length - length / zoom)
    return np.clip(first + np.arange(length) / zoom, 0, length - 1).astype(np.int64)
