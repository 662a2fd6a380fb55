"""Importance of every index of every prunable group, from the weights, one tensor in memory at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from onnxprune import criteria, dims
from onnxprune.dims import Dim
from onnxprune.errors import ModelError
from onnxprune.records import Analysis, FloatArray, Group

Read = Callable[[str], npt.NDArray[np.generic] | None]


def score(
    analysis: Analysis, groups: Iterable[Group], read: Read, *, criterion: str, seed: int
) -> Mapping[str, FloatArray]:
    """Scores by group id: float64 (size,), higher = keep.

    Each weight that produces or consumes the group adds its own score, divided by its mean over the group so that
    large tensors do not outvote small ones. `read` returns a stored weight by name, None for one made by a node.
    """
    measure = criteria.find(criterion)
    groups = list(groups)
    totals = {g.id: np.zeros(g.size) for g in groups}
    generators = {g.id: np.random.default_rng([seed, zlib.crc32(g.id.encode())]) for g in groups}
    for tensor, members in _by_tensor(analysis, groups).items():
        weight = read(tensor)
        if weight is None:
            continue
        for group, axis in members:
            if not _spans_evenly(analysis.weights[tensor][axis], group.dim):
                continue
            rows = _without_masks(group_rows(weight, axis, analysis.weights[tensor][axis], group.dim))
            found = measure(rows, generators[group.id])
            if not np.isfinite(found).all():
                raise ModelError(f"weight {tensor!r} holds NaN or infinity; the model is damaged, export it again")
            mean = float(found.mean())
            totals[group.id] += found / mean if mean > 0 else found
    return totals


def _without_masks(rows: FloatArray) -> FloatArray:
    """Zero where every index is infinite: what a table adds to hide a place tells no index from another."""
    if rows.dtype.kind != "f" or np.isfinite(rows).all():
        return rows
    return np.asarray(np.where(np.isinf(rows).all(0), rows.dtype.type(0), rows))


def _by_tensor(analysis: Analysis, groups: Iterable[Group]) -> dict[str, list[tuple[Group, int]]]:
    """The (group, axis) pairs of each stored weight with a produced or contracted axis of the group."""
    found: dict[str, list[tuple[Group, int]]] = {}
    for group in groups:
        for tensor, axis in dict.fromkeys((o.tensor, o.axis) for o in group.occurrences if o.role != "carried"):
            found.setdefault(tensor, []).append((group, axis))
    return found


def _spans_evenly(d: Dim, group: Dim) -> bool:
    """Whether each index of the group has as many places on the axis: not so on (c c), the axis of a Gram matrix."""
    index = dims.indices(d, group)
    counts = np.bincount(index[index >= 0], minlength=group.size)
    return bool((counts == counts[0]).all())


def group_rows(weight: npt.NDArray[np.generic], axis: int, d: Dim, group: Dim) -> FloatArray:
    """Everything of `weight` that goes with each index of `group`: (group size, elements per index).

    A float type as stored; a view where the axis is the group itself and comes first, so that large weights are not
    copied.
    """
    index = dims.indices(d, group)
    slices = np.moveaxis(np.asarray(weight), axis, 0)
    if not np.array_equal(index, np.arange(group.size)):
        slices = slices[np.argsort(index, kind="stable")[int((index < 0).sum()) :]]
    rows = slices.reshape(group.size, -1)
    return rows if rows.dtype.kind == "f" else rows.astype(np.float32)
