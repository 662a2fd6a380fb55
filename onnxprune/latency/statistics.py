"""The ratio of paired timings, and how sure it is.

Runs come in rounds of two pairs, one in each order (AB and BA), and chance decides which goes first: what helps the
second run helps both models, and no periodic load can fall on one of them only. Equal models then win each pair with
equal chance whatever drifts or bursts the machine adds, which is all that the interval of a median needs.
Two things make such an interval too sure of itself, and both are measured, not assumed away. Neighbouring pairs may
depend on each other (see `_dependence`). And measuring ends when the interval is narrow: between sessions of one model
on a loaded 2-core machine, 95% intervals at moments so chosen held 1 in 80% of 60 repeats, 99.5% intervals in 98%. The
measurement computes the latter, and states them as what they are after the choice: at least 95%.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.errors import UsageError
from onnxprune.records import FloatArray

CONFIDENCE = 0.995
UNCERTAIN = 0.05
"""Half-width of an interval, as a share of the ratio, beyond which a warning is due."""
DISCORD = 0.1
"""Medians of all runs and medians of pairs that differ by more than this share are worth a word."""


def paired_ratio(
    before: FloatArray, after: FloatArray, *, seed: int, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float, float]:
    """(median, low, high) of the paired ratios before/after, the ends being the bootstrap interval of the median.

    The arrays are in order of measurement. The median of a resample is one of the n ratios, and the rank that it draws
    has a known distribution: that of the middle of n uniform numbers, Beta((n + 1) / 2, (n + 1) / 2). Drawing the rank
    is the same bootstrap (B. Efron, 1979) without n draws per resample. Where neighbours depend on each other, n is
    the number of independent pairs that would be as informative.
    """
    if before.shape != after.shape or before.ndim != 1 or before.size == 0:
        raise UsageError(f"paired timings must be two arrays of one length, not {before.shape} and {after.shape}")
    ratios = before / after
    median = float(np.median(ratios))
    shape = (ratios.size / _dependence(ratios > median) + 1.0) / 2.0
    ranks = (np.random.default_rng(seed).beta(shape, shape, resamples) * ratios.size).astype(np.int64)
    medians = np.sort(ratios)[np.minimum(ranks, ratios.size - 1)]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(medians, [tail, 1.0 - tail])
    # With few pairs of an even number, the median lies between two ratios and chance may put both ends on one side.
    return median, min(float(low), median), max(float(high), median)


def _dependence(above: npt.NDArray[np.bool_]) -> float:
    """How many of these pairs tell as much as one independent pair: at least 1.

    On a loaded machine one session's worker thread may be placed badly for a while, and wins come in runs. Means of k
    independent wins have the variance 1/4k; the excess over that, at its largest for k = 2, 4, ... 64, is the answer
    (batch means, as in the analysis of simulation output).
    """
    excess = 1.0
    for exponent in range(1, 7):
        length = 2**exponent
        blocks = above.size // length
        if blocks < 8:  # too few to tell a variance
            break
        means = above[: blocks * length].reshape(blocks, length).mean(axis=1)
        excess = max(excess, float(4.0 * length * means.var(ddof=1)))
    return excess


def half_width(median: float, low: float, high: float) -> float:
    """The longer arm of the interval as a share of the median."""
    return max(high - median, median - low) / median


def is_significant(interval: tuple[float, float], noise: tuple[float, float]) -> bool:
    """Whether a ratio differs from 1: its interval lies beyond 1 and beyond what equal models differ by."""
    return interval[0] > max(noise[1], 1.0) or interval[1] < min(noise[0], 1.0)


def floor_warnings(noise: tuple[float, float]) -> tuple[str, ...]:
    """The warning about a model that is measured to be faster or slower than itself."""
    low, high = noise
    if low <= 1.0 <= high:
        return ()
    off = max(1.0 - low, high - 1.0)
    said = f"the first model measures {low:.3f} to {high:.3f} times as fast as itself, which leaves 1 out"
    advice = "measure again when the machine is quiet, or with a larger --budget"
    return (f"{said}: trust no figure of this run to better than {off:.0%}; {advice}",)


def medians_disagree(ratio: float, medians: float) -> bool:
    """Whether the `ratio` of the pairs and that of the `medians` of all runs say opposite things about which is faster.

    Both estimate one number. Where other work comes and goes, either model may have met more of it than the other, and
    the medians of all runs hold that; the pairs do not.
    """
    return (ratio - 1.0) * (medians - 1.0) < 0.0 and abs(medians / ratio - 1.0) > UNCERTAIN


def interval_warnings(ratio: float, low: float, high: float, pairs: int) -> tuple[str, ...]:
    """The warning about an interval that is wider than UNCERTAIN."""
    width = half_width(ratio, low, high)
    if width <= UNCERTAIN:
        return ()
    advice = "close other programs or allow more time"
    return (f"the speed-up is known only to within {width:.0%} after {pairs} pairs of runs: {advice}",)


def discord_warnings(ratio: float, medians: float) -> tuple[str, ...]:
    """The warning about medians in the table that do not show the `ratio` of the pairs."""
    said = f"runs side by side give {ratio:.2f}x, the medians of all runs {medians:.2f}x"
    if medians_disagree(ratio, medians):
        return (
            f"{said}: too much else happened on the machine to tell which is faster; measure again when it is quiet",
        )
    if abs(medians / ratio - 1.0) > DISCORD:
        return (f"{said}, because other work came and went: trust the former",)
    return ()
