"""Latency targets and refusals, on a simulated machine: latency is counted from the weights of the written files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser

from onnxprune import comparison, processor, widths
from onnxprune.api import prune
from onnxprune.cli import command
from onnxprune.comparison import Conditions
from onnxprune.config import Config
from onnxprune.errors import ModelError, NotFasterError, NothingToPruneError, UsageError
from onnxprune.records import KernelTime, Latency, LatencySide, Profile, Report

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, w2)
    q = Relu(c)
    d = Conv<pads=[1,1,1,1]>(q, w3)
    s = Relu(d)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w4)
}
"""
SIZES = {"w1": (128, 3, 3, 3), "w2": (192, 128, 3, 3), "w3": (128, 192, 3, 3), "w4": (5, 128)}


class Machine:
    """1 ns for every multiply-accumulate of blocks of 16 channels, 0.05 ms beside the nodes; times what is left times
    `surcharge`, which the model of latency knows nothing of. A node of other widths takes `odd` times as long.
    """

    def __init__(self) -> None:
        self.overhead = 0.05
        self.surcharge = 1.0
        self.block = 16
        self.odd = 1.0
        self.compared: list[dict[str, Any]] = []

    def kernels(self, path: str | Path) -> tuple[KernelTime, ...]:
        proto = onnx.load(path)
        shapes = {t.name: t.dims for t in proto.graph.initializer}
        found = []
        for node in proto.graph.node:
            if node.op_type in ("Conv", "Gemm"):
                rows, columns, *kernel = shapes[node.input[1]]
                work = (
                    np.ceil(rows / self.block)
                    * np.ceil(columns / self.block)
                    * self.block**2
                    * np.prod(kernel)
                    * (64 if kernel else 1)
                )
                if any(width % self.block for width in (rows, columns) if width > 5):
                    work *= self.odd
                found.append(KernelTime(node.name or node.output[0], node.op_type, float(work) * 1e-6))
        return tuple(found)

    def milliseconds(self, path: str | Path) -> float:
        return sum(k.ms for k in self.kernels(path)) + self.overhead

    def profile_files(self, models: Sequence[str | Path], conditions: Conditions) -> list[Profile]:
        return [Profile(self.milliseconds(m), self.kernels(m)) for m in models]

    def compare_files(
        self, models: Sequence[str | Path], conditions: Conditions, *, self_test: bool = True
    ) -> list[Latency]:
        before, after = (self.milliseconds(m) for m in models)
        after = after * self.surcharge if models[0] != models[1] else after
        self.compared.append({"conditions": conditions, "self_test": self_test})
        sides = [LatencySide(ms, ms, ms, ms) for ms in (before, after)]
        ratio = before / after
        ends = (ratio * 0.99, ratio * 1.01)
        found = not ends[0] <= 1 <= ends[1]
        return [Latency("cpu", 1, 1, *sides, ratio, ends, (0.99, 1.01), found, 99, {})]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(comparison, "profile_files", found.profile_files)
    monkeypatch.setattr(comparison, "compare_files", found.compare_files)
    monkeypatch.setattr(widths, "measured", lambda provider, threads: processor.table(provider))
    return found


def _save(path: Path, sizes: dict[str, tuple[int, ...]]) -> Path:
    random = np.random.default_rng(0)
    proto = parser.parse_model(TEXT)
    values = {n: random.normal(0, np.prod(s[1:]) ** -0.5, s).astype(np.float32) for n, s in sizes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in values.items())
    onnx.save(proto, path)
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return _save(tmp_path / "net.onnx", SIZES)


def _config(**options: Any) -> Config:
    """By the norms of the weights: what is chosen does not matter here."""
    return Config(**{"criterion": "l2", "recover": False, **options})


def _share(machine: Machine, net: Path, output: Path) -> float:
    return machine.milliseconds(output) * machine.surcharge / machine.milliseconds(net)


@pytest.mark.parametrize("goal", [0.8, 0.6, 0.3])
@pytest.mark.parametrize("surcharge", [1.0, 1.2])
def test_a_latency_target_is_met(machine: Machine, net: Path, goal: float, surcharge: float) -> None:
    machine.surcharge = surcharge
    report = prune(net, _config(target=f"latency={goal}"))
    assert report.output is not None
    assert _share(machine, net, Path(report.output)) == pytest.approx(goal, rel=0.05)
    assert report.pursuit is not None
    assert report.pursuit.reached == pytest.approx(1 / report.latency.speedup if report.latency else 0)
    assert report.exactness is not None
    assert report.exactness.passed
    assert all(entry.kept % 16 == 0 for entry in report.groups if entry.status == "pruned")


def test_a_target_in_milliseconds(machine: Machine, net: Path) -> None:
    wanted = 0.5 * machine.milliseconds(net)
    report = prune(net, _config(target=f"latency={wanted:.3f}ms"))
    assert machine.milliseconds(str(report.output)) == pytest.approx(wanted, rel=0.05)


def test_a_target_that_is_met_already(machine: Machine, net: Path) -> None:
    with pytest.raises(NothingToPruneError, match="met already: the original takes"):
        prune(net, _config(target="latency=1s"))


def test_a_target_out_of_reach_names_the_best_and_leaves_no_file(machine: Machine, net: Path) -> None:
    machine.overhead = 10.0
    with pytest.raises(NothingToPruneError, match=r"it is 0.100 of the original's latency, and the least .* 0\.\d+"):
        prune(net, _config(target="latency=0.1"))
    assert [p.name for p in net.parent.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("allocation", ["sensitivity", "uniform"])
def test_with_inputs_widths_go_by_measured_damage_and_the_last_is_recovered(
    machine: Machine, tmp_path: Path, allocation: str
) -> None:
    net = _save(tmp_path / "net.onnx", {"w1": (16, 3, 3, 3), "w2": (24, 16, 3, 3), "w3": (16, 24, 3, 3), "w4": (5, 16)})
    machine.block, machine.overhead = 1, 0.001
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.random.default_rng(1).normal(size=(24, 3, 8, 8)).astype(np.float32))
    report = prune(net, Config(target="latency=0.6", calibration=inputs, allocation=allocation, round_to=1))
    assert _share(machine, net, Path(str(report.output))) == pytest.approx(0.6, rel=0.05)
    assert "recover" in report.seconds
    assert report.quality is not None
    assert report.quality.data == "calibration"
    assert all(seen["conditions"].sample is not None for seen in machine.compared)


@pytest.mark.parametrize("allocation", ["sensitivity", "uniform"])
def test_any_width_allowed_means_the_fast_ones_too(machine: Machine, net: Path, allocation: str) -> None:
    """A model of odd widths is slower than a wider one of fast widths, which --round-to 1 does not exclude."""
    machine.odd = 3.0
    for goal in (0.6, 0.3):
        report = prune(net, _config(target=f"latency={goal}", round_to=1, allocation=allocation, force=True))
        assert _share(machine, net, Path(str(report.output))) == pytest.approx(goal, rel=0.05)
        assert all(entry.kept % 16 == 0 for entry in report.groups if entry.status == "pruned")


def test_where_fast_widths_do_not_give_the_target_others_are_taken(machine: Machine, tmp_path: Path) -> None:
    """Groups of one fast step each, on a machine whose convolutions gain by every 4 channels."""
    machine.block = 4
    sizes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "w4": (5, 16)}
    net = _save(tmp_path / "net.onnx", sizes)
    report = prune(net, _config(target="latency=0.6"))
    assert _share(machine, net, Path(str(report.output))) == pytest.approx(0.6, rel=0.051)
    pruned = [entry for entry in report.groups if entry.status == "pruned"]
    assert all(entry.kept % 4 == 0 for entry in pruned)
    assert any(f"do not give the target latency: {len(pruned)} group" in note for note in report.notes)
    with pytest.raises(NothingToPruneError, match="cannot be reached"):
        prune(net, _config(target="latency=0.6", round_to=16, force=True))


def test_a_target_is_met_without_fusion_where_the_runtime_refuses_the_fused_model(
    machine: Machine, net: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def refusing(models: Sequence[str | Path], conditions: Conditions) -> list[Profile]:
        calls.append(len(models))
        if len(calls) == 1:
            raise ModelError("ONNX Runtime cannot load the model")
        return machine.profile_files(models, conditions)

    monkeypatch.setattr(comparison, "profile_files", refusing)
    report = prune(net, _config(target="latency=0.6"))
    assert _share(machine, net, Path(str(report.output))) == pytest.approx(0.6, rel=0.05)
    assert "nothing is fused, as the model does not stand it" in caplog.text
    calls.clear()
    with pytest.raises(ModelError, match="cannot load"):
        prune(net, _config(target="latency=0.6", fuse=False, force=True))


def test_a_dry_run_says_what_would_be_reached(machine: Machine, net: Path) -> None:
    report = prune(net, _config(target="latency=0.6", dry_run=True))
    assert report.pursuit is not None
    assert report.pursuit.reached == pytest.approx(0.6, rel=0.02)
    assert [p.name for p in net.parent.iterdir()] == ["net.onnx"]


def test_options_of_the_measurement_reach_it(machine: Machine, net: Path) -> None:
    prune(net, _config(target="latency=0.6", batch=4, run_threads=2, budget_s=3.0))
    seen = [entry["conditions"] for entry in machine.compared]
    assert {(c.batch, c.threads, c.budget_s, c.provider) for c in seen} == {(4, 2, 3.0, "cpu")}
    assert [entry["self_test"] for entry in machine.compared][-1] is True


def test_the_report_shows_how_the_target_was_met(machine: Machine, net: Path) -> None:
    report = net.with_name("report.json")
    result = CliRunner().invoke(
        command, [str(net), "--target", "latency=0.6", "--criterion", "l2", "--no-recover", "--json", str(report)]
    )
    assert result.exit_code == 0, result.output
    assert "Target: 0.600 of the original's latency" in result.output
    data = json.loads(report.read_text())["latency_target"]
    assert data["goal"] == 0.6
    assert data["attempts"][-1]["measured"] == data["reached"]
    assert data["model"]["nodes"] == 4
    assert [entry["kept"] for entry in data["model"]["whole_over_sum"]] == [1.0, 0.75, 0.5, 0.25, 0.125]


def _budgeted(net: Path, max_drop: float, **options: Any) -> Report:
    inputs = net.with_name("inputs.npz")
    np.savez(inputs, x=np.random.default_rng(1).normal(size=(160, 3, 8, 8)).astype(np.float32))
    config = Config(calibration=inputs, target="latency=0.5", max_drop=max_drop, metric="cosine", round_to=1, **options)
    return prune(net, config)


@pytest.fixture
def small(machine: Machine, tmp_path: Path) -> Path:
    machine.block, machine.overhead = 1, 0.001
    return _save(
        tmp_path / "net.onnx", {"w1": (16, 3, 3, 3), "w2": (24, 16, 3, 3), "w3": (16, 24, 3, 3), "w4": (5, 16)}
    )


def test_a_latency_target_within_the_budget_takes_one_round(machine: Machine, small: Path) -> None:
    report = _budgeted(small, 2.0)
    assert _share(machine, small, Path(str(report.output))) == pytest.approx(0.5, rel=0.05)
    assert [entry.within for entry in report.rounds] == [True]
    assert not any("--max-drop" in note and "does not allow" in note for note in report.notes)


@pytest.mark.parametrize("recover", [True, False])
def test_a_budget_keeps_a_latency_target_from_being_met_and_says_so(
    machine: Machine, small: Path, recover: bool
) -> None:
    """The share is the least of those measured within the budget, and what is written is what was measured."""
    free = _budgeted(small, 2.0, recover=recover)
    allowed = free.rounds[0].drop / 3
    report = _budgeted(small, allowed, recover=recover, force=True)
    share = _share(machine, small, Path(str(report.output)))
    assert 0.5 * 1.05 < share < 1.0
    assert report.pursuit is not None and report.pursuit.reached == pytest.approx(share)
    assert report.rounds[0].drop > allowed, "the target itself is tried first"
    within = [entry for entry in report.rounds if entry.within]
    assert share == pytest.approx(min(entry.share for entry in within), abs=0.05)
    assert report.metric is not None and report.metric.drop.value <= allowed + 1e-6
    (note,) = [note for note in report.notes if "does not allow the target latency (0.500" in note]
    assert f"takes {share:.3f}" in note


def test_a_budget_that_nothing_fits_writes_no_model(machine: Machine, small: Path) -> None:
    with pytest.raises(NothingToPruneError, match=r"--max-drop 0: even with .* of the latency kept, cosine falls by"):
        _budgeted(small, 0.0)
    assert sorted(p.name for p in small.parent.iterdir()) == ["inputs.npz", "net.onnx"]


@pytest.mark.parametrize(
    ("surcharge", "words"), [(9.0, "slower than the original"), (1.0, "not measurably faster than the original")]
)
def test_a_result_that_is_not_faster_is_refused(machine: Machine, net: Path, surcharge: float, words: str) -> None:
    """All the time is spent beside the nodes; or the cut itself makes them slower."""
    machine.overhead, machine.surcharge = (0.05, surcharge) if surcharge > 1 else (1e6, 1.0)
    result = CliRunner().invoke(command, [str(net), "--ratio", "0.3", "--no-recover", "--benchmark"])
    assert result.exit_code == 4
    assert words in result.output
    assert "--force" in result.output
    assert [p.name for p in net.parent.iterdir()] == ["net.onnx"]


def test_the_layers_that_are_to_blame_are_named(machine: Machine, net: Path) -> None:
    machine.surcharge = 9.0
    with pytest.raises(
        NotFasterError, match=r"did not get faster: d \d+\.\d -> \d+\.\d ms; y 0\.\d+ -> 0\.\d+ ms\. Remove"
    ):
        prune(net, _config(ratio=0.3, benchmark=True, keep=("w3",)))


def test_force_writes_it_all_the_same_and_says_so(machine: Machine, net: Path) -> None:
    machine.surcharge = 9.0
    report = prune(net, _config(ratio=0.3, benchmark=True, force=True))
    assert Path(str(report.output)).exists()
    assert any("not shown to be faster" in note for note in report.notes)


def test_a_faster_result_is_written(machine: Machine, net: Path) -> None:
    report = prune(net, _config(ratio=0.5, benchmark=True))
    assert report.latency is not None
    assert report.latency.speedup > 1
    assert not any("faster" in note for note in report.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "latency=0.5", "plan": Path("plan.json")}, "leave --target out"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"run_threads": -1}, "threads of a model must be 0"),
        ({"run_threads": 100_000}, "threads of a model must be at most .* got 100000"),
        ({"threads": 100_000}, "--threads must be at most .* got 100000"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"seed": "x"}, "--seed must be a whole number, got 'x'"),
        ({"round_to": "x"}, "--round-to must be a whole number, got 'x'"),
        ({"calibration_size": 1.5}, "--calibration-size must be a whole number, got 1.5"),
        ({"budget_s": 0.0}, "--budget must be a positive number"),
        ({"target": "macs=0.5", "criterion": "l2"}, "--target needs one of"),
        ({"target": "latency=0.5", "max_drop": 0.1}, "--max-drop needs --calibration"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Config(**changes).validate()
