"""Which results no other beats: quality against latency against size.

A beats B where it is as good in quality and size, not measurably slower (its 95% interval does not lie above that of
B), and better in one of the three. Of results that equal each other the first stays. What beats does so in no circle:
around one all would have the same quality and size, and each an interval below that of the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.records import TrialResult

ANY = (-math.inf, math.inf)


@dataclass(frozen=True)
class _Worth:
    quality: float
    bytes: int
    low: float
    high: float


def front(results: Sequence[TrialResult]) -> tuple[int, ...]:
    """The numbers of the results that no other beats, in their order. Results without a model count for nothing.

    Where no latency was measured, multiply-accumulates stand for it.
    """
    timed = any(r.latency for r in results)
    worth = {k: found for k, r in enumerate(results) if (found := _worth(r, timed)) is not None}
    return tuple(
        k for k, own in worth.items() if not any(_beats(other, own, n < k) for n, other in worth.items() if n != k)
    )


def _worth(result: TrialResult, timed: bool) -> _Worth | None:
    if result.after is None or result.quality is None:
        return None
    quality = result.quality.value if math.isfinite(result.quality.value) else -math.inf
    if result.latency is not None:
        low, high = (1 / bound for bound in reversed(result.latency.ci95))
    else:
        low, high = ANY if timed else (float(result.after.macs), float(result.after.macs))
    return _Worth(quality, result.after.bytes, low, high)


def _beats(a: _Worth, b: _Worth, first: bool) -> bool:
    if a.quality < b.quality or a.bytes > b.bytes or a.low > b.high:
        return False
    better = a.quality > b.quality or a.bytes < b.bytes or a.high < b.low
    same = a.quality == b.quality and a.bytes == b.bytes and b.low <= a.high
    return better or (first and same)
