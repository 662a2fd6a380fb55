"""Inputs that are no images: ids, masks, positions, audio, features. What an input is goes by name, type and shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxprune.runtime import channel_axis

Array = npt.NDArray[Any]
Kind = Literal["image", "mask", "segment", "position", "length", "ids", "flag", "text", "audio", "features"]
LONG = 1000
"""A last axis of so many elements is time."""
AUDIO_NAMES = ("audio", "wave", "speech", "pcm", "input_values")

WORDS: Mapping[Kind, str] = {
    "image": "an image",
    "mask": "a mask: ones",
    "segment": "segment numbers: zeros",
    "position": "positions: 0, 1, 2, ...",
    "length": "lengths: the longest axis of the inputs",
    "ids": "ids: drawn from the table they are looked up in",
    "flag": "flags: a fair coin",
    "text": "text: the letter a",
    "audio": "audio: band-limited noise in [-1, 1]",
    "features": "features: normal noise",
}


def kind_of(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Kind:
    """What an input most likely is."""
    lower = name.lower()
    if dtype.kind not in "fiub":
        return "text"
    if "mask" in lower:
        return "mask"
    if channel_axis(shape) is not None and (dtype.kind == "f" or dtype == np.uint8):
        return "image"
    if dtype.kind == "f":
        sounds = any(word in lower for word in AUDIO_NAMES)
        return "audio" if len(shape) in (2, 3) and (shape[-1] >= LONG or sounds) else "features"
    if dtype.kind == "b":
        return "flag"
    named: dict[str, Kind] = {"token_type": "segment", "segment": "segment", "position": "position", "len": "length"}
    return next((kind for part, kind in named.items() if part in lower), "ids")


def draw(
    random: np.random.Generator, kind: Kind, shape: tuple[int, ...], dtype: np.dtype[Any], *, high: int, longest: int
) -> Array:
    """One batch of an input that is no image. Ids lie in [0, high)."""
    constant = {"text": "a", "mask": 1, "segment": 0, "length": longest}
    if kind in constant:
        return np.full(shape, constant[kind], dtype)
    values: Array
    if kind == "position":
        values = np.broadcast_to(np.arange(shape[-1] if shape else 1) % max(high, 1), shape or (1,)).reshape(shape)
    elif kind == "flag":
        values = random.random(shape) < 0.5
    elif kind == "ids":
        values = random.integers(0, min(max(high, 1), int(np.iinfo(dtype).max)), shape)
    elif kind == "audio":
        values = band_limited(random, shape)
    else:
        values = random.standard_normal(shape)
    return np.asarray(values).astype(dtype)


def band_limited(random: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Noise along the last axis in a band of its own for every row, its loudness rising and falling; peak 0.1 to 1."""
    length = shape[-1]
    rows = (*shape[:-1], 1)
    frequency = np.fft.rfftfreq(length)
    low = 10 ** random.uniform(-3, -1.3, rows)
    high = low * 10 ** random.uniform(0.3, 1.3, rows)
    spectrum = np.fft.rfft(random.standard_normal(shape))
    carrier = np.fft.irfft(np.where((frequency >= low) & (frequency <= high), spectrum, 0.05 * spectrum), n=length)
    slow = np.fft.rfft(random.standard_normal(shape)) * (frequency < 20 / length)
    envelope = np.abs(np.fft.irfft(slow, n=length))
    wave = carrier * (0.1 + envelope / np.maximum(envelope.max(-1, keepdims=True), 1e-12))
    peak = np.maximum(np.abs(wave).max(-1, keepdims=True), 1e-12)
    return np.asarray(wave / peak * random.uniform(0.1, 1, rows))
