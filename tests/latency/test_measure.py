"""Timing: the loop on a simulated clock, one real smoke test. No speed is asserted."""

from __future__ import annotations

import weakref
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from simulated import Machine, interleave

from onnxprune import runtime, worker
from onnxprune.errors import UsageError
from onnxprune.latency import measure, statistics
from onnxprune.records import Latency
from onnxprune.report import picture

# ---- The loop --------------------------------------------------------------------------------------------------------


def test_pairs_take_both_orders_equally_often() -> None:
    machine = Machine(lambda now: 0.01)
    before, after = interleave(machine)
    rounds = ["".join(machine.log[i : i + 4]) for i in range(0, len(machine.log), 4)]
    assert set(rounds) == {"ABBA", "BAAB"}
    assert before.shape == after.shape == (2 * len(rounds),)


def test_a_quiet_machine_stops_at_the_least_number_of_pairs() -> None:
    before, _ = interleave(Machine(lambda now: 0.05), min_pairs=20)
    assert before.size == 20


def test_the_time_budget_ends_a_noisy_measurement() -> None:
    random = np.random.default_rng(0)
    machine = Machine(lambda now: float(random.lognormal(-4.0, 1.0)))
    interleave(machine, budget_s=2.0)
    assert 2.0 <= machine.now < 3.0


def test_a_slow_model_still_gets_the_fewest_pairs() -> None:
    before, _ = interleave(Machine(lambda now: 30.0), budget_s=1.0)
    assert before.size == measure.FEWEST_PAIRS


def test_a_very_fast_noisy_model_gets_no_more_than_the_most_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_PAIRS", 50)
    random = np.random.default_rng(0)
    before, _ = interleave(Machine(lambda now: float(random.lognormal(-9.0, 1.0))))
    assert before.size == 50


def test_sessions_are_renewed_now_and_then_and_one_pair_at_a_time() -> None:
    random = np.random.default_rng(0)
    machine = Machine(lambda now: float(random.lognormal(-5.0, 1.0)))
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

    measure.interleave(open_pair, timer=machine.timer, budget_s=5.0, min_pairs=20, seed=0)
    gaps = np.diff(opened)
    assert gaps.size >= 5
    # The first renewal has no cost to go by; later ones wait for four times the 0.1 s it takes.
    assert gaps[0] >= 0.1 + 0.1
    assert gaps[1:].min() >= 0.4 + 0.1


def test_one_lucky_session_does_not_decide() -> None:
    """A session of A that is twice as fast as the next ones: the measurement goes on past it."""
    machine = Machine(lambda now: 0.001)

    def open_pair(again: bool) -> tuple[Callable[[], None], Callable[[], None]]:
        return machine.model("A", 1.0 if again else 0.5), machine.model("B")

    before, after = measure.interleave(open_pair, timer=machine.timer, budget_s=4.0, min_pairs=20, seed=0)
    assert statistics.paired_ratio(before, after, seed=0)[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("cost", "runs"),
    [(0.01, 50), (0.2, 10), (5.0, 2), (1.0, 10)],
    ids=["half a second", "ten runs", "two slow runs", "not yet slow"],
)
def test_warm_up(cost: float, runs: int) -> None:
    machine = Machine(lambda now: cost)
    assert measure.warm_up(machine.model("A"), timer=machine.timer) in (runs, runs + 1)


def test_a_slow_first_run_does_not_make_a_model_slow() -> None:
    machine = Machine(lambda now: 5.0 if now == 0 else 0.01)
    assert measure.warm_up(machine.model("A"), timer=machine.timer) == 10


def test_in_every_round_each_run_has_its_turn() -> None:
    machine = Machine(lambda now: 0.5)
    runs = [machine.model("A"), machine.model("B", 2.0), machine.model("C", 4.0)]
    found = measure.rounds(runs, warm_ups=2, budget_s=20.0, bounds=(2, 60), timer=machine.timer)
    assert "".join(machine.log[:6]) == "AABBCC"
    orders = {"".join(machine.log[i : i + 3]) for i in range(6, len(machine.log), 3)}
    assert len(orders) > 1 and {"".join(sorted(order)) for order in orders} == {"ABC"}
    assert found.tolist() == [[0.5, 1.0, 2.0]] * 6, "six rounds of 3.5 s begin in 20 s"


@pytest.mark.parametrize(("budget_s", "count"), [(0.0, 4), (4.5, 5), (1e9, 7)])
def test_rounds_keep_their_bounds(budget_s: float, count: int) -> None:
    machine = Machine(lambda now: 1.0)
    found = measure.rounds([machine.model("A")], warm_ups=0, budget_s=budget_s, bounds=(4, 7), timer=machine.timer)
    assert found.shape == (count, 1)


def test_nodes_off_the_device_are_said() -> None:
    settings = measure._Settings("cuda", 1, 1.0, 20, 0, False, lambda: 0.0)
    nodes = {"CUDAExecutionProvider": 9, "CPUExecutionProvider": 1}
    assert measure._placement_warnings(settings, {"CUDAExecutionProvider": 9}) == ()
    assert measure._placement_warnings(settings, nodes) == (
        "1 of 10 nodes does not run on cuda; see the nodes per provider",
    )
    assert measure._placement_warnings(settings, {"CPUExecutionProvider": 1})[0].startswith("1 of 1 node does not run")
    assert measure._placement_warnings(settings, {"CPUExecutionProvider": 2})[0].startswith("2 of 2 nodes do not run")


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
    arguments = {"models": [str(model) for model in models[:2]], "feeds": _FEEDS, "budget_s": 0.2, "threads": 1}
    (result,) = worker.call("onnxprune.latency.measure:compare_many", arguments, timeout_s=120)
    assert isinstance(result, Latency)
    assert (result.provider, result.batch, result.threads) == ("cpu", 3, 1)
    assert result.nodes_per_provider == {"CPUExecutionProvider": 2}
    assert result.pairs == len(result.before.samples) == len(result.after.samples) >= measure.FEWEST_PAIRS
    assert 0 < result.before.min <= result.before.p50 <= result.before.p90 <= result.before.p99
    assert result.ci95[0] <= result.speedup <= result.ci95[1]
    assert result.noise_floor[0] <= result.noise_floor[1]
    assert result.inputs == {"x": (3, 8)}
    assert result.runtime == runtime.version()
    assert result.processor
    ET.fromstring(picture.histogram(result, "real"))


def test_many_models_are_compared_with_the_first(models: list[Path]) -> None:
    results = measure.compare_many(models, _FEEDS, budget_s=0.1, min_pairs=6, self_test=False)
    assert [sum(result.nodes_per_provider.values()) for result in results] == [2, 1]
    assert {result.threads for result in results} == {runtime.physical_cores()}
    assert {result.noise_floor for result in results} == {(1.0, 1.0)}


def test_the_timer_is_the_only_clock(models: list[Path]) -> None:
    ticks = iter(range(10**9))
    (result,) = measure.compare_many(models[:2], _FEEDS, timer=lambda: next(ticks) * 1e-3)
    for side in (result.before, result.after):
        np.testing.assert_allclose((side.p50, side.p90, side.p99, side.min, *side.samples), 1.0)
    assert result.speedup == pytest.approx(1.0)
    assert result.significant is False


def test_pairs_and_medians_that_disagree_are_no_result(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second model wins most pairs, but meets all of the load: its median is the worse one."""
    before = np.tile([1.0, 1.0, 10.0], 40)
    after = np.tile([0.8, 9.0, 8.0], 40)
    monkeypatch.setattr(measure, "_timed", lambda *a: (before, after, (1.25, 1.2, 1.3)))
    (result,) = measure.compare_many(models[:2], _FEEDS, self_test=False)
    assert result.significant is False
    assert any("the medians of all runs 0.12x" in text for text in result.warnings)


def test_cuda_asked_for_but_absent_is_refused_and_never_timed(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match="provider 'cuda' was asked for .* has only CPUExecutionProvider"):
        measure.compare_many(models[:2], _FEEDS, provider="cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "at least two models; 0 given"),
        ({"budget_s": 0.0}, "must all be positive"),
        ({"min_pairs": 0}, "must all be positive"),
        ({"threads": -1}, "must all be positive"),
        ({"feeds": {}}, r"\.onnx: input 'x' of the model has no data"),
    ],
)
def test_options_that_do_not_fit_are_refused(models: list[Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure.compare_many(**{"models": models, "feeds": _FEEDS, **changes})


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
    run = measure._device_runner(session, {"x": np.ones(2, np.float32)}, ["y"], "cuda")
    run()
    run()
    assert binding.calls == [
        ("bind_ortvalue_input", "x", "cuda:0"),
        ("bind_output", "y", "cuda", 0),
        ("synchronize_inputs",),
        *["run", ("synchronize_outputs",)] * 2,
    ]
