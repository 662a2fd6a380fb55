"""Feeds of a whole model. Run in a child process: the model is run to find sizes and ranges that it takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import runtime, shapes
from onnxprune.errors import ModelError
from onnxprune.modelfile import ModelFile
from onnxprune.records import Feed
from onnxprune.synthetic import breeding, guesses, images, signals
from onnxprune.synthetic.guesses import Probe, Scaling
from onnxprune.synthetic.signals import Kind

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
TYPICAL = shapes.Sizes(1, (224, 224), 64)
"""What free axes are made at first; where the model does not run at it, the sizes of verification follow."""
BATCHES = (16, 1)
PROBE_PIXELS = 1 << 18
"""Values of the images that a guess is made with."""
ROUNDS = 10
"""Rounds of breeding, at most."""


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
    file = ModelFile.load(Path(model))
    inputs = _working_inputs(file.proto, model, given, rows, bounds, seed)
    scaling, words = _scaling(file, inputs, bounds, seed)
    random = np.random.default_rng(seed)
    batch = max((i.shape[0] for i in inputs if i.shape), default=1)
    count = max(1, round(rows / batch))
    found = [f"{i.name!r} is taken for {signals.WORDS[i.kind]}" for i in inputs] + words
    rounds = _rounds(inputs, batch * count, values)
    describer = _Describer.of(file, inputs, scaling, _draw(random, inputs, bounds)) if rounds >= 0 else None
    if describer is None:
        return Made([_scaled(_draw(random, inputs, bounds), inputs, scaling) for _ in range(count)], found)
    draws = [_draw(random, inputs, bounds) for _ in range(breeding.FACTOR * count)]
    pictures = [i.name for i in inputs if i.kind == "image"]
    first = {i.name: np.concatenate([d[i.name] for d in draws]) for i in inputs}
    population = breeding.bred(random, first, pictures, batch * count, rounds, describer.describe)
    found.append(f"images: those that the model tells apart best, bred in {rounds} rounds")
    return Made([_scaled(drawn, inputs, scaling) for drawn in _batches(population, batch)], found)


def _rounds(inputs: Sequence[_Input], rows: int, values: float) -> int:
    """In how many rounds images are bred; -1: not at all, as nothing is known of rows or there is no time."""
    if not any(i.kind == "image" for i in inputs) or len({i.shape[:1] for i in inputs}) != 1:
        return -1
    size = max(math.prod(i.shape[1:]) for i in inputs)
    return min(ROUNDS, int(values / (breeding.FACTOR * rows * size)) - 1)


def _batches(rows: breeding.Population, batch: int) -> list[Feed]:
    count = max(len(array) for array in rows.values()) // batch
    return [{name: array[k * batch : (k + 1) * batch] for name, array in rows.items()} for k in range(count)]


class _Describer:
    """Runs the model on items, and takes the features of its last layers."""

    def __init__(
        self, session: InferenceSession, names: Mapping[str, int], inputs: Sequence[_Input], scaling: Scaling | None
    ) -> None:
        self.session, self.names, self.inputs, self.scaling = session, names, inputs, scaling
        self.scales: list[float] = []

    @classmethod
    def of(cls, file: ModelFile, inputs: Sequence[_Input], scaling: Scaling | None, drawn: Feed) -> _Describer | None:
        """None where no layer gives features of every row of `drawn`."""
        names = breeding.features_of(file.proto.graph)
        session = _probed(file, names)
        values = runtime.run(session, _scaled(drawn, inputs, scaling)) if names else {}
        batch = max(len(array) for array in drawn.values())
        usable = {n: a for n, a in names.items() if values[n].shape[:1] == (batch,) and values[n].dtype.kind == "f"}
        usable = {n: a for n, a in usable.items() if values[n].ndim > 1 and np.isfinite(values[n]).all()}
        return cls(session, usable, inputs, scaling) if usable else None

    def describe(self, rows: breeding.Population) -> breeding.Float:
        """Features (items, d), those of every layer of a total variance of 1 on the rows described first."""
        parts: list[list[Array]] = [[] for _ in self.names]
        for drawn in _batches(rows, self.inputs[0].shape[0]):
            found = runtime.run(self.session, _scaled(drawn, self.inputs, self.scaling))
            for part, (name, axis) in zip(parts, self.names.items(), strict=True):
                part.append(breeding.feature(found[name], axis))
        layers = [np.concatenate(part) for part in parts]
        self.scales = self.scales or [1 / math.sqrt(max(float(x.var(0).sum()), 1e-30)) for x in layers]
        return np.concatenate([x * scale for x, scale in zip(layers, self.scales, strict=True)], axis=1)


def _probed(file: ModelFile, names: Iterable[str]) -> InferenceSession:
    """A session of the model that gives the tensors `names`, too."""
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    known = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    return runtime.session(proto.SerializeToString(), optimize=False, folder=str(file.base_dir))


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
        drawn = _draw(np.random.default_rng(seed), inputs, bounds)
        try:
            runtime.run(session, _scaled(drawn, inputs, _default_scaling(inputs)))
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


def _draw(random: np.random.Generator, inputs: Sequence[_Input], bounds: Mapping[str, int]) -> Feed:
    """One batch of every input, images as pixels (n, channels, height, width)."""
    longest = max((max(i.shape[1:]) for i in inputs if len(i.shape) > 1), default=1)
    drawn: Feed = {}
    for i in inputs:
        if i.kind == "image":
            axis = signals.channel_axis(i.shape) or 1
            height, width = i.shape[2:] if axis == 1 else i.shape[1:3]
            drawn[i.name] = images.mixture(random, i.shape[0], (i.shape[axis], height, width))
        else:
            high = bounds.get(i.name, 2)
            drawn[i.name] = signals.draw(random, i.kind, i.shape, i.dtype, high=high, longest=longest)
    return drawn


def _scaled(drawn: Feed, inputs: Sequence[_Input], scaling: Scaling | None) -> Feed:
    """The batch as the model takes it."""
    feed = dict(drawn)
    for i in inputs:
        if i.kind == "image" and scaling is not None:
            found = scaling.apply(drawn[i.name].astype(np.float32) / 255)
            moved = found if signals.channel_axis(i.shape) == 1 else np.moveaxis(found, 1, 3)
            feed[i.name] = np.ascontiguousarray(moved).astype(i.dtype)
    return feed


# ---- Guesses ---------------------------------------------------------------------------------------------------------


def _candidates(wanted: _Input) -> tuple[Scaling, ...]:
    if wanted.dtype == np.uint8:
        return (guesses.BYTES,)
    return guesses.scalings(wanted.shape[signals.channel_axis(wanted.shape) or 1])


def _default_scaling(inputs: Sequence[_Input]) -> Scaling | None:
    """That of the first image; None where there is none."""
    return next((_candidates(i)[0] for i in inputs if i.kind == "image"), None)


def _scaling(
    file: ModelFile, inputs: Sequence[_Input], bounds: Mapping[str, int], seed: int
) -> tuple[Scaling | None, list[str]]:
    """How images are scaled, and why, in words."""
    first = next((i for i in inputs if i.kind == "image"), None)
    if first is None:
        return None, []
    found = guesses.probes(file.proto.graph, _reader(file))
    label = ", ".join(repr(i.name) for i in inputs if i.kind == "image")
    if not found:
        default = _candidates(first)[0]
        return default, [f"nothing in the model tells the range of {label}: {default.words} is assumed"]
    trial = _Trial(file, inputs, found, bounds, seed)
    scores = {s: trial.score(s) for s in _candidates(first)}
    scaling = min(scores, key=scores.__getitem__)
    why = "the BatchNormalization statistics" if found[0].mean is not None else "the balance of the layers (a guess)"
    listed = ", ".join(f"{s.words} {score:.2g}" for s, score in sorted(scores.items(), key=lambda item: item[1])[:3])
    return scaling, [f"values of {label}: {scaling.words}, by {why}: {listed}"]


def _reader(file: ModelFile) -> guesses.Read:
    tensors = file.tensors()
    return lambda name: file.read(tensors[name]) if name in tensors else None


class _Trial:
    """Runs the model on few images, and looks at the probes."""

    def __init__(
        self, file: ModelFile, inputs: Sequence[_Input], probes: Sequence[Probe], bounds: Mapping[str, int], seed: int
    ) -> None:
        self.session = _probed(file, [p.tensor for p in probes])
        self.inputs, self.probes = inputs, probes
        random = np.random.default_rng(seed)
        pixels = max(int(np.prod(i.shape)) for i in inputs if i.kind == "image")
        self.drawn = [_draw(random, inputs, bounds) for _ in range(max(1, PROBE_PIXELS // pixels))]

    def score(self, scaling: Scaling) -> float:
        """The divergence of the probes on the images, scaled so."""
        seen: dict[str, list[Array]] = {p.tensor: [] for p in self.probes}
        for drawn in self.drawn:
            outputs = runtime.run(self.session, _scaled(drawn, self.inputs, scaling))
            for name, values in seen.items():
                values.append(outputs[name])
        return guesses.divergence(self.probes, {name: np.concatenate(values) for name, values in seen.items()})
