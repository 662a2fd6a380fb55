"""Inputs of a model: what each of them is, rows drawn at random, and pixels as the model takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune import runtime
from onnxprune.records import Feed
from onnxprune.synthetic import guesses, images, signals
from onnxprune.synthetic.features import Rows
from onnxprune.synthetic.guesses import Scaling
from onnxprune.synthetic.signals import Kind

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Input:
    """An input of a model, what it is, and its shape with the batch."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def axis(self) -> int:
        """The channel axis of an image."""
        axis = runtime.channel_axis(self.shape)
        if axis is None:
            raise ValueError(f"{self.name!r} of shape {self.shape} is no image")
        return axis

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        height, width = (n for a, n in enumerate(self.shape) if a not in (0, self.axis))
        return self.shape[self.axis], height, width


def draw(random: np.random.Generator, inputs: Sequence[Input], bounds: Mapping[str, int]) -> Rows:
    """One batch of every input, images as pixels."""
    longest = max((max(i.shape[1:]) for i in inputs if len(i.shape) > 1), default=1)
    drawn = {}
    for i in inputs:
        if i.kind == "image":
            drawn[i.name] = images.mixture(random, i.shape[0], i.image)
        else:
            high = bounds.get(i.name, 2)
            drawn[i.name] = signals.draw(random, i.kind, i.shape, i.dtype, high=high, longest=longest)
    return drawn


def scaled(rows: Rows, inputs: Sequence[Input], scaling: Scaling | None) -> Feed:
    """Rows with pixels as the model takes them."""
    feed = dict(rows)
    for i in inputs:
        if i.kind == "image" and scaling is not None:
            moved = np.moveaxis(scaling.apply(rows[i.name].astype(np.float32) / 255), 1, i.axis)
            feed[i.name] = np.ascontiguousarray(np.rint(moved) if i.dtype.kind in "iu" else moved).astype(i.dtype)
    return feed


def pixels(array: Array, image: Input, scaling: Scaling) -> npt.NDArray[np.uint8]:
    """The inverse of `scaled`: an image as the model takes it, in 256 levels, channels first."""
    found = scaling.undo(np.moveaxis(array.astype(np.float32), image.axis, 1))
    return np.asarray(np.rint(np.clip(found * 255, 0, 255)), np.uint8)


def candidates(wanted: Input) -> tuple[Scaling, ...]:
    """How the pixels of an image may be scaled; the first is taken where nothing tells."""
    return (guesses.BYTES,) if wanted.dtype == np.uint8 else guesses.scalings(wanted.image[0])
