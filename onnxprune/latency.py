"""Honest timing of models against each other: interleaved pairs, and the ratio with its uncertainty.

Two figures taken one after the other differ by up to 45% for one and the same model; the median of the ratios of runs
side by side differs by 3%. So both models live in one process and take turns on the same inputs.

Statistics. Runs come in rounds of two pairs, one in each order (AB and BA), and chance decides which goes first: what
helps the second run helps both models, and no periodic load can fall on one of them only. Equal models then win each
pair with equal chance whatever drifts or bursts the machine adds, which is all that the interval of a median needs.
But a session has luck of its own: where its weights lie in memory, which core its worker threads sleep on. It lasts
as long as the session, so both models get fresh sessions every now and then.
Two things make such an interval too sure of itself, and both are measured, not assumed away. Neighbouring pairs may
depend on each other (see `_dependence`). And measuring ends when the interval is narrow: between sessions of one model
on a loaded 2-core machine, 95% intervals at moments so chosen held 1 in 80% of 60 repeats, 99.5% intervals in 98%. The
measurement computes the latter, and states them as what they are after the choice: at least 95%.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxprune import runtime, worker
from onnxprune.errors import UsageError
from onnxprune.records import FloatArray, Latency, LatencySide

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Array = npt.NDArray[np.generic]
Model = str | Path | bytes
Run = Callable[[], object]
Timer = Callable[[], float]

PRECISION = 0.02
# Below six pairs not even the whole range of the ratios is a 95% interval of their median: 1 - 2 * 0.5**6 = 0.97.
FEWEST_PAIRS = 6
# Models of microseconds: more samples only make the record large.
MOST_PAIRS = 20_000
# Sessions are renewed after this time, or after so many times the time that renewing took.
RENEWAL_S = 0.1
RENEWAL_RATIO = 4.0
# A narrow interval from one pair of sessions says how those two compare, not how the models do.
FEWEST_RENEWALS = 4
_CONFIDENCE = 0.995
_SELF_TEST_SHARE = 0.3
_UNCERTAIN = 0.05
_BUSY_SHARE = 0.25


@dataclass(frozen=True)
class _Settings:
    provider: str
    threads: int
    budget_s: float
    min_pairs: int
    seed: int
    self_test: bool
    timer: Timer


# ---- Entry points ----------------------------------------------------------------------------------------------------


def measure(
    models: Sequence[str | Path],
    feeds: Mapping[str, Array],
    *,
    provider: str = "cpu",
    threads: int = 0,
    budget_s: float = 10.0,
    min_pairs: int = 20,
    seed: int = 0,
    self_test: bool = True,
    timeout_s: float | None = None,
) -> list[Latency]:
    """`compare_many` in a child process; `timeout_s` defaults to a bound far above what the budget should take."""
    limit = timeout_s if timeout_s is not None else 300.0 + len(models) * (120.0 + 4.0 * budget_s)
    arguments = {
        "models": [os.fspath(model) for model in models],
        "feeds": dict(feeds),
        "provider": provider,
        "threads": threads,
        "budget_s": budget_s,
        "min_pairs": min_pairs,
        "seed": seed,
        "self_test": self_test,
    }
    result: list[Latency] = worker.call("onnxprune.latency:compare_many", arguments, timeout_s=limit)
    return result


def compare_paths(
    before: str,
    after: str,
    feeds: Mapping[str, Array],
    *,
    provider: str = "cpu",
    threads: int = 0,
    budget_s: float = 10.0,
    min_pairs: int = 20,
    seed: int = 0,
    self_test: bool = True,
) -> Latency:
    """`compare` with arguments that can all be pickled, for `worker.call`."""
    return compare(
        before,
        after,
        feeds,
        provider=provider,
        threads=threads,
        budget_s=budget_s,
        min_pairs=min_pairs,
        seed=seed,
        self_test=self_test,
    )


def compare(
    before: Model,
    after: Model,
    feeds: Mapping[str, Array],
    *,
    provider: str = "cpu",
    threads: int = 0,
    budget_s: float = 10.0,
    min_pairs: int = 20,
    seed: int = 0,
    self_test: bool = True,
    timer: Timer = time.perf_counter,
) -> Latency:
    """Time `after` against `before` on the same inputs, in this process.

    Pairs are run until the interval of the median ratio is within 2% (over `min_pairs` and several sessions), or for
    `budget_s` seconds, but never fewer than six. Before that both models warm up, and with `self_test` the first is
    measured against itself for 0.3 of the budget: the noise floor. `threads` 0 means all physical cores.
    """
    settings = _Settings(provider, threads or runtime.physical_cores(), budget_s, min_pairs, seed, self_test, timer)
    return _compare_all([before, after], feeds, settings)[0]


def compare_many(
    models: Sequence[Model],
    feeds: Mapping[str, Array],
    *,
    provider: str = "cpu",
    threads: int = 0,
    budget_s: float = 10.0,
    min_pairs: int = 20,
    seed: int = 0,
    self_test: bool = True,
    timer: Timer = time.perf_counter,
) -> list[Latency]:
    """`compare` of every further model with the first; `budget_s` is for each of them, the noise floor is shared."""
    settings = _Settings(provider, threads or runtime.physical_cores(), budget_s, min_pairs, seed, self_test, timer)
    return _compare_all(models, feeds, settings)


# ---- The measurement -------------------------------------------------------------------------------------------------


def _compare_all(models: Sequence[Model], feeds: Mapping[str, Array], settings: _Settings) -> list[Latency]:
    if len(models) < 2:
        raise UsageError(f"a comparison takes at least two models; {len(models)} given")
    if settings.budget_s <= 0 or settings.min_pairs < 1 or settings.threads < 1:
        raise UsageError(
            f"the time budget ({settings.budget_s:g} s), the least number of pairs ({settings.min_pairs}) and the "
            f"threads ({settings.threads}) must all be positive"
        )
    busy = busy_warnings(busy_share())
    noise = _noise_floor(models[0], feeds, settings) if settings.self_test else (1.0, 1.0)
    return [_compare_one(models[0], model, feeds, settings, noise, busy) for model in models[1:]]


def _open(model: Model, settings: _Settings) -> InferenceSession:
    return runtime.session(model, provider=settings.provider, threads=settings.threads)


def _noise_floor(model: Model, feeds: Mapping[str, Array], settings: _Settings) -> tuple[float, float]:
    """The model against itself, in sessions of its own: what is measured where there is no difference."""
    _, low, high = _timed(model, model, feeds, settings, settings.budget_s * _SELF_TEST_SHARE)[2]
    return low, high


def _timed(
    first: Model, second: Model, feeds: Mapping[str, Array], settings: _Settings, budget_s: float
) -> tuple[FloatArray, FloatArray, tuple[float, float, float]]:
    """Seconds of both models, and the `paired_ratio` of them."""

    def open_pair(again: bool) -> tuple[Run, Run]:
        pair = tuple(_runner(_open(model, settings), feeds, settings.provider) for model in (first, second))
        for run in pair:
            if again:
                warm_up(run, timer=settings.timer, min_runs=3, min_s=0.0, slow_runs=1)
            else:
                warm_up(run, timer=settings.timer)
        return pair[0], pair[1]

    before, after = interleave(
        open_pair, timer=settings.timer, budget_s=budget_s, min_pairs=settings.min_pairs, seed=settings.seed
    )
    return before, after, paired_ratio(before, after, seed=settings.seed, confidence=_CONFIDENCE)


def _compare_one(
    first: Model,
    second: Model,
    feeds: Mapping[str, Array],
    settings: _Settings,
    noise: tuple[float, float],
    busy: tuple[str, ...],
) -> Latency:
    nodes, batch = _facts(_open(second, settings), feeds)
    before, after, (ratio, low, high) = _timed(first, second, feeds, settings, settings.budget_s)
    warnings = (*busy, *_interval_warnings(ratio, low, high, before.size), *_placement_warnings(settings, nodes))
    return Latency(
        provider=settings.provider,
        batch=batch,
        threads=settings.threads,
        before=_side(before),
        after=_side(after),
        speedup=ratio,
        ci95=(low, high),
        noise_floor=noise,
        significant=is_significant(ratio, (low, high), noise),
        pairs=before.size,
        nodes_per_provider=nodes,
        warnings=warnings,
    )


def _facts(session: InferenceSession, feeds: Mapping[str, Array]) -> tuple[dict[str, int], int]:
    """Nodes per provider, and the batch size: the leading axis of the first input."""
    shape = next((array.shape for array in runtime.fitting_feed(session, feeds).values()), ())
    return runtime.nodes_per_provider(session), int(shape[0]) if shape else 1


def is_significant(ratio: float, interval: tuple[float, float], noise: tuple[float, float]) -> bool:
    """Whether `ratio` differs from 1: its interval leaves 1 out, and equal models do not differ as much."""
    return not (interval[0] <= 1.0 <= interval[1] or noise[0] <= ratio <= noise[1])


def _side(seconds: FloatArray) -> LatencySide:
    milliseconds = seconds * 1e3
    p50, p90, p99 = (float(value) for value in np.percentile(milliseconds, [50, 90, 99]))
    return LatencySide(p50, p90, p99, float(milliseconds.min()), tuple(milliseconds.tolist()))


# ---- Running ---------------------------------------------------------------------------------------------------------


def _runner(session: InferenceSession, feeds: Mapping[str, Array], provider: str) -> Run:
    """A call that runs the model once and returns when it is done. The inputs are checked and copied once, here."""
    runtime.run(session, feeds)
    chosen = runtime.fitting_feed(session, feeds)
    names = [value.name for value in session.get_outputs()]
    if provider == "cpu":
        return lambda: session.run(names, chosen)
    return _device_runner(session, chosen, names, provider)


def _device_runner(session: InferenceSession, feeds: Mapping[str, Array], outputs: list[str], device: str) -> Run:
    """Inputs and outputs stay on the device: copies over the bus would drown the difference between the models."""
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for name, array in feeds.items():
        if array.dtype == np.object_:  # strings have no form on a device
            binding.bind_cpu_input(name, array)
        else:
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0))
    for name in outputs:
        binding.bind_output(name, device, 0)
    binding.synchronize_inputs()

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _seconds(run: Run, timer: Timer) -> float:
    start = timer()
    run()
    return timer() - start


def warm_up(
    run: Run, *, timer: Timer, min_runs: int = 10, min_s: float = 0.5, slow_s: float = 1.0, slow_runs: int = 2
) -> int:
    """Run until there are `min_runs` and `min_s` seconds, or `slow_runs` where a run still takes over `slow_s`."""
    count, total = 0, 0.0
    while True:
        elapsed = _seconds(run, timer)
        count, total = count + 1, total + elapsed
        if count >= min_runs and total >= min_s:
            return count
        if count >= slow_runs and elapsed > slow_s:
            return count


def interleave(
    open_pair: Callable[[bool], tuple[Run, Run]], *, timer: Timer, budget_s: float, min_pairs: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Seconds per run of two models that take turns; element k of both arrays belongs to the same pair.

    `open_pair` gives the two, warmed up: with False at the start, with True for fresh sessions of the same later on.
    Ends at the first look with `min_pairs` and FEWEST_RENEWALS where the interval of the median ratio is within
    PRECISION, at MOST_PAIRS, or once `budget_s` has passed, but not before FEWEST_PAIRS. Looks come at growing
    distances, so that there are few.
    """
    random = np.random.default_rng(seed)
    seconds: tuple[list[float], list[float]] = ([], [])
    runs = open_pair(False)
    start = renewed = timer()
    renewals, renewal_cost, next_look = 0, 0.0, max(min_pairs, FEWEST_PAIRS)
    while len(seconds[0]) < MOST_PAIRS:
        _round(runs, random, seconds, timer)
        pairs = len(seconds[0])
        if pairs >= FEWEST_PAIRS and timer() - start >= budget_s:
            break
        if pairs >= next_look and renewals >= FEWEST_RENEWALS:
            estimate = paired_ratio(np.asarray(seconds[0]), np.asarray(seconds[1]), seed=seed, confidence=_CONFIDENCE)
            if _half_width(*estimate) <= PRECISION:
                break
            next_look = int(pairs * 1.25) + 1
        if timer() - renewed >= max(RENEWAL_S, RENEWAL_RATIO * renewal_cost):
            begin = timer()
            del runs  # two sessions at a time, not four
            runs = open_pair(True)
            renewed = timer()
            renewals, renewal_cost = renewals + 1, renewed - begin
    return np.asarray(seconds[0]), np.asarray(seconds[1])


def _round(
    runs: tuple[Run, Run], random: np.random.Generator, seconds: tuple[list[float], list[float]], timer: Timer
) -> None:
    """Two pairs, one in each order; chance decides which order comes first."""
    first = int(random.random() < 0.5)
    for index in (first, 1 - first, 1 - first, first):
        seconds[index].append(_seconds(runs[index], timer))


# ---- Statistics ------------------------------------------------------------------------------------------------------


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


def _half_width(median: float, low: float, high: float) -> float:
    """The longer arm of the interval as a share of the median."""
    return max(high - median, median - low) / median


# ---- Warnings --------------------------------------------------------------------------------------------------------


def _interval_warnings(ratio: float, low: float, high: float, pairs: int) -> tuple[str, ...]:
    width = _half_width(ratio, low, high)
    if width <= _UNCERTAIN:
        return ()
    advice = "close other programs or allow more time"
    return (f"the speed-up is known only to within {width:.0%} after {pairs} pairs of runs: {advice}",)


def _placement_warnings(settings: _Settings, nodes: Mapping[str, int]) -> tuple[str, ...]:
    elsewhere = sum(count for name, count in nodes.items() if name != runtime.PROVIDERS[settings.provider])
    if not elsewhere:
        return ()
    return (
        f"{elsewhere} of {sum(nodes.values())} nodes do not run on {settings.provider}; see the nodes per provider",
    )


def busy_warnings(share: float | None) -> tuple[str, ...]:
    """The warning about other work on the machine, if `share` (0 to 1, None for unknown) of it was busy."""
    if share is None or share < _BUSY_SHARE:
        return ()
    return (f"the machine was {share:.0%} busy with other work before the measurement: timings are less certain",)


def busy_share(wait_s: float = 0.3) -> float | None:
    """Share of all processors that was busy over `wait_s` seconds in which this process slept; None where unknown.

    The load average is the second choice: it still holds the work that this command itself did a minute ago.
    """
    before = _processor_ticks()
    if before is not None:
        time.sleep(wait_s)
        after = _processor_ticks()
        if after is not None and after[1] > before[1]:
            return 1.0 - (after[0] - before[0]) / (after[1] - before[1])
    try:
        return min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    except (AttributeError, OSError):
        return None


def _processor_ticks() -> tuple[int, int] | None:
    """(idle, all) clock ticks since boot from Linux's /proc/stat; see proc(5)."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
        ticks = [int(word) for word in first.split()[1:9]]
    except (OSError, ValueError):
        return None
    return (ticks[3] + ticks[4], sum(ticks)) if len(ticks) > 4 else None
