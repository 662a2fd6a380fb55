"""Recovering, in the order of the steps: cut, reconstruction, distillation. It runs in a child process that opens the
model, as `choosing` does before.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxprune import analysis, cost, dequantized, shapes
from onnxprune import plan as plans
from onnxprune.bodies import drop_unread
from onnxprune.cut import Cut, cut
from onnxprune.errors import ModelError, UsageError
from onnxprune.modelfile import ModelFile
from onnxprune.records import Analysis, Feed, IndexArray
from onnxprune.recover import tune
from onnxprune.recover.execution import Read, reader
from onnxprune.recover.layers import Weights, weights_of
from onnxprune.recover.reconstruct import Cutting, LayerReport, Options, reconstruct, unfitted
from onnxprune.shapes import stored_tensors
from onnxprune.wording import listed, plural

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

QUICK_LIMIT_S = 600.0
LIMIT_S = 4 * 3600.0
"""Time limits of the child processes that run the steps: on synthetic inputs, and where the user asked for it."""


@dataclass(frozen=True)
class Source:
    """What both steps start from. `feeds`: batches to fit to."""

    model: str
    input_shapes: Mapping[str, tuple[int, ...]]
    feeds: Sequence[Feed]
    seed: int
    threads: int
    memory_bytes: int
    skeleton: bytes | None = None
    """The model to start from where it is not the file's any more (residual blocks removed)."""
    held: Sequence[Feed] = ()
    """Batches held out: distillation that is no better on them is not kept, and without them there is none."""
    own: int | None = None
    """How many of the feeds are the inputs themselves; those after them are bred from these. None: all."""
    copies: Sequence[Feed] = ()
    """Changed copies of the feeds, which are fitted to, but not chosen by."""
    steps_first: bool = False
    """Whether the first axis of the inputs counts the steps of sequences: then what judges a fit are whole batches."""

    @property
    def choosing(self) -> Source:
        """What the choice starts from."""
        return dataclasses.replace(self, copies=())


@dataclass(frozen=True)
class Recovered:
    """`values`: new weights by name. `rewired`: (output of a node, operand) -> name of a weight the cut did not have.
    `layers`: held-out errors. `distilled`: held-out loss before and after (kept where it is less), None where there was
    no distillation."""

    values: Mapping[str, Array]
    rewired: Mapping[tuple[str, int], str]
    layers: Sequence[LayerReport]
    distilled: tuple[float, float] | None
    notes: Sequence[str]


@dataclass(frozen=True)
class OpenedSource:
    """A model with its analysis, and its weights by name.

    `original`: the file as it is. `proto`: what is cut and solved, that is the file without the residual blocks that
    were removed and with its quantized operators spelled out; `teacher`: what it is solved for, spelled out likewise.
    `listed`: the analysis of the file as it is, whose groups have the ids and sizes of those of `analysis`. `places`:
    as of `Dequantized`.
    """

    original: onnx.ModelProto
    file: ModelFile
    proto: onnx.ModelProto
    teacher: onnx.ModelProto
    shapes: shapes.Shapes
    analysis: Analysis
    listed: Analysis
    stored: Callable[[str], Array | None]
    read: Read
    places: Mapping[tuple[str, int], str] = field(default_factory=dict)


def open_source(source: Source) -> OpenedSource:
    """Open the model of a source, in the child process."""
    file = ModelFile.load(Path(source.model), unique_names=True)
    original, stored = file.proto, file.reader()
    if source.skeleton is not None:
        file = dataclasses.replace(file, proto=onnx.ModelProto.FromString(source.skeleton))
    found = shapes.infer(file.proto, source.input_shapes, file.base_dir)
    analysed, read = analysis.analyse(file.proto, found), reader(original, stored, {})
    model = OpenedSource(original, file, file.proto, original, found, analysed, analysed, stored, read)
    return _spelled_out(model, source)


def _spelled_out(model: OpenedSource, source: Source) -> OpenedSource:
    """The model with its quantized operators in terms of floating point, where its groups are the same in these."""
    work, teacher = (dequantized.dequantized(p, model.stored) for p in (model.proto, model.original))
    if work is None or teacher is None:
        return model
    try:
        found = shapes.infer(work.proto, source.input_shapes, model.file.base_dir)
        analysed = analysis.analyse(work.proto, found)
    except (ModelError, ValueError) as error:
        log.info("quantized operators stay as they are: %s", error)
        return model
    if _channels(analysed, work.arrays) != _channels(model.analysis, ()):
        log.info("quantized operators stay as they are: their channels are tied in another way in floating point")
        return model
    arrays, kept = {**teacher.arrays, **work.arrays}, model.stored

    def stored(name: str) -> Array | None:
        return arrays[name] if name in arrays else kept(name)

    return dataclasses.replace(
        model, proto=work.proto, teacher=teacher.proto, shapes=found, analysis=analysed,
        stored=stored, read=reader(teacher.proto, stored, {}), places=work.places,
    )  # fmt: skip


def _channels(found: Analysis, but: Collection[str]) -> dict[str, tuple[int, bool, frozenset[tuple[str, int]]]]:
    """Size, whether it may shrink, and (tensor, axis), without the tensors `but`, by the id of every group."""
    return {
        g.id: (g.size, g.refusal is None, frozenset((o.tensor, o.axis) for o in g.occurrences if o.tensor not in but))
        for g in found.groups
    }


def macs_per_item(source: Source, model: OpenedSource) -> float:
    """Multiply-accumulates of one item of the calibration inputs: those of the representative sizes, scaled by area."""
    feed = source.feeds[0]
    name = max(feed, key=lambda n: feed[n].size)
    size: int = np.atleast_1d(feed[name])[0].size
    return cost.macs(model.analysis) * size / max(1, math.prod(model.shapes.inputs[name]))


# ---- Recovering ------------------------------------------------------------------------------------------------------


def recover(source: Source, kept: Mapping[str, IndexArray], *, tuned: bool, fits: bool = True) -> Recovered:
    """New weights for the model cut by the plan `kept`; not `fits`: mean and deviation of every channel put right,
    and no more. Run in a child process."""
    return refitted(source, open_source(source), kept, tuned=tuned, fits=fits)[1]


def refitted(
    source: Source, model: OpenedSource, kept: Mapping[str, IndexArray], *, tuned: bool, fits: bool = True
) -> tuple[Weights, Recovered]:
    """The model cut by the plan `kept`, refitted, and what is new in it."""
    weights = cut_weights(model, kept)
    feeds = [*source.feeds, *(source.copies if fits else ())]
    layers = reconstructed(source, model, weights, kept, feeds, relaxed=True, fits=fits)
    notes = _unfitted(unfitted(model.analysis, plans.masks(model.analysis, kept), layers)) if fits else []
    notes += _parted(_shared(model.proto, weights))
    distilled: tuple[float, float] | None = None
    if tuned:
        distilled, said = _distil(source, model, weights, kept)
        notes += said
    foreign = set(stored_tensors(model.proto)) - set(stored_tensors(model.file.proto)) - set(model.places.values())
    values = {name: array for name, array in weights.values.items() if name not in foreign}
    rewired = {**weights.rewired, **{place: name for place, name in model.places.items() if name in values}}
    return weights, Recovered(values, rewired, layers, distilled, notes)


def _unfitted(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    layers = plural(len(names), "layer")
    return [f"{layers} that lost inputs could not be refitted, weights stay as cut: {listed(names)}"]


def _shared(proto: onnx.ModelProto, weights: Weights) -> list[str]:
    """The weights of several layers that one of these has a copy of its own in place of, by name."""
    nodes = {o: n for n in proto.graph.node for o in n.output if o}
    places = ((nodes[output], operand) for output, operand in weights.rewired if operand == 1 and output in nodes)
    return sorted({node.input[operand] for node, operand in places if weights.users.get(node.input[operand], 0) > 1})


def _parted(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    weights = plural(len(names), "weight")
    said = f"{weights} that several layers share ({listed(names)}): each of these was refitted in a copy of its own"
    return [f"{said}, which makes the file larger; --no-recover keeps them one"]


def cut_weights(model: OpenedSource, kept: Mapping[str, IndexArray]) -> Weights:
    """The model cut by the plan `kept`, and no more."""
    done = cut(model.proto, model.analysis, model.shapes, kept)
    return weights_of(done.proto, model.stored, done.edits)


def reconstructed(
    source: Source,
    model: OpenedSource,
    weights: Weights,
    kept: Mapping[str, IndexArray],
    feeds: Sequence[Feed],
    *,
    relaxed: bool,
    fits: bool = True,
) -> list[LayerReport]:
    """Refit `weights`, those of the model cut by the plan `kept`, in place to `feeds`. `relaxed`, `fits`: as of
    `Options`."""
    options = Options(source.seed, source.threads, source.memory_bytes, relaxed, fits, source.own, source.steps_first)
    cutting = Cutting(model.proto, model.analysis, plans.masks(model.analysis, kept))
    return reconstruct(model.teacher, model.read, cutting, weights, feeds, options)


def _distil(
    source: Source, model: OpenedSource, weights: Weights, kept: Mapping[str, IndexArray]
) -> tuple[tuple[float, float] | None, list[str]]:
    if not source.held:
        return None, ["no distillation: nothing is held out to judge it by"]
    counts = {g.dim: len(kept[g.id]) for g in model.analysis.groups if g.id in kept}
    share = cost.macs(model.analysis, counts) / max(1, cost.macs(model.analysis))
    per_item = macs_per_item(source, model) * share
    try:
        result = tune.distil(
            model.teacher, str(model.file.base_dir), weights, source.feeds[: source.own], source.held,
            macs_per_item=per_item, memory_bytes=source.memory_bytes, seed=source.seed, threads=source.threads,
        )  # fmt: skip
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - onnx-ad refuses what it does not cover in many ways
        log.info("no distillation: %s", error)
        return None, [f"no distillation: the gradients of this model cannot be made ({type(error).__name__}: {error})"]
    return result, [] if result else ["no distillation: too few inputs, or too large a model"]


# ---- For the parent process ------------------------------------------------------------------------------------------


def split(feeds: Sequence[Feed], share: int = 10) -> tuple[list[Feed], list[Feed]]:
    """Batches to fit to, and those held out to measure on: one in `share`; the same where there are fewer than 4."""
    if len(feeds) < 4:
        return list(feeds), list(feeds)
    every = min(share, len(feeds))
    return [f for i, f in enumerate(feeds) if i % every != every - 1], [
        f for i, f in enumerate(feeds) if i % every == every - 1
    ]


def install(done: Cut, recovered: Recovered) -> Cut:
    """The cut with the recovered weights in place of the sliced ones."""
    proto = onnx.ModelProto()
    proto.CopyFrom(done.proto)
    nodes = {o: n for n in proto.graph.node for o in n.output}
    replaced: set[str] = set()
    for (output, operand), name in recovered.rewired.items():
        node = nodes[output]
        node.input.extend([""] * (operand + 1 - len(node.input)))
        replaced.add(node.input[operand])
        node.input[operand] = name
    added = set(recovered.rewired.values())
    proto.graph.initializer.extend(numpy_helper.from_array(recovered.values[n], n) for n in sorted(added))
    edits = {**done.edits, **{n: _constant(a) for n, a in recovered.values.items() if n not in added}}
    unread = drop_unread(proto.graph, replaced)
    return dataclasses.replace(done, proto=proto, edits={n: e for n, e in edits.items() if n not in unread})


def _constant(array: Array) -> Callable[[Array], Array]:
    return lambda _: array
