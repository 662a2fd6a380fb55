"""Sizes for the inputs of a model: those that its axes leave free, and others beside those that are given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx
from onnx import TensorProto

from onnxprune.errors import UsageError
from onnxprune.records import NO_NAMES

Shape = tuple[int, ...]

INDEX_TYPES = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


class Sizes(NamedTuple):
    """Sizes for dynamic axes: the first axis, height and width of 4-D inputs, and any other axis."""

    batch: int
    space: tuple[int, int]
    sequence: int


LONGEST_TEXT = 1024
"""Where ids or masks are asked for rather than samples of sound, sequences are hardly longer: attention compares every
place with every other one."""
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
            if axis and value.type.tensor_type.elem_type in INDEX_TYPES:
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


def free_axes(proto: onnx.ModelProto) -> list[tuple[str, int]]:
    """(input, axis) of every input axis whose size the model leaves free."""
    return [
        (i.name, axis)
        for i in graph_inputs(proto)
        for axis, d in enumerate(i.type.tensor_type.shape.dim)
        if d.dim_value <= 0
    ]


def check_given(proto: onnx.ModelProto, given: Mapping[str, Shape]) -> None:
    """Raise UsageError for shapes of inputs that the model does not have, or not of that rank or size."""
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
