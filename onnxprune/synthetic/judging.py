"""Whether real inputs are what the model was trained on, as far as it tells. Run in a child process.

The inputs as they are, and the same images moved to the other usual ranges of values, are compared with what the
statistics of the model say about its training data (`guesses`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune import runtime
from onnxprune.errors import ModelError, UsageError
from onnxprune.modelfile import ModelFile
from onnxprune.records import Feed
from onnxprune.shapes import graph_inputs
from onnxprune.synthetic import drawing, features, guesses, signals
from onnxprune.synthetic.drawing import Input
from onnxprune.synthetic.guesses import Scaling, View
from onnxprune.wording import plural

Array = npt.NDArray[Any]
Look = Callable[[Sequence[Feed]], View]


def judge(model: str, feeds: Sequence[Feed], *, probed: bool) -> list[str]:
    """What looks wrong about calibration inputs of the model file `model`, in words; with `probed` their range of
    values too, where the one input of numbers is an image.

    Raises UsageError where an output of the model is nowhere a finite number on a row of them.
    """
    file = features.opened(Path(model))
    try:
        _require_numbers(runtime.session(model, optimize=False, prepack=False), feeds)
        image = _image(file, feeds[0]) if probed else None
        return [] if image is None else _range_remarks(file, feeds, image)
    except ModelError:
        return []  # the stages that run the model have the message


def _require_numbers(session: Any, feeds: Sequence[Feed]) -> None:
    for name, lost, rows in _lost(session, feeds):
        if lost:
            raise UsageError(
                f"--calibration: the output {name!r} of the original model is NaN or infinite on {lost} of the "
                f"{plural(rows, 'row')} looked at: give inputs in the range of values that it was trained on"
            )


def _lost(session: Any, feeds: Sequence[Feed]) -> Iterator[tuple[str, int, int]]:
    """Every float output with the rows that have no finite number in it, and all rows."""
    for feed in feeds:
        for name, found in runtime.run(session, feed).items():
            if isinstance(found, np.ndarray) and found.dtype.kind == "f" and found.size:
                rows = found.reshape(len(found) if found.ndim else 1, -1)
                yield name, int((~np.isfinite(rows).any(1)).sum()), len(rows)


def _image(file: ModelFile, feed: Feed) -> Input | None:
    """The one input of float numbers, if it is an image."""
    entries = [(v.name, feed[v.name]) for v in graph_inputs(file.proto) if feed[v.name].dtype.kind == "f"]
    found = [Input(n, signals.kind_of(n, a.dtype, a.shape), a.shape, a.dtype) for n, a in entries]
    return found[0] if len(found) == 1 and found[0].kind == "image" else None


def _range_remarks(file: ModelFile, feeds: Sequence[Feed], image: Input) -> list[str]:
    probes = guesses.probes(file.proto.graph, file.reader())
    if not probes:
        return []
    session = features.session(file, [p.tensor for p in probes])
    look = functools.partial(_look, session, probes)
    given = look(feeds)
    if guesses.is_near(given):
        return []
    own = Scaling.of_data([feed[image.name] for feed in feeds], image.axis)
    others = {s: look([_moved(feed, image, own, s) for feed in feeds]) for s in drawing.candidates(image)}
    best = min(others, key=lambda s: others[s].divergence)
    if not guesses.is_far(given, others[best]):
        return []
    low, high = (float(f([f(feed[image.name]) for feed in feeds])) for f in (np.min, np.max))
    why = "its BatchNormalization statistics" if given.known else "the spread of its layers"
    remark = (
        f"the calibration input {image.name!r} lies between {low:.3g} and {high:.3g}, and the model was trained on "
        f"other values: by {why} these are {given.divergence:.2g} away, and the same images in the range {best.words} "
        f"({best.options}) {others[best].divergence:.2g}; prepare images with --mean, --std and --scale, and arrays "
        "before they are saved, as in training"
    )
    return [remark]


def _look(session: Any, probes: Sequence[guesses.Probe], feeds: Sequence[Feed]) -> View:
    taken = {i.name for i in session.get_inputs()}
    runs = (runtime.run(session, {n: a for n, a in feed.items() if n in taken}) for feed in feeds)
    return guesses.view(probes, [{p.tensor: guesses.moments(run[p.tensor]) for p in probes} for run in runs])


def _moved(feed: Feed, image: Input, own: Scaling, to: Scaling) -> Feed:
    """The feed with its image, of the range `own`, in another range."""
    pixels = own.undo(np.moveaxis(feed[image.name], image.axis, 1))
    moved = np.moveaxis(to.apply(pixels.astype(np.float32)), 1, image.axis)
    return {**feed, image.name: np.ascontiguousarray(moved, dtype=image.dtype)}
