"""Feeds cut into batches of equal rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxprune.errors import UsageError
from onnxprune.records import Feed
from onnxprune.shapes import graph_inputs

BATCH = 32
"""Rows of one batch where the model leaves the number free."""
LEAST_BATCHES = 8
FEW = 8
"""Rows that are looked at together."""


def fixed_rows(proto: onnx.ModelProto) -> int | None:
    """The size that all fixed first axes of the inputs have, None where none is fixed or they differ."""
    axes = [value.type.tensor_type.shape.dim for value in graph_inputs(proto)]
    fixed = {a[0].dim_value for a in axes if len(a) and a[0].dim_value > 0}
    return fixed.pop() if len(fixed) == 1 else None


def common_rows(feed: Feed) -> int:
    """The size of the common first axis of the arrays of a feed; 1 where they have none."""
    counts = {len(a) if a.ndim else -1 for a in feed.values()}
    return max(counts.pop(), 1) if len(counts) == 1 else 1


def mixed(feeds: Sequence[Feed], fixed: int | None, seed: int) -> list[Feed]:
    """The same rows in a random order (blocks of `fixed` rows, where that is given), so that data sorted by class, or
    in files by class, gives batches that are alike. Feeds of one kind of rows become one; others stay as they are."""
    unit, random = fixed or 1, np.random.default_rng(seed)
    kinds: dict[tuple[object, ...], list[Feed]] = {}
    for number, feed in enumerate(feeds):
        is_common = len({len(a) if a.ndim else -1 for a in feed.values()}) == 1 and all(a.ndim for a in feed.values())
        form: tuple[object, ...] = tuple((name, a.dtype.str, a.shape[1:]) for name, a in feed.items())
        kinds.setdefault(form if is_common else (number,), []).append(feed)
    found = []
    for form, own in kinds.items():
        if len(form) == 1 and isinstance(form[0], int):
            found += own
            continue
        blocks = sum(common_rows(feed) // unit for feed in own)
        order = (random.permutation(blocks)[:, None] * unit + np.arange(unit)).reshape(-1)
        found.append({n: np.concatenate([f[n][: len(f[n]) // unit * unit] for f in own])[order] for n in own[0]})
    return [found[k] for k in random.permutation(len(found))]


def batches(feeds: Sequence[Feed], fixed: int | None, limit: int) -> list[Feed]:
    """At most `limit` rows of all feeds, in batches of `fixed` rows (a last part batch is left out), or of up to
    `BATCH` and fewer where there would be less than `LEAST_BATCHES`, so that some can be held out.

    Feeds whose inputs have no common first axis stay as they are. Raises UsageError where nothing is left.
    """
    found: list[Feed] = []
    rows = 0
    given = sum(common_rows(feed) for feed in feeds)
    step = fixed or max(1, min(BATCH, min(given, limit) // LEAST_BATCHES))
    for feed in feeds:
        counts = {len(a) if a.ndim else -1 for a in feed.values()}
        (total,) = counts if len(counts) == 1 else (-1,)
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


def some(feeds: Sequence[Feed], fixed: int | None, rows: int) -> list[Feed]:
    """About `rows` rows of the first batches, at least one, in batches of a few where the model leaves that free."""
    found: list[Feed] = []
    for feed in feeds:
        left = rows - sum(common_rows(f) for f in found)
        if left <= 0:
            break
        is_common = fixed is None and len({len(a) if a.ndim else -1 for a in feed.values()}) == 1
        starts = range(0, min(left, common_rows(feed)), FEW)
        ends = [(k, min(k + FEW, left)) for k in starts]
        found += [{n: a[first:end] for n, a in feed.items()} for first, end in ends] if is_common else [feed]
    return found
