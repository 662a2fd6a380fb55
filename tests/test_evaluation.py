"""Rows held out with their labels, and the metric of whole runs on a small classifier that is really trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxprune
from onnxprune import calibration, evaluation, gathering, opening, summary
from onnxprune.clock import Clock
from onnxprune.config import Config
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.report import console

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[BATCH,6] x) => (float[BATCH,3] y) {
    a = Gemm(x, w1, b1)
    r = Relu(a)
    y = Gemm(r, w2, b2)
}
"""
HIDDEN = 32


def task(rows: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    centres = np.random.default_rng(9).normal(0, 1, (3, 6))
    return (centres[labels] + random.normal(0, 1.0, (rows, 6))).astype(np.float32), labels


def save(folder: Path, batch: str = "n") -> Path:
    """A network of random features whose last layer is fitted to the classes by least squares."""
    random = np.random.default_rng(0)
    w1, b1 = random.normal(0, 0.5, (6, HIDDEN)), random.normal(0, 0.5, HIDDEN)
    x, labels = task(2000, 1)
    hidden = np.maximum(x @ w1 + b1, 0)
    solved = np.linalg.lstsq(np.c_[hidden, np.ones(len(x))], np.eye(3)[labels] * 8, rcond=None)[0]
    values = {"w1": w1, "b1": b1, "w2": solved[:-1], "b2": solved[-1]}
    proto = parser.parse_model(TEXT.replace("BATCH", batch))
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in values.items())
    path = folder / "net.onnx"
    onnx.save(proto, path)
    return path


def inputs(folder: Path, rows: int, seed: int = 2, **arrays: Any) -> Path:
    x, labels = task(rows, seed)
    np.savez(folder / f"rows{seed}.npz", x=x, **(arrays or {"labels": labels}))
    return folder / f"rows{seed}.npz"


def gather(model: Path, **options: Any) -> gathering.Gathered:
    config = Config(**options)
    config.validate(model)
    return gathering.gather(opening.open_model(model, {}, Clock()), config)


# ---- Rows and labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "rows"), [("n", 320), ("n", 12), ("8", 100), ("1", 40)])
def test_held_out_rows_keep_their_labels_and_are_not_fitted_to(tmp_path: Path, batch: str, rows: int) -> None:
    model, data = save(tmp_path, batch), inputs(tmp_path, rows)
    found = gather(model, calibration=data, metric="accuracy")
    assert found.evaluation is not None
    x, labels = task(rows, 2)
    number = {row.tobytes(): k for k, row in enumerate(x)}
    held = [number[row.tobytes()] for feed in found.evaluation.feeds for row in feed["x"]]
    fitted = [number[row.tobytes()] for feed in found.fitting for row in feed["x"]]
    assert held
    assert not set(held) & set(fitted)
    assert found.evaluation.labels is not None
    assert np.array_equal(np.concatenate(found.evaluation.labels), labels[held])
    assert all(set(feed) == {"x"} for feed in (*found.fitting, *found.evaluation.feeds))


def test_a_metric_changes_nothing_of_what_is_fitted_to(tmp_path: Path) -> None:
    model, data = save(tmp_path), inputs(tmp_path, 320)
    plain, measured = gather(model, calibration=data), gather(model, calibration=data, metric="accuracy")
    assert [f["x"].tobytes() for f in plain.fitting] == [f["x"].tobytes() for f in measured.fitting]
    assert plain.evaluation is None


def test_more_is_held_out_where_it_decides(tmp_path: Path) -> None:
    model, data = save(tmp_path), inputs(tmp_path, 640)
    rows = [
        evaluation.rows_of(found)
        for drop in (None, 0.1)
        if (found := gather(model, calibration=data, metric="accuracy", max_drop=drop).evaluation)
    ]
    assert rows == [64, 160]


@pytest.mark.parametrize("outside", [False, True])
def test_rows_sorted_by_class_are_spread_and_mixed_and_keep_their_labels(tmp_path: Path, outside: bool) -> None:
    model = save(tmp_path)
    x, labels = task(3000, 2)
    order = np.argsort(labels, kind="stable")
    x, labels = x[order], labels[order]
    np.savez(tmp_path / "sorted.npz", x=x, **({} if outside else {"labels": labels}))
    np.save(tmp_path / "l.npy", labels)
    options = {"metric": "accuracy", "calibration_size": 320, **({"labels": tmp_path / "l.npy"} if outside else {})}
    found = gather(model, calibration=tmp_path / "sorted.npz", **options)
    assert found.evaluation is not None
    assert found.evaluation.labels is not None
    number = {row.tobytes(): k for k, row in enumerate(x)}
    for feed, own in zip(found.evaluation.feeds, found.evaluation.labels, strict=True):
        assert np.array_equal(own, labels[[number[row.tobytes()] for row in feed["x"]]])
    classes = np.bincount(np.concatenate(found.evaluation.labels), minlength=3)
    assert classes.min() >= 4
    for feed in found.fitting:
        assert len(np.unique(labels[[number[row.tobytes()] for row in feed["x"]]])) == 3


@pytest.mark.parametrize(("shape", "mixed"), [("t,2,4", False), ("6,n,4", True)])
def test_the_steps_of_a_sequence_stay_in_order(tmp_path: Path, shape: str, mixed: bool) -> None:
    """Rows that a recurrent operator goes through are its steps; where their number is fixed, whole sequences move."""
    random = np.random.default_rng(0)
    proto = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{shape}] x) => (float[a,b,c,d] y) {{
        y = RNN<hidden_size=8>(x, w, r) }}""")
    for name, size in {"w": (1, 8, 4), "r": (1, 8, 8)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(random.normal(size=size).astype(np.float32), name))
    onnx.save(proto, tmp_path / "m.onnx")
    x = np.arange(60 * 2 * 4, dtype=np.float32).reshape(60, 2, 4)
    np.save(tmp_path / "x.npy", x)
    opened = opening.open_model(tmp_path / "m.onnx", {}, Clock())
    assert gathering.steps_first(opened) is not mixed
    found = gathering.gather(opened, Config(calibration=tmp_path / "x.npy", calibration_size=36))
    first = np.concatenate([feed["x"][:, 0, 0] for feed in found.fitting])
    steps = np.diff(first) == 8
    assert steps[:35].all() if not mixed else (np.diff(first.reshape(-1, 6)) == 8).all() and not steps.all()


def test_rows_of_their_own_are_all_measured_on(tmp_path: Path) -> None:
    model = save(tmp_path)
    found = gather(model, calibration=inputs(tmp_path, 64), evaluation=inputs(tmp_path, 70, 3), metric="accuracy")
    assert found.evaluation is not None
    assert (found.evaluation.data, evaluation.rows_of(found.evaluation)) == ("evaluation", 70)


@pytest.mark.parametrize("name", ["labels.npy", "one.npz", "named.npz"])
def test_labels_come_from_files(tmp_path: Path, name: str) -> None:
    model, data = save(tmp_path), inputs(tmp_path, 320, other=np.zeros(320))
    labels = task(320, 2)[1]
    if name.endswith("npy"):
        np.save(tmp_path / name, labels[:, None].astype(np.float64))
    else:
        np.savez(tmp_path / name, **({"a": labels} if name == "one.npz" else {"labels": labels, "b": labels}))
    found = gather(model, calibration=data, metric="accuracy", labels=tmp_path / name)
    assert found.evaluation is not None
    assert found.evaluation.labels is not None
    assert found.evaluation.labels[0].dtype == np.int64
    assert found.evaluation.labels[0].ndim == 1


@pytest.mark.parametrize(
    ("rows", "arrays", "message"),
    [
        (320, {"other": np.zeros(3)}, "--metric accuracy needs labels, and .* holds no array 'labels'"),
        (320, {"labels": np.zeros(3, int)}, r"the array 'labels' has the shape \(3,\), and the inputs beside it 320"),
        (320, {"labels": np.full(320, 0.5)}, "the labels must be class numbers, and they are float64 such as"),
        (320, {"labels": np.full(320, "cat")}, "the labels must be class numbers"),
        (3, {}, "3 rows of calibration data in 3 batches are too few to hold some out"),
    ],
)
def test_labels_that_do_not_serve_are_refused(tmp_path: Path, rows: int, arrays: dict[str, Any], message: str) -> None:
    model, data = save(tmp_path), inputs(tmp_path, rows, **arrays)
    with pytest.raises(UsageError, match=message):
        gather(model, calibration=data, metric="accuracy")


@pytest.mark.parametrize("name", ["accuracy", "f1"])
@pytest.mark.parametrize("place", ["calibration", "evaluation"])
def test_labels_beyond_the_classes_and_labels_that_do_not_count_are_refused(
    tmp_path: Path, name: str, place: str
) -> None:
    model, labels = save(tmp_path), task(320, 3)[1]
    data = {"calibration": inputs(tmp_path, 320)}
    for wrong, message in (
        (labels + 100, "labels 100 to 102, the output 'y' has 3 classes: labels must be 0 to 2"),
        (np.eye(3, dtype=int)[labels], "a single 1 in each of the 320 rows of 3: give class numbers"),
        (labels - 3, f"--metric {name}: no label counts: all 320 are below 0"),
    ):
        with pytest.raises(UsageError, match=message):
            gather(model, **{**data, place: inputs(tmp_path, 320, 3, labels=wrong)}, metric=name)


def test_an_error_of_the_evaluation_data_names_its_option(tmp_path: Path) -> None:
    model, data = save(tmp_path), inputs(tmp_path, 320)
    np.savez(tmp_path / "bad.npz", x=np.zeros((8, 5), np.float32))
    with pytest.raises(UsageError, match=rf"^--evaluation {tmp_path}/bad.npz: input 'x' has the axes"):
        gather(model, calibration=data, evaluation=tmp_path / "bad.npz", metric="agreement")


@pytest.mark.parametrize("axis", ["n", "m"])
def test_inputs_of_different_rows_are_refused_by_what_the_model_does_with_them(tmp_path: Path, axis: str) -> None:
    """Whether the axes have one name, or are joined by an operator alone; one row for all is no error."""
    proto = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,6] x, float[{axis},1] mask) => (float[n,3] y) {{ a = MatMul(x, w)
        r = Relu(a) s = Mul(r, mask) y = MatMul(s, v) }}""")
    for name, size in {"w": (6, 16), "v": (16, 3)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(size, np.float32), name))
    onnx.save(proto, tmp_path / "two.onnx")
    for rows in (100, 1):
        np.savez(tmp_path / f"{rows}.npz", x=task(128, 2)[0], mask=np.ones((rows, 1), np.float32))
    with pytest.raises(UsageError, match=r"--calibration .*100\.npz: x has 128 rows, mask 100"):
        gather(tmp_path / "two.onnx", calibration=tmp_path / "100.npz")
    assert gather(tmp_path / "two.onnx", calibration=tmp_path / "1.npz").inputs is not None


def test_rows_held_out_without_a_label_that_counts_are_refused() -> None:
    proto = parser.parse_model(TEXT.replace("BATCH", "n"))
    feeds = [{"x": np.zeros((8, 6), np.float32), evaluation.CARRIED: np.full(8, -1)}]
    with pytest.raises(UsageError, match="no label counts: all 8 are below 0"):
        evaluation.of_feeds(proto, Config(metric="accuracy"), "calibration", feeds)


def test_the_report_says_how_many_labels_count(tmp_path: Path) -> None:
    labels = task(100, 3)[1]
    labels[:30] = -1
    test = inputs(tmp_path, 100, 3, labels=labels)
    options = Config(output=tmp_path / "o.onnx", round_to=1, recover=False, evaluation=test, metric="accuracy")
    report = onnxprune.prune(save(tmp_path), options)
    assert report.metric is not None
    assert (report.metric.rows, report.metric.labels) == (100, 70)
    assert "on 100 rows of the evaluation data (70 labels count)" in console.prune_text(report)


def test_too_few_labels_are_refused(tmp_path: Path) -> None:
    model, data = save(tmp_path), inputs(tmp_path, 320)
    np.save(tmp_path / "l.npy", np.zeros(319, int))
    with pytest.raises(UsageError, match="319 labels for 320 rows"):
        gather(model, calibration=data, metric="accuracy", labels=tmp_path / "l.npy")
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(UsageError, match=r"not a .npy or .npz file"):
        gather(model, calibration=data, metric="accuracy", labels=tmp_path / "text.npy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "accuracy"}, "--metric needs inputs to measure on"),
        ({"labels": Path(__file__)}, "--labels needs --metric"),
        ({"max_drop": 0.1}, "--max-drop needs --calibration"),
        ({"max_drop": -0.1, "calibration": Path(__file__)}, "at least 0, got -0.1"),
        ({"max_drop": 2, "calibration": Path(__file__), "metric": "f1"}, "--max-drop 2: f1 can fall by 1 at most"),
        ({"max_drop": 2.5, "calibration": Path(__file__), "metric": "cosine"}, "cosine can fall by 2 at most"),
        ({"max_drop": 2.5, "calibration": Path(__file__)}, "cosine can fall by 2 at most"),
        ({"max_drop": 0.1, "plan": Path(__file__)}, "leave --max-drop out"),
        ({"max_drop": 0.1, "criterion": "l1", "calibration": Path(__file__)}, "--max-drop needs one of obs"),
        ({"metric": "cosine", "calibration": Path(__file__), "dry_run": True}, "--dry-run writes none"),
        ({"metric": "nonsense", "calibration": Path(__file__)}, "write accuracy, precision"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Config(**options).validate()


def test_a_function_may_yield_labels_and_images_have_no_order(tmp_path: Path) -> None:
    text = (
        "import numpy as np\ndef rows():\n  for k in range(40):\n"
        "    yield {'x': np.full((1, 6), k, 'f'), 'labels': [k % 3]}"
    )
    (tmp_path / "data.py").write_text(text)
    found = gather(save(tmp_path), calibration=Path(f"{tmp_path}/data.py:rows"), metric="accuracy").evaluation
    assert found is not None
    assert found.labels is not None
    assert [int(feed["x"][0, 0]) % 3 for feed in found.feeds] == [int(own[0]) for own in found.labels]
    loaded = calibration.Loaded([{"x": np.zeros((2, 6))}], "", [None], None, 2)
    np.save(tmp_path / "l.npy", np.zeros(2))
    with pytest.raises(UsageError, match="images have names in place of an order of rows"):
        evaluation.labelled(loaded, Config(metric="accuracy", labels=tmp_path / "l.npy"))


def test_probabilities_are_told_from_the_graph() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] p, float[m] q) {%s}'
    proto = parser.parse_model(text % "s = Sigmoid(x) p = Identity(s) q = Relu(x)")
    assert evaluation.thresholds(proto) == {"p": 0.5}


# ---- Whole runs ------------------------------------------------------------------------------------------------------


def accuracy(path: Path, x: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """By other means than the tool's."""
    import onnxruntime

    scores = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
    return float((scores.argmax(1) == labels).mean())


def test_the_report_has_the_metric_of_all_three_models(tmp_path: Path) -> None:
    model, output = save(tmp_path), tmp_path / "out.onnx"
    test = inputs(tmp_path, 500, 3)
    report = onnxprune.prune(
        model,
        Config(
            output=output, ratio=0.75, round_to=1, calibration=inputs(tmp_path, 640), evaluation=test, metric="accuracy"
        ),
    )
    found = report.metric
    assert found is not None
    assert (found.name, found.rows, found.data) == ("accuracy", 500, "evaluation")
    assert found.original.value == pytest.approx(accuracy(model, *task(500, 3)))
    assert found.final.value == pytest.approx(accuracy(output, *task(500, 3)))
    assert found.original.value > 0.8
    assert found.cut is not None
    assert found.cut.value < found.final.value
    assert found.drop.value == pytest.approx(found.original.value - found.final.value)
    assert found.drop.ci95 is not None
    assert found.drop.ci95[0] <= found.drop.value <= found.drop.ci95[1]
    assert len(report.layers) == 1
    assert report.layers[0].after < report.layers[0].before
    assert report.cut_quality is not None
    assert report.quality is not None
    assert report.cut_quality.outputs["y"].cosine < report.quality.outputs["y"].cosine


def test_a_cut_alone_is_measured_without_calibration(tmp_path: Path) -> None:
    model, output = save(tmp_path, "4"), tmp_path / "out.onnx"
    report = onnxprune.prune(
        model,
        Config(output=output, ratio=0.5, round_to=1, recover=False, evaluation=inputs(tmp_path, 100, 3), metric="f1"),
    )
    assert report.metric is not None
    assert report.metric.cut is None
    assert report.metric.rows == 100
    assert report.metric.drop.value > 0


def test_the_budget_is_kept_by_a_smaller_model_and_larger_budgets_give_smaller_ones(tmp_path: Path) -> None:
    model, data, test = save(tmp_path), inputs(tmp_path, 640), inputs(tmp_path, 1000, 3)
    sizes = []
    for drop in (0.02, 0.15):
        output = tmp_path / f"out{drop}.onnx"
        options = Config(output=output, round_to=1, calibration=data, evaluation=test, metric="accuracy", max_drop=drop)
        report = onnxprune.prune(model, options)
        lost = accuracy(model, *task(1000, 3)) - accuracy(output, *task(1000, 3))
        assert lost <= drop
        assert report.metric is not None
        assert report.metric.drop.value == pytest.approx(lost)
        assert 1 <= len(report.rounds) <= 6
        smaller = [r for r in report.rounds if r.within]
        assert report.after is not None
        assert min(r.share for r in smaller) == pytest.approx(report.after.macs / report.before.macs, abs=1e-3)
        sizes.append(report.after.macs)
    assert sizes[1] < sizes[0] < report.before.macs


def test_without_labels_the_budget_is_of_the_agreement(tmp_path: Path) -> None:
    options = Config(output=tmp_path / "o.onnx", round_to=1, calibration=inputs(tmp_path, 640, 2, z=1), max_drop=0.1)
    report = onnxprune.prune(save(tmp_path), options)
    assert report.metric is not None
    assert (report.metric.name, report.metric.data) == ("agreement", "calibration")
    assert report.metric.original.value == 1.0
    assert report.metric.drop.value <= 0.1


def test_a_budget_beyond_what_the_agreement_can_fall_by_is_refused(tmp_path: Path) -> None:
    options = Config(output=tmp_path / "o.onnx", calibration=inputs(tmp_path, 640, 2, z=1), max_drop=1.5)
    with pytest.raises(UsageError, match=r"--max-drop 1.5: agreement can fall by 1 at most"):
        onnxprune.prune(save(tmp_path), options)


def test_poor_closeness_is_noted_with_a_metric_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for metric in (None, "accuracy"):
        options = Config(
            output=tmp_path / "o.onnx", ratio=0.9, round_to=1, recover=False, metric=metric, force=True,
            calibration=inputs(tmp_path, 640),
        )  # fmt: skip
        caplog.clear()
        notes = onnxprune.prune(save(tmp_path), options).notes
        (note,) = [note for note in notes if "the outputs are far from" in note]
        assert note.endswith("a lower --ratio keeps more of it")
        assert [r.levelname for r in caplog.records if r.getMessage() == note] == ["WARNING"]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"ratio": 0.3}, "a lower --ratio"),
        ({"ratio": 0, "depth": 2}, "a lower --depth"),
        ({"target": "macs=0.3"}, "a larger --target"),
        ({"target": "macs=0.3", "max_drop": 0.1}, "a smaller --max-drop"),
        ({"plan": "plan.json"}, "a plan that removes less"),
    ],
)
def test_the_advice_is_about_the_option_given(options: dict[str, Any], advice: str) -> None:
    assert summary._milder(Config(**options)) == advice


def test_a_target_bounds_what_the_budget_removes(tmp_path: Path) -> None:
    options = Config(
        output=tmp_path / "o.onnx", round_to=1, calibration=inputs(tmp_path, 640), max_drop=0.9, target="macs=0.7"
    )
    report = onnxprune.prune(save(tmp_path), options)
    assert len(report.rounds) == 1
    assert report.after is not None
    assert 0.6 < report.after.macs / report.before.macs <= 0.7


def test_a_budget_that_cannot_be_kept_ends_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "first = []\ndef f(outputs, labels):\n first.append(float(outputs['y'][0, 0]))\n"
        " return 1.0 if first[-1] == first[0] else 0.0\n"
    )
    options = Config(
        output=tmp_path / "o.onnx", calibration=inputs(tmp_path, 640), metric=f"{tmp_path}/m.py:f", max_drop=0.5
    )
    with pytest.raises(NothingToPruneError, match=r"even with .* of the MACs kept, .*m.py:f falls by 1.0000 to 0.0000"):
        onnxprune.prune(save(tmp_path), options)
    assert not (tmp_path / "o.onnx").exists()


def test_an_error_of_the_users_function_ends_the_run_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f(outputs, labels): return outputs['z']")
    options = Config(output=tmp_path / "o.onnx", calibration=inputs(tmp_path, 640), metric=f"{tmp_path}/m.py:f")
    with pytest.raises(UsageError, match=r"m.py:f: the function raised KeyError: 'z'"):
        onnxprune.prune(save(tmp_path), options)
    assert not (tmp_path / "o.onnx").exists()


# ---- What the user's code prints -------------------------------------------------------------------------------------

CHATTY = """
import os, subprocess, sys
import numpy as np
print("imported by", __name__)
def score(outputs, labels):
    print("scored")
    os.write(1, b"native\\n")
    return float((outputs["y"].argmax(1) == labels).mean())
def make():
    try:
        with np.load(sys.path[0] + "/rows2.npz") as found:
            subprocess.run([sys.executable, "-c", "print('started')"])
            yield dict(found)
            yield dict(found)
    finally:
        print("closed")
"""


@pytest.mark.parametrize("more", [[], ["--max-drop", "0.2"]])
def test_what_user_code_prints_goes_to_standard_error(tmp_path: Path, more: list[str]) -> None:
    code = tmp_path / "chatty.py"
    code.write_text(CHATTY)
    inputs(tmp_path, 160)
    model, output = save(tmp_path), tmp_path / "o.onnx"
    options = ["--metric", f"{code}:score", "--calibration", f"{code}:make", "--calibration-size", "160", *more]
    command = [sys.executable, "-m", "onnxprune", str(model), "-o", str(output), "--json", "-", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(onnxprune.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout)["metric"]["name"] == f"{code}:score"
    said = done.stderr.splitlines()
    assert said.count(f"imported by {code}") >= 2  # for the inputs here, for the metric in a child process
    assert said.count("started") == said.count("closed") == 1
    # Once for the value of each model, and not for every one of the thousand draws of an interval.
    assert 3 <= said.count("scored") == said.count("native") < 30
