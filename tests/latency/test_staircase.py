"""Steps of width, from made-up latencies. One short real measurement; no speed is asserted."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import processor
from onnxprune.latency import staircase

WIDTHS = staircase.widths_to_measure()


def _times(block: int, power: int, noise: float = 0.0, seed: int = 0) -> dict[int, float]:
    """Latency of a processor that computes whole blocks of channels."""
    random = np.random.default_rng(seed)
    return {w: (math.ceil(w / block) * block) ** power * float(np.exp(noise * random.normal())) for w in WIDTHS}


def _rounds(times: dict[int, float], noise: float = 0.0, seed: int = 0) -> Any:
    row = np.array([times[w] for w in WIDTHS])
    return row * np.exp(noise * np.random.default_rng(seed).normal(size=(16, len(row))))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("block", "step"), [(1, 4), (4, 4), (8, 8), (16, 16), (32, 32)])
def test_the_step_is_the_block_of_the_processor(block: int, step: int, power: int) -> None:
    assert staircase.step_of(_times(block, power), power) == step


def test_noise_of_three_percent_does_not_matter() -> None:
    for block, seed in itertools.product((1, 8, 16), range(50)):
        found = staircase.step_of(_times(block, 2, 0.03, seed), 2)
        assert found == max(block, processor.LEAST_MULTIPLE), (block, seed)


def test_widths_off_the_fast_path_are_never_chosen() -> None:
    """Off multiples of 16 every channel costs twice as much, as in grouped convolutions."""
    times = {w: w**2 * (1.0 if w % 16 == 0 else 2.0) for w in WIDTHS}
    assert staircase.step_of(times, 2) == 16


def test_rounds_that_differ_give_no_answer() -> None:
    rounds = {kind: _rounds(_times(32, 2), 0.5) for kind in staircase.KINDS}
    judged = staircase.judge(rounds, "cpu")
    assert judged.unclear == staircase.KINDS
    assert judged.widths == processor.table("cpu")
    clear = staircase.judge({**rounds, "product": _rounds(_times(32, 2), 0.01)}, "cpu")
    assert clear.unclear == staircase.KINDS[:-1]
    assert clear.widths == dataclasses.replace(processor.table("cpu"), product=32, measured=True)


def test_no_measurement_leaves_the_fast_path() -> None:
    smooth = _rounds({w: float(w**2) for w in WIDTHS})
    judged = staircase.judge(dict.fromkeys(staircase.KINDS, smooth), "cpu")
    assert judged.widths.measured
    assert judged.widths.grouped == processor.convolution_block("cpu")
    assert judged.widths.convolution == judged.widths.pointwise == judged.widths.product == 4


@pytest.mark.parametrize("kind", staircase.KINDS)
def test_chains_are_sound_models_of_their_kind(kind: str) -> None:
    model = staircase.chain(kind, 20)
    onnx.checker.check_model(model, full_check=True)
    weight = model.graph.initializer[0].dims
    assert weight[0] == (40 if kind == "grouped" else 20)
    assert weight[1] == (1 if kind == "depthwise" else 20)
    assert list(weight[2:]) == {"product": [], "pointwise": [1, 1]}.get(kind, [3, 3])


def test_a_real_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staircase, "_SECONDS", 0.0)
    monkeypatch.setattr(staircase, "_ROUNDS", (2, 2))
    found = staircase.measure("cpu", 1)
    assert set(found.milliseconds) == set(staircase.KINDS)
    for times in found.milliseconds.values():
        assert list(times) == WIDTHS
        assert all(t > 0 for t in times.values())
    least = processor.least("cpu")
    assert all(getattr(found.widths, k) % getattr(least, k) == 0 for k in staircase.KINDS)


def test_one_width_that_other_work_slowed_is_no_step() -> None:
    """A processor with blocks of 16, and a run at 80 channels that took as long as one at 96 should."""
    times = _times(16, 2)
    assert staircase.step_of({**times, 80: 1.3 * times[96]}, 2) == 16
