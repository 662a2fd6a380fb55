"""What is fixed in a model and what moves: walks at several input sizes, compared."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TypeProto

from onnxprune import worker
from onnxprune.bodies import flat_nodes, is_walkable, live_nodes
from onnxprune.conditions import Settled
from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.shapes.sizes import (
    ANALYSIS_SIZES,
    Shape,
    Sizes,
    check_given,
    concrete_inputs,
    free_axes,
    graph_inputs,
    is_dynamic,
    variations,
)
from onnxprune.shapes.walk import Array, ContradictionError, Walk, is_concrete, shape_of, walk_graph

log = logging.getLogger(__name__)

MEASURE_LIMIT_S = 300.0
FAR = 16
"""Factor of the sizes of one more walk, where conditions decide which nodes run."""
WINDOWED = {"AveragePool", "Conv", "ConvInteger", "LpPool", "MaxPool", "QLinearConv"}
"""Operators whose window must have a place on the operand."""


@dataclass(frozen=True)
class Shapes:
    """What is known of the tensors of the main graph, by name.

    `shape`: sizes at the representative input sizes. `values`: small known constants and arithmetic on shapes.
    `derived`: the names in `values` that come out of a node (not a stored constant). `dynamic`: for a tensor in
    `shape` or `values`, a bool array over axes or elements telling which change with the input sizes.
    `inputs`: the representative sizes of the graph inputs. `element_types`: TensorProto data types. `taken`: by the
    first result of every If whose condition is the same in all runs, whether it takes its `then_branch`.
    """

    shape: Mapping[str, Shape]
    values: Mapping[str, Array]
    derived: frozenset[str]
    dynamic_axes: Mapping[str, npt.NDArray[np.bool_]]
    dynamic_values: Mapping[str, npt.NDArray[np.bool_]]
    inputs: Mapping[str, Shape]
    element_types: Mapping[str, int]
    taken: Mapping[str, bool]


def infer(proto: onnx.ModelProto, given: Mapping[str, Shape] | None = None, folder: Path | None = None) -> Shapes:
    """Shapes and values of every tensor of the main graph of the skeleton `proto`.

    What no rule of onnx can tell (operators of other domains) is measured by running the model once in a child
    process, with its external data in `folder`. `given` holds input shapes by name (all axes); axes that the model
    leaves dynamic count as dynamic there too, as far as the model fits other sizes.

    Raises UsageError where `given` does not fit the model,
    ModelError where the shapes of the model contradict each other at every size tried.
    """
    given = dict(given or {})
    check_given(proto, given)
    both: frozenset[str] = frozenset()
    while True:
        model = _Model(proto, given, folder, both)
        walks = _walks(model)
        found = _shapes(walks)
        undecided = _undecided(model, walks)
        if not undecided:
            return found
        both |= undecided


def _undecided(model: _Model, walks: Sequence[Walk]) -> set[str]:
    """The Ifs of which one branch was walked although the other may run at other sizes."""
    names = {name for walk in walks for name in walk.taken}
    if not names:
        return names
    far = _far_walk(model, walks[0])
    if far is None or not _all_vary(model.proto, [*walks, far]):
        return names
    found = _shapes([*walks, far])
    makers = {o: n for _, n in flat_nodes(model.proto) for o in n.output if o}
    settled = Settled(makers, found.values, found.dynamic_values)
    return {name for name in names if name not in found.taken or not settled.holds(makers[name].input[0])}


def _far_walk(model: _Model, near: Walk) -> Walk | None:
    """A walk at sizes far larger, where what strides and windows leave of a small size by chance is no longer the same;
    None where the model does not fit them."""
    free = set(free_axes(model.proto))
    sizes = {n: tuple(FAR * k if (n, a) in free else k for a, k in enumerate(s)) for n, s in near.inputs.items()}
    try:
        return walk_graph(model.proto, sizes, {}, model.both)
    except (onnx.shape_inference.InferenceError, ContradictionError) as error:
        log.debug("input sizes %s do not fit: %s", sizes, error)
        return None


def _all_vary(proto: onnx.ModelProto, walks: Sequence[Walk]) -> bool:
    """Whether every input axis that the model leaves free has several sizes in these walks."""
    return all(len({w.inputs[n][axis] for w in walks if n in w.inputs}) > 1 for n, axis in free_axes(proto))


class _Model(NamedTuple):
    """A model, shapes given for its inputs, the folder of its external data, and the Ifs that may take either branch
    (by their first results)."""

    proto: onnx.ModelProto
    given: Mapping[str, Shape]
    folder: Path | None
    both: frozenset[str]


def _walks(model: _Model) -> list[Walk]:
    """The walk at the first sizes that fit, and those that tell what moves; sizes that leave windows without a place
    only where no others fit."""
    proto, given = model.proto, model.given
    for empty in (False, True):
        fitting = _fitting(model, empty)
        sizes, first = next(fitting, (ANALYSIS_SIZES[0], None))
        if first is not None:
            others = _other_walks(model, first, fitting) if is_dynamic(proto, given) else []
            return [first, *others, *_varied_walks(model, sizes)]
    shapeless = [
        i.name for i in graph_inputs(proto) if not i.type.tensor_type.HasField("shape") and i.name not in given
    ]
    if shapeless:
        raise ModelError(
            f"input {shapeless[0]!r} has no shape in the model; give one with --input-shape {shapeless[0]}:..."
        )
    raise ModelError(_contradiction(proto, given))


def _other_walks(model: _Model, first: Walk, fitting: Iterator[tuple[Sizes, Walk]]) -> list[Walk]:
    """Walks until every free axis has had another size; where none fits, one that knows nothing."""
    free = [(name, axis) for name, axis in free_axes(model.proto) if name not in model.given]
    others: list[Walk] = []
    while not all(any(w.inputs[n][axis] != first.inputs[n][axis] for w in others) for n, axis in free):
        if (other := next(fitting, None)) is None:
            break
        others.append(other[1])
    return others or [Walk({}, {}, set(), {})]


def _fitting(model: _Model, empty: bool) -> Iterator[tuple[Sizes, Walk]]:
    """The sizes that fit, each with its walk; sizes that come to the same inputs once."""
    tried: list[dict[str, Shape]] = []
    for sizes in ANALYSIS_SIZES:
        inputs = concrete_inputs(model.proto, model.given, sizes)
        if inputs not in tried and (walk := _try_walk(model, model.given, sizes, empty)) is not None:
            yield sizes, walk
        tried.append(inputs)


def _contradiction(proto: onnx.ModelProto, given: Mapping[str, Shape]) -> str:
    if given and not is_dynamic(proto, given):
        return f"the shapes of the model contradict each other at {given}; give sizes the model accepts"
    axes = {
        i.name: ",".join(str(d.dim_value or d.dim_param or "?") for d in i.type.tensor_type.shape.dim)
        for i in graph_inputs(proto)
    }
    wanted = " ".join(f"--input-shape {name}:{sizes}" for name, sizes in axes.items() if name not in given)
    return (
        "the shapes of the model contradict each other at every input size tried; the export may have fixed some that "
        f"it declares dynamic: give sizes the model accepts with {wanted} (numbers for the names)"
    )


def _varied_walks(model: _Model, sizes: Sizes) -> Iterator[Walk]:
    """Walks that show which axes of the given inputs are dynamic: all varied at once, or else each that fits."""
    together, alone = variations(model.proto, model.given)
    for varied in together:
        if (walk := _try_walk(model, varied, sizes, True)) is not None:
            yield walk
            return
    for choices in alone:
        yield from itertools.islice((w for v in choices if (w := _try_walk(model, v, sizes, True)) is not None), 1)


def _try_walk(model: _Model, given: Mapping[str, Shape], dynamic: Sizes, empty: bool) -> Walk | None:
    """A walk at these sizes; None where the model does not fit them. `empty`: windows may find no place."""
    proto = model.proto
    sizes = concrete_inputs(proto, given, dynamic)
    try:
        walk = walk_graph(proto, sizes, {}, model.both)
        if not empty:
            _require_places(proto, walk)
        nodes = live_nodes(proto.graph, walk.taken) if is_walkable(proto) else proto.graph.node
        missing = [o for n in nodes for o in n.output if o and not is_concrete(walk.types.get(o))]
        measured = _measure(proto, sizes, missing, model.folder) if missing else {}
        return walk_graph(proto, sizes, measured, model.both) if missing else walk
    except (onnx.shape_inference.InferenceError, ContradictionError) as error:
        log.debug("input sizes %s do not fit: %s", sizes, error)
        return None


def _require_places(proto: onnx.ModelProto, walk: Walk) -> None:
    """Raises ContradictionError where a window is larger than its operand: the inputs are too small."""
    for node in (node for _, node in flat_nodes(proto) if node.op_type in WINDOWED):
        shape = shape_of(walk.types.get(node.output[0]))
        if shape is not None and min(shape, default=1) <= 0:
            raise ContradictionError(f"{node.op_type} {node.name!r} has results of shape {shape}")


def _measure(
    proto: onnx.ModelProto, sizes: Mapping[str, Shape], missing: Sequence[str], folder: Path | None
) -> dict[str, TypeProto]:
    """Types of the tensors `missing` in one run of the model; nothing where it does not run."""
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    known = {o.name for o in proto.graph.output}
    outer = {o for n in proto.graph.node for o in n.output} - known
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing if name in outer)
    arguments = {"model": probe.SerializeToString(), "folder": str(folder or "."), "sizes": dict(sizes)}
    try:
        found = worker.call("onnxprune.runtime:measure_types", arguments, timeout_s=MEASURE_LIMIT_S)
    except OnnxPruneError as error:
        log.debug("no shapes from a run: %s", error)
        return {}
    return {n: onnx.helper.make_tensor_type_proto(*found[n]) for n in missing if n in found}


def _shapes(walks: Sequence[Walk]) -> Shapes:
    """What differs between the first walk and any of the others is dynamic."""
    first, *others = walks
    shape = {n: s for n, t in first.types.items() if (s := shape_of(t)) is not None}
    axes = {n: np.zeros(len(s), bool) for n, s in shape.items()}
    elements = {n: np.zeros(np.shape(first.values[n]), bool) for n in first.derived}
    for other in others:
        axes = {n: moving | _changed(shape[n], shape_of(other.types.get(n))) for n, moving in axes.items()}
        elements = {n: moving | _changed(first.values[n], other.values.get(n)) for n, moving in elements.items()}
    types = {n: t.tensor_type.elem_type for n, t in first.types.items() if t.HasField("tensor_type")}
    taken = {n: then for n, then in first.taken.items() if all(other.taken.get(n) is then for other in others)}
    return Shapes(shape, first.values, frozenset(first.derived), axes, elements, first.inputs, types, taken)


def _changed(a: Any, b: Any) -> npt.NDArray[np.bool_]:
    x = np.asarray(a)
    if b is None or np.shape(b) != x.shape:
        return np.ones(x.shape, bool)
    return np.asarray(x != np.asarray(b), bool)
