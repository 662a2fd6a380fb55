"""Few real images, joined by others made from them. Run in a child process: the model is run to choose them.

Where a model says one thing about every image, few images say little about it: variations are bred from them
(`breeding`), as good as more images for the choice of channels and for the fit. Where it says something about every
place (text, maps), an image holds as many samples as places, and bred ones are further from the data than that is
worth: then the copies are changed at random (`augmentation`) and fitted to alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.augmentation import augment, is_image
from onnxprune.holdout import Holdout
from onnxprune.records import Feed
from onnxprune.synthetic import breeding, drawing, signals
from onnxprune.synthetic.drawing import Input
from onnxprune.synthetic.features import Describer, opened
from onnxprune.synthetic.guesses import Scaling

Array = npt.NDArray[Any]
Random = np.random.Generator

BRED, CHANGED = 512, 320
"""Images in all, the real ones with them, that are made up to: by breeding, and at random."""


@dataclass(frozen=True)
class Joined:
    """Batches to stand behind those that they were made from: copies of all of them, in the same order. `bred`: whether
    they serve the choice of channels, too."""

    feeds: Sequence[Feed] = ()
    bred: bool = False


def is_joined(feeds: Sequence[Feed]) -> bool:
    """Whether `join` may have anything to join `feeds` by: they are images, and few."""
    kinds = {signals.kind_of(n, a.dtype, a.shape) for feed in feeds for n, a in feed.items()}
    return kinds == {"image"} and 2 * sum(Holdout.of(feeds).rows) <= BRED


def join(model: str, feeds: Sequence[Feed], *, items: int, values: float, seed: int) -> Joined:
    """As many copies as `items` images have room for, at most; none where an input is no image.

    Copies of images that are held out are made of such images alone, and the others of the others (`Holdout`).
    `values`: elements of images that may be run through the model file `model` to breed them.
    """
    if not is_joined(feeds):
        return Joined()
    holdout, random = Holdout.of(feeds), np.random.default_rng(seed)
    rows = max(sum(holdout.rows), 1)
    size = sum(a.size for f in feeds for a in f.values())
    copies = min(min(items, BRED) // rows - 1, int(values / (breeding.FACTOR * size)))
    if copies > 0 and len(feeds[0]) == 1:
        found = _bred(Path(model), feeds, holdout, copies, breeding.affordable(size * copies, values), random)
        if found is not None:
            return Joined(found, bred=True)
    if not all(is_image(a) for f in feeds for a in f.values()):
        return Joined()
    copies = min(items, CHANGED) // rows - 1
    changed = (_changed(feed, holdout.items(b), random) for _ in range(copies) for b, feed in enumerate(feeds))
    return Joined(list(changed))


def _changed(feed: Feed, held: npt.NDArray[np.bool_], random: Random) -> Feed:
    result = {name: array.copy() for name, array in feed.items()}
    for side in (~held, held):
        if side.any():
            changed = augment({name: array[side] for name, array in feed.items()}, random)
            for name, array in changed.items():
                result[name][side] = array
    return result


def _bred(
    model: Path, feeds: Sequence[Feed], holdout: Holdout, copies: int, rounds: int, random: Random
) -> list[Feed] | None:
    """Copies of all feeds, of one input; None where the model says more than one thing about an image."""
    file, name = opened(model), next(iter(feeds[0]))
    axis = Input(name, "image", feeds[0][name].shape, feeds[0][name].dtype).axis
    scaling = Scaling.of_data([feed[name] for feed in feeds], axis)
    result = [{name: feed[name].copy()} for _ in range(copies) for feed in feeds]
    for batches in _alike([feed[name].shape[1:] for feed in feeds]):
        image = Input(name, "image", feeds[batches[0]][name].shape, feeds[batches[0]][name].dtype)
        pixels = {b: drawing.pixels(feeds[b][name], image, scaling) for b in batches}
        as_input = functools.partial(drawing.scaled, inputs=[image], scaling=scaling)
        describer = Describer.of(file, {name: pixels[batches[0]]}, as_input)
        if describer is None:
            return None
        for places in _pools(holdout, batches):
            own = np.concatenate([pixels[b][rows] for b, rows in places])
            first = breeding.varied(random, {name: own}, name, breeding.FACTOR * copies * len(own))
            found = breeding.bred(random, first, name, copies * len(own), rounds, describer.describe)
            _fill(result, as_input(found)[name], places, len(feeds))
    return result


def _alike(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """The numbers of the batches of every shape."""
    return [[b for b, shape in enumerate(shapes) if shape == wanted] for wanted in dict.fromkeys(shapes)]


Places = Sequence[tuple[int, npt.NDArray[np.int64]]]
"""Rows by the number of their batch."""


def _pools(holdout: Holdout, batches: Sequence[int]) -> Iterator[Places]:
    """Rows that may be mixed: those on one side, as items and as batches."""
    for whole in (False, True):
        for side in (False, True):
            chosen = [b for b in batches if holdout.is_held(b) == whole]
            places = [(b, np.flatnonzero(holdout.items(b) == side)) for b in chosen]
            if any(len(rows) for _, rows in places):
                yield places


def _fill(result: Sequence[Feed], found: Array, places: Places, every: int) -> None:
    """Put the images `found` to the `places` of every copy, which is `every` batches long."""
    start = 0
    for copy in range(0, len(result), every):
        for b, rows in places:
            for array in result[copy + b].values():
                array[rows] = found[start : start + len(rows)]
            start += len(rows)
