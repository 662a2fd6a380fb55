"""Shapes and known small values of every tensor, found by one walk over the skeleton of the model.

Dynamic axes get representative sizes; the walk is made twice with different sizes, and what differs is dynamic.
Weights are never read, only small integer constants.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, TypeProto

from onnxprune import worker
from onnxprune.bodies import entering, flat_nodes, is_walkable, leaving, live_bodies, live_nodes
from onnxprune.conditions import Settled
from onnxprune.errors import ModelError, OnnxPruneError, UsageError
from onnxprune.folding import LARGEST, evaluate
from onnxprune.records import NO_NAMES

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
Array = npt.NDArray[Any]
Types = dict[str, TypeProto]

MEASURE_LIMIT_S = 300.0
_INDEX_TYPES = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
LONGEST_LIST = 8
"""Float constants of one axis and up to this many elements may take part in arithmetic on shapes (scales, sizes)."""

LONGEST_TEXT = 1024
"""Where ids or masks are asked for rather than samples of sound, sequences are hardly longer: attention compares every
place with every other one."""


SAME_AS_FIRST = {
    "BiasGelu",
    "FastGelu",
    "GroupNormalization",
    "MeanVarianceNormalization",
    "QuickGelu",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
}
"""Operators onnx cannot infer, whose first result is like their first operand."""


class Sizes(NamedTuple):
    """Sizes for dynamic axes: the first axis, height and width of 4-D inputs, and any other axis."""

    batch: int
    space: tuple[int, int]
    sequence: int


ANALYSIS_SIZES = (
    Sizes(7, (192, 256), 24),
    Sizes(5, (224, 320), 40),
    Sizes(7, (48, 320), 24),
    Sizes(5, (48, 480), 40),
    Sizes(7, (32, 128), 24),
    Sizes(5, (32, 192), 40),
    Sizes(7, (192, 256), 512),
    Sizes(5, (224, 320), 576),
    Sizes(7, (192, 256), 1024),
    Sizes(5, (224, 320), 16000),
    Sizes(7, (192, 256), 24000),
    Sizes(1, (224, 224), 16),
    Sizes(1, (64, 64), 8),
    Sizes(2, (64, 64), 8),
)
"""Tried in this order; the first two that fit are compared to tell dynamic from fixed, so their sums and products
differ as well. Heights of 48 and 32 are those of text line recognisers; odd batches meet no width by chance. Sound
comes as hundreds or thousands of samples."""
FAR = 16
"""Factor of the sizes of one more walk, where conditions decide which nodes run."""
WINDOWED = {"AveragePool", "Conv", "ConvInteger", "LpPool", "MaxPool", "QLinearConv"}
"""Operators whose window must have a place on the operand."""
RUN_SIZES = (
    Sizes(2, (64, 96), 12),
    Sizes(1, (128, 64), 20),
    Sizes(1, (224, 224), 16),
    Sizes(2, (320, 320), 64),
    Sizes(1, (640, 640), 1024),
    Sizes(2, (48, 320), 16000),
    Sizes(1, (48, 480), 128),
    Sizes(2, (32, 128), 512),
)
"""Sizes to run a model at: small first, others for models that need more."""
TYPICAL = Sizes(1, (224, 224), 64)
"""What free axes are where figures are to be as in real use; where the model does not run at it, RUN_SIZES follow."""


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


class ContradictionError(Exception):
    """The sizes of the inputs do not fit what the graph does with them."""


@dataclass(frozen=True)
class _Setting:
    versions: dict[str, int]
    opsets: list[onnx.OperatorSetIdProto]
    declared: Types
    walkable: bool
    both: frozenset[str]


@dataclass
class _Walk:
    types: Types
    values: dict[str, Array]
    derived: set[str]
    inputs: dict[str, Shape]
    taken: dict[str, bool] = field(default_factory=dict)


def infer(proto: onnx.ModelProto, given: Mapping[str, Shape] | None = None, folder: Path | None = None) -> Shapes:
    """Shapes and values of every tensor of the main graph of the skeleton `proto`.

    What no rule of onnx can tell (operators of other domains) is measured by running the model once in a child
    process, with its external data in `folder`. `given` holds input shapes by name (all axes); axes that the model
    leaves dynamic count as dynamic there too, as far as the model fits other sizes.

    Raises UsageError where `given` does not fit the model,
    ModelError where the shapes of the model contradict each other at every size tried.
    """
    given = dict(given or {})
    _check_given(proto, given)
    both: frozenset[str] = frozenset()
    while True:
        model = _Model(proto, given, folder, both)
        walks = _walks(model)
        found = _shapes(walks)
        undecided = _undecided(model, walks)
        if not undecided:
            return found
        both |= undecided


def _undecided(model: _Model, walks: Sequence[_Walk]) -> set[str]:
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


def _far_walk(model: _Model, near: _Walk) -> _Walk | None:
    """A walk at sizes far larger, where what strides and windows leave of a small size by chance is no longer the same;
    None where the model does not fit them."""
    free = set(_free_axes(model.proto))
    sizes = {n: tuple(FAR * k if (n, a) in free else k for a, k in enumerate(s)) for n, s in near.inputs.items()}
    try:
        return walk_graph(model.proto, sizes, {}, model.both)
    except (onnx.shape_inference.InferenceError, ContradictionError) as error:
        log.debug("input sizes %s do not fit: %s", sizes, error)
        return None


def _free_axes(proto: onnx.ModelProto) -> list[tuple[str, int]]:
    """(input, axis) of every input axis whose size the model leaves free."""
    return [
        (i.name, axis)
        for i in graph_inputs(proto)
        for axis, d in enumerate(i.type.tensor_type.shape.dim)
        if d.dim_value <= 0
    ]


def _all_vary(proto: onnx.ModelProto, walks: Sequence[_Walk]) -> bool:
    """Whether every input axis that the model leaves free has several sizes in these walks."""
    return all(len({w.inputs[n][axis] for w in walks if n in w.inputs}) > 1 for n, axis in _free_axes(proto))


class _Model(NamedTuple):
    """A model, shapes given for its inputs, the folder of its external data, and the Ifs that may take either branch
    (by their first results)."""

    proto: onnx.ModelProto
    given: Mapping[str, Shape]
    folder: Path | None
    both: frozenset[str]


def _walks(model: _Model) -> list[_Walk]:
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


def _other_walks(model: _Model, first: _Walk, fitting: Iterator[tuple[Sizes, _Walk]]) -> list[_Walk]:
    """Walks until every free axis has had another size; where none fits, one that knows nothing."""
    free = [(name, axis) for name, axis in _free_axes(model.proto) if name not in model.given]
    others: list[_Walk] = []
    while not all(any(w.inputs[n][axis] != first.inputs[n][axis] for w in others) for n, axis in free):
        if (other := next(fitting, None)) is None:
            break
        others.append(other[1])
    return others or [_Walk({}, {}, set(), {})]


def _fitting(model: _Model, empty: bool) -> Iterator[tuple[Sizes, _Walk]]:
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


def _varied_walks(model: _Model, sizes: Sizes) -> Iterator[_Walk]:
    """Walks that show which axes of the given inputs are dynamic: all varied at once, or else each that fits."""
    together, alone = variations(model.proto, model.given)
    for varied in together:
        if (walk := _try_walk(model, varied, sizes, True)) is not None:
            yield walk
            return
    for choices in alone:
        yield from itertools.islice((w for v in choices if (w := _try_walk(model, v, sizes, True)) is not None), 1)


def _try_walk(model: _Model, given: Mapping[str, Shape], dynamic: Sizes, empty: bool) -> _Walk | None:
    """A walk at these sizes; None where the model does not fit them. `empty`: windows may find no place."""
    proto = model.proto
    sizes = concrete_inputs(proto, given, dynamic)
    try:
        walk = walk_graph(proto, sizes, {}, model.both)
        if not empty:
            _require_places(proto, walk)
        nodes = live_nodes(proto.graph, walk.taken) if is_walkable(proto) else proto.graph.node
        missing = [o for n in nodes for o in n.output if o and not _is_concrete(walk.types.get(o))]
        measured = _measure(proto, sizes, missing, model.folder) if missing else {}
        return walk_graph(proto, sizes, measured, model.both) if missing else walk
    except (onnx.shape_inference.InferenceError, ContradictionError) as error:
        log.debug("input sizes %s do not fit: %s", sizes, error)
        return None


def _require_places(proto: onnx.ModelProto, walk: _Walk) -> None:
    """Raises ContradictionError where a window is larger than its operand: the inputs are too small."""
    for node in (node for _, node in flat_nodes(proto) if node.op_type in WINDOWED):
        shape = shape_of(walk.types.get(node.output[0]))
        if shape is not None and min(shape, default=1) <= 0:
            raise ContradictionError(f"{node.op_type} {node.name!r} has results of shape {shape}")


def graph_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller must feed: graph inputs that are not initializers too."""
    stored = {t.name for t in proto.graph.initializer} | {t.values.name for t in proto.graph.sparse_initializer}
    return [i for i in proto.graph.input if i.name not in stored]


def variations(
    proto: onnx.ModelProto, given: Mapping[str, Shape]
) -> tuple[list[dict[str, Shape]], list[list[dict[str, Shape]]]]:
    """Other sizes for the axes of `given` inputs that the model declares dynamic: all of them changed, and for each
    axis (or name of axes) alone; of both the choices half and double, the first axis being three times itself.
    """
    places: dict[str, list[tuple[str, int]]] = {}
    for i in graph_inputs(proto):
        for axis, d in enumerate(i.type.tensor_type.shape.dim if i.name in given else ()):
            if not d.HasField("dim_value") or d.dim_value <= 0:
                places.setdefault(d.dim_param or f"{i.name}:{axis}", []).append((i.name, axis))

    def varied(names: Iterable[str], double: bool) -> dict[str, Shape]:
        found = {name: list(shape) for name, shape in given.items()}
        for name, axis in (place for key in names for place in places[key]):
            first = places_of[name, axis] == 0
            size = given[name][axis]
            found[name][axis] = 3 * size if first else 2 * size if double or size == 1 else size // 2
        return {name: tuple(shape) for name, shape in found.items()}

    places_of = {place: found[0][1] for found in places.values() for place in found}
    if not places:
        return [], []
    return (
        [varied(places, double) for double in (False, True)],
        [[varied([key], double) for double in (False, True)] for key in places],
    )


def concrete_inputs(proto: onnx.ModelProto, given: Mapping[str, Shape], dynamic: Sizes) -> dict[str, Shape]:
    """Input shapes: `given` ones, stored ones, and for dynamic axes those of `dynamic` (one size per axis name).

    A name that has a size in `given` has it in the other inputs too, and a sum of names is one ("past + 1").
    """
    symbols = {
        d.dim_param: size
        for i in graph_inputs(proto)
        if i.name in given
        for d, size in zip(i.type.tensor_type.shape.dim, given[i.name], strict=False)
        if d.dim_param
    }
    inputs = [i for i in graph_inputs(proto) if i.type.HasField("tensor_type")]
    for value in (i for i in inputs if i.name not in given):
        _concrete(value, dynamic, symbols)
    return {i.name: given[i.name] if i.name in given else _concrete(i, dynamic, symbols) for i in inputs}


def _concrete(value: onnx.ValueInfoProto, dynamic: Sizes, symbols: dict[str, int]) -> Shape:
    dims = value.type.tensor_type.shape.dim
    sizes = []
    for axis, d in enumerate(dims):
        size = d.dim_value if d.HasField("dim_value") else 0
        if size <= 0:
            size = _dynamic_size(axis, len(dims), dynamic)
            if axis and value.type.tensor_type.elem_type in _INDEX_TYPES:
                size = min(size, LONGEST_TEXT + size // 100)
            named = symbols.setdefault(d.dim_param, size) if d.dim_param not in NO_NAMES else size
            size = _sum(d.dim_param, symbols) or named
        sizes.append(size)
    return tuple(sizes)


def _sum(name: str, symbols: Mapping[str, int]) -> int:
    """What "past_sequence_length + sequence_length" or "past + 1" comes to; 0 for any other name."""
    terms = name.split(" + ")
    if len(terms) < 2 or not all(t.isdigit() or t in symbols for t in terms):
        return 0
    return sum(int(t) if t.isdigit() else symbols[t] for t in terms)


def _dynamic_size(axis: int, rank: int, dynamic: Sizes) -> int:
    if axis == 0:
        return dynamic.batch
    return dynamic.space[axis % 2] if rank == 4 else dynamic.sequence


def is_dynamic(proto: onnx.ModelProto, given: Mapping[str, Shape]) -> bool:
    """Whether an input has an axis whose size neither the model nor `given` fixes."""
    return any(
        not d.HasField("dim_value") or d.dim_value <= 0
        for i in graph_inputs(proto)
        if i.name not in given
        for d in i.type.tensor_type.shape.dim
    )


def typical_inputs(
    proto: onnx.ModelProto, given: Mapping[str, Shape], batches: Sequence[int]
) -> Iterator[dict[str, Shape]]:
    """Input shapes to try in this order, each of `batches` at every size; one where `proto` and `given` fix all."""
    if not is_dynamic(proto, given):
        yield concrete_inputs(proto, given, TYPICAL)
        return
    for sizes in (TYPICAL, *RUN_SIZES):
        for batch in batches:
            yield concrete_inputs(proto, given, sizes._replace(batch=batch))


def _check_given(proto: onnx.ModelProto, given: Mapping[str, Shape]) -> None:
    known = {i.name: i.type.tensor_type.shape.dim for i in graph_inputs(proto)}
    for name, shape in given.items():
        if name not in known:
            raise UsageError(
                f"--input-shape names {name!r}, but the inputs of the model are {', '.join(sorted(known))}"
            )
        dims = known[name]
        if len(dims) and len(dims) != len(shape):
            raise UsageError(f"--input-shape gives {len(shape)} axes for {name!r}, the model has {len(dims)}")
        for axis, (d, size) in enumerate(zip(dims, shape, strict=False)):
            if d.dim_value > 0 and d.dim_value != size:
                raise UsageError(
                    f"--input-shape gives {size} for axis {axis} of {name!r}, the model fixes {d.dim_value}"
                )


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


def walk_graph(
    proto: onnx.ModelProto, inputs: Mapping[str, Shape], measured: Types, both: frozenset[str] = frozenset()
) -> _Walk:
    """One walk over the nodes at concrete input sizes; `measured` types stand in where nothing else is known. Of an If
    whose condition is known only that branch is walked, except of those in `both` (by their first results).

    Raises onnx.shape_inference.InferenceError on contradictions.
    """
    walk = _Walk({}, {}, set(), dict(inputs))
    for i in proto.graph.input:
        walk.types[i.name] = _input_type(i, inputs.get(i.name))
    for t in proto.graph.initializer:
        add_constant(walk.types, walk.values, t.name, t)
    setting = _Setting(
        versions={o.domain: o.version for o in proto.opset_import},
        opsets=list(proto.opset_import),
        declared={v.name: v.type for v in itertools.chain(proto.graph.value_info, proto.graph.output)} | measured,
        walkable=is_walkable(proto),
        both=both,
    )
    for node in proto.graph.node:
        _visit(walk, node, setting)
    return walk


def _input_type(value: onnx.ValueInfoProto, shape: Shape | None) -> TypeProto:
    if shape is None:
        return value.type
    return onnx.helper.make_tensor_type_proto(value.type.tensor_type.elem_type, shape)


def add_constant(types: Types, values: dict[str, Array], name: str, tensor: TensorProto) -> None:
    """Record the type of a stored tensor, and its value where it is small enough to take part in shape arithmetic."""
    types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    count = int(np.prod(tensor.dims, dtype=object)) if tensor.dims else 1
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    is_float = tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    if (tensor.data_type in _INDEX_TYPES and count <= LARGEST) or (
        is_float and count <= LONGEST_LIST and len(tensor.dims) < 2
    ):
        values[name] = onnx.numpy_helper.to_array(tensor)


def _visit(walk: _Walk, node: onnx.NodeProto, setting: _Setting) -> None:
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        _constant(walk, node)
        return
    if node.domain in ("", "ai.onnx") and _fold(walk, node):
        return
    found_types = _infer_bodies(walk, node, setting) if setting.walkable else {}
    for name, found in (found_types or _infer_node(walk, node, setting)).items():
        if found.WhichOneof("value"):
            walk.types[name] = found
    for name in node.output:
        if name and not _is_concrete(walk.types.get(name)) and _is_concrete(setting.declared.get(name)):
            walk.types[name] = setting.declared[name]
    if node.op_type in SAME_AS_FIRST and not _is_concrete(walk.types.get(node.output[0])):
        walk.types[node.output[0]] = walk.types.get(node.input[0], TypeProto())
    if node.op_type == "Reshape":
        before, after = (shape_of(walk.types.get(n)) for n in (node.input[0], node.output[0]))
        if before is not None and after is not None and math.prod(before) != math.prod(after):
            raise ContradictionError(f"Reshape {node.name!r} from {before} to {after}")


def constant_tensor(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor a Constant node holds, whatever attribute it is in; None for sparse and string constants."""
    attribute = node.attribute[0] if node.attribute else None
    if attribute is None or attribute.name in ("sparse_value", "value_string", "value_strings"):
        return None
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return tensor
    kind = TensorProto.FLOAT if "float" in attribute.name else TensorProto.INT64
    value = onnx.helper.get_attribute_value(attribute)
    listed = attribute.name.endswith("s")
    return onnx.helper.make_tensor(node.output[0], kind, [len(value)] if listed else [], value if listed else [value])


def _constant(walk: _Walk, node: onnx.NodeProto) -> None:
    tensor = constant_tensor(node)
    if tensor is not None:
        add_constant(walk.types, walk.values, node.output[0], tensor)


def _fold(walk: _Walk, node: onnx.NodeProto) -> bool:
    """Evaluate a node of shape arithmetic. True where all its outputs are known."""
    if node.op_type in ("Shape", "Size"):
        shape = shape_of(walk.types.get(node.input[0]))
        if shape is None:
            return False
        results: list[Array] | None = [_shape_value(node, shape)]
    else:
        names = [n for n in node.input if n]
        if not names or any(n not in walk.values for n in names) or not _is_shape_arithmetic(walk, node, names):
            return False
        inputs = [walk.values[n] if n else None for n in node.input]
        results = evaluate(node.op_type, inputs, node_attributes(node), len(node.output))
    if results is None or any(_is_data(r) for r in results):
        return False
    for name, value in zip(node.output, results, strict=False):
        walk.values[name] = value
        walk.derived.add(name)
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        walk.types[name] = onnx.helper.make_tensor_type_proto(kind, value.shape)
    return True


def _is_data(value: Array) -> bool:
    """Floats that are more than a list of scales or sizes are data, and their axes count."""
    return value.dtype.kind == "f" and (value.ndim > 1 or value.size > LONGEST_LIST)


def _is_shape_arithmetic(walk: _Walk, node: onnx.NodeProto, names: Iterable[str]) -> bool:
    """Integer arithmetic, or float arithmetic on something computed from a shape; never arithmetic on weights."""
    if node.op_type == "ConstantOfShape":
        value = next((a.t.data_type for a in node.attribute if a.name == "value"), TensorProto.FLOAT)
        return value in _INDEX_TYPES
    return any(n in walk.derived for n in names) or all(walk.values[n].dtype.kind in "ib" for n in names)


def _shape_value(node: onnx.NodeProto, shape: Shape) -> Array:
    if node.op_type == "Size":
        return np.asarray(int(np.prod(shape)), np.int64)
    bounds = {a.name: a.i for a in node.attribute}
    return np.asarray(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], np.int64)


def node_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node as Python values: tensors as numpy arrays, strings decoded, graphs left as they are."""
    result: dict[str, Any] = {}
    for a in node.attribute:
        value = onnx.helper.get_attribute_value(a)
        if isinstance(value, TensorProto):
            value = onnx.numpy_helper.to_array(value)
        elif isinstance(value, bytes):
            value = value.decode(errors="replace")
        result[a.name] = value
    return result


def _infer_bodies(walk: _Walk, node: onnx.NodeProto, setting: _Setting) -> dict[str, TypeProto]:
    """Walk the bodies of a control flow node; the types of its results as far as the bodies tell."""
    condition = walk.values.get(node.input[0]) if node.op_type == "If" else None
    if condition is not None and condition.size == 1 and node.output[0] not in setting.both:
        walk.taken[node.output[0]] = bool(condition.reshape(()))
    live = live_bodies(node, walk.taken)
    possible = [body for body in live if _walk_body(walk, node, body, setting, len(live) > 1)]
    if live and not possible:
        raise ContradictionError(f"neither branch of {node.op_type} {node.name!r} fits the sizes of the inputs")
    found: dict[str, TypeProto] = {}
    for link in (link for body in possible for link in leaving(node, body)):
        kind = walk.types.get(link.inner)
        known = _is_concrete(kind) and link.axis is None
        if kind is not None and known and shape_of(found.get(link.outer, kind)) == shape_of(kind):
            found[link.outer] = kind
        else:
            found[link.outer] = TypeProto()
    return found


def _walk_body(
    walk: _Walk, node: onnx.NodeProto, body: onnx.GraphProto, setting: _Setting, one_of_several: bool
) -> bool:
    """Walk a body. False where it is `one_of_several` and does not fit the sizes of the inputs: it cannot be the one
    that runs at them, and nothing is known of its tensors."""
    for value in body.input:
        walk.types[value.name] = value.type
    for link in entering(node, body):
        inner = _without_axis(walk.types.get(link.outer), link.axis)
        if inner is not None:
            walk.types[link.inner] = inner
    for tensor in body.initializer:
        add_constant(walk.types, walk.values, tensor.name, tensor)
    try:
        for inner_node in body.node:
            _visit(walk, inner_node, setting)
    except (onnx.shape_inference.InferenceError, ContradictionError) as error:
        if not one_of_several:
            raise
        log.debug("a branch of %s does not fit: %s", node.name, error)
        for name in (o for n in live_nodes(body, {}) for o in n.output):
            walk.types.pop(name, None)
            walk.values.pop(name, None)
            walk.derived.discard(name)
            walk.taken.pop(name, None)
        return False
    return True


def _without_axis(kind: TypeProto | None, axis: int | None) -> TypeProto | None:
    shape = shape_of(kind)
    if kind is None or shape is None or axis is None:
        return kind
    kept = [n for k, n in enumerate(shape) if k != axis % len(shape)]
    return onnx.helper.make_tensor_type_proto(kind.tensor_type.elem_type, kept)


def _infer_node(walk: _Walk, node: onnx.NodeProto, setting: _Setting) -> dict[str, TypeProto]:
    try:
        schema = onnx.defs.get_schema(node.op_type, setting.versions.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return {}
    types = {n: walk.types[n] for n in node.input if n in walk.types and walk.types[n].WhichOneof("value")}
    if any(n and n not in types for n in node.input) or any(a.HasField("g") for a in node.attribute):
        return {}
    data = {n: onnx.numpy_helper.from_array(walk.values[n]) for n in node.input if n in walk.values}
    try:
        return dict(onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=setting.opsets))
    except onnx.checker.ValidationError as error:
        log.debug("no shapes for %s %s: %s", node.op_type, node.name, error)
        return {}


def shape_of(kind: TypeProto | None) -> Shape | None:
    """The concrete shape of a tensor type, or None where an axis or the rank is unknown."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    sizes = tuple([d.dim_value for d in dims])
    return sizes if all(sizes) or all(d.HasField("dim_value") for d in dims) else None


def _is_concrete(kind: TypeProto | None) -> bool:
    return shape_of(kind) is not None


def _shapes(walks: Sequence[_Walk]) -> Shapes:
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
