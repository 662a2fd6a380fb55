"""The command line: exit codes, messages, what is written and what is not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

import onnxprune
from onnxprune import api, cli, comparison, config, criteria, recovery, runtime, verify, worker
from onnxprune.modelfile import writing

NET = """
<ir_version: 8, opset_import: ["": 17]>
net (float[n, 3, 8, 8] image) => (float[n, 4] logits) {
    a = Conv<pads = [1, 1, 1, 1]>(image, w1, b1)
    b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, w2)
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    logits = Gemm<transB = 1>(f, w3, b3)
}
"""
SHAPES = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (24, 16, 3, 3), "w3": (4, 24), "b3": (4,)}
SOURCE = Path(onnxprune.__file__).parents[1]
REPORT_KEYS = {
    "schema", "tool_version", "model", "output", "seed", "options", "before", "after", "reach",
    "groups", "refusals", "inputs", "fused", "exactness", "quality", "layers", "distillation", "metric", "rounds",
    "latency", "latency_target", "notes", "seconds",
}  # fmt: skip


def build(path: Path, text: str = NET, shapes: dict[str, tuple[int, ...]] | None = None) -> Path:
    """Write a model of ONNX text with seeded weights."""
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    for name, shape in (SHAPES if shapes is None else shapes).items():
        model.graph.initializer.append(numpy_helper.from_array(generator.standard_normal(shape, np.float32), name))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build(tmp_path / "net.onnx")


@pytest.fixture(autouse=True)
def input_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """No command may change its input."""
    path = request.getfixturevalue("model") if "model" in request.fixturenames else None
    before = digest(path) if path else ""
    yield
    if path:
        assert digest(path) == before


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def call(*arguments: str | Path) -> Result:
    """The command in this process."""
    return CliRunner().invoke(cli.command, [str(a) for a in arguments], prog_name="onnxprune")


def spawn(*arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it."""
    command = [sys.executable, "-m", "onnxprune", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **settings)


def fails(result: Result, code: int, *words: str) -> None:
    """The command ended with `code` and one `error:` message that holds every one of `words`."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert not result.stdout
    messages = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, result.stderr
    for word in words:
        assert word in messages[0]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- Success ---------------------------------------------------------------------------------------------------------


def test_prune_from_the_shell(model: Path) -> None:
    done = spawn(model, "--ratio", "0.5", "--round-to", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160
    for word in ("parameters", "file size", "MACs", "exact", "net_pruned.onnx"):
        assert word in done.stdout
    assert left_in(model.parent) == ["net.onnx", "net_pruned.onnx"]
    pruned = onnx.load(model.with_name("net_pruned.onnx"))
    assert {t.name: tuple(t.dims) for t in pruned.graph.initializer}["w2"] == (12, 8, 3, 3)


def test_options_may_come_first(model: Path) -> None:
    result = call("--ratio", "0.5", "-o", model.with_name("small.onnx"), model)
    assert result.exit_code == 0, result.output
    assert left_in(model.parent) == ["net.onnx", "small.onnx"]


def test_json_report(model: Path) -> None:
    result = call(model, "--round-to", "1", "--json", "-")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert set(data) == REPORT_KEYS
    assert set(data["before"]) == set(data["after"]) == {"nodes", "parameters", "bytes", "macs"}
    group = data["groups"][0]
    assert set(group) == {
        "id", "words", "size", "kept", "status", "reason", "renormalised", "occurrences", "macs_share",
        "parameters_share",
    }  # fmt: skip
    assert set(group["occurrences"][0]) == {"tensor", "axis", "role"}
    assert {"node", "op", "reason", "groups", "macs_share", "parameters_share"} == set(data["refusals"][0])
    assert set(data["exactness"]) == {"max_abs", "max_rel", "passed", "runs", "shown"}
    assert (data["quality"]["data"], data["quality"]["samples"]) == ("synthetic", data["inputs"]["held_out"])
    assert data["notes"][0].startswith("synthetic inputs only")
    quality = data["quality"]["outputs"]["logits"]
    assert set(quality) == {"cosine", "relative_error", "sqnr_db", "top1_agreement"}
    assert data["latency"] is None
    assert data["after"]["bytes"] == model.with_name("net_pruned.onnx").stat().st_size
    assert data["options"]["round_to"] == 1


def test_benchmark_option_reports_latency(model: Path) -> None:
    """With --force, since nothing is asserted about which is faster."""
    report = model.with_name("report.json")
    result = call(model, "--round-to", "1", "--benchmark", "--budget", "0.2", "--force", "--json", report)
    assert result.exit_code == 0, result.output
    assert "latency p50" in result.stdout
    latency = json.loads(report.read_text())["latency"]
    named = {"provider", "batch", "threads", "before_ms", "after_ms", "speedup", "ci95", "noise_floor", "significant"}
    assert set(latency) == named | {"inputs", "runtime", "processor", "pairs", "nodes_per_provider", "warnings"}
    assert set(latency["before_ms"]) == set(latency["after_ms"]) == {"p50", "p90", "p99", "min"}


def test_dry_run_writes_nothing(model: Path) -> None:
    result = call(model, "--dry-run", "--json", "-")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["output"] is None
    assert data["after"]["parameters"] < data["before"]["parameters"]
    assert data["after"]["bytes"] is None
    assert left_in(model.parent) == ["net.onnx"]


def test_saved_plan_gives_the_same_bytes(model: Path) -> None:
    plan, first, second = (model.with_name(name) for name in ("plan.json", "first.onnx", "second.onnx"))
    assert call(model, "-o", first, "--ratio", "0.6", "--criterion", "l1", "--save-plan", plan, "-q").exit_code == 0
    assert call(model, "-o", second, "--plan", plan, "-q").exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    data = json.loads(plan.read_text())
    assert set(data) == {"schema", "model", "tensors", "groups", "blocks"}
    assert data["model"] == {"name": "net.onnx", "sha256": digest(model)}
    assert set(data["tensors"][0]) == {"name", "axis", "size", "kept", "role"}


def test_inspect(model: Path) -> None:
    result = call("inspect", model)
    assert result.exit_code == 0, result.output
    for word in ("2 prunable groups", "Reachable: 99.", "24 channels of Conv(c)", "1 consumer: logits", "MACs"):
        assert word.replace("logits", "Gemm(logits)") in result.stdout
    full = call("inspect", model, "-v").stdout
    for word in ("w1 axis 0 produced", "w2 axis 1 contracted", "w1:0"):
        assert word in full
        assert word not in result.stdout
    assert left_in(model.parent) == ["net.onnx"]


@pytest.mark.parametrize(("name", "start"), [("net.mmd", "flowchart LR"), ("net.dot", "digraph coupling {")])
def test_inspect_draws_the_coupling(model: Path, name: str, start: str) -> None:
    drawing = model.with_name(name)
    for _ in range(2):  # it may replace its own
        result = call("inspect", model, "--graph", drawing)
        assert result.exit_code == 0, result.output
    text = drawing.read_text()
    assert text.startswith(start)
    assert "24 channels of Conv" in text


def test_drawings_that_cannot_be_made(model: Path) -> None:
    fails(call("inspect", model, "--graph", model.with_name("net.png")), 2, "net.png", ".mmd", ".dot")
    other = model.with_name("other.dot")
    other.write_text("my own notes")
    fails(call("inspect", model, "--graph", other), 2, "other.dot", "not replaced")
    assert other.read_text() == "my own notes"
    fails(call("inspect", model, "--graph", model.with_name("no") / "net.dot"), 2, "does not exist")


ATTENTION = """
<ir_version: 8, opset_import: ["": 17]>
net (float[n, 6, 8] x) => (float[n, 6, 5] y)
    <int64[4] apart = {0, 6, 3, 4}, int64[3] flat = {0, 6, 12}> {
    q0 = MatMul(x, q)
    q1 = Reshape(q0, apart)
    q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
    k0 = MatMul(x, k)
    k1 = Reshape(k0, apart)
    k2 = Transpose<perm = [0, 2, 3, 1]>(k1)
    v0 = MatMul(x, v)
    v1 = Reshape(v0, apart)
    v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
    s = MatMul(q2, k2)
    p = Softmax(s)
    z = MatMul(p, v2)
    z1 = Transpose<perm = [0, 2, 1, 3]>(z)
    z2 = Reshape(z1, flat)
    y = MatMul(z2, o)
}
"""


@pytest.mark.parametrize(("flags", "width"), [([], 8), (["--head-width"], 6), (["--no-heads", "--head-width"], 6)])
def test_heads_or_their_width(tmp_path: Path, flags: list[str], width: int) -> None:
    path = build(tmp_path / "net.onnx", ATTENTION, {"q": (8, 12), "k": (8, 12), "v": (8, 12), "o": (12, 5)})
    result = call(path, "--ratio", "0.4", "--round-to", "1", *flags)
    assert result.exit_code == 0, result.output
    pruned = onnx.load(tmp_path / "net_pruned.onnx")
    assert {t.name: t.dims[1] for t in pruned.graph.initializer if t.name in "qkv"} == dict.fromkeys("qkv", width)


def test_without_heads_a_model_of_heads_alone_has_nothing_to_prune(tmp_path: Path) -> None:
    path = build(tmp_path / "net.onnx", ATTENTION, {"q": (8, 12), "k": (8, 12), "v": (8, 12), "o": (12, 5)})
    fails(call(path, "--no-heads"), 4, "--no-heads leave none of the 3 prunable groups")


def test_a_single_group_is_spoken_of_as_one(tmp_path: Path) -> None:
    text = "g (float[n,4] x) => (float[n,3] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"
    path = build(tmp_path / "net.onnx", f'<ir_version: 8, opset_import: ["" : 17]> {text}', {"a": (4, 8), "b": (8, 3)})
    assert "1 prunable group, 1 frozen" in call("inspect", path).stdout
    fails(call(path, "--keep", "*"), 4, "--no-heads leave out the one prunable group")


def test_benchmark_command(model: Path) -> None:
    other = model.with_name("other.onnx")
    other.write_bytes(model.read_bytes())
    report, picture = model.with_name("r.json"), model.with_name("r.svg")
    result = call("benchmark", model, other, "--budget", "0.2", "--json", report, "--svg", picture)
    assert result.exit_code == 0, result.output
    assert "noise floor" in result.stdout
    data = json.loads(report.read_text())
    assert [entry["model"] for entry in data["comparisons"]] == [str(other)]
    assert picture.read_text().startswith("<svg")


def test_benchmark_draws_every_comparison_in_a_page(model: Path) -> None:
    page = model.with_name("r.html")
    assert call("benchmark", model, model, model, "--budget", "0.1", "--svg", page).exit_code == 0
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>") and text.count("<svg") == text.count("</svg>") == 3
    assert text.count("latency of one run (ms)") == 2


def test_pictures_of_other_kinds_are_refused(model: Path) -> None:
    fails(call("benchmark", model, model, "--svg", model.with_name("r.png")), 2, "r.png", ".svg", ".html")
    assert left_in(model.parent) == ["net.onnx"]


def test_inputs_that_are_none_are_told_what_inputs_are(model: Path) -> None:
    text = model.with_name("x.csv")
    text.write_text("1,2")
    fails(call(model, "--calibration", text), 2, "x.csv", "not a .npz file", "file.py:function")


def test_benchmark_on_calibration_data(model: Path) -> None:
    inputs = model.with_name("inputs.npz")
    np.savez(inputs, image=np.zeros((5, 3, 8, 8), np.float32))
    arguments = ("benchmark", model, model, "--budget", "0.2", "--json", "-", "--calibration", inputs)
    assert json.loads(call(*arguments, "--batch", "4").stdout)["comparisons"][0]["batch"] == 4
    fails(call(*arguments, "--batch", "6"), 2, "5 rows", "6 are needed")


IMAGE_OPTIONS = ("--mean", "1,51,0", "--std", "2", "--scale", "1", "--layout", "nchw", "--color", "bgr")
AS_SAID = (-0.5, 0.0, 127.5)
"""What these options make of a red pixel (255, 51, 0)."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 20 pictures of 12 x 12, red but for some noise in the lower half."""
    image = pytest.importorskip("PIL.Image", reason="extra 'images' is not installed")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(20):
        pixels = np.full((12, 12, 3), (255, 51, 0), np.uint8)
        pixels[8:] = np.random.default_rng(number).integers(0, 256, (4, 12, 3))
        image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_benchmark_prepares_images_as_it_is_told(model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[comparison.Conditions] = []
    compare = comparison.compare_files
    monkeypatch.setattr(comparison, "compare_files", lambda m, c: seen.append(c) or compare(m, c))
    arguments = ("benchmark", model, model, "--budget", "0.1", "--batch", "3", "--calibration", pictures)
    result = call(*arguments, *IMAGE_OPTIONS, "--resize", "8x8", "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["comparisons"][0]["batch"] == 3
    assert seen[0].sample is not None
    np.testing.assert_allclose(seen[0].sample["image"][:, :, 0, 0], [AS_SAID] * len(seen[0].sample["image"]))
    fails(call(*arguments, "--resize", "7x8"), 2, "7")


def test_sensitivity_prepares_images_as_it_is_told(
    model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[recovery.Source] = []
    run = worker.call

    def watched(function: str, arguments: dict[str, Any], **limits: Any) -> Any:
        if function == "onnxprune.choosing:measure_curves":
            seen.append(arguments["source"])
        return run(function, arguments, **limits)

    monkeypatch.setattr(worker, "call", watched)
    arguments = ("sensitivity", model, "--calibration", pictures, "--calibration-size", "12", "--threads", "2")
    result = call(*arguments, "--memory", "64", *IMAGE_OPTIONS, "--resize", "8x8", "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == 11  # one of 12 is held out
    assert (seen[0].threads, seen[0].memory_bytes) == (2, 64 << 20)
    for feed in seen[0].feeds:
        np.testing.assert_allclose(feed["image"][:, :, 0, 0], [AS_SAID] * len(feed["image"]))


def test_commands_share_the_options_of_inputs() -> None:
    def named(of: str) -> dict[str, dict[str, object]]:
        return {p.name or "": p.to_info_dict() for p in cli.command.commands[of].params}

    images = {"calibration", "mean", "std", "scale", "layout", "resize", "color"}
    every = images | {"calibration_size", "threads", "memory"}
    for command, names in (("sensitivity", every), ("benchmark", images), ("search", every)):
        assert {n: named(command)[n] for n in names} == {n: named("prune")[n] for n in names}, command


def test_quiet_says_nothing(model: Path) -> None:
    result = call(model, "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_recovery_without_inputs_says_that_they_are_synthetic(model: Path) -> None:
    said = call(model, "--recover").stdout
    assert "Synthetic inputs: made up, no real data" in said and "nothing was recovered" not in said
    assert "nothing was recovered" not in call(model, "--no-recover", "--force").stdout


def test_reader_that_closes_early_is_no_error(model: Path) -> None:
    command = f"{sys.executable} -m onnxprune inspect {model} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=SOURCE)
    assert (done.stdout, done.stderr) == ("0\n", "")


# ---- Help ------------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from onnxprune import cli\n"
        "result = CliRunner().invoke(cli.command, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'onnx_graphsurgeon', 'rich', 'google.protobuf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SOURCE)


def test_help_explains_every_command_and_criterion() -> None:
    text = call("--help").stdout
    for word in ("onnxprune inspect", "onnxprune benchmark", "--ratio", "Examples", "Exit codes", *criteria.names()):
        assert word in text
    assert call("any.onnx", "--help").stdout == text
    assert "--budget" in call("benchmark", "--help").stdout


def test_version() -> None:
    assert call("--version").stdout == f"onnxprune {onnxprune.__version__}\n"


def test_providers_are_those_of_the_runtime() -> None:
    assert set(config.PROVIDERS) == set(runtime.PROVIDERS)


# ---- Exit code 2: usage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--ratio", "0"], "--ratio must lie between 0 and 1"),
        (["--ratio", "1.5"], "--ratio must lie between 0 and 1"),
        (["--ratio", "0.5", "--target", "macs=0.5"], "--target takes the place of --ratio: leave one of them out"),
        (["--max-drop", "0.01", "--ratio", "0.3"], "--max-drop takes the place of --ratio"),
        (["--criterion", "magic"], "unknown criterion 'magic'; known: obs, variance, wanda, pca, apoz, l1, l2, linf"),
        (["--calibration", "missing.npz"], "--calibration: missing.npz does not exist"),
        (["--plan", "missing.json"], "--plan: missing.json does not exist"),
        (["--input-shape", "picture:1,3,8,8"], "picture"),
        (["--input-shape", "image:1,4,8,8"], "image"),
        (["--json", "no/such/folder/r.json"], "does not exist"),
        (["--save-plan", "no/such/folder/p.json"], "does not exist"),
        (["-o", "no/such/folder/m.onnx"], "does not exist"),
        (["--benchmark", "--dry-run"], "--dry-run"),
        (["-q", "-v"], "exclude each other"),
    ],
)
def test_options_that_make_no_sense(model: Path, arguments: list[str], word: str) -> None:
    fails(call(model, *arguments), 2, word)
    assert left_in(model.parent) == ["net.onnx"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--input-shape", "image"],
        ["--input-shape", "image:1,x"],
        ["--input-shape", "image:0,3,8,8"],
        ["--input-shape", "image:1", "--input-shape", "image:2"],
        ["--round-to", "some"],
        ["--round-to", "0"],
        ["--provider", "tpu"],
        ["--seed", "-1"],
        ["--no-such-option"],
    ],
)
def test_options_that_cannot_be_read(model: Path, arguments: list[str]) -> None:
    result = call(model, *arguments)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: (invalid value|no such option).*; see `onnxprune --help`\n", result.stderr)
    assert not result.stdout


def test_input_shape_may_hold_colons() -> None:
    parsed = cli.options.parse_shapes(None, None, ["input:0:1,3", "b:2"])  # type: ignore[arg-type]
    assert parsed == {"input:0": (1, 3), "b": (2,)}


@pytest.mark.parametrize("option", ["--json", "--save-plan", "-o"])
def test_input_is_never_the_output(model: Path, option: str) -> None:
    fails(call(model, option, model, "--force"), 2, "same file", "net.onnx")


def test_report_never_replaces_what_is_no_report(model: Path) -> None:
    data = model.with_name("net.onnx.data")
    data.write_bytes(b"\0weights")
    for option in ("--json", "--save-plan"):
        fails(call(model, option, data), 2, "not replaced")
    assert data.read_bytes() == b"\0weights"


def test_two_outputs_may_not_be_one_file(model: Path) -> None:
    path = model.with_name("x.json")
    fails(call(model, "--json", path, "--save-plan", path), 2, "same file")


def test_existing_output_needs_force(model: Path) -> None:
    output = model.with_name("net_pruned.onnx")
    output.write_bytes(b"mine")
    fails(call(model), 2, "net_pruned.onnx", "--force")
    assert output.read_bytes() == b"mine"
    assert call(model, "--force", "-q").exit_code == 0
    assert output.read_bytes() != b"mine"


def test_folder_that_may_not_be_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    fails(call(model), 2, "no permission to write", str(model.parent))
    assert left_in(model.parent) == ["net.onnx"]


def test_full_disk(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "sync", full)
    fails(call(model, "--save-plan", model.with_name("plan.json")), 2, "no space left on the disk")
    assert not [name for name in left_in(model.parent) if name.endswith((".onnx", ".data")) and name != "net.onnx"]


def test_what_does_not_fit_is_refused_before_any_work(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "call", lambda *_, **__: pytest.fail("work was started"))
    good, bad = model.with_name("good.npz"), model.with_name("bad.npz")
    np.savez(good, image=np.random.default_rng(0).random((8, 3, 8, 8), np.float32))
    np.savez(bad, image=np.zeros((8, 3, 8, 8), np.uint8))
    words = "--evaluation", "takes float32, and the array is uint8"
    fails(call(model, "--calibration", good, "--evaluation", bad, "--metric", "cosine"), 2, *words)
    fails(call(model, "--calibration", good, "--plan", good), 2, "not a plan")
    fails(call("sensitivity", model, "--calibration", good, "--only", "nosuch"), 2, "--only 'nosuch' matches no group")


def test_plan_of_another_model(model: Path) -> None:
    plan = model.with_name("plan.json")
    plan.write_text('{"schema": 1, "groups": [{"id": "nobody:0", "size": 4, "kept": [0]}]}')
    fails(call(model, "--plan", plan), 2, "nobody:0")
    made_for = '"model": {"name": "other.onnx", "sha256": "0"}'
    plan.write_text(f'{{"schema": 1, {made_for}, "groups": [{{"id": "nobody:0", "size": 4, "kept": [0]}}]}}')
    fails(call(model, "--plan", plan), 2, "nobody:0", "made for another model, other.onnx")
    plan.write_text("[]")
    fails(call(model, "--plan", plan), 2, "not a plan", "--save-plan")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--budget", "0"], "--budget must be a positive number"),
        (["--input-shape", "picture:1,3,8,8"], "picture"),
        (["--calibration", "missing.npz"], "--calibration: missing.npz does not exist"),
        (["--input-shape", "image:1,3,8,8", "--batch", "4"], "--batch 4"),
        (["--mean", "0.5"], "need images: give --calibration"),
        (["--calibration", "missing.npz", "--std", "0"], "--std must hold positive numbers"),
    ],
)
def test_benchmark_options_that_make_no_sense(model: Path, arguments: list[str], word: str) -> None:
    fails(call("benchmark", model, model, *arguments), 2, word)


def test_benchmark_takes_two_models(model: Path) -> None:
    fails(call("benchmark", model), 2, "at least two models; 1 given")
    fails(call("benchmark", model, model, "--json", model), 2, "same file")


# ---- Exit code 3: the model ------------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    for command in ([], ["inspect"]):
        fails(call(*command, tmp_path / "no.onnx"), 3, "no.onnx", "no such file")


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (b"This is a letter, and no model.\n" * 20, "text"), (b"<html></html>", "text")],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    fails(call(path), 3, "bad.onnx", word)
    assert left_in(tmp_path) == ["bad.onnx"]


def test_truncated_file(model: Path) -> None:
    path = model.with_name("cut.onnx")
    path.write_bytes(model.read_bytes()[:-1000])
    fails(call(path), 3, "cut.onnx")
    assert left_in(model.parent) == ["cut.onnx", "net.onnx"]


def test_convolution_with_wrong_arithmetic(tmp_path: Path) -> None:
    path = build(tmp_path / "wrong.onnx", shapes={**SHAPES, "w2": (24, 15, 3, 3)})
    fails(call(path), 3, "Conv", "15")
    assert left_in(tmp_path) == ["wrong.onnx"]


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    path = build(tmp_path / "nan.onnx")
    model = onnx.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[2]).copy()
    weight[3, 0, 1, 1] = np.nan
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, "w2"))
    path.write_bytes(model.SerializeToString())
    fails(call(path), 3, "w2", "NaN")
    assert left_in(tmp_path) == ["nan.onnx"]


# ---- Exit code 4: nothing to prune -----------------------------------------------------------------------------------


def test_model_with_nothing_to_prune(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    none (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }
    """
    fails(call(build(tmp_path / "none.onnx", text, {})), 4, "no weights that could be pruned")
    assert left_in(tmp_path) == ["none.onnx"]


def test_patterns_that_leave_nothing(model: Path) -> None:
    fails(call(model, "--keep", "*"), 4, "--keep, --only and --no-heads leave none")
    fails(call(model, "--ratio", "0.01"), 4, "--ratio", "--round-to")


# ---- Exit codes 5, 1, 130 --------------------------------------------------------------------------------------------


def test_failed_verification_writes_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    fails(call(model), 5, "differs from the masked original")
    assert left_in(model.parent) == ["net.onnx"]


def test_internal_error_is_one_line_unless_debugged(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(api, "prune", broken)
    fails(call(model), 1, "internal error: KeyError: 'lost'", "--debug")
    result = call(model, "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "word"), [(MemoryError(), 1, "not enough memory"), (KeyboardInterrupt(), 130, "interrupted")]
)
def test_abrupt_ends(model: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, word: str) -> None:
    def broken(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(api, "prune", broken)
    fails(call(model), code, word)
