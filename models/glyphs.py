"""Render the seeded glyph data set: characters on coloured, noisy, cluttered backgrounds.

Every image is uint8 [3,32,32] with 16 levels (0..15) per colour channel. The fonts are those that the matplotlib
package carries (DejaVu, STIX, Computer Modern), so nothing is downloaded. ``python models/glyphs.py`` rewrites
``glyphs_test.npz`` and ``glyphs_calibration.npz``; both are bytewise functions of the seeds and package versions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

# isort: split
from evaluate import MAX_LEVEL, normalise

CLASSES = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabdefghnrt&?#@%$"
SIZE = 32
OVERSAMPLE = 2
CANVAS = SIZE * OVERSAMPLE
FONT_PX = 48
FONT_NAMES = (
    *(f"DejaVu{family}{style}" for family in ("Sans", "SansMono") for style in ("", "-Bold", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
TRAIN_SEED, TEST_SEED, CALIBRATION_SEED = 1, 2, 3
TEST_COUNT, CALIBRATION_COUNT = 1600, 1024
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Glyphs:
    """A rendered set: ``levels`` uint8 [n,3,32,32] in 0..15, ``labels`` int64 [n], ``masks`` uint8 [n,32,32] of 0/1."""

    levels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    masks: npt.NDArray[np.uint8]


@cache
def load_font(name: str) -> ImageFont.FreeTypeFont:
    """Open one of matplotlib's fonts at the working size."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), FONT_PX, layout_engine=ImageFont.Layout.BASIC)


@cache
def glyph_stencil(char: str, font_name: str) -> Image.Image:
    """Draw one character centred by its bounding box; an "L" image of 64x64 pixels."""
    font = load_font(font_name)
    left, top, right, bottom = font.getbbox(char)
    stencil = Image.new("L", (CANVAS, CANVAS))
    origin = ((CANVAS - left - right) / 2, (CANVAS - top - bottom) / 2)
    ImageDraw.Draw(stencil).text(origin, char, fill=255, font=font)
    return stencil


def random_affine(rng: np.random.Generator) -> tuple[float, float, float, float, float, float]:
    """Draw an output-to-input affine map (rotation, shear, anisotropic scale, shift) about the canvas centre."""
    angle = math.radians(rng.uniform(-28, 28))
    scale = rng.uniform(0.85, 1.25)
    stretch = math.exp(rng.uniform(-0.18, 0.18))
    shear = rng.uniform(-0.2, 0.2)
    cos, sin = math.cos(angle), math.sin(angle)
    a, b = cos / (scale * stretch), (sin + shear * cos) / (scale * stretch)
    d, e = -sin * stretch / scale, (cos - shear * sin) * stretch / scale
    half = CANVAS / 2
    dx, dy = half + rng.uniform(-8, 8), half + rng.uniform(-8, 8)
    return a, b, half - a * dx - b * dy, d, e, half - d * dx - e * dy


def coverage(layer: Image.Image) -> npt.NDArray[np.float32]:
    """Shrink an oversampled "L" image to float32 [32,32] coverage in 0..1."""
    small = np.asarray(layer.reduce(OVERSAMPLE), dtype=np.float32)
    return small / np.float32(255)


def stroke_layer(rng: np.random.Generator, widest: int) -> npt.NDArray[np.float32]:
    """Draw one distractor (a line or an arc) anywhere on the canvas; float32 [32,32] coverage."""
    layer = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(layer)
    x0, y0, x1, y1 = (float(v) for v in rng.uniform(-8, CANVAS + 8, size=4))
    width = int(rng.integers(2, widest + 1))
    if rng.random() < 0.5:
        draw.line((x0, y0, x1, y1), fill=255, width=width)
    else:
        start = float(rng.uniform(0, 360))
        box = (min(x0, x1), min(y0, y1), max(x0, x1) + 4, max(y0, y1) + 4)
        draw.arc(box, start, start + float(rng.uniform(60, 220)), fill=255, width=width)
    return coverage(layer)


def background(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Make a coloured gradient with low-frequency blotches; float32 [3,32,32] in about 0..1."""
    base = rng.uniform(0.1, 0.9, size=(3, 1, 1))
    slope = rng.normal(0, 0.12, size=(3, 2))
    axis = np.linspace(-1, 1, SIZE)
    ramp = slope[:, :1, None] * axis[None, :, None] + slope[:, 1:, None] * axis[None, None, :]
    coarse = Image.fromarray(rng.integers(0, 256, size=(5, 5, 3), dtype=np.uint8))
    blotches = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32).transpose(2, 0, 1)
    image: npt.NDArray[np.float32] = (base + ramp + (blotches / 255 - 0.5) * rng.uniform(0.1, 0.4)).astype(np.float32)
    return image


def ink_colour(rng: np.random.Generator, avoid: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Draw a colour, float32 [3], at least 0.6 (Euclidean) away from ``avoid``, float32 [3]."""
    while True:
        colour = rng.uniform(0, 1, size=3).astype(np.float32)
        if float(np.linalg.norm(colour - avoid)) >= 0.6:
            return colour


def blend(image: npt.NDArray[np.float32], layer: npt.NDArray[np.float32], colour: npt.NDArray[np.float32]) -> None:
    """Paint ``colour`` [3] over ``image`` [3,32,32] in place, by the coverage ``layer`` [32,32] (all float32)."""
    image += layer * (colour[:, None, None] - image)


def render_one(char: str, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Render one character; returns its levels, uint8 [3,32,32], and the mask of its visible pixels, uint8 [32,32]."""
    image = background(rng)
    for _ in range(int(rng.integers(1, 3))):
        blend(image, stroke_layer(rng, 6), rng.uniform(0, 1, size=3).astype(np.float32))
    stencil = glyph_stencil(char, FONT_NAMES[int(rng.integers(len(FONT_NAMES)))])
    warped = stencil.transform((CANVAS, CANVAS), Image.Transform.AFFINE, random_affine(rng), Image.Resampling.BICUBIC)
    visible = coverage(warped)
    colour = ink_colour(rng, image.mean(axis=(1, 2)))
    blend(image, visible, colour)
    for _ in range(int(rng.integers(0, 2))):
        layer = stroke_layer(rng, 3)
        blend(image, layer, rng.uniform(0, 1, size=3).astype(np.float32))
        visible = visible * (1 - layer)
    image += rng.normal(0, rng.uniform(0.0, 0.04), size=image.shape).astype(np.float32)
    levels = np.clip(np.rint(image * MAX_LEVEL), 0, MAX_LEVEL).astype(np.uint8)
    return levels, (visible > 0.4).astype(np.uint8)


def render(count: int, seed: int) -> Glyphs:
    """Render ``count`` images with classes drawn uniformly; the same count and seed give the same arrays."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), size=count)
    levels = np.empty((count, 3, SIZE, SIZE), np.uint8)
    masks = np.empty((count, SIZE, SIZE), np.uint8)
    for index, label in enumerate(labels):
        levels[index], masks[index] = render_one(CLASSES[label], rng)
    return Glyphs(levels, labels.astype(np.int64), masks)


def main() -> None:
    """Write the held-out test file (uint8 levels) and the unlabelled calibration file (float32, feedable as it is)."""
    test = render(TEST_COUNT, TEST_SEED)
    np.savez_compressed(HERE / "glyphs_test.npz", image=test.levels, labels=test.labels, masks=test.masks)
    calibration = render(CALIBRATION_COUNT, CALIBRATION_SEED)
    np.savez_compressed(HERE / "glyphs_calibration.npz", image=normalise(calibration.levels))


if __name__ == "__main__":
    main()
