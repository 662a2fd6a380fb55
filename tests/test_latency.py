"""Timing: the loop on a simulated clock, the statistics on known ratios, one real smoke test. No speed is asserted."""

from __future__ import annotations

import os
import weakref
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxprune import latency, runtime, worker
from onnxprune.errors import UsageError
from onnxprune.records import Latency
from onnxprune.report import picture


class _Machine:
    """A clock that runs move forward: `cost(clock)` seconds per run, times the factor of the model."""

    def __init__(self, cost: Callable[[float], float]) -> None:
        self.now, self.cost, self.log = 0.0, cost, list[str]()

    def timer(self) -> float:
        return self.now

    def model(self, name: str, factor: float = 1.0) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += factor * self.cost(self.now)

        return run


def _loaded_machine(seed: int, noise: float) -> _Machine:
    """5 ms per run with noise, a slow drift, bursts of other work (70% slower for 0.15 s) and rare long stalls."""
    random = np.random.default_rng(seed)
    drift, burst_start, burst_end = 0.0, random.exponential(0.5), 0.0

    def cost(now: float) -> float:
        nonlocal drift, burst_start, burst_end
        if now > burst_start:
            burst_end = now + random.exponential(0.15)
            burst_start = burst_end + random.exponential(0.5)
        drift += random.normal(0.0, 0.003)
        stall = random.exponential(2.0) if random.random() < 0.02 else 0.0
        load = (1.7 if now < burst_end else 1.0) * (1.0 + stall)
        return float(0.005 * load * np.exp(drift + random.normal(0.0, noise)))

    return _Machine(cost)


def _interleave(machine: _Machine, factor: float = 1.0, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    options: dict[str, Any] = {"budget_s": 4.0, "min_pairs": 20, **changes}
    runs = machine.model("A"), machine.model("B", factor)
    return latency.interleave(lambda again: runs, timer=machine.timer, seed=seed, **options)


# ---- The loop --------------------------------------------------------------------------------------------------------


def test_pairs_take_both_orders_equally_often() -> None:
    machine = _Machine(lambda now: 0.01)
    before, after = _interleave(machine)
    rounds = ["".join(machine.log[i : i + 4]) for i in range(0, len(machine.log), 4)]
    assert set(rounds) == {"ABBA", "BAAB"}
    assert before.shape == after.shape == (2 * len(rounds),)


def test_a_quiet_machine_stops_at_the_least_number_of_pairs() -> None:
    before, _ = _interleave(_Machine(lambda now: 0.05), min_pairs=20)
    assert before.size == 20


def test_the_time_budget_ends_a_noisy_measurement() -> None:
    random = np.random.default_rng(0)
    machine = _Machine(lambda now: float(random.lognormal(-4.0, 1.0)))
    _interleave(machine, budget_s=2.0)
    assert 2.0 <= machine.now < 3.0


def test_a_slow_model_still_gets_the_fewest_pairs() -> None:
    before, _ = _interleave(_Machine(lambda now: 30.0), budget_s=1.0)
    assert before.size == latency.FEWEST_PAIRS


def test_a_very_fast_noisy_model_gets_no_more_than_the_most_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MOST_PAIRS", 50)
    random = np.random.default_rng(0)
    before, _ = _interleave(_Machine(lambda now: float(random.lognormal(-9.0, 1.0))))
    assert before.size == 50


def test_sessions_are_renewed_now_and_then_and_one_pair_at_a_time() -> None:
    random = np.random.default_rng(0)
    machine = _Machine(lambda now: float(random.lognormal(-5.0, 1.0)))
    opened: list[float] = []
    alive: list[weakref.ref[Any]] = []

    def open_pair(again: bool) -> tuple[Callable[[], None], Callable[[], None]]:
        assert again is bool(opened)
        assert all(run() is None for run in alive)
        machine.now += 0.1
        opened.append(machine.now)
        pair = machine.model("A"), machine.model("B")
        alive[:] = [weakref.ref(run) for run in pair]
        return pair

    latency.interleave(open_pair, timer=machine.timer, budget_s=5.0, min_pairs=20, seed=0)
    gaps = np.diff(opened)
    assert gaps.size >= 5
    # The first renewal has no cost to go by; later ones wait for four times the 0.1 s it takes.
    assert gaps[0] >= 0.1 + 0.1
    assert gaps[1:].min() >= 0.4 + 0.1


def test_one_lucky_session_does_not_decide() -> None:
    """A session of A that is twice as fast as the next ones: the measurement goes on past it."""
    machine = _Machine(lambda now: 0.001)

    def open_pair(again: bool) -> tuple[Callable[[], None], Callable[[], None]]:
        return machine.model("A", 1.0 if again else 0.5), machine.model("B")

    before, after = latency.interleave(open_pair, timer=machine.timer, budget_s=4.0, min_pairs=20, seed=0)
    assert latency.paired_ratio(before, after, seed=0)[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("cost", "runs"),
    [(0.01, 50), (0.2, 10), (5.0, 2), (1.0, 10)],
    ids=["half a second", "ten runs", "two slow runs", "not yet slow"],
)
def test_warm_up(cost: float, runs: int) -> None:
    machine = _Machine(lambda now: cost)
    assert latency.warm_up(machine.model("A"), timer=machine.timer) in (runs, runs + 1)


def test_a_slow_first_run_does_not_make_a_model_slow() -> None:
    machine = _Machine(lambda now: 5.0 if now == 0 else 0.01)
    assert latency.warm_up(machine.model("A"), timer=machine.timer) == 10


# ---- The statistics --------------------------------------------------------------------------------------------------


def test_equal_models_on_a_loaded_machine_are_found_equal() -> None:
    """The interval contains 1 in at least 95 of 100 repeats, at every level of noise."""
    for noise in (0.02, 0.06, 0.15):
        hits = 0
        for seed in range(100):
            before, after = _interleave(_loaded_machine(seed, noise), seed=seed)
            _, low, high = latency.paired_ratio(before, after, seed=seed, confidence=latency._CONFIDENCE)
            hits += low <= 1.0 <= high
        assert hits >= 95, f"{hits} of 100 at noise {noise}"


def test_a_real_difference_on_a_loaded_machine_is_found() -> None:
    ratios = [
        latency.paired_ratio(*_interleave(_loaded_machine(seed, 0.06), 0.8, seed), seed=seed) for seed in range(20)
    ]
    assert all(low > 1.0 for _, low, _ in ratios)
    assert np.median([ratio for ratio, _, _ in ratios]) == pytest.approx(1.25, rel=0.01)


@pytest.mark.parametrize("count", [20, 21, 200, 1001])
def test_the_interval_contains_a_known_ratio(count: int) -> None:
    hits = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        after = random.lognormal(0.0, 0.1, count)
        _, low, high = latency.paired_ratio(1.5 * after * random.lognormal(0.0, 0.1, count), after, seed=seed)
        hits += low <= 1.5 <= high
    # 95% of 200 is 190, with a standard error of 3.
    assert hits >= 184


def test_the_interval_agrees_with_the_plain_bootstrap() -> None:
    random = np.random.default_rng(5)
    ratios = random.lognormal(0.0, 0.2, 101)
    resamples = np.median(random.choice(ratios, (4000, 101)), axis=1)
    median, low, high = latency.paired_ratio(ratios, np.ones(101), seed=0)
    assert median == np.median(ratios)
    np.testing.assert_allclose((low, high), np.quantile(resamples, [0.025, 0.975]), rtol=0.02)


def test_wins_that_come_in_runs_widen_the_interval() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(0.0, 0.05, 512)
    placement = np.repeat(random.choice([-0.2, 0.2], 16), 32)
    ones = np.ones(512)
    _, low, high = latency.paired_ratio(np.exp(random.permutation(noise + placement)), ones, seed=0)
    _, low_runs, high_runs = latency.paired_ratio(np.exp(noise + placement), ones, seed=0)
    assert high_runs - low_runs > 2 * (high - low)


def test_the_interval_is_repeatable_and_holds_the_median() -> None:
    random = np.random.default_rng(1)
    for count in (1, 2, 6, 7):
        before = random.lognormal(0.0, 0.5, count)
        median, low, high = latency.paired_ratio(before, np.ones(count), seed=3)
        assert low <= median <= high
        assert latency.paired_ratio(before, np.ones(count), seed=3) == (median, low, high)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (0, 0)])
def test_unpaired_timings_are_refused(before: int, after: int) -> None:
    with pytest.raises(UsageError, match="two arrays of one length"):
        latency.paired_ratio(np.ones(before), np.ones(after), seed=0)


@pytest.mark.parametrize(
    ("ratio", "interval", "noise", "expected"),
    [
        (1.3, (1.2, 1.4), (0.98, 1.02), True),
        (0.8, (0.7, 0.9), (0.98, 1.02), True),
        (1.3, (0.9, 1.6), (0.98, 1.02), False),
        (1.05, (1.04, 1.06), (0.93, 1.07), False),
    ],
)
def test_significance_needs_the_interval_and_the_noise_floor(
    ratio: float, interval: tuple[float, float], noise: tuple[float, float], expected: bool
) -> None:
    assert latency.is_significant(ratio, interval, noise) is expected


# ---- Warnings --------------------------------------------------------------------------------------------------------


def test_a_busy_machine_is_said() -> None:
    assert latency.busy_warnings(0.1) == latency.busy_warnings(None) == ()
    assert latency.busy_warnings(0.6) == (
        "the machine was 60% busy with other work before the measurement: timings are less certain",
    )


def test_busy_share_counts_the_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([(100, 1000), (130, 1100)])
    monkeypatch.setattr(latency, "_processor_ticks", lambda: next(ticks))
    assert latency.busy_share(0.0) == pytest.approx(0.7)


def test_busy_share_falls_back_to_the_load_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_processor_ticks", lambda: None)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert latency.busy_share(0.0) == 0.75
    monkeypatch.delattr(os, "getloadavg")
    assert latency.busy_share(0.0) is None


def test_a_wide_interval_is_said() -> None:
    assert latency._interval_warnings(1.0, 0.97, 1.04, 30) == ()
    assert latency._interval_warnings(1.0, 0.9, 1.04, 30) == (
        "the speed-up is known only to within 10% after 30 pairs of runs: close other programs or allow more time",
    )


def test_nodes_off_the_device_are_said() -> None:
    settings = latency._Settings("cuda", 1, 1.0, 20, 0, False, lambda: 0.0)
    nodes = {"CUDAExecutionProvider": 9, "CPUExecutionProvider": 1}
    assert latency._placement_warnings(settings, {"CUDAExecutionProvider": 9}) == ()
    assert latency._placement_warnings(settings, nodes) == (
        "1 of 10 nodes do not run on cuda; see the nodes per provider",
    )


# ---- With ONNX Runtime -----------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Three small models with the same input."""
    paths = []
    for index, body in enumerate(("y = Relu(x)", "h = Relu(x)  y = Tanh(h)", "y = Neg(x)")):
        text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8] x) => (float[N, 8] y) {{ {body} }}'
        paths.append(tmp_path / f"model{index}.onnx")
        paths[-1].write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return paths


_FEEDS = {"x": np.ones((3, 8), np.float32), "unused": np.ones(1, np.float32)}


def test_a_real_comparison_in_a_child_process(models: list[Path]) -> None:
    arguments = {"before": str(models[0]), "after": str(models[1]), "feeds": _FEEDS, "budget_s": 0.2, "threads": 1}
    result = worker.call("onnxprune.latency:compare_paths", arguments, timeout_s=120)
    assert isinstance(result, Latency)
    assert (result.provider, result.batch, result.threads) == ("cpu", 3, 1)
    assert result.nodes_per_provider == {"CPUExecutionProvider": 2}
    assert result.pairs == len(result.before.samples) == len(result.after.samples) >= latency.FEWEST_PAIRS
    assert 0 < result.before.min <= result.before.p50 <= result.before.p90 <= result.before.p99
    assert result.ci95[0] <= result.speedup <= result.ci95[1]
    assert result.noise_floor[0] <= result.noise_floor[1]
    ET.fromstring(picture.histogram(result, "real"))


def test_many_models_are_compared_with_the_first(models: list[Path]) -> None:
    results = latency.measure(models, _FEEDS, budget_s=0.1, min_pairs=6, self_test=False)
    assert [sum(result.nodes_per_provider.values()) for result in results] == [2, 1]
    assert {result.threads for result in results} == {runtime.physical_cores()}
    assert {result.noise_floor for result in results} == {(1.0, 1.0)}


def test_the_timer_is_the_only_clock(models: list[Path]) -> None:
    ticks = iter(range(10**9))
    result = latency.compare(models[0], models[1], _FEEDS, timer=lambda: next(ticks) * 1e-3)
    for side in (result.before, result.after):
        np.testing.assert_allclose((side.p50, side.p90, side.p99, side.min, *side.samples), 1.0)
    assert result.speedup == pytest.approx(1.0)
    assert result.significant is False


def test_cuda_asked_for_but_absent_is_refused_and_never_timed(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match="provider 'cuda' was asked for .* has only CPUExecutionProvider"):
        latency.compare(models[0], models[1], _FEEDS, provider="cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "at least two models; 0 given"),
        ({"budget_s": 0.0}, "must all be positive"),
        ({"min_pairs": 0}, "must all be positive"),
        ({"threads": -1}, "must all be positive"),
        ({"feeds": {}}, "input 'x' of the model has no data"),
    ],
)
def test_options_that_do_not_fit_are_refused(models: list[Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        latency.compare_many(**{"models": models, "feeds": _FEEDS, **changes})


class _FakeBinding:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((name, *arguments))


def test_on_a_device_inputs_are_bound_once_and_every_run_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    binding = _FakeBinding()

    class Session:
        def io_binding(self) -> _FakeBinding:
            return binding

        def run_with_iobinding(self, given: _FakeBinding) -> None:
            given.calls.append("run")

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", lambda array, device, index: f"{device}:{index}")
    session: Any = Session()
    run = latency._device_runner(session, {"x": np.ones(2, np.float32)}, ["y"], "cuda")
    run()
    run()
    assert binding.calls == [
        ("bind_ortvalue_input", "x", "cuda:0"),
        ("bind_output", "y", "cuda", 0),
        ("synchronize_inputs",),
        *["run", ("synchronize_outputs",)] * 2,
    ]
