"""Few real images, joined by variations bred from them. Run in a child process: the model is run to choose them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.modelfile import ModelFile
from onnxprune.records import Feed
from onnxprune.recover.holdout import Holdout
from onnxprune.synthetic import breeding, drawing, signals
from onnxprune.synthetic.drawing import Input
from onnxprune.synthetic.features import Describer, Rows
from onnxprune.synthetic.guesses import Scaling

Array = npt.NDArray[Any]


def join(model: str, feeds: Sequence[Feed], *, items: int, values: float, seed: int) -> list[Feed]:
    """Batches of variations of the images in `feeds`, to stand behind these: copies of all of them, in the same order,
    as many as `items` images have room for; none where an input is no image.

    Variations of items that are held out hold pieces of such items alone, and the others of the others (`Holdout`).
    `values`: elements of images that may be run through the model file `model` to breed them.
    """
    holdout = Holdout.of(feeds)
    copies = items // max(sum(holdout.rows), 1) - 1
    kinds = {n: signals.kind_of(n, a.dtype, a.shape) for n, a in feeds[0].items()}
    if copies < 1 or any(kind != "image" for kind in kinds.values()):
        return []
    file, random, scalings = ModelFile.load(Path(model)), np.random.default_rng(seed), _scalings(feeds)
    joined: list[list[Feed]] = [[] for _ in range(copies)]
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for b, feed in enumerate(feeds):
        alike.setdefault(tuple(a.shape[1:] for a in feed.values()), []).append(b)
        for copy in joined:
            copy.append({name: array.copy() for name, array in feed.items()})
    total = sum(a.size for feed in feeds for a in feed.values()) * copies
    rounds = breeding.affordable(total, values)
    for batches in alike.values():
        inputs = [Input(n, kinds[n], a.shape, a.dtype) for n, a in feeds[batches[0]].items()]
        pixels = [_pixels(feeds[b], inputs, scalings) for b in batches]
        for side in (False, True):
            chosen = [holdout.items(b) == side for b in batches]
            own = {n: np.concatenate([p[n][c] for p, c in zip(pixels, chosen, strict=True)]) for n in kinds}
            count = copies * sum(int(c.sum()) for c in chosen)
            if not count:
                continue
            found = _bred(random, file, own, inputs, scalings, count, rounds, pixels[0])
            start = 0
            for copy in joined:
                for b, mask in zip(batches, chosen, strict=True):
                    rows = {n: a[start : start + int(mask.sum())] for n, a in found.items()}
                    start += int(mask.sum())
                    for name, array in _as_input(rows, inputs, scalings).items():
                        copy[b][name][mask] = array
    return [feed for copy in joined for feed in copy]


def _bred(
    random: np.random.Generator, file: ModelFile, own: Rows, inputs: Sequence[Input],
    scalings: dict[str, Scaling], count: int, rounds: int, sample: Rows,
) -> Rows:  # fmt: skip
    """`count` variations of the items `own`; the most distinct ones where the layers tell them apart."""
    names = [i.name for i in inputs]
    describer = Describer.of(file, sample, lambda rows: _as_input(rows, inputs, scalings)) if rounds >= 0 else None
    if describer is None:
        return breeding.varied(random, own, names, count)
    first = breeding.varied(random, own, names, breeding.FACTOR * count)
    return breeding.bred(random, first, names, count, rounds, describer.describe)


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
    """The inverse of `_as_input`, in 256 levels."""
    rows = {}
    for i in inputs:
        axis = signals.channel_axis(i.shape)
        array = np.moveaxis(feed[i.name].astype(np.float32), axis or 1, 1)
        shift, scale = (np.array(v).reshape(-1, 1, 1) for v in (scalings[i.name].mean, scalings[i.name].deviation))
        rows[i.name] = np.rint(np.clip((array * scale + shift) * 255, 0, 255)).astype(np.uint8)
    return rows


def _as_input(rows: Rows, inputs: Sequence[Input], scalings: dict[str, Scaling]) -> Feed:
    return {n: a for i in inputs for n, a in drawing.scaled({i.name: rows[i.name]}, [i], scalings[i.name]).items()}
