"""Metrics: values on tables made by hand, intervals against their meaning, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import config, metric
from onnxprune.errors import UsageError
from onnxprune.metric import Batch

Array = np.ndarray[Any, Any]


def batch(output: Array, labels: Array | None = None, original: Array | None = None, **options: Any) -> Batch:
    return Batch({"y": output}, {"y": output if original is None else original}, len(output), labels, **options)


def value(name: str, *batches: Batch) -> float:
    found = metric.find(name)
    return found.value(metric.join([found.observe(b) for b in batches]))


def scores(classes: list[int], count: int) -> Array:
    return np.eye(count, dtype=np.float32)[classes]


# ---- Values ----------------------------------------------------------------------------------------------------------


def test_accuracy_is_over_all_rows_of_all_batches() -> None:
    one = batch(scores([0, 1, 2], 3), np.array([0, 1, 1]))
    two = batch(scores([2], 3), np.array([2]))
    assert value("accuracy", one, two) == 3 / 4


def test_labels_below_zero_do_not_count() -> None:
    assert value("accuracy", batch(scores([0, 1, 2], 3), np.array([0, -100, 1]))) == 0.5


@pytest.mark.parametrize(
    ("name", "expected"),
    # class 1: two hits of three predictions and of four labels
    [("precision", 2 / 3), ("recall", 2 / 4), ("f1", 4 / 7)],
)
def test_two_classes_are_measured_by_the_second(name: str, expected: float) -> None:
    labels = np.array([1, 1, 1, 1, 0, 0])
    assert value(name, batch(scores([1, 1, 0, 0, 1, 0], 2), labels)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("precision", (1 / 2 + 0 + 1) / 3),
        ("recall", (1 + 0 + 1 / 2) / 3),
        ("f1", (2 / 3 + 0 + 2 / 3) / 3),
    ],
)
def test_more_classes_are_averaged(name: str, expected: float) -> None:
    assert value(name, batch(scores([0, 0, 2, 1], 4), np.array([0, 1, 2, 2]))) == pytest.approx(expected)


def test_one_score_is_above_or_below_its_threshold() -> None:
    logits, labels = np.array([[0.4], [-0.4], [0.6]], np.float32), np.array([1, 0, 1])
    assert value("accuracy", batch(logits, labels)) == 1.0
    assert value("accuracy", batch(logits, labels, thresholds={"y": 0.5})) == pytest.approx(2 / 3)


@pytest.mark.parametrize("axis", [1, 3])
def test_pixels_have_classes_on_either_side(axis: int) -> None:
    classes = np.random.default_rng(0).integers(0, 3, (2, 5, 4))
    output = np.moveaxis(np.eye(3, dtype=np.float32)[classes], -1, axis)
    assert value("accuracy", batch(output, classes)) == 1.0


def test_integers_are_class_numbers() -> None:
    assert value("accuracy", batch(np.array([3, 1]), np.array([3, 2]))) == 0.5


def test_agreement_compares_with_the_original() -> None:
    assert value("agreement", batch(scores([0, 1, 1], 3), None, scores([0, 1, 2], 3))) == pytest.approx(2 / 3)


def test_cosine_is_the_mean_of_the_rows() -> None:
    output = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    original = np.array([[2, 0], [1, 0], [0, 0]], np.float32)
    assert value("cosine", batch(output, None, original)) == pytest.approx((1 + 0 + 1) / 3)


def test_the_metric_without_labels_follows_the_outputs() -> None:
    assert metric.fitting({"y": np.zeros((2, 5), np.float32)}) == "agreement"
    assert metric.fitting({"y": np.zeros((2, 3, 4, 4), np.float32)}) == "cosine"
    assert metric.fitting({"y": np.full((2, 4, 4, 4), 0.25, np.float32)}) == "agreement"


# ---- Intervals -------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_share_is_wilsons() -> None:
    low, high = metric.wilson(81, 263)  # the example of R. G. Newcombe (1998)
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert metric.wilson(50, 50)[1] == pytest.approx(1.0)
    assert metric.wilson(50, 50)[0] < 0.95


def test_a_difference_on_the_same_rows_is_surer_than_two_values() -> None:
    random = np.random.default_rng(0)
    before = (random.random(1000) < 0.9).astype(np.int64)
    after = before.copy()
    after[:20] = 0
    low, high = metric.paired(before, after)
    assert low <= (before - after).mean() <= high
    assert high - low < 0.5 * (metric.wilson(900, 1000)[1] - metric.wilson(900, 1000)[0])
    assert metric.paired(before, before)[1] > 0, "equal on a sample is not equal"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        before = random.random(200) < 0.9
        after = before & (random.random(200) < 0.95)
        low, high = metric.paired(before.astype(int), after.astype(int))
        held += low <= 0.9 * 0.05 <= high
    assert 0.92 <= held / 400 <= 0.99


def test_bootstrap_intervals_surround_the_value_and_repeat() -> None:
    random = np.random.default_rng(0)
    found = metric.find("f1")
    labels = random.integers(0, 5, 300)
    predicted = np.where(random.random(300) < 0.8, labels, random.integers(0, 5, 300))
    table = found.observe(batch(scores(list(predicted), 5), labels))
    one, two = (metric.measured(found, table, seed=3) for _ in range(2))
    assert one == two
    assert one.ci95 is not None
    assert one.ci95[0] < one.value < one.ci95[1]
    assert 0.02 < one.ci95[1] - one.ci95[0] < 0.2
    assert metric.dropped(found, table, table, seed=3).ci95 == (0.0, 0.0)


# ---- A user's function -----------------------------------------------------------------------------------------------

FUNCTIONS = """
def mean(outputs, labels): return outputs["y"].mean() - (0 if labels is None else labels.mean())
def broken(outputs, labels): raise ValueError("no such thing")
def ends(outputs, labels): raise SystemExit(0)
def nothing(outputs, labels): return None
def infinite(outputs, labels): return float("inf")
number = 3
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    path = tmp_path / "own_metrics.py"
    path.write_text(FUNCTIONS)
    return path


def test_a_function_sees_all_rows_and_labels(functions: Path) -> None:
    batches = [batch(np.full((2, 1), 4.0, np.float32)), batch(np.full((1, 1), 1.0, np.float32))]
    assert value(f"{functions}:mean", *batches) == 3.0
    assert value("own_metrics:mean", *batches) == 3.0
    assert value("own_metrics:mean", batch(np.ones((2, 1), np.float32), np.array([0, 1]))) == 0.5


@pytest.mark.parametrize("source", ["own_metrics", "own_metrics.py"])
def test_a_function_may_import_what_lies_beside_it(
    functions: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    for name in ("own_metrics", "beside_metrics"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    functions.with_name("beside_metrics.py").write_text("five = 5")
    functions.write_text("def late(outputs, labels):\n    from beside_metrics import five\n    return five\n")
    assert value(f"{source}:late", batch(np.ones((2, 1), np.float32))) == 5
    assert str(functions.parent) not in sys.path


def test_outputs_of_different_sizes_come_batch_by_batch() -> None:
    joined = metric.join([{"y": np.zeros((1, 2))}, {"y": np.zeros((1, 3))}])
    assert [a.shape for a in joined["y"]] == [(1, 2), (1, 3)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "raised ValueError: no such thing"),
        ("ends", r"raised SystemExit: it calls sys.exit\(0\)"),
        ("nothing", "must return a finite number, and returned None"),
        ("infinite", "must return a finite number, and returned inf"),
        ("number", "has no function 'number'"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_function_that_does_not_serve_is_an_error(functions: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        value(f"own_metrics.py:{name}", batch(np.ones((2, 1), np.float32)))


def test_a_module_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UsageError, match="no_such_module cannot be imported"):
        metric.find("no_such_module:f")


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["acuracy", "module:", ":f", "a.py:1"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="module:function or file.py:function"):
        config.check_metric(name)


def test_every_name_has_its_metric() -> None:
    assert [metric.find(name).name for name in config.METRICS] == list(config.METRICS)


def test_labels_that_fit_no_output_are_refused() -> None:
    with pytest.raises(UsageError, match=r"labels of shape \(2,\) fit none of the outputs \(y float32 \(3, 4\)\)"):
        value("accuracy", batch(np.zeros((3, 4), np.float32), np.array([0, 1])))


@pytest.mark.parametrize(
    ("output", "kind", "labels", "classes"),
    [
        ((8, 5), "f", (8,), 5),
        ((8, 1), "f", (8,), 2),
        ((8,), "f", (8,), 2),
        ((None, None), "f", (8,), None),
        ((8, 3, 4, 6), "f", (8, 4, 6), 3),
        ((8, 4, 6, 3), "f", (8, 4, 6), 3),
        ((8,), "i", (8,), None),
        ((8, 5), "i", (8,), 0),
        ((8, 5), "f", (8, 2), 0),
    ],
)
def test_classes_that_an_output_tells_apart(
    output: tuple[int | None, ...], kind: str, labels: tuple[int, ...], classes: int | None
) -> None:
    assert metric.class_count(output, np.dtype(f"{kind}4"), labels) == classes


def test_labels_beyond_the_classes_of_the_output_are_refused() -> None:
    with pytest.raises(UsageError, match="labels 1 to 4, the output 'y' has 4 classes: labels must be 0 to 3"):
        value("accuracy", batch(np.zeros((3, 4), np.float32), np.array([-1, 1, 4])))


def test_agreement_needs_classes() -> None:
    with pytest.raises(UsageError, match="use --metric cosine"):
        value("agreement", batch(np.zeros((3, 4, 5), np.float32)))
