"""The search: its trials, its memory, what travels to workers, and the front."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

import onnxprune
from onnxprune import Config, cli, processor, runtime, widths
from onnxprune.errors import ModelError, NothingToPruneError, OutputError, UsageError
from onnxprune.records import FastWidths, Latency, LatencySide, Measured, Totals, Trial, TrialResult
from onnxprune.trials import cargo, run, space, work
from onnxprune.trials.front import front
from onnxprune.trials.store import Store

NET = """
<ir_version: 8, opset_import: ["": 17]>
net (float[n, 16] x) => (float[n, 4] logits) {
    a = Gemm(x, w1, b1)
    b = Relu(a)
    logits = Gemm(b, w2, b2)
}
"""
SHAPES = {"w1": (16, 32), "b1": (32,), "w2": (32, 4), "b2": (4,)}
RATIOS = (0.25, 0.5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model, and inputs beside it."""
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NET)
    for name, shape in SHAPES.items():
        proto.graph.initializer.append(numpy_helper.from_array(generator.standard_normal(shape, np.float32), name))
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    np.savez(tmp_path / "inputs.npz", x=generator.standard_normal((640, 16), np.float32))
    return path


@pytest.fixture
def config(model: Path) -> Config:
    return Config(calibration=model.with_name("inputs.npz"), round_to=1, recover=False, budget_s=0.05)


def result(quality: float, size: int, speedup: float | None = None, *, macs: int = 1, width: float = 0.01) -> Any:
    """A trial with these figures."""
    side = LatencySide(1.0, 1.0, 1.0, 1.0)
    latency = None
    if speedup is not None:
        ends = (speedup - width, speedup + width)
        latency = Latency("cpu", 1, 1, side, side, speedup, ends, (1.0, 1.0), True, 9, {}, inputs={"x": (1, 2)})
    value = Measured(quality, (quality - 0.1, quality + 0.1))
    after = Totals(1, 1, size, macs)
    trial = Trial(f"ratio={quality}", "l2")
    return TrialResult(trial, "k" * 64, None, 0, "cosine", value, value, 9, after, latency=latency)


# ---- Trials ----------------------------------------------------------------------------------------------------------


def test_every_amount_with_every_criterion() -> None:
    found = space.trials([0.1, 0.3, 0.1], ["macs=0.5"], ["obs", "l2"])
    assert [space.label(t) for t in found] == [
        *("ratio=0.1 obs", "ratio=0.1 l2", "ratio=0.3 obs", "ratio=0.3 l2", "macs=0.5 obs", "macs=0.5 l2")
    ]
    assert space.slug(found[-1]) == "macs-0.5-l2"
    assert space.of(Config(ratio=0.9), found[2]).ratio == 0.3
    assert space.of(Config(), found[-1]).target == "macs=0.5"


def test_amounts_as_they_are_written() -> None:
    assert space.parse_ratios("0.1, 0.25") == (0.1, 0.25)
    assert space.parse_targets("macs=0.3,0.5,size=10MB") == ("macs=0.3", "macs=0.5", "size=10MB")
    for call, text, word in (
        (space.parse_ratios, "0.1,much", "--ratios"),
        (space.parse_targets, "macs", "--targets 'macs': write what is kept"),
        (space.parse_targets, "0.3", "--targets '0.3': write what is kept"),
        (space.parse_targets, "macs=2", "--target"),
    ):
        with pytest.raises(UsageError, match=word):
            call(text)


def test_trials_are_checked_before_any_starts(model: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "inspect", lambda *a: pytest.fail("work has begun"))
    for changes, arguments, words in (
        ({}, {}, "--ratios"),
        ({"calibration": None}, {"ratios": [0.5]}, "--calibration"),
        ({}, {"ratios": [1.5]}, r"trial 'ratio=1.5 obs'.*between 0 and 1"),
        ({}, {"targets": ["macs=0.5"], "criteria": ["l2"]}, r"trial 'macs=0.5 l2'.*needs one of obs"),
        ({"output": Path("x.onnx")}, {"ratios": [0.5]}, "output"),
        ({"max_drop": 0.1}, {"ratios": [0.5]}, "max_drop"),
        ({"budget_s": -1.0}, {"ratios": [0.5]}, "--budget"),
    ):
        with pytest.raises(UsageError, match=words):
            onnxprune.search(model, dataclasses.replace(config, **changes), **arguments)
    assert sorted(p.name for p in model.parent.iterdir()) == ["inputs.npz", "net.onnx"]


# ---- The front -------------------------------------------------------------------------------------------------------


def test_what_is_worse_in_everything_is_beaten() -> None:
    assert front([result(0.9, 100, 1.5), result(0.8, 120, 1.2), result(0.7, 50, 2.0)]) == (0, 2)


def test_latency_beats_only_where_it_is_measurably_lower() -> None:
    slower = result(0.9, 100, 1.00)
    assert front([slower, result(0.9, 100, 1.50)]) == (1,)
    assert front([result(0.9, 100, 1.50), slower]) == (0,)
    assert front([slower, result(0.8, 101, 1.005)]) == (0,)
    assert front([slower, result(0.8, 101, 1.5)]) == (0, 1)


def test_the_smaller_of_two_as_good_and_as_fast_beats() -> None:
    assert front([result(0.9, 100, 1.5), result(0.9, 90, 1.5)]) == (1,)
    assert front([result(0.9, 100, 1.5), result(0.95, 100, 1.5)]) == (1,)


def test_equals_count_once() -> None:
    assert front([result(0.9, 100, 1.5), result(0.9, 100, 1.5), result(0.9, 100, 1.501)]) == (0,)


def test_some_result_is_always_left() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        rows = [
            result(q, int(s), float(x), width=float(w))
            for q, s, x, w in zip(
                generator.choice([0.5, 0.6, 0.7], 6),
                generator.choice([10, 20], 6),
                generator.uniform(1, 1.2, 6),
                generator.uniform(0, 0.1, 6),
                strict=True,
            )
        ]
        assert front(rows)


def test_without_latency_macs_stand_for_it() -> None:
    assert front([result(0.9, 100, macs=50), result(0.8, 100, macs=40), result(0.7, 100, macs=45)]) == (0, 1)


def test_no_model_no_place_on_the_front() -> None:
    failed = TrialResult(Trial("macs=0.1", "obs"), "k", "cannot be reached", 4)
    assert front([failed, result(0.5, 10)]) == (1,)
    assert front([failed]) == ()


# ---- The memory ------------------------------------------------------------------------------------------------------


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path / "made")
    written = store.write(result(0.9, 100, 1.5), "{}")
    assert written.plan == "ratio-0.9-l2-kkkkkkkkkkkk.plan.json"
    assert store.read(written.trial, written.key) == written
    assert store.read(written.trial, "j" * 64) is None
    assert sorted(p.name for p in store.folder.iterdir()) == [
        "ratio-0.9-l2-kkkkkkkkkkkk.json",
        "ratio-0.9-l2-kkkkkkkkkkkk.plan.json",
    ]


def test_what_is_not_whole_is_not_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    written = store.write(result(0.9, 100), "{}")
    file = tmp_path / "ratio-0.9-l2-kkkkkkkkkkkk.json"
    text = file.read_text()
    (tmp_path / str(written.plan)).unlink()
    assert store.read(written.trial, written.key) is None
    store.write(result(0.9, 100), "{}")
    assert store.read(written.trial, written.key) == written
    file.write_text(text[: len(text) // 2])
    assert store.read(written.trial, written.key) is None
    assert "is made again" in caplog.text


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    written = store.write(result(0.9, 100), "{}")

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxprune.trials.store.os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        store.write(dataclasses.replace(written, quality=None))
    monkeypatch.undo()
    assert store.read(written.trial, written.key) == written
    assert len(list(tmp_path.iterdir())) == 2


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, words in (("file", "this is a file"), ("no/such", "create it first")):
        with pytest.raises(OutputError, match=words):
            Store(tmp_path / place)


# ---- What travels ----------------------------------------------------------------------------------------------------


def test_keys_follow_content_and_options(model: Path, config: Config, tmp_path: Path) -> None:
    trial = Trial("ratio=0.5", "l2")
    known = cargo.Keys(model, config).key(trial)
    assert cargo.Keys(model, dataclasses.replace(config, threads=2)).key(trial) == known
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("net.onnx", "inputs.npz"):
        (elsewhere / name).write_bytes((tmp_path / name).read_bytes())
    moved = dataclasses.replace(config, calibration=elsewhere / "inputs.npz")
    assert cargo.Keys(elsewhere / "net.onnx", moved).key(trial) == known
    assert cargo.Keys(model, dataclasses.replace(config, seed=1)).key(trial) != known
    assert cargo.Keys(model, config).key(Trial("ratio=0.5", "l1")) != known
    np.savez(tmp_path / "inputs.npz", x=np.zeros((640, 16), np.float32))
    assert cargo.Keys(model, config).key(trial) != known


def test_keys_and_workers_follow_the_widths_of_the_threads_asked_for(
    model: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(provider: str, threads: int = 0) -> FastWidths:
        return FastWidths(8, 8, 8, 8, 32 if threads == 1 else 8)

    monkeypatch.setattr(widths, "known", known)
    one, two, three = (dataclasses.replace(config, round_to="auto", run_threads=n) for n in (1, 2, 3))
    trial = Trial("ratio=0.5", "l2")
    assert cargo.Keys(model, one).key(trial) != cargo.Keys(model, two).key(trial)
    assert cargo.Keys(model, two).key(trial) == cargo.Keys(model, three).key(trial)
    packed = cargo.pack(model, one, travels=False)
    monkeypatch.setattr(widths, "known", lambda provider, threads=0: FastWidths(8, 8, 8, 8, 8))
    with pytest.raises(UsageError, match="give --round-to N"):
        packed.unpacked(tmp_path)


def test_files_travel_with_all_that_a_trial_reads(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    onnx.save(proto, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    (tmp_path / "feeds").mkdir()
    np.save(tmp_path / "feeds" / "a.npy", np.zeros((4, 16), np.float32))
    (tmp_path / "feeds" / "notes.txt").write_text("not read")
    (tmp_path / "mine.py").write_text("def score(outputs, labels): return 1.0\n")
    given = Config(calibration=tmp_path / "feeds", metric=f"{tmp_path}/mine.py:score", evaluation=Path("module:make"))
    packed = cargo.pack(tmp_path / "big.onnx", given, travels=True)
    assert sorted(packed.files) == [
        "calibration/feeds/a.npy",
        "metric/mine.py",
        "model/big.data",
        "model/big.onnx",
    ]
    (tmp_path / "there").mkdir()
    path, config = packed.unpacked(tmp_path / "there")
    assert path == tmp_path / "there" / "model" / "big.onnx"
    assert config.calibration == tmp_path / "there" / "calibration" / "feeds"
    assert config.metric == f"{tmp_path}/there/metric/mine.py:score"
    assert config.evaluation == Path("module:make")
    onnx.checker.check_model(str(path))


def test_relative_paths_travel_too(model: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    (model.parent / "sub").mkdir()
    monkeypatch.chdir(model.parent / "sub")
    packed = cargo.pack(Path("../net.onnx"), dataclasses.replace(config, calibration=Path("..")), travels=True)
    assert sorted(packed.files) == [f"calibration/{model.parent.name}/inputs.npz", "model/net.onnx"]


def test_large_files_do_not_travel(model: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cargo, "MOST_BYTES", 1 << 10)
    with pytest.raises(UsageError, match="--shared-paths"):
        cargo.pack(model, config, travels=True)
    assert cargo.pack(model, config, travels=False).files == {}


def test_machines_that_see_nothing_or_round_otherwise_say_so(model: Path, config: Config, tmp_path: Path) -> None:
    packed = cargo.pack(model, config, travels=False)
    assert packed.unpacked(tmp_path) == (model, packed.config)
    model.with_name("inputs.npz").unlink()
    with pytest.raises(UsageError, match=r"sees no .*inputs\.npz"):
        packed.unpacked(tmp_path)
    automatic = cargo.pack(model, dataclasses.replace(config, round_to="auto"), travels=False)
    other = dataclasses.replace(automatic, rounding={**(automatic.rounding or {}), "convolution": 999})
    with pytest.raises(UsageError, match="give --round-to N"):
        other.unpacked(tmp_path)


# ---- The whole -------------------------------------------------------------------------------------------------------


def test_search(model: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model.with_name("found")

    def again(**changes: Any) -> onnxprune.SearchReport:
        return onnxprune.search(
            model,
            dataclasses.replace(config, **changes),
            ratios=RATIOS,
            targets=["macs=0.001"],
            folder=folder,
        )

    found = again()
    mild, strong, impossible = found.results
    assert found.reused == 0
    assert [r.after.parameters for r in (mild, strong) if r.after] == [
        16 * 24 + 24 + 24 * 4 + 4,
        16 * 16 + 32 + 64 + 4 - 16,
    ]
    assert mild.quality and strong.quality and mild.quality.value > strong.quality.value
    assert mild.metric == "same top-1" and mild.rows == 64
    assert impossible.after is None and impossible.exit_code == 4 and "target" in str(impossible.error)
    assert mild.latency is not None and mild.latency.pairs >= 6
    assert set(found.front) <= {0, 1} and 1 in found.front
    assert {p.suffix for p in folder.iterdir()} == {".json"} and len(list(folder.iterdir())) == 5

    monkeypatch.setattr(work, "prune", lambda *a: pytest.fail("a finished trial is made again"))
    monkeypatch.setattr(run, "benchmark", lambda *a: pytest.fail("a latency is measured again"))
    second = again()
    assert second.reused == 3
    assert [(r.quality, r.after, r.plan) for r in second.results] == [
        (r.quality, r.after, r.plan) for r in found.results
    ]
    with pytest.raises(pytest.fail.Exception, match="made again"):
        again(seed=3)

    plan = folder / str(strong.plan)
    report = onnxprune.prune(model, dataclasses.replace(config, plan=plan, output=model.with_name("small.onnx")))
    assert report.after == strong.after
    assert report.quality and report.quality.outputs["logits"].top1_agreement == strong.quality.value


def test_latencies_are_measured_again_where_they_are_asked_for_otherwise(
    model: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[tuple[int, int]] = []

    def timed(models: Any, **given: Any) -> list[Latency]:
        times.append((given["batch"], given["threads"]))
        side = LatencySide(1.0, 1.0, 1.0, 1.0)
        fed = {"x": (given["batch"], 16)}
        here = {"runtime": runtime.version(), "processor": processor.model()}
        return [
            Latency(
                "cpu", given["batch"], given["threads"], side, side, 1, (1, 1), (1, 1), False, 6, {}, (), fed, **here
            )
        ]

    def found(*, timed: bool = True, **changes: Any) -> tuple[tuple[int, int], int]:
        asked = dataclasses.replace(config, **{"batch": 1, "run_threads": 1, **changes})
        report = onnxprune.search(model, asked, ratios=[0.5], criteria=["l2"], timed=timed)
        (result,) = report.results
        return (result.latency.batch, result.latency.threads) if result.latency else (0, 0), report.reused

    monkeypatch.setattr(run, "benchmark", timed)
    assert found() == ((1, 1), 0)
    assert found() == ((1, 1), 1) and times == [(1, 1)]
    assert found(run_threads=2, timed=False) == ((0, 0), 1)
    assert found(run_threads=2) == ((1, 2), 1)
    assert found(batch=16, run_threads=2) == ((16, 2), 1)
    assert times == [(1, 1), (1, 2), (16, 2)]
    monkeypatch.setattr(processor, "model", lambda provider="cpu": "another")
    assert found(batch=16, run_threads=2) == ((16, 2), 1) and len(times) == 4

    def fails(models: Any, **given: Any) -> list[Latency]:
        raise ModelError("no memory")

    monkeypatch.setattr(run, "benchmark", fails)
    assert found() == ((0, 0), 1)


def test_a_batch_that_changes_nothing_ends_the_search(model: Path, config: Config) -> None:
    proto = onnx.load(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 32
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 32
    onnx.save(proto, model)
    with pytest.raises(UsageError, match="--batch 16: the first axis of every input is fixed"):
        onnxprune.search(model, dataclasses.replace(config, batch=16), ratios=RATIOS)
    assert sorted(p.name for p in model.parent.iterdir()) == ["inputs.npz", "net.onnx"]


def test_no_trial_gives_a_model(model: Path, config: Config) -> None:
    with pytest.raises(NothingToPruneError, match="macs=0.001 obs: the target is 0.001"):
        onnxprune.search(model, config, targets=["macs=0.001"])


def test_a_fault_of_the_inputs_ends_the_search(model: Path, config: Config, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", y=np.zeros((4, 16), np.float32))
    with pytest.raises(UsageError, match="input 'x' has no array"):
        onnxprune.search(model, config, ratios=RATIOS)
    with pytest.raises(ModelError, match="no such file"):
        onnxprune.search(tmp_path / "none.onnx", config, ratios=RATIOS)


def call(*arguments: str | Path) -> Result:
    """The command in this process."""
    return CliRunner().invoke(cli.command, [str(a) for a in arguments], prog_name="onnxprune")


def test_command(model: Path) -> None:
    inputs = model.with_name("inputs.npz")
    labels = model.with_name("labels.npy")
    np.save(labels, np.arange(640) % 4)
    options = ("--calibration", inputs, "--metric", "accuracy", "--labels", labels, "--round-to", "1", "--no-recover")
    done = call("search", model, *options, "--ratios", "0.25,0.5", "--criteria", "l2", "--no-latency", "--jobs", "1")
    assert done.exit_code == 0, done.output
    folder = model.with_name("net_search")
    for word in ("accuracy of the original", "ratio=0.25", "ratio=0.5", "l2", ".plan.json"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 130
    data = json.loads((folder / "front.json").read_text())
    assert set(data) == {"schema", "tool_version", "model", "folder", "seed", "options", "before", "trials"}
    assert set(data["trials"][0]) == {
        "amount", "criterion", "front", "error", "plan", "metric", "after", "latency", "seconds",
    }  # fmt: skip
    assert data["trials"][0]["metric"]["name"] == "accuracy" and data["trials"][0]["latency"] is None
    picture = (folder / "front.svg").read_text()
    assert picture.count("<circle") == 2 and "ratio=0.5 l2" in picture
    again = call("search", model, *options, "--ratios", "0.5", "--criteria", "l2", "--no-latency", "--json", "-")
    assert again.exit_code == 0 and json.loads(again.stdout)["trials"][0]["plan"] == data["trials"][1]["plan"]


def test_command_errors(model: Path) -> None:
    inputs = model.with_name("inputs.npz")
    for arguments, word in (
        (["--ratios", "0.5"], "--calibration"),
        (["--calibration", inputs, "--ratios", "x"], "--ratios"),
        (["--calibration", inputs, "--ratios", "0.5", "-o", model], "same file"),
        (["--calibration", inputs, "--ratios", "0.5", "--backend", "dask"], "--scheduler"),
        (["--calibration", inputs, "--ratios", "0.5", "--json", inputs], "same file"),
    ):
        done = call("search", model, *arguments)
        assert done.exit_code == 2 and word in done.stderr, done.output
        assert done.stderr.startswith("error: ") and not done.stdout
