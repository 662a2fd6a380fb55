"""Several models at once: all that can be pruned are, and the others say why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

import onnxprune
from onnxprune import Config, Workers, cli
from onnxprune import jobs as running
from onnxprune.errors import OutputError, UsageError
from onnxprune.trials.store import Store

CUT = ("--round-to", "1", "--no-recover")
NET = """
<ir_version: 8, opset_import: ["": 17]>
net (float[n, 8] x) => (float[n, 4] y) {
    a = Gemm(x, w1)
    b = Relu(a)
    y = Gemm(b, w2)
}
"""


def build(path: Path, width: int) -> Path:
    """A model with one group of that width."""
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NET)
    for name, shape in {"w1": (8, width), "w2": (width, 4)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(generator.standard_normal(shape, np.float32), name))
    path.write_bytes(proto.SerializeToString())
    return path


def call(*arguments: str | Path | int) -> Result:
    """The command in this process."""
    return CliRunner().invoke(cli.command, [str(a) for a in arguments], prog_name="onnxprune")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Two models, and a file between them that is none."""
    broken = tmp_path / "broken.onnx"
    broken.write_text("no model")
    return [build(tmp_path / "a.onnx", 16), broken, build(tmp_path / "b.onnx", 32)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_failure_does_not_stop_the_others(models: list[Path], tmp_path: Path, jobs: int) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    done = call(*models, tmp_path / "none.onnx", "-o", out, *CUT, "--jobs", str(jobs), "--json", report)
    assert done.exit_code == 3
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "broken.onnx: this is text" in errors[0] and "none.onnx: no such file" in errors[1]
    assert "2 of 4 models pruned" in done.stdout and done.stdout.count("failed") == 2
    assert sorted(p.name for p in out.iterdir()) == ["a.onnx", "b.onnx"]
    sizes = {t.name: tuple(t.dims) for t in onnx.load(out / "b.onnx").graph.initializer}
    assert sizes == {"w1": (8, 16), "w2": (16, 4)}
    data = json.loads(report.read_text())
    assert [entry["exit_code"] for entry in data] == [0, 3, 0, 3]
    assert data[0]["report"]["output"] == str(out / "a.onnx") and data[0]["error"] is None
    assert data[1]["report"] is None and "text" in data[1]["error"]


def test_the_worst_exit_code_wins(models: list[Path], tmp_path: Path) -> None:
    narrow = build(tmp_path / "narrow.onnx", 1)
    done = call(models[0], models[1], narrow, *CUT)
    assert done.exit_code == 4
    assert (tmp_path / "a_pruned.onnx").is_file()
    assert call(models[0], models[2], "-o", tmp_path / "other", *CUT).exit_code == 0


def test_a_fault_of_the_tool_is_an_error_of_one_model(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "prune", lambda *a: 1 / 0)
    found = onnxprune.prune_many([models[0], models[2]])
    assert [entry.exit_code for entry in found] == [1, 1]
    assert "internal error: ZeroDivisionError" in str(found[0].error)


def test_what_cannot_be_done_with_several(models: list[Path], tmp_path: Path) -> None:
    a, _, b = models
    (tmp_path / "sub").mkdir()
    twin = build(tmp_path / "sub" / "a.onnx", 16)
    for given, config, jobs, words in (
        ([], Config(), 1, "no model"),
        ([a, a], Config(), 1, "given twice"),
        ([a, b], Config(save_plan=tmp_path / "p.json"), 1, "--save-plan"),
        ([a, b], Config(benchmark=True), 2, "--jobs 1"),
        ([a, b], Config(target="latency=0.5"), 2, "--jobs 1"),
        ([a, tmp_path / "sub" / ".." / "a.onnx"], Config(), 1, "a.onnx and .*sub/../a.onnx: this model is given twice"),
        (
            [a, twin],
            Config(output=tmp_path / "out"),
            1,
            "a.onnx and .*sub/a.onnx would both be written to .*out/a.onnx",
        ),
        ([a, a.with_suffix(".pb")], Config(), 1, "would both be written to .*/a_pruned.onnx"),
        ([a, a.with_name("a_pruned.onnx")], Config(force=True), 1, "a.onnx would be written to .*a_pruned.onnx, which"),
        ([a, b], Config(ratio=2.0), 1, "--ratio"),
        ([a, b], Config(), 0, "--jobs"),
    ):
        with pytest.raises(UsageError, match=words):
            onnxprune.prune_many(given, config, jobs=jobs)
    for config in (Config(benchmark=True), Config(target="latency=0.5", dry_run=True)):
        with pytest.raises(UsageError, match="measured on this machine.*no --backend"):
            onnxprune.prune_many([a, b], config, workers=Workers(backend="dask", scheduler="tcp://127.0.0.1:1"))
    with pytest.raises(OutputError, match="need a folder"):
        onnxprune.prune_many([a, b], Config(output=a))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_file_under_two_spellings_is_noticed_before_anything_is_written(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("a.onnx", models[0], *CUT, "--jobs", jobs)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"error: a.onnx and {models[0]}: this model is given twice\n"
    assert not (tmp_path / "a_pruned.onnx").exists()
    assert call("a.onnx", models[2], *CUT, "--jobs", jobs).exit_code == 0


def test_the_folder_of_the_models_is_not_overwritten(models: list[Path], tmp_path: Path) -> None:
    before = models[0].read_bytes()
    done = call(models[0], models[2], "-o", tmp_path, "--force", *CUT)
    assert done.exit_code == 2 and done.stderr.count("same file") == 2
    assert models[0].read_bytes() == before


def test_a_folder_that_may_not_be_written_is_refused_at_once(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, able = tmp_path / "out", os.access
    out.mkdir(mode=0o555)
    # The superuser may write everywhere, so the answer of the system is given here.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != out and able(path, mode))
    monkeypatch.setattr(running, "prune", lambda *given: pytest.fail("a model is pruned"))
    done = call(models[0], models[2], "-o", out, *CUT)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"error: {out}: no permission to write to this folder; choose another\n"
    with pytest.raises(OutputError, match="no permission to write to this folder"):
        Store(out)


def test_an_interrupt_of_parallel_work_leaves_nothing(tmp_path: Path) -> None:
    models = [build(tmp_path / f"{name}.onnx", 16) for name in "ab"]
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import pathlib, time\n"
        "def make():\n"
        f"    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    time.sleep(60)\n"
        "    yield {}\n"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "onnxprune", *models, "-o", tmp_path / "out", "--jobs", "2"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background
    try:
        process = subprocess.Popen(
            [*map(str, command), "--calibration", f"{slow}:make"],
            env={**os.environ, "TMPDIR": str(temporary)},
            stderr=subprocess.PIPE,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    while not (tmp_path / "begun").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.decode().splitlines()[-1]) == (130, "error: interrupted")
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_no_folder_is_left_where_every_model_fails(models: list[Path], tmp_path: Path) -> None:
    assert call(models[1], tmp_path / "none.onnx", "-o", tmp_path / "out").exit_code == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [("--backend", "dask"), ("--scheduler", "tcp://a:1"), ("--shared-paths",)])
def test_one_model_is_pruned_here(models: list[Path], given: tuple[str, ...]) -> None:
    done = call(models[0], *CUT, *given)
    assert (done.exit_code, done.stdout) == (2, "") and "are for several models" in done.stderr


def test_options_of_a_cluster_are_checked_at_once(models: list[Path], tmp_path: Path) -> None:
    done = call(models[0], models[2], "-o", tmp_path / "out", *CUT, "--backend", "dask")
    assert done.exit_code == 2 and "--backend dask needs --scheduler" in done.stderr
    assert (
        "--jobs is for this machine"
        in call(
            models[0], models[2], *CUT, "--backend", "dask", "--scheduler", "tcp://127.0.0.1:1", "--jobs", "2"
        ).stderr
    )
    assert not (tmp_path / "out").exists()
