"""What is checked of inputs before they are used: names, types, axes, values."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxprune.errors import UsageError
from onnxprune.records import Feed, Range
from onnxprune.shapes import Shape, Shapes, graph_inputs

_PASSING = {
    "Cast",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Operators whose results are elements of their first operand."""
_TABLES = {"Gather": (0, 1), "GatherElements": (0, 1), "ScatterElements": (0, 1)}
"""Operators that look up rows: (operand of the table, operand of the indices)."""


class Entry(NamedTuple):
    """An input of the model; `axes` are None where their size is free."""

    name: str
    dtype: np.dtype[Any]
    axes: tuple[int | None, ...]


def entries(proto: onnx.ModelProto, given: Mapping[str, Shape]) -> list[Entry]:
    """The inputs that a caller must feed; `given` sizes free axes."""
    found = []
    for value in graph_inputs(proto):
        kind = value.type.tensor_type
        axes = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim]
        sizes = given.get(value.name, axes)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        # A size given for the batch is one to run at, not one the data must have.
        found.append(Entry(value.name, dtype, (*axes[:1], *sizes[1:])))
    return found


def fitting(feed: Feed, proto: onnx.ModelProto, where: str = "") -> Feed:
    """The arrays of a feed that the model takes, checked: names, types, axes, rows, finite values.

    Raises UsageError naming `where` they come from (a file, an item), the input and what does not fit.
    """
    inputs = {value.name: value.type.tensor_type for value in graph_inputs(proto)}
    label = f"--calibration {where}".rstrip()
    for name, kind in inputs.items():
        fault = _fault(feed.get(name), kind)
        if fault is not None:
            raise UsageError(f"{label}: input {name!r} {fault}{'' if name in feed else '; given are ' + listed(feed)}")
    found = {name: feed[name] for name in inputs}
    named = {name: kind.shape.dim[0].dim_param for name, kind in inputs.items() if kind.shape.dim}
    check_rows([found], {name: axis for name, axis in named.items() if axis not in ("", "?")}, label)
    return found


def check_rows(feeds: Sequence[Feed], firsts: Mapping[str, Hashable], label: str) -> None:
    """Raise UsageError where inputs with the same first axis have different numbers of rows; one row may stand for all.

    `firsts`: what the first axis of an input is, by its name; `label`: what the message begins with.
    """
    for feed in feeds:
        for axis in dict.fromkeys(firsts.values()):
            rows = {name: len(feed[name]) for name, own in firsts.items() if own == axis}
            if len(set(rows.values()) - {1}) > 1:
                listed = ", ".join(f"{name} {count}" for name, count in rows.items())
                listed = listed.replace(" ", " has ", 1).replace(",", " rows,", 1)
                raise UsageError(f"{label}: {listed}, and the model takes the same number of all of them")


def _fault(array: npt.NDArray[np.generic] | None, kind: onnx.TypeProto.Tensor) -> str | None:
    """What of an array does not fit an input, or None."""
    if array is None:
        return "has no array"
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if array.dtype != dtype:
        advice = f"convert it with .astype({str(dtype)!r})" if {array.dtype.kind, dtype.kind} <= set("biuf") else (
            "numbers are needed" if dtype.kind in "biufV" else "strings are needed"
        )  # fmt: skip
        return f"takes {dtype_words(dtype)}, and the array is {dtype_words(array.dtype)}: {advice}"
    wanted = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
    fits = len(wanted) == array.ndim and all(w in (0, n) for w, n in zip(wanted[1:], array.shape[1:], strict=True))
    if kind.HasField("shape") and not fits:
        axes = ", ".join(str(w or "?") for w in wanted)
        return f"has the axes ({axes}), and the array {array.shape}"
    if not array.size:
        return "has an array without a single element"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        odd = ~np.isfinite(array)
        first = int(np.unravel_index(int(odd.argmax()), odd.shape)[0]) if odd.ndim else 0
        count = f"{np.count_nonzero(odd):,} of {array.size:,}, the first in row {first} (counted from 0)"
        return f"has an array with NaN or infinite values: {count}"
    return None


def listed(names: Iterable[str]) -> str:
    """Names in order, or that there are none."""
    return ", ".join(sorted(names)) or "no arrays"


def dtype_words(dtype: np.dtype[Any]) -> str:
    """The name of an element type, for people."""
    return "text" if dtype.kind in "SUT" else "Python objects" if dtype.kind == "O" else str(dtype)


def check_indices(feeds: Sequence[Feed], bounds: Mapping[str, int], option: str = "--calibration") -> None:
    """Raise UsageError where an input that is looked up in a table has indices outside of it.

    `bounds`: rows of the table by input name. ONNX counts negative indices from the end.
    """
    for name, rows in bounds.items():
        for feed in feeds:
            low, high = int(feed[name].min()), int(feed[name].max())
            if low < -rows or high >= rows:
                raise UsageError(
                    f"{option}: input {name!r} has indices from {low} to {high}, and the model looks them up in "
                    f"a table of {rows} rows: 0 to {rows - 1} are allowed; is this the tokenizer of this model?"
                )


def ranges(feeds: Sequence[Feed]) -> dict[str, Range]:
    """Least, largest and mean value of every input of numbers, by name."""
    found = {}
    for name in feeds[0] if feeds else ():
        parts = [f[name] for f in feeds if f[name].dtype.kind in "fiub" and f[name].size]
        if parts:
            total = sum(p.size for p in parts)
            mean = sum(float(p.sum(dtype=np.float64)) for p in parts) / total
            found[name] = Range(min(float(p.min()) for p in parts), max(float(p.max()) for p in parts), mean)
    return found


def remarks(feeds: Sequence[Feed]) -> list[str]:
    """What looks wrong about inputs that fit: constant ones."""
    found = []
    for name, values in ranges(feeds).items():
        if feeds[0][name].dtype.kind == "f" and values.low == values.high:
            found.append(f"every value of the calibration input {name!r} is {values.low:g}")
    return found


def check_variety(feeds: Sequence[Feed], label: str) -> None:
    """Raise UsageError where there are several rows and every one of every input is the same. `label`: what the message
    begins with."""
    if rows_of(feeds) > 1 and all(_is_repeated(feeds, name) for name in feeds[0]):
        raise UsageError(
            f"{label}: all {rows_of(feeds)} rows are the same, so nothing can be learned from them; give rows that "
            "differ, or leave --calibration out"
        )


def rows_of(feeds: Sequence[Feed]) -> int:
    """Rows of all feeds together; 1 for a feed without axes."""
    return sum(max((len(a) for a in f.values() if a.ndim), default=1) for f in feeds)


def _is_repeated(feeds: Sequence[Feed], name: str) -> bool:
    first = feeds[0][name]
    row = first[:1] if first.ndim else first
    return all(f[name].shape[1:] == row.shape[1:] and bool((f[name] == row).all()) for f in feeds)


def index_bounds(graph: gs.Graph, shapes: Shapes) -> dict[str, int]:
    """For every graph input that ends as the index of a lookup, the rows that the tables it is used on have at least,
    at any input size: those of the smallest, or 1 where the rows of a table follow the input."""
    tables = {value.name: _tables(value, shapes, set()) for value in graph.inputs}
    return {name: min(1 if moving else rows for rows, moving in found) for name, found in tables.items() if found}


def index_limits(graph: gs.Graph, shapes: Shapes) -> dict[str, int]:
    """As `index_bounds`, of the tables whose rows are the same at any input size."""
    tables = {
        value.name: [rows for rows, moving in _tables(value, shapes, set()) if not moving] for value in graph.inputs
    }
    return {name: min(found) for name, found in tables.items() if found}


def _tables(tensor: gs.Tensor, shapes: Shapes, seen: set[str]) -> list[tuple[int, bool]]:
    """The rows of every table that a tensor is an index of, and whether they follow the input."""
    found: list[tuple[int, bool]] = []
    for node in tensor.outputs:
        table, index = _TABLES.get(node.op, (0, -1))
        if 0 <= index < len(node.inputs) and node.inputs[index] is tensor:
            name, axis = node.inputs[table].name, node.attrs.get("axis", 0)
            if shapes.shape.get(name):
                found.append((shapes.shape[name][axis], bool(shapes.dynamic_axes[name][axis])))
        elif node.op in _PASSING and node.inputs[0] is tensor:
            for result in (o for o in node.outputs if o.name not in seen):
                seen.add(result.name)
                found += _tables(result, shapes, seen)
    return found
