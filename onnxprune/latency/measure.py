"""Timing of models against each other, in interleaved pairs of runs.

Two figures taken one after the other differ by up to 45% for one and the same model; the median of the ratios of runs
side by side differs by 3%. So both models live in one process, in sessions with the same options, and take turns on
the same inputs. A session has luck of its own: where its weights lie in memory, which core its worker threads sleep
on. It lasts as long as the session, so both models get fresh sessions every now and then. What the pairs then say is
the matter of `statistics`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxprune import processor, runtime
from onnxprune.errors import UsageError
from onnxprune.latency import machine, statistics
from onnxprune.records import FloatArray, Latency, LatencySide
from onnxprune.wording import plural

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
_SELF_TEST_SHARE = 0.3


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
    """Time every further model against the first on the same inputs, in this process.

    Pairs are run until the interval of the median ratio is within 2% (over `min_pairs` and several sessions), or for
    `budget_s` seconds per further model, but never fewer than six. Before that both models warm up, and with
    `self_test` the first is measured against itself for 0.3 of the budget: the noise floor. `threads` 0 means all
    physical cores.
    """
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
    busy = machine.busy_warnings(machine.busy_share())
    noise = _noise_floor(models[0], feeds, settings) if settings.self_test else (1.0, 1.0)
    return [_compare_one(models[0], model, feeds, settings, noise, busy) for model in models[1:]]


def _open(model: Model, settings: _Settings) -> InferenceSession:
    return runtime.session(model, provider=settings.provider, threads=settings.threads)


def _runner_of(model: Model, feeds: Mapping[str, Array], settings: _Settings) -> Run:
    """`runner`, whose errors about inputs name the model."""
    try:
        return runner(_open(model, settings), feeds, settings.provider)
    except UsageError as error:
        raise UsageError(f"{'the model' if isinstance(model, bytes) else model}: {error}") from error


def _noise_floor(model: Model, feeds: Mapping[str, Array], settings: _Settings) -> tuple[float, float]:
    """The model against itself, in sessions of its own: what is measured where there is no difference."""
    _, low, high = _timed(model, model, feeds, settings, settings.budget_s * _SELF_TEST_SHARE)[2]
    return low, high


def _timed(
    first: Model, second: Model, feeds: Mapping[str, Array], settings: _Settings, budget_s: float
) -> tuple[FloatArray, FloatArray, tuple[float, float, float]]:
    """Seconds of both models, and the `paired_ratio` of them."""

    def open_pair(again: bool) -> tuple[Run, Run]:
        pair = tuple(_runner_of(model, feeds, settings) for model in (first, second))
        for run in pair:
            if again:
                warm_up(run, timer=settings.timer, min_runs=3, min_s=0.0, slow_runs=1)
            else:
                warm_up(run, timer=settings.timer)
        return pair[0], pair[1]

    before, after = interleave(
        open_pair, timer=settings.timer, budget_s=budget_s, min_pairs=settings.min_pairs, seed=settings.seed
    )
    return before, after, statistics.paired_ratio(before, after, seed=settings.seed, confidence=statistics.CONFIDENCE)


def _compare_one(
    first: Model,
    second: Model,
    feeds: Mapping[str, Array],
    settings: _Settings,
    noise: tuple[float, float],
    busy: tuple[str, ...],
) -> Latency:
    nodes, inputs = _facts(_open(second, settings), feeds)
    before, after, (ratio, low, high) = _timed(first, second, feeds, settings, settings.budget_s)
    medians = float(np.median(before) / np.median(after))
    found = statistics.is_significant((low, high), noise) and not statistics.medians_disagree(ratio, medians)
    return Latency(
        provider=settings.provider,
        batch=_batch(inputs),
        threads=settings.threads,
        before=_side(before),
        after=_side(after),
        speedup=ratio,
        ci95=(low, high),
        noise_floor=noise,
        significant=found,
        pairs=before.size,
        nodes_per_provider=nodes,
        warnings=(
            *busy,
            *statistics.floor_warnings(noise),
            *statistics.interval_warnings(ratio, low, high, before.size),
            *statistics.discord_warnings(ratio, medians),
            *_placement_warnings(settings, nodes),
        ),
        inputs=inputs,
        runtime=runtime.version(),
        processor=processor.model(),
    )


def _facts(session: InferenceSession, feeds: Mapping[str, Array]) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Nodes per provider, and the shape of every input."""
    shapes = {name: array.shape for name, array in runtime.fitting_feed(session, feeds).items()}
    return runtime.nodes_per_provider(session), shapes


def _batch(inputs: Mapping[str, tuple[int, ...]]) -> int:
    """The leading axis of the first input."""
    first = next(iter(inputs.values()), ())
    return first[0] if first else 1


def _placement_warnings(settings: _Settings, nodes: Mapping[str, int]) -> tuple[str, ...]:
    elsewhere = sum(count for name, count in nodes.items() if name != runtime.PROVIDERS[settings.provider])
    if not elsewhere:
        return ()
    does = "does" if elsewhere == 1 else "do"
    whole = plural(sum(nodes.values()), "node")
    return (f"{elsewhere} of {whole} {does} not run on {settings.provider}; see the nodes per provider",)


def _side(seconds: FloatArray) -> LatencySide:
    milliseconds = seconds * 1e3
    p50, p90, p99 = (float(value) for value in np.percentile(milliseconds, [50, 90, 99]))
    return LatencySide(p50, p90, p99, float(milliseconds.min()), tuple(milliseconds.tolist()))


# ---- Running ---------------------------------------------------------------------------------------------------------


def runner(session: InferenceSession, feeds: Mapping[str, Array], provider: str) -> Run:
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
            arrays = np.asarray(seconds[0]), np.asarray(seconds[1])
            if (
                statistics.half_width(*statistics.paired_ratio(*arrays, seed=seed, confidence=statistics.CONFIDENCE))
                <= PRECISION
            ):
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


def rounds(runs: Sequence[Run], *, warm_ups: int, budget_s: float, bounds: tuple[int, int], timer: Timer) -> FloatArray:
    """Seconds (rounds, runs) after `warm_ups` of each; in every round each has its turn, in an order of chance.

    Rounds begin until `budget_s` seconds have passed, but never fewer nor more of them than `bounds`.
    """
    for run in runs:
        for _ in range(warm_ups):
            run()
    random = np.random.default_rng(0)
    rows: list[FloatArray] = []
    start = timer()
    while len(rows) < bounds[0] or (timer() - start < budget_s and len(rows) < bounds[1]):
        row = np.zeros(len(runs))
        for k in random.permutation(len(runs)):
            row[k] = _seconds(runs[k], timer)
        rows.append(row)
    return np.stack(rows)
