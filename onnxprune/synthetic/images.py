"""Images that look like nothing and have the statistics of photographs: float32 (n, channels, height, width) in [0, 1].

Dead leaves: shapes of one colour that hide each other, radius r with density proportional to r^-3, which makes the
image look alike at all scales (Ruderman, "Origins of scaling in natural images", 1997; Lee, Mumford and Huang,
"Occlusion models for natural images", 2001). 1/f noise: amplitude f^-a. Networks trained on such images alone learn
features that carry over to photographs (Baradad et al., "Learning to see by looking at noise", 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
Random = np.random.Generator
Size = tuple[int, int, int]
"""Channels, height, width."""

LEAVES = 150
"""Shapes of one image."""
RADII = 0.04, 0.5
"""Least and largest radius as shares of the shorter side; never below one pixel."""
SLOPES = 0.5, 2.0
"""Least and largest exponent of the noise."""


def dead_leaves(random: Random, count: int, size: Size) -> Image:
    """Discs, boxes and triangles, painted one over the other; every image has a palette of its own."""
    channels, height, width = size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    images = np.empty((count, *size), np.float32)
    for image in images:
        colours = _palette(random, channels)
        image[:] = colours[-1][:, None, None]
        for k, (y, x, radius) in enumerate(_places(random, height, width)):
            reach = 1.5 * radius + 1
            window = _window(y, reach, height), _window(x, reach, width)
            inside = _shape(random, rows[window] - y, columns[window] - x, radius)
            image[:, window[0], window[1]][:, inside] = colours[k][:, None]
    return images


def _palette(random: Random, channels: int) -> Image:
    centre, spread = random.uniform(0.2, 0.8, channels), random.uniform(0.1, 0.5)
    return np.clip(centre + random.uniform(-spread, spread, (LEAVES + 1, channels)), 0, 1).astype(np.float32)


def _places(random: Random, height: int, width: int) -> npt.NDArray[np.float64]:
    """(LEAVES, 3): centre (y, x), a little beyond the edges too, and radius."""
    side = min(height, width)
    least, most = max(1.0, RADII[0] * side), max(1.5, RADII[1] * side)
    radius = (most**-2 + (least**-2 - most**-2) * random.random(LEAVES)) ** -0.5
    places = random.uniform(-0.1, 1.1, (LEAVES, 2)) * (height, width)
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


def mixture(random: Random, count: int, size: Size) -> Image:
    """Dead leaves and noise in turn."""
    images = dead_leaves(random, count, size)
    images[1::2] = noise(random, len(images[1::2]), size)
    return images


FAMILIES: Mapping[str, Callable[[Random, int, Size], npt.NDArray[Any]]] = {
    "dead leaves": dead_leaves,
    "1/f noise": noise,
    "dead leaves and 1/f noise": mixture,
}
