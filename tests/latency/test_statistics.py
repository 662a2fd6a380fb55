"""The statistics on known ratios and simulated machines."""

from __future__ import annotations

import numpy as np
import pytest
from simulated import interleave, loaded_machine

from onnxprune.errors import UsageError
from onnxprune.latency import statistics


def test_equal_models_on_a_loaded_machine_are_found_equal() -> None:
    """The interval contains 1 in at least 95 of 100 repeats, at every level of noise."""
    for noise in (0.02, 0.06, 0.15):
        hits = 0
        for seed in range(100):
            before, after = interleave(loaded_machine(seed, noise), seed=seed)
            _, low, high = statistics.paired_ratio(before, after, seed=seed, confidence=statistics.CONFIDENCE)
            hits += low <= 1.0 <= high
        assert hits >= 95, f"{hits} of 100 at noise {noise}"


def test_a_real_difference_on_a_loaded_machine_is_found() -> None:
    ratios = [
        statistics.paired_ratio(*interleave(loaded_machine(seed, 0.06), 0.8, seed), seed=seed) for seed in range(20)
    ]
    assert all(low > 1.0 for _, low, _ in ratios)
    assert np.median([ratio for ratio, _, _ in ratios]) == pytest.approx(1.25, rel=0.01)


@pytest.mark.parametrize("count", [20, 21, 200, 1001])
def test_the_interval_contains_a_known_ratio(count: int) -> None:
    hits = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        after = random.lognormal(0.0, 0.1, count)
        _, low, high = statistics.paired_ratio(1.5 * after * random.lognormal(0.0, 0.1, count), after, seed=seed)
        hits += low <= 1.5 <= high
    # 95% of 200 is 190, with a standard error of 3.
    assert hits >= 184


def test_the_interval_agrees_with_the_plain_bootstrap() -> None:
    random = np.random.default_rng(5)
    ratios = random.lognormal(0.0, 0.2, 101)
    resamples = np.median(random.choice(ratios, (4000, 101)), axis=1)
    median, low, high = statistics.paired_ratio(ratios, np.ones(101), seed=0)
    assert median == np.median(ratios)
    np.testing.assert_allclose((low, high), np.quantile(resamples, [0.025, 0.975]), rtol=0.02)


def test_wins_that_come_in_runs_widen_the_interval() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(0.0, 0.05, 512)
    placement = np.repeat(random.choice([-0.2, 0.2], 16), 32)
    ones = np.ones(512)
    _, low, high = statistics.paired_ratio(np.exp(random.permutation(noise + placement)), ones, seed=0)
    _, low_runs, high_runs = statistics.paired_ratio(np.exp(noise + placement), ones, seed=0)
    assert high_runs - low_runs > 2 * (high - low)


def test_the_interval_is_repeatable_and_holds_the_median() -> None:
    random = np.random.default_rng(1)
    for count in (1, 2, 6, 7):
        before = random.lognormal(0.0, 0.5, count)
        median, low, high = statistics.paired_ratio(before, np.ones(count), seed=3)
        assert low <= median <= high
        assert statistics.paired_ratio(before, np.ones(count), seed=3) == (median, low, high)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (0, 0)])
def test_unpaired_timings_are_refused(before: int, after: int) -> None:
    with pytest.raises(UsageError, match="two arrays of one length"):
        statistics.paired_ratio(np.ones(before), np.ones(after), seed=0)


@pytest.mark.parametrize(
    ("interval", "noise", "expected"),
    [
        ((1.2, 1.4), (0.98, 1.02), True),
        ((0.7, 0.9), (0.98, 1.02), True),
        ((0.9, 1.6), (0.98, 1.02), False),
        ((1.04, 1.06), (0.93, 1.07), False),
        ((1.05, 1.30), (0.93, 1.07), False),
        ((0.97, 0.99), (0.83, 0.96), False),
        ((0.90, 0.99), (0.83, 0.96), False),
        ((1.90, 2.10), (0.83, 0.96), True),
    ],
)
def test_significance_needs_an_interval_beyond_the_noise_floor(
    interval: tuple[float, float], noise: tuple[float, float], expected: bool
) -> None:
    assert statistics.is_significant(interval, noise) is expected


def test_a_noise_floor_that_leaves_1_out_is_said() -> None:
    assert statistics.floor_warnings((0.98, 1.02)) == ()
    assert statistics.floor_warnings((1.0, 1.0)) == ()
    (text,) = statistics.floor_warnings((0.83, 0.96))
    assert text == (
        "the first model measures 0.830 to 0.960 times as fast as itself, which leaves 1 out: trust no figure of this "
        "run to better than 17%; measure again when the machine is quiet, or with a larger --budget"
    )
    assert "better than 4%" in statistics.floor_warnings((1.01, 1.04))[0]


def test_a_wide_interval_is_said() -> None:
    assert statistics.interval_warnings(1.0, 0.97, 1.04, 30) == ()
    assert statistics.interval_warnings(1.0, 0.9, 1.04, 30) == (
        "the speed-up is known only to within 10% after 30 pairs of runs: close other programs or allow more time",
    )


def test_medians_that_say_the_opposite_leave_nothing_to_say() -> None:
    assert statistics.medians_disagree(1.2, 0.9)
    assert statistics.medians_disagree(0.8, 1.1)
    assert not statistics.medians_disagree(1.2, 1.05)
    assert not statistics.medians_disagree(1.01, 0.99), "both are 1 but for noise"


def test_medians_that_do_not_show_the_ratio_are_said() -> None:
    assert statistics.discord_warnings(1.5, 1.45) == ()
    (text,) = statistics.discord_warnings(1.5, 1.2)
    assert text == (
        "runs side by side give 1.50x, the medians of all runs 1.20x, because other work came and went: "
        "trust the former"
    )
    (text,) = statistics.discord_warnings(1.2, 0.9)
    assert "measure again when it is quiet" in text
