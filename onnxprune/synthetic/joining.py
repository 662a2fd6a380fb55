"""Few real images, joined by others made from them. Run in a child process: the model is run to choose them.

Where a model says one thing about every image, few images say little about it: variations are bred from them
(`breeding`), as good as more images for the choice of channels and for the fit. Where it says something about every
place (text, maps), an image holds as many samples as places, and bred ones are further from the data than that is
worth: then the copies are changed at random (`augmentation`) and fitted to alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.modelfile import ModelFile
from onnxprune.records import Feed
from onnxprune.recover.augmentation import augment, is_image
from onnxprune.recover.holdout import Holdout
from onnxprune.synthetic import breeding, drawing, signals
from onnxprune.synthetic.drawing import Input
from onnxprune.synthetic.features import Describer, Rows
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


def join(model: str, feeds: Sequence[Feed], *, items: int, values: float, seed: int) -> Joined:
    """As many copies as `items` images have room for, at most; none where an input is no image.

    Copies of images that are held out are made of such images alone, and the others of the others (`Holdout`).
    `values`: elements of images that may be run through the model file `model` to breed them.
    """
    kinds = {n: signals.kind_of(n, a.dtype, a.shape) for n, a in feeds[0].items()}
    if any(kind != "image" for kind in kinds.values()):
        return Joined()
    holdout, random = Holdout.of(feeds), np.random.default_rng(seed)
    rows = max(sum(holdout.rows), 1)
    copies = min(items, BRED) // rows - 1
    rounds = breeding.affordable(sum(a.size for f in feeds for a in f.values()) * copies, values) if copies > 0 else -1
    found = _bred(Path(model), feeds, holdout, copies, rounds, random) if rounds >= 0 else None
    if found is not None:
        return Joined(found, bred=True)
    if not all(is_image(a) for f in feeds for a in f.values()):
        return Joined()
    copies = min(items, CHANGED) // rows - 1
    return Joined(
        [_changed(feed, holdout.items(b), random) for _ in range(copies) for b, feed in enumerate(feeds)]
    )  # fmt: skip


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
    """None where the model says more than one thing about an image."""
    file, scalings = ModelFile.load(model), _scalings(feeds)
    result = [{name: array.copy() for name, array in feed.items()} for _ in range(copies) for feed in feeds]
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for b, feed in enumerate(feeds):
        alike.setdefault(tuple(a.shape[1:] for a in feed.values()), []).append(b)
    for batches in alike.values():
        inputs = [Input(n, "image", a.shape, a.dtype) for n, a in feeds[batches[0]].items()]
        as_input = _scaler(inputs, scalings)
        pixels = [_pixels(feeds[b], inputs, scalings) for b in batches]
        describer = Describer.of(file, pixels[0], as_input)
        if describer is None:
            return None
        for side in (False, True):
            places = [(k, np.flatnonzero(holdout.items(b) == side)) for k, b in enumerate(batches)]
            own = {i.name: np.concatenate([pixels[k][i.name][p] for k, p in places]) for i in inputs}
            count = copies * sum(len(p) for _, p in places)
            if not count:
                continue
            names = [i.name for i in inputs]
            first = breeding.varied(random, own, names, breeding.FACTOR * count)
            found = breeding.bred(random, first, names, count, rounds, describer.describe)
            start = 0
            for copy in range(copies):
                for k, p in places:
                    rows = as_input({n: a[start : start + len(p)] for n, a in found.items()})
                    start += len(p)
                    for name, array in rows.items():
                        result[copy * len(feeds) + batches[k]][name][p] = array
    return result


def _scaler(inputs: Sequence[Input], scalings: dict[str, Scaling]) -> Callable[[Rows], Feed]:
    """The inverse of `_pixels`."""
    return lambda rows: {i.name: drawing.scaled(rows, [i], scalings[i.name])[i.name] for i in inputs}


def _scalings(feeds: Sequence[Feed]) -> dict[str, Scaling]:
    """By input: least and largest value of every channel are the pixels 0 and 255."""
    found = {}
    for name, array in feeds[0].items():
        axis = signals.channel_axis(array.shape) or 1
        others = tuple(a for a in range(4) if a != axis)
        low = np.min([f[name].min(others) for f in feeds], axis=0).astype(np.float64)
        high = np.max([f[name].max(others) for f in feeds], axis=0).astype(np.float64)
        width = np.maximum(high - low, 1e-12)
        found[name] = Scaling("that of the data", tuple(-low / width), tuple(1 / width))
    return found


def _pixels(feed: Feed, inputs: Sequence[Input], scalings: dict[str, Scaling]) -> Rows:
    """Images in 256 levels."""
    rows = {}
    for i in inputs:
        axis = signals.channel_axis(i.shape)
        array = np.moveaxis(feed[i.name].astype(np.float32), axis or 1, 1)
        shift, scale = (np.array(v).reshape(-1, 1, 1) for v in (scalings[i.name].mean, scalings[i.name].deviation))
        rows[i.name] = np.rint(np.clip((array * scale + shift) * 255, 0, 255)).astype(np.uint8)
    return rows
