"""Inputs of a model: what each of them is, rows drawn at random, and pixels as the model takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.records import Feed
from onnxprune.synthetic import guesses, images, signals
from onnxprune.synthetic.features import Rows
from onnxprune.synthetic.guesses import Scaling
from onnxprune.synthetic.signals import Kind


@dataclass(frozen=True)
class Input:
    """An input of a model, what it is, and its shape with the batch."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        axis = signals.channel_axis(self.shape) or 1
        height, width = self.shape[2:] if axis == 1 else self.shape[1:3]
        return self.shape[axis], height, width


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
            found = scaling.apply(rows[i.name].astype(np.float32) / 255)
            moved = found if signals.channel_axis(i.shape) == 1 else np.moveaxis(found, 1, 3)
            feed[i.name] = np.ascontiguousarray(np.rint(moved) if i.dtype.kind in "iu" else moved).astype(i.dtype)
    return feed


def candidates(wanted: Input) -> tuple[Scaling, ...]:
    """How the pixels of an image may be scaled; the first is taken where nothing tells."""
    return (guesses.BYTES,) if wanted.dtype == np.uint8 else guesses.scalings(wanted.image[0])
