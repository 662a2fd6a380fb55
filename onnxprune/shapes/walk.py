"""One walk over the nodes of a model at concrete input sizes: types of all tensors, and small values.

Weights are never read, only small integer constants.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, TypeProto

from onnxprune.bodies import entering, is_walkable, leaving, live_bodies, live_nodes
from onnxprune.folding import LARGEST, evaluate
from onnxprune.shapes.sizes import INDEX_TYPES, Shape

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Types = dict[str, TypeProto]

LONGEST_LIST = 8
"""Float constants of one axis and up to this many elements may take part in arithmetic on shapes (scales, sizes)."""
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


class ContradictionError(Exception):
    """The sizes of the inputs do not fit what the graph does with them."""


@dataclass
class Walk:
    """What one walk found, by tensor: types, small known values, which of those nodes derive, and the branches taken
    of Ifs (see `Shapes`)."""

    types: Types
    values: dict[str, Array]
    derived: set[str]
    inputs: dict[str, Shape]
    taken: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class _Setting:
    versions: dict[str, int]
    opsets: list[onnx.OperatorSetIdProto]
    declared: Types
    walkable: bool
    both: frozenset[str]


def walk_graph(
    proto: onnx.ModelProto, inputs: Mapping[str, Shape], measured: Types, both: frozenset[str] = frozenset()
) -> Walk:
    """One walk over the nodes at concrete input sizes; `measured` types stand in where nothing else is known. Of an If
    whose condition is known only that branch is walked, except of those in `both` (by their first results).

    Raises onnx.shape_inference.InferenceError on contradictions.
    """
    walk = Walk({}, {}, set(), dict(inputs))
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
    if (tensor.data_type in INDEX_TYPES and count <= LARGEST) or (
        is_float and count <= LONGEST_LIST and len(tensor.dims) < 2
    ):
        values[name] = onnx.numpy_helper.to_array(tensor)


def _visit(walk: Walk, node: onnx.NodeProto, setting: _Setting) -> None:
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
        if name and not is_concrete(walk.types.get(name)) and is_concrete(setting.declared.get(name)):
            walk.types[name] = setting.declared[name]
    if node.op_type in SAME_AS_FIRST and not is_concrete(walk.types.get(node.output[0])):
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


def _constant(walk: Walk, node: onnx.NodeProto) -> None:
    tensor = constant_tensor(node)
    if tensor is not None:
        add_constant(walk.types, walk.values, node.output[0], tensor)


def _fold(walk: Walk, node: onnx.NodeProto) -> bool:
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


def _is_shape_arithmetic(walk: Walk, node: onnx.NodeProto, names: Iterable[str]) -> bool:
    """Integer arithmetic, or float arithmetic on something computed from a shape; never arithmetic on weights."""
    if node.op_type == "ConstantOfShape":
        value = next((a.t.data_type for a in node.attribute if a.name == "value"), TensorProto.FLOAT)
        return value in INDEX_TYPES
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


def _infer_bodies(walk: Walk, node: onnx.NodeProto, setting: _Setting) -> dict[str, TypeProto]:
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
        known = is_concrete(kind) and link.axis is None
        if kind is not None and known and shape_of(found.get(link.outer, kind)) == shape_of(kind):
            found[link.outer] = kind
        else:
            found[link.outer] = TypeProto()
    return found


def _walk_body(
    walk: Walk, node: onnx.NodeProto, body: onnx.GraphProto, setting: _Setting, one_of_several: bool
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


def _infer_node(walk: Walk, node: onnx.NodeProto, setting: _Setting) -> dict[str, TypeProto]:
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


def is_concrete(kind: TypeProto | None) -> bool:
    """Whether all sizes are known."""
    return shape_of(kind) is not None


def stored_tensors(proto: ModelProto) -> dict[str, TensorProto]:
    """Initializers, and what Constant nodes hold, by name."""
    found = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        tensor = constant_tensor(node) if node.op_type == "Constant" else None
        if tensor is not None:
            found[node.output[0]] = tensor
    return found
