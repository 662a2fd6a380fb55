"""Folders of pictures as inputs: only as many as are used are decoded, one batch at a time.

Decoding is Pillow's (extra `images`). A picture is turned as its EXIF data says, made `color`, and resized to the
input of the model (bilinear, without keeping the proportions).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxprune.calibration.checks import Entry
from onnxprune.errors import UsageError
from onnxprune.preparation import CHANNELS, Preparation, listed
from onnxprune.records import Feed

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class Form:
    """What the model takes: `name` of the input, `layout`, `channels`, `size` (height, width), element type."""

    name: str
    layout: Layout
    channels: int
    size: tuple[int, int]
    color: str
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Of one picture as the model takes it."""
        return self.channels * math.prod(self.size) * self.dtype.itemsize


def form_of(entries: Sequence[Entry], wanted: Preparation) -> Form:
    """The form that pictures get for a model with the inputs `entries`; UsageError where it cannot be told."""
    if len(entries) != 1:
        names = ", ".join(e.name for e in entries)
        raise UsageError(
            f"--calibration: a folder of images feeds one input, and the model has {len(entries)} ({names}); "
            "give a .npz with one array per input name, or a Python function MODULE:FUNCTION that yields them"
        )
    (entry,) = entries
    if len(entry.axes) != 4 or entry.dtype.kind not in "fu":
        axes = ", ".join(str(n or "?") for n in entry.axes)
        raise UsageError(
            f"--calibration: a folder of images needs an input of 4 axes, of floating or unsigned numbers; "
            f"{entry.name!r} is {entry.dtype} ({axes}); give a .npz or a Python function MODULE:FUNCTION"
        )
    layout = _layout(entry, wanted)
    channels = entry.axes[1 if layout == "nchw" else 3] or CHANNELS.get(wanted.color, 3)
    color = ("gray" if channels == 1 else "rgb") if wanted.color == "auto" else wanted.color
    if CHANNELS[color] != channels:
        raise UsageError(
            f"--calibration: input {entry.name!r} has {channels} channels, and --color {color} makes {CHANNELS[color]}"
        )
    _check_channels(wanted, channels)
    return Form(entry.name, layout, channels, _size(entry, layout, wanted), color, entry.dtype)


def _layout(entry: Entry, wanted: Preparation) -> Layout:
    axes = entry.axes
    if wanted.layout != "auto":
        return "nchw" if wanted.layout == "nchw" else "nhwc"
    if axes[1] in (1, 3):
        return "nchw"
    if axes[3] in (1, 3):
        return "nhwc"
    shown = ", ".join(str(n or "?") for n in axes)
    raise UsageError(
        f"--calibration: the shape ({shown}) of input {entry.name!r} does not tell where its channels are; "
        "give --layout nchw or --layout nhwc"
    )


def _size(entry: Entry, layout: Layout, wanted: Preparation) -> tuple[int, int]:
    height, width = entry.axes[2:] if layout == "nchw" else entry.axes[1:3]
    if wanted.resize is not None:
        asked = wanted.resize
        if height not in (None, asked[0]) or width not in (None, asked[1]):
            raise UsageError(
                f"--resize {asked[0]}x{asked[1]}: input {entry.name!r} takes {height or '?'}x{width or '?'}"
            )
        return asked
    if height is None or width is None:
        raise UsageError(
            f"--calibration: input {entry.name!r} takes images of any size; say which with --resize HEIGHTxWIDTH"
        )
    return height, width


def _check_channels(wanted: Preparation, channels: int) -> None:
    for option, values in (("--mean", wanted.mean), ("--std", wanted.std)):
        if len(values) not in (0, 1, channels):
            raise UsageError(
                f"{option} has {len(values)} numbers, and the input {channels} channels; give 1 or {channels}"
            )


def chosen(files: Sequence[Path], count: int, seed: int) -> list[Path]:
    """`count` files evenly spread over all (folders sorted by class are covered), in a random order."""
    if len(files) > count:
        files = [files[k] for k in np.linspace(0, len(files) - 1, count).round().astype(int)]
    return [files[k] for k in np.random.default_rng(seed).permutation(len(files))]


def read(files: Sequence[Path], form: Form, wanted: Preparation, rows: int) -> Iterator[tuple[Feed, list[Path]]]:
    """Feeds of `rows` pictures each (the last may have fewer), with the file of every row. One that is no picture is
    left out with a warning."""
    batch: list[tuple[Array, Path]] = []
    for file in files:
        pixels = _decode(file, form)
        if pixels is None:
            continue
        batch.append((_prepared(pixels, form, wanted), file))
        if len(batch) == rows:
            yield _stacked(batch, form)
            batch = []
    if batch:
        yield _stacked(batch, form)


def _stacked(batch: Sequence[tuple[Array, Path]], form: Form) -> tuple[Feed, list[Path]]:
    return {form.name: np.stack([picture for picture, _ in batch])}, [file for _, file in batch]


def _decode(file: Path, form: Form) -> Array | None:
    """The pixels of a picture, uint8 (height, width, channels)."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UsageError(
            '--calibration: reading images needs Pillow, which is not installed: pip install "onnxprune[images]"'
        ) from error
    height, width = form.size
    mode = "L" if form.color == "gray" else "RGB"
    try:
        with warnings.catch_warnings(), Image.open(file) as opened:
            warnings.simplefilter("ignore")
            opened.draft(mode, (width, height))
            turned = ImageOps.exif_transpose(opened)
            sized = turned.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(sized, np.uint8).reshape(height, width, -1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning("%s: left out, this image cannot be decoded (%s)", file, error)
        return None
    return pixels[:, :, ::-1] if form.color == "bgr" else pixels


def _prepared(pixels: Array, form: Form, wanted: Preparation) -> Array:
    """(channels, height, width) or (height, width, channels) in the element type of the input."""
    values = pixels
    if form.dtype.kind == "f" or not wanted.is_plain:
        values = (pixels * wanted.factor - np.array(wanted.mean or 0.0)) / np.array(wanted.std or 1.0)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if form.layout == "nchw" else values, dtype=form.dtype)


def words(form: Form, wanted: Preparation) -> str:
    """How pictures were prepared, in words."""
    height, width = form.size
    values = "pixels"
    if form.dtype.kind == "f" or not wanted.is_plain:
        values = "pixels / 255" if abs(wanted.factor * 255 - 1) < 1e-9 else f"pixels x {wanted.factor:g}"
    if wanted.mean:
        values = f"{values} - {listed(wanted.mean)}"
    if wanted.std:
        values = f"({values}) / {listed(wanted.std)}" if wanted.mean else f"{values} / {listed(wanted.std)}"
    return f"{form.color}, {height}x{width}, {form.layout}, {values}"
