"""Feeds of a whole model. Run in a child process: the model is run to find sizes and ranges that it takes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import runtime, shapes
from onnxprune.errors import ModelError
from onnxprune.modelfile import ModelFile
from onnxprune.records import Feed
from onnxprune.synthetic import guesses, images, signals
from onnxprune.synthetic.guesses import Probe, Scaling
from onnxprune.synthetic.signals import Kind

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
TYPICAL = shapes.Sizes(1, (224, 224), 64)
"""What free axes are made at first; where the model does not run at it, the sizes of verification follow."""
BATCHES = (16, 1)
PROBE_PIXELS = 1 << 18
"""Pixels of the images that a guess is made with."""


@dataclass(frozen=True)
class Made:
    """Synthetic feeds, and in words what was made and guessed."""

    feeds: list[Feed]
    guesses: list[str]


@dataclass(frozen=True)
class _Input:
    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _Look:
    """How images are made: of which family, on which range."""

    family: str
    scaling: Scaling


def make(model: str, given: Mapping[str, Sequence[int]], *, rows: int, bounds: Mapping[str, int], seed: int) -> Made:
    """About `rows` rows of synthetic inputs of the model file `model`, in batches that it takes.

    `given`: shapes of inputs with free axes; `bounds`: rows of the tables that integer inputs are looked up in. The
    same seed gives the same feeds. Raises ModelError where the model runs at none of the sizes tried.
    """
    file = ModelFile.load(Path(model))
    inputs = _working_inputs(file.proto, model, given, rows, bounds, seed)
    looks, words = _look(file, inputs, bounds, seed)
    random = np.random.default_rng(seed)
    batch = max((i.shape[0] for i in inputs if i.shape), default=1)
    feeds = [_feed(random, inputs, looks, bounds) for _ in range(max(1, round(rows / batch)))]
    return Made(feeds, [*(f"{i.name!r} is taken for {signals.WORDS[i.kind]}" for i in inputs), *words])


def _working_inputs(
    proto: onnx.ModelProto,
    model: str,
    given: Mapping[str, Sequence[int]],
    rows: int,
    bounds: Mapping[str, int],
    seed: int,
) -> list[_Input]:
    """The inputs at the first sizes that the model runs at."""
    session = runtime.session(model, optimize=False, prepack=False)
    types = {name: dtype for name, _, dtype in runtime.input_specs(session)}
    failure: ModelError | None = None
    for sizes in _sizes(proto, {n: tuple(s) for n, s in given.items()}, rows):
        inputs = [_Input(n, signals.kind_of(n, types[n], s), s, types[n]) for n, s in sizes.items()]
        looks = {i.name: _default_look(i) for i in inputs if i.kind == "image"}
        try:
            runtime.run(session, _feed(np.random.default_rng(seed), inputs, looks, bounds))
        except ModelError as error:
            failure = error
        else:
            return inputs
    raise ModelError(f"the model runs at no input size tried: {failure}; give sizes with --input-shape")


def _sizes(
    proto: onnx.ModelProto, given: Mapping[str, tuple[int, ...]], rows: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    if not shapes.is_dynamic(proto, given):
        yield shapes.concrete_inputs(proto, given, TYPICAL)
        return
    for sizes in (TYPICAL, *shapes.RUN_SIZES):
        for batch in BATCHES:
            yield shapes.concrete_inputs(proto, given, sizes._replace(batch=max(1, min(batch, rows))))


def _feed(
    random: np.random.Generator, inputs: Sequence[_Input], looks: Mapping[str, _Look], bounds: Mapping[str, int]
) -> Feed:
    longest = max((max(i.shape[1:]) for i in inputs if len(i.shape) > 1), default=1)
    feed: Feed = {}
    for i in inputs:
        if i.kind == "image":
            feed[i.name] = _images(random, i, looks[i.name], i.shape[0])
        else:
            high = bounds.get(i.name, 2)
            feed[i.name] = signals.draw(random, i.kind, i.shape, i.dtype, high=high, longest=longest)
    return feed


def _images(random: np.random.Generator, wanted: _Input, look: _Look, count: int) -> Array:
    axis = signals.channel_axis(wanted.shape)
    channels = wanted.shape[axis or 1]
    height, width = wanted.shape[2:] if axis == 1 else wanted.shape[1:3]
    found = look.scaling.apply(images.FAMILIES[look.family](random, count, (channels, height, width)))
    return np.ascontiguousarray(found if axis == 1 else np.moveaxis(found, 1, 3)).astype(wanted.dtype)


# ---- Guesses ---------------------------------------------------------------------------------------------------------


def _default_look(wanted: _Input) -> _Look:
    return _Look("dead leaves and 1/f noise", _candidates(wanted)[0])


def _candidates(wanted: _Input) -> tuple[Scaling, ...]:
    if wanted.dtype == np.uint8:
        return (guesses.BYTES,)
    return guesses.scalings(wanted.shape[signals.channel_axis(wanted.shape) or 1])


def _look(
    file: ModelFile, inputs: Sequence[_Input], bounds: Mapping[str, int], seed: int
) -> tuple[dict[str, _Look], list[str]]:
    """How the images of every image input are made, and why, in words."""
    looks = {i.name: _default_look(i) for i in inputs if i.kind == "image"}
    if not looks:
        return looks, []
    found = guesses.probes(file.proto.graph, _reader(file))
    label = ", ".join(repr(name) for name in looks)
    if not found:
        look = next(iter(looks.values()))
        return looks, [f"nothing in the model tells the range of {label}: {look.scaling.words} is assumed"]
    trial = _Trial(file, inputs, found, bounds, seed)
    first = next(i for i in inputs if i.kind == "image")
    by_scaling = {s: trial.score(_Look(_default_look(first).family, s)) for s in _candidates(first)}
    scaling = min(by_scaling, key=by_scaling.__getitem__)
    by_family = {f: trial.score(_Look(f, scaling)) for f in images.FAMILIES}
    family = min(by_family, key=by_family.__getitem__)
    why = "the BatchNormalization statistics" if found[0].mean is not None else "the balance of the layers (a guess)"
    words = [f"values of {label}: {scaling.words}, by {why}: " + _listed({s.words: d for s, d in by_scaling.items()})]
    words.append(f"images of {label}: {family}, by the same: {_listed(by_family)}")
    return {name: _Look(family, scaling) for name in looks}, words


def _listed(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.2g}" for name, score in sorted(scores.items(), key=lambda item: item[1])[:3])


def _reader(file: ModelFile) -> guesses.Read:
    tensors = file.tensors()
    return lambda name: file.read(tensors[name]) if name in tensors else None


class _Trial:
    """Runs the model on few images at a time, and looks at the probes."""

    def __init__(
        self, file: ModelFile, inputs: Sequence[_Input], probes: Sequence[Probe], bounds: Mapping[str, int], seed: int
    ) -> None:
        proto = onnx.ModelProto()
        proto.CopyFrom(file.proto)
        known = {o.name for o in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=p.tensor) for p in probes if p.tensor not in known)
        self.session = runtime.session(proto.SerializeToString(), optimize=False, folder=str(file.base_dir))
        self.inputs, self.probes, self.bounds, self.seed = inputs, probes, bounds, seed

    def score(self, look: _Look) -> float:
        """The divergence of the probes on images of `look`."""
        random = np.random.default_rng(self.seed)
        looks = {i.name: look for i in self.inputs if i.kind == "image"}
        pixels = max(int(np.prod(i.shape[-3:])) * i.shape[0] for i in self.inputs if i.kind == "image")
        seen: dict[str, list[Array]] = {p.tensor: [] for p in self.probes}
        for _ in range(max(1, PROBE_PIXELS // pixels)):
            outputs = runtime.run(self.session, _feed(random, self.inputs, looks, self.bounds))
            for name, values in seen.items():
                values.append(outputs[name])
        return guesses.divergence(self.probes, {name: np.concatenate(values) for name, values in seen.items()})
