"""Inputs to measure on: the user's calibration arrays, or made-up ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxprune.errors import UsageError
from onnxprune.records import Feed
from onnxprune.shapes import Shape, graph_inputs

_PASSING = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"}
_TABLES = {"Gather": (0, 1)}
"""Operators that look up rows: (operand of the table, operand of the indices)."""


def load(path: Path) -> list[Feed]:
    """Feeds from a .npz (one array per input name) or a folder of them, in name order."""
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path}: the folder holds no .npz files")
    feeds = []
    for file in files:
        try:
            arrays = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"{file}: not a .npz file with one array per input name") from error
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise UsageError(f"{file}: a single array; save it with np.savez under the name of the input it is for")
        with arrays:
            feeds.append(_read_arrays(file, arrays))
    return feeds


def _read_arrays(file: Path, arrays: np.lib.npyio.NpzFile) -> Feed:
    try:
        return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{file}: its arrays cannot be read ({error})") from error


def fitting(feeds: Sequence[Feed], proto: onnx.ModelProto) -> list[Feed]:
    """The arrays of every feed that the model takes, checked: names, types, axes, finite values.

    Other arrays (labels) are left out. Raises UsageError naming the input and what does not fit.
    """
    inputs = {value.name: value.type.tensor_type for value in graph_inputs(proto)}
    for number, feed in enumerate(feeds):
        for name, kind in inputs.items():
            fault = _fault(feed.get(name), kind)
            if fault is not None:
                where = f" (feed {number + 1} of {len(feeds)})" if len(feeds) > 1 else ""
                raise UsageError(f"--calibration{where}: input {name!r} {fault}; the file has {sorted(feed)}")
    return [{name: feed[name] for name in inputs} for feed in feeds]


def _fault(array: npt.NDArray[np.generic] | None, kind: onnx.TypeProto.Tensor) -> str | None:
    """What of an array does not fit an input, or None."""
    if array is None:
        return "has no array"
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if array.dtype != dtype:
        return f"takes {dtype}, and the array is {array.dtype}"
    wanted = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
    fits = len(wanted) == array.ndim and all(w in (0, n) for w, n in zip(wanted[1:], array.shape[1:], strict=True))
    if kind.HasField("shape") and not fits:
        axes = ", ".join(str(w or "?") for w in wanted)
        return f"has the axes ({axes}), and the array {array.shape}"
    if not array.size:
        return "has an array without a single element"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "has an array with NaN or infinite values"
    return None


BATCH = 32
"""Rows of one batch where the model leaves the number free."""


def fixed_rows(proto: onnx.ModelProto) -> int | None:
    """The size that all fixed first axes of the inputs have, None where none is fixed or they differ."""
    axes = [value.type.tensor_type.shape.dim for value in graph_inputs(proto)]
    fixed = {a[0].dim_value for a in axes if len(a) and a[0].dim_value > 0}
    return fixed.pop() if len(fixed) == 1 else None


def batches(feeds: Sequence[Feed], fixed: int | None, limit: int) -> list[Feed]:
    """At most `limit` rows of all feeds, in batches of `fixed` rows (a last part batch is left out) or up to `BATCH`.

    Feeds whose inputs have no common first axis stay as they are. Raises UsageError where nothing is left.
    """
    found: list[Feed] = []
    rows = 0
    for feed in feeds:
        counts = {len(a) if a.ndim else -1 for a in feed.values()}
        (total,) = counts if len(counts) == 1 else (-1,)
        step = fixed or BATCH
        for first in range(0, max(total, 0), step):
            part = {
                name: a[first : min(first + step, first + limit - rows if fixed is None else total)]
                for name, a in feed.items()
            }
            taken = len(next(iter(part.values())))
            if rows < limit and taken and (fixed is None or taken == fixed):
                found.append(part)
                rows += taken
        if total < 0 and rows < limit:
            found.append(dict(feed))
            rows += 1
    if not found:
        raise UsageError(f"the calibration data has too few rows for the batch of {fixed} that the model fixes")
    return found


def index_bounds(graph: gs.Graph, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """For every graph input that ends as the index of a lookup, the rows of the smallest table it is used on."""
    bounds: dict[str, int] = {}
    for value in graph.inputs:
        found = list(_table_sizes(value, shapes, set()))
        if found:
            bounds[value.name] = min(found)
    return bounds


def _table_sizes(tensor: gs.Tensor, shapes: Mapping[str, Shape], seen: set[str]) -> list[int]:
    sizes: list[int] = []
    for node in tensor.outputs:
        table, index = _TABLES.get(node.op, (0, -1))
        if 0 <= index < len(node.inputs) and node.inputs[index] is tensor:
            shape = shapes.get(node.inputs[table].name)
            axis = node.attrs.get("axis", 0)
            sizes += [shape[axis]] if shape else []
        elif node.op in _PASSING and node.outputs[0].name not in seen:
            seen.add(node.outputs[0].name)
            sizes += _table_sizes(node.outputs[0], shapes, seen)
    return sizes
