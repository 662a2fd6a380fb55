"""Choosing and recovering on small models, end to end."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import api, calibration, choosing, config, gathering, recovery, target, widths, worker
from onnxprune.config import Config
from onnxprune.criteria import activation
from onnxprune.cut import Cut
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.records import Allocation, FastWidths, Feed
from onnxprune.recover import gradients

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, w2, b2)
    q = Relu(c)
    p = GlobalAveragePool(q)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3, b3)
}
"""


def save(folder: Path, *, copies: bool) -> Path:
    """A small network; with `copies` the second half of the channels of `r` repeats the first."""
    random = np.random.default_rng(0)
    sizes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (12, 8, 3, 3), "b2": (12,), "w3": (5, 12), "b3": (5,)}
    values = {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in sizes.items()}
    if copies:
        values["w1"][4:], values["b1"][4:] = values["w1"][:4], values["b1"][:4]
    proto = parser.parse_model(TEXT)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in values.items())
    path = folder / "small.onnx"
    onnx.save(proto, path)
    return path


def feeds(count: int = 8) -> list[Feed]:
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=(16, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def source(path: Path) -> recovery.Source:
    return recovery.Source(str(path), {}, feeds(), 0, 1, 1 << 30)


def wanted(**changes: object) -> choosing.Wanted:
    options: dict[str, object] = {
        "groups": ["w1:0", "w2:0"],
        "allocation": "sensitivity",
        "target": ("macs", 0.5),
        "ratio": 0.5,
        "steps": {"w1:0": 1, "w2:0": 1},
        "criterion": "obs",
    }
    return choosing.Wanted(**{**options, **changes})  # type: ignore[arg-type]


def test_channels_that_repeat_others_are_chosen_and_cost_nothing(tmp_path: Path) -> None:
    start = source(save(tmp_path, copies=True))
    choice = choosing.choose(start, wanted())
    kept = choice.kept["w1:0"]
    assert len(kept) == 4
    assert sorted(kept % 4) == [0, 1, 2, 3]
    removed, damage = choice.curves["w1:0"]
    assert max(damage[: removed.index(4) + 1]) < 1e-4
    found = recovery.recover(start, {"w1:0": kept}, tuned=False)
    assert all(layer.after < 1e-3 for layer in found.layers)


def test_the_options_name_every_criterion_that_is_measured() -> None:
    assert ("obs", *activation.CRITERIA) == config.MEASURED_CRITERIA


@pytest.mark.parametrize("allocation", config.ALLOCATIONS)
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_every_allocation_reaches_the_target_and_never_exceeds_it(tmp_path: Path, allocation: str, kind: str) -> None:
    start = source(save(tmp_path, copies=False))
    choice = choosing.choose(start, wanted(allocation=allocation, target=(kind, 0.5)))
    a, b = (len(choice.kept.get(f"w{i}:0", range(n))) for i, n in ((1, 8), (2, 12)))
    macs = 64 * (27 * a + 9 * a * b) + 5 * b
    parameters = 27 * a + a + 9 * a * b + b + 5 * b + 5
    share = macs / (64 * (27 * 8 + 9 * 96) + 60) if kind == "macs" else parameters / (27 * 8 + 8 + 9 * 96 + 12 + 60 + 5)
    assert 0.35 < share <= 0.5


def test_reconstruction_is_never_worse_than_the_cut_on_held_out_items(tmp_path: Path) -> None:
    start = source(save(tmp_path, copies=False))
    found = recovery.recover(start, {"w1:0": np.arange(5), "w2:0": np.arange(4, 12)}, tuned=False)
    assert len(found.layers) == 2
    assert all(layer.after <= layer.before for layer in found.layers)
    assert any(layer.after < 0.7 * layer.before for layer in found.layers)


def test_the_same_seed_and_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    start = source(save(tmp_path, copies=False))
    kept = {"w1:0": np.arange(5)}
    one, two = (recovery.recover(start, kept, tuned=False).values for _ in range(2))
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in two.items()}


@pytest.mark.parametrize("tuned", [False, True])
def test_two_threads_give_the_same_bytes_on_every_run(tmp_path: Path, tuned: bool) -> None:
    if tuned:
        pytest.importorskip("onnx_ad", reason="extra 'gradients' is not installed")
    start = dataclasses.replace(source(save(tmp_path, copies=False)), threads=2)
    arguments = {"source": start, "kept": {"w1:0": np.arange(5), "w2:0": np.arange(4, 12)}, "tuned": tuned}
    one, two = (worker.call("onnxprune.recovery:recover", arguments, timeout_s=300, threads=2).values for _ in range(2))
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in two.items()}


def test_prune_with_a_target_writes_a_recovered_model(tmp_path: Path) -> None:
    path = save(tmp_path, copies=True)
    data = tmp_path / "data.npz"
    np.savez(data, x=np.concatenate([f["x"] for f in feeds()]))
    options = Config(output=tmp_path / "out.onnx", calibration=data, target="macs=0.5", criterion="obs", round_to=1)
    report = api.prune(path, options)
    assert report.after is not None and report.after.macs <= 0.5 * report.before.macs
    assert report.quality is not None and report.quality.data == "calibration"
    assert report.quality.outputs["y"].relative_error < 0.02


@pytest.mark.parametrize("repeated", [1, 48])
def test_weights_that_end_worse_than_the_cut_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: int
) -> None:
    """Also where more inputs are held out than quality is measured on."""
    path, data = save(tmp_path, copies=False), tmp_path / "data.npz"
    np.savez(data, x=np.concatenate([f["x"] for f in feeds()] * repeated))
    right = recovery.install
    options = Config(
        output=tmp_path / "out.onnx",
        calibration=data,
        calibration_size=128 * repeated,
        ratio=0.25,
        round_to=1,
        save_plan=tmp_path / "p.json",
    )

    def wrong(done: Cut, found: recovery.Recovered) -> Cut:
        return right(done, dataclasses.replace(found, values={n: a * 0 for n, a in found.values.items()}))

    monkeypatch.setattr(recovery, "install", wrong)
    report = api.prune(path, options)
    assert any("the refitted weights err more than the cut alone" in note for note in report.notes)
    assert not report.layers
    plain = Config(output=tmp_path / "cut.onnx", plan=tmp_path / "p.json", recover=False)
    api.prune(path, plain)
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "cut.onnx").read_bytes()
    monkeypatch.undo()
    report = api.prune(path, dataclasses.replace(options, force=True, save_plan=None))
    assert not any("err more" in note for note in report.notes)
    assert report.layers


def test_too_few_rows_to_hold_any_out_are_told(tmp_path: Path) -> None:
    path, data = save(tmp_path, copies=False), tmp_path / "data.npz"
    for rows, told, few in ((3, True, False), (8, False, True), (512, False, False)):
        np.savez(data, x=np.concatenate([feed["x"] for feed in feeds(32)])[:rows])
        options = Config(output=tmp_path / "out.onnx", calibration=data, ratio=0.25, round_to=1, force=True)
        report = api.prune(path, options)
        assert any("too few to hold some out" in note for note in report.notes) == told
        assert any("held out, so one more or less changes it much" in note for note in report.notes) == few


def smooth(count: int = 8) -> list[Feed]:
    """Batches of 16 images that change slowly from pixel to pixel."""
    return [{"x": np.kron(f["x"][:, :, ::4, ::4], np.ones((4, 4), np.float32))} for f in feeds(count)]


@pytest.mark.parametrize("last", ["", "y2 = Softmax(y)", "y2 = Sigmoid(y)"])
def test_distillation_lowers_the_held_out_loss(tmp_path: Path, last: str) -> None:
    pytest.importorskip("onnx_ad", reason="extra 'gradients' is not installed")
    path = save(tmp_path, copies=False)
    if last:
        proto = onnx.load(path)
        proto.graph.node.extend(parser.parse_graph(f"g () => () {{ {last} }}").node)
        proto.graph.output[0].name = "y2"
        onnx.save(proto, path)
    every = smooth()
    start = dataclasses.replace(source(path), feeds=every[:7], held=every[7:])
    found = recovery.recover(start, {"w1:0": np.arange(3), "w2:0": np.arange(6)}, tuned=True)
    assert found.distilled is not None, found.notes
    before, after = found.distilled
    assert after < 0.95 * before


def test_what_is_bred_and_what_is_copied_is_fitted_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = save(tmp_path, copies=False), []
    fitted = recovery.reconstruct

    def fit(*arguments: Any) -> Any:
        seen.append((sum(len(f["x"]) for f in arguments[4]), arguments[5].own))
        return fitted(*arguments)

    monkeypatch.setattr(recovery, "reconstruct", fit)
    start = dataclasses.replace(source(path), feeds=feeds(6), own=2, copies=feeds(3))
    recovery.recover(start, {"w1:0": np.arange(3)}, tuned=False)
    assert seen == [(9 * 16, 2)]


def test_distillation_is_kept_where_it_is_better_on_inputs_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx_ad", reason="extra 'gradients' is not installed")
    every = smooth()
    start = dataclasses.replace(source(save(tmp_path, copies=False)), feeds=every[:7], held=every[7:])
    kept = {"w1:0": np.arange(3), "w2:0": np.arange(6)}
    found, plain = (recovery.recover(start, kept, tuned=tuned) for tuned in (True, False))
    assert found.distilled is not None and found.distilled[1] < found.distilled[0]
    assert any(not np.array_equal(found.values[n], a) for n, a in plain.values.items())
    judged: list[Any] = []

    def held(trainer: gradients.Trainer, tests: gradients.Tests) -> float:
        judged.append([feed["x"] for feed, *_ in tests])
        return float(len(judged))

    monkeypatch.setattr(gradients.Trainer, "held_loss", held)
    refused = recovery.recover(start, kept, tuned=True)
    assert refused.distilled == (1.0, 2.0)
    assert all(np.array_equal(refused.values[n], a) for n, a in plain.values.items())
    assert len(judged) == 2
    assert all(np.array_equal(np.concatenate(x), every[7]["x"]) for x in judged)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("macs=0.5", ("macs", 0.5)),
        ("size=0.5", ("bytes", 0.5)),
        ("size=10MB", ("bytes", 10_000_000)),
        ("latency=0.6", ("latency", 0.6)),
        ("latency=5ms", ("milliseconds", 5.0)),
        ("latency=250us", ("milliseconds", 0.25)),
        ("latency=1.5s", ("milliseconds", 1500.0)),
    ],
)
def test_targets_mean_what_they_say(text: str, meaning: tuple[str, float]) -> None:
    assert config.parse_target(text) == meaning


def test_a_target_out_of_reach_says_so() -> None:
    with pytest.raises(NothingToPruneError, match="the groups that may shrink allow 1.000 at least"):
        target.by_damage([], {}, [((), 10)], 5, {})
    with pytest.raises(NothingToPruneError, match="0.500 of the original, .* allow 1.000"):
        target.by_damage([], {}, [((), Fraction(10))], 5, {})
    with pytest.raises(NothingToPruneError, match="the target is less than what no cut changes"):
        target.by_damage([], {}, [((), 10)], -1, {})


def test_distillation_is_in_the_report(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ad", reason="extra 'gradients' is not installed")
    path = save(tmp_path, copies=False)
    np.savez(tmp_path / "rows.npz", x=np.concatenate([feed["x"] for feed in smooth()]))
    options = Config(output=tmp_path / "o.onnx", calibration=tmp_path / "rows.npz", round_to=1, tune=True)
    found = api.prune(path, options).distillation
    assert found is not None and found.kept and found.after < found.before
    few = dataclasses.replace(options, output=tmp_path / "few.onnx", calibration_size=4)
    report = api.prune(path, few)
    assert report.distillation is None
    assert any("no distillation: too few inputs" in note for note in report.notes)


def test_without_inputs_held_out_there_is_no_distillation(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ad", reason="extra 'gradients' is not installed")
    path, kept = save(tmp_path, copies=False), {"w1:0": np.arange(3)}
    found, plain = (recovery.recover(source(path), kept, tuned=tuned) for tuned in (True, False))
    assert found.distilled is None
    assert list(found.notes) == ["no distillation: nothing is held out to judge it by"]
    assert all(np.array_equal(found.values[n], a) for n, a in plain.values.items())
    fixed = onnx.load(path)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    onnx.save(fixed, path)
    np.savez(tmp_path / "rows.npz", x=np.concatenate([feed["x"] for feed in smooth(3)]))
    options = Config(output=tmp_path / "o.onnx", calibration=tmp_path / "rows.npz", round_to=1, tune=True)
    report = api.prune(path, options)
    assert report.inputs is not None and (report.inputs.rows, report.inputs.held_out) == (48, 0)
    assert report.distillation is None
    assert any("no distillation: nothing is held out" in note for note in report.notes)


def test_a_last_batch_that_is_filled_up_counts_by_its_own_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx_ad", reason="extra 'gradients' is not installed")
    every, seen = smooth(), []
    held = [{"x": every[7]["x"][:11]}]
    right = gradients.Trainer.held_loss

    def loss(trainer: gradients.Trainer, tests: gradients.Tests) -> float:
        losses = [trainer.step(feed, wanted)[0] for feed, wanted, _ in tests]
        seen.append(([len(feed["x"]) for feed, *_ in tests], losses))
        return right(trainer, tests)

    monkeypatch.setattr(gradients.Trainer, "held_loss", loss)
    start = dataclasses.replace(source(save(tmp_path, copies=False)), feeds=every[:7], held=held)
    found = recovery.recover(start, {"w1:0": np.arange(3)}, tuned=True)
    assert found.distilled is not None, found.notes
    for told, (sizes, losses) in zip(found.distilled, seen, strict=True):
        assert sizes == [8, 8]
        assert told == pytest.approx((8 * losses[0] + 3 * losses[1]) / 11)


def test_tune_without_its_extra_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--tune needs gradients: pip install"):
        Config(tune=True).validate()


@pytest.mark.parametrize(
    "text",
    [
        "macs",
        "macs=2",
        "flops=0.5",
        "params=10MB",
        "macs=0",
        "size=x",
        "latency=2",
        "latency=5MB",
        "macs=3ms",
        "size=1..2MB",
    ],
)
def test_a_target_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write macs=0.5, params=0.5 or size=0.5 .* size=10MB .* latency=5ms"):
        config.parse_target(text)


def test_targets_are_read() -> None:
    assert config.parse_target("macs=0.5") == ("macs", 0.5)
    assert config.parse_target("size=2MB") == ("bytes", 2_000_000)


def test_measured_criteria_and_targets_make_their_inputs_where_none_are_given() -> None:
    for config_ in (Config(criterion="obs", recover=False), Config(target="macs=0.5", recover=False)):
        config_.validate()
        assert config_.needs_inputs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        # Of 8 and 12 channels one of each is left: 9 * 64 * (3 + 1) + 5 multiply-accumulates of 69180.
        ({"target": "macs=0.01"}, ["0.01 of the MACs, and at least 0.034 stay", "give a larger --target;"]),
        # Of the 1157 numbers 27 + 1 + 9 + 1 + 5 + 5.
        ({"target": "params=0.001"}, ["0.001 of the parameters, and at least 0.042 stay"]),
        (
            {"target": "params=0.1", "only": ("w1",)},
            [r"at least 0.\d+ stay", "or fewer groups kept by --keep and --only"],
        ),
        ({"target": "params=0.3", "round_to": 8}, ["or --round-to 1 for narrower groups"]),
        ({"target": "size=500B"}, [r"500 bytes, and at least [1-9]\d\d bytes stay"]),
        ({"target": "macs=0.01", "allocation": "uniform"}, ["0.01 of the MACs, and at least 0.034 stay"]),
    ],
)
def test_a_target_out_of_reach_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: list[str]
) -> None:
    monkeypatch.setattr(gathering, "gather", lambda *given: pytest.fail("the inputs are read"))
    monkeypatch.setattr(worker, "call", lambda *given, **more: pytest.fail("something is measured"))
    np.savez(tmp_path / "rows.npz", x=feeds()[0]["x"])
    settings = Config(**{"output": tmp_path / "o.onnx", "calibration": tmp_path / "rows.npz", "round_to": 1, **options})
    with pytest.raises(NothingToPruneError) as refusal:
        api.prune(save(tmp_path, copies=False), settings)
    for word in words:
        assert re.search(word, str(refusal.value)), refusal.value


@pytest.mark.parametrize("allocation", ["sensitivity", "global", "uniform"])
def test_the_least_that_is_said_to_be_left_can_be_reached(tmp_path: Path, allocation: str) -> None:
    path = save(tmp_path, copies=False)
    np.savez(tmp_path / "rows.npz", x=np.concatenate([feed["x"] for feed in feeds()]))
    options = Config(calibration=tmp_path / "rows.npz", round_to=1, dry_run=True, allocation=allocation)
    with pytest.raises(NothingToPruneError) as refusal:
        api.prune(path, dataclasses.replace(options, target="macs=0.01"))
    least = float(re.search(r"at least ([0-9.]+) stay", str(refusal.value))[1])  # type: ignore[index]
    found = api.prune(path, dataclasses.replace(options, target=f"macs={least}"))
    assert found.after is not None and least - 0.001 <= found.after.macs / found.before.macs <= least


def test_patterns_that_match_nothing_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "gather", lambda *given: pytest.fail("the inputs are read"))
    with pytest.raises(UsageError, match="--keep 'nothing' matches no group"):
        api.prune(save(tmp_path, copies=False), Config(output=tmp_path / "o.onnx", keep=("nothing",)))


@pytest.mark.parametrize("kind", ["macs", "params", "size"])
def test_one_ratio_for_all_meets_a_target_without_inputs(tmp_path: Path, kind: str) -> None:
    options = Config(
        output=tmp_path / "out.onnx", target=f"{kind}=0.6", allocation="uniform", recover=False, round_to=1
    )
    assert not options.needs_inputs
    report = api.prune(save(tmp_path, copies=False), options)
    before, after = report.before, report.after
    parts = {"macs": (before.macs, after.macs), "params": (before.parameters, after.parameters)}
    whole, left = parts.get(kind, (before.bytes, after.bytes))
    assert whole and left
    assert 0.4 < left / whole <= 0.6
    assert report.inputs is None


def test_the_ratio_for_all_gives_back_what_a_step_takes_too_much() -> None:
    """Steps of 8 take all four groups from 16 to 8 at once, which is half of the whole; three quarters are allowed."""

    def split(ratio: float) -> Allocation:
        return Allocation(dict.fromkeys("abcd", 16 if ratio < 0.5 else 8))

    found = target.uniformly(split, lambda a: float(sum(a.counts.values())), 48)
    assert list(found.counts.values()) == [16, 16, 8, 8]


def test_the_ratio_for_all_says_where_the_target_is_out_of_reach() -> None:
    with pytest.raises(NothingToPruneError, match="cannot be reached"):
        target.uniformly(lambda ratio: Allocation({"a": 4}), lambda a: 4.0, 3)


def test_a_norm_needs_one_ratio_for_all_to_meet_a_target() -> None:
    with pytest.raises(UsageError, match="--allocation uniform"):
        Config(target="macs=0.5", criterion="l1").validate()
    Config(target="macs=0.5", criterion="l1", allocation="uniform").validate()


def test_batches_hold_whole_rows_up_to_the_limit() -> None:
    data: list[Feed] = [{"x": np.zeros((390, 2)), "m": np.zeros((390,))}, {"x": np.zeros((9, 2)), "m": np.zeros((9,))}]
    assert [len(f["x"]) for f in calibration.batches(data, None, 500)] == [32] * 12 + [6, 9]
    assert [len(f["m"]) for f in calibration.batches(data, None, 40)] == [5] * 8
    assert [len(f["x"]) for f in calibration.batches(data, 8, 100)] == [8] * 13
    with pytest.raises(UsageError, match="too few rows for the batch of 400"):
        calibration.batches(data, 400, 500)


def test_items_are_split_into_those_fitted_to_and_those_held_out() -> None:
    fitted, held = recovery.split(feeds(8))
    assert (len(fitted), len(held)) == (7, 1)
    assert not {id(f) for f in fitted} & {id(f) for f in held}
    same, also = recovery.split(feeds(2))
    assert len(same) == len(also) == 2


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"allocation": "uniform"},
        {"allocation": "uniform", "recover": False},
        {"allocation": "uniform", "criterion": "l2", "recover": False},
    ],
)
def test_a_target_out_of_reach_of_fast_widths_is_met_in_finer_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(widths, "known", lambda *_: FastWidths(16, 16, 16, 16, 16))
    np.savez(tmp_path / "rows.npz", x=np.concatenate([f["x"] for f in feeds()]))
    options = Config(calibration=tmp_path / "rows.npz", target="macs=0.6", dry_run=True, **given)
    path = save(tmp_path, copies=False)
    report = api.prune(path, options)
    assert report.after is not None and report.after.macs <= 0.6 * report.before.macs
    assert [g.kept % 4 for g in report.groups if g.status == "pruned"] in ([0], [0, 0])
    assert any("out of reach in widths that are fast here" in note for note in report.notes)
    with pytest.raises(NothingToPruneError, match="at least"):
        api.prune(path, dataclasses.replace(options, round_to=16))
