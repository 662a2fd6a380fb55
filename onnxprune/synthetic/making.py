"""Feeds of a whole model. Run in a child process: the model is run to find sizes and ranges that it takes."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import runtime, shapes
from onnxprune.errors import ModelError, runs_nowhere
from onnxprune.modelfile import ModelFile
from onnxprune.records import Feed
from onnxprune.synthetic import breeding, drawing, features, guesses, signals
from onnxprune.synthetic.drawing import Input
from onnxprune.synthetic.features import Describer
from onnxprune.synthetic.guesses import Probe, Scaling

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
BATCHES = (16, 1)
PROBE_PIXELS = 1 << 18
"""Values of the images that a guess is made with."""


@dataclass(frozen=True)
class Made:
    """Synthetic feeds, and in words what was made and guessed."""

    feeds: list[Feed]
    guesses: list[str]


def make(
    model: str,
    given: Mapping[str, Sequence[int]],
    *,
    rows: int,
    bounds: Mapping[str, int],
    seed: int,
    values: float = 0,
) -> Made:
    """About `rows` rows of synthetic inputs of the model file `model`, in batches that it takes.

    `given`: shapes of inputs with free axes; `bounds`: rows of the tables that integer inputs are looked up in;
    `values`: elements of images that may be run through the model to breed better ones (`breeding`). The same seed
    gives the same feeds. Raises ModelError where the model runs at none of the sizes tried.
    """
    file = features.opened(Path(model))
    inputs = _working_inputs(file.proto, model, given, rows, bounds, seed)
    scaling, words = _scaling(file, inputs, bounds, seed)
    random = np.random.default_rng(seed)
    batch = max((i.shape[0] for i in inputs if i.shape), default=1)
    count = max(1, round(rows / batch))
    found = [f"{i.name!r} is taken for {signals.WORDS[i.kind]}" for i in inputs] + words
    draw = functools.partial(drawing.draw, random, inputs, bounds)
    as_input = functools.partial(drawing.scaled, inputs=inputs, scaling=scaling)
    batches = [draw() for _ in range(count)]
    size = max((math.prod(i.shape[1:]) for i in inputs), default=1)
    rounds = breeding.affordable(batch * count * size, values)
    pictures = [i.name for i in inputs if i.kind == "image"]
    is_simple = len(pictures) == 1 and len({i.shape[:1] for i in inputs}) == 1
    describer = Describer.of(file, batches[0], as_input) if is_simple and rounds >= 0 else None
    if describer is not None:
        batches.extend(draw() for _ in range(count * (breeding.FACTOR - 1)))
        first = {i.name: np.concatenate([b[i.name] for b in batches]) for i in inputs}
        best = breeding.bred(random, first, pictures[0], batch * count, rounds, describer.describe)
        batches = [{n: a[k * batch : (k + 1) * batch] for n, a in best.items()} for k in range(count)]
        found.append(f"images: those that the model tells apart best, bred in {rounds} rounds")
    return Made([as_input(rows) for rows in batches], found)


def _working_inputs(
    proto: onnx.ModelProto,
    model: str,
    given: Mapping[str, Sequence[int]],
    rows: int,
    bounds: Mapping[str, int],
    seed: int,
) -> list[Input]:
    """The inputs at the first sizes that the model runs at."""
    session = runtime.session(model, optimize=False, prepack=False)
    types = {name: dtype for name, _, dtype in runtime.input_specs(session)}
    failure: ModelError | None = None
    batches = [max(1, min(batch, rows)) for batch in BATCHES]
    for sizes in shapes.typical_inputs(proto, {n: tuple(s) for n, s in given.items()}, batches):
        inputs = [Input(n, signals.kind_of(n, types[n], s), s, types[n]) for n, s in sizes.items()]
        drawn = drawing.draw(np.random.default_rng(seed), inputs, bounds)
        try:
            runtime.run(session, drawing.scaled(drawn, inputs, _default(inputs)))
        except ModelError as error:
            failure = error
        else:
            return inputs
    raise runs_nowhere("the model", failure)


# ---- Guesses ---------------------------------------------------------------------------------------------------------


def _default(inputs: Sequence[Input]) -> Scaling | None:
    """That of the first image; None where there is none."""
    return next((drawing.candidates(i)[0] for i in inputs if i.kind == "image"), None)


def _scaling(
    file: ModelFile, inputs: Sequence[Input], bounds: Mapping[str, int], seed: int
) -> tuple[Scaling | None, list[str]]:
    """How images are scaled, and why, in words."""
    first = next((i for i in inputs if i.kind == "image"), None)
    if first is None:
        return None, []
    found = guesses.probes(file.proto.graph, file.reader())
    label = ", ".join(repr(i.name) for i in inputs if i.kind == "image")
    if not found:
        default = drawing.candidates(first)[0]
        return default, [f"nothing in the model tells the range of {label}: {default.words} is assumed"]
    trial = _Trial(file, inputs, found, bounds, seed)
    scores = {s: trial.score(s) for s in drawing.candidates(first)}
    scaling = min(scores, key=scores.__getitem__)
    why = "the BatchNormalization statistics" if found[0].mean is not None else "the spread of the layers (a guess)"
    listed = ", ".join(f"{s.words} {score:.2g}" for s, score in sorted(scores.items(), key=lambda item: item[1])[:3])
    return scaling, [f"values of {label}: {scaling.words}, by {why}: {listed}"]


class _Trial:
    """Runs the model on few images, and looks at the probes."""

    def __init__(
        self, file: ModelFile, inputs: Sequence[Input], probes: Sequence[Probe], bounds: Mapping[str, int], seed: int
    ) -> None:
        self.session = features.session(file, [p.tensor for p in probes])
        self.inputs, self.probes = inputs, probes
        random = np.random.default_rng(seed)
        pixels = max(int(np.prod(i.shape)) for i in inputs if i.kind == "image")
        self.drawn = [drawing.draw(random, inputs, bounds) for _ in range(max(1, PROBE_PIXELS // pixels))]

    def score(self, scaling: Scaling) -> float:
        """The divergence of the probes on the images, scaled so."""
        seen: dict[str, list[Array]] = {p.tensor: [] for p in self.probes}
        for drawn in self.drawn:
            outputs = runtime.run(self.session, drawing.scaled(drawn, self.inputs, scaling))
            for name, values in seen.items():
                values.append(outputs[name])
        return guesses.divergence(self.probes, {name: np.concatenate(values) for name, values in seen.items()})
