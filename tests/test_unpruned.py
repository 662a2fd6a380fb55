"""Groups that nothing refittable reads take part in every split; and why groups stay whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxprune
from onnxprune import Config, choosing, recovery, select
from onnxprune.config import ALLOCATIONS
from onnxprune.records import Allocation
from onnxprune.report import console, curves

STACK = """
<ir_version: 8, opset_import: ["": 17]>
g (float[T,N,8] x) => (float[T,N,4] y) {
    a = MatMul(x, w1)
    b = Tanh(a)
    c = MatMul(b, w2)
    d = Tanh(c)
    y = MatMul(d, w3)
}
"""
"""The first features are read by a product with a stack of matrices alone, which is not refitted."""
SIZES = {"w1": (8, 16), "w2": (1, 16, 16), "w3": (16, 4)}
FIRST, SECOND = "w1:1", "w2:2"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The model, and calibration rows beside it."""
    random = np.random.default_rng(0)
    proto = parser.parse_model(STACK)
    for name, shape in SIZES.items():
        proto.graph.initializer.append(numpy_helper.from_array(random.normal(0, 0.4, shape).astype(np.float32), name))
    onnx.save(proto, tmp_path / "net.onnx")
    np.savez(tmp_path / "rows.npz", x=random.normal(size=(8, 64, 8)).astype(np.float32))
    return tmp_path / "net.onnx"


def prune(model: Path, **options: Any) -> onnxprune.Report:
    """The report of a run with a plain cut of exact widths, if not said otherwise."""
    plain = {"round_to": 1, "recover": False, "force": True}
    return onnxprune.prune(model, Config(**{"calibration": model.with_name("rows.npz"), **plain, **options}))


def kept(report: onnxprune.Report) -> dict[str, int]:
    return {entry.group.id: entry.kept for entry in report.groups}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_groups_that_nothing_refittable_reads_are_cut_for_a_target(model: Path, allocation: str) -> None:
    """0.15 of the MACs needs both: of each alone more is left when one feature stays."""
    report = prune(model, target="macs=0.15", allocation=allocation)
    assert report.after is not None and report.after.macs <= 0.15 * report.before.macs
    assert kept(report)[FIRST] < 16 and kept(report)[SECOND] < 16


def test_they_are_cut_within_a_budget(model: Path) -> None:
    report = prune(model, max_drop=0.9, metric="cosine")
    assert kept(report)[FIRST] < 16


def test_they_go_by_the_norm_and_their_damage_is_that_of_the_cut_alone(model: Path) -> None:
    feeds = [{"x": np.load(model.with_name("rows.npz"))["x"]}]
    source = recovery.Source(str(model), {}, feeds, 0, 1, 1 << 30)
    wanted = choosing.Wanted([FIRST, SECOND], "sensitivity", ("macs", 0.5), 0.5, {FIRST: 1, SECOND: 1}, "obs")
    found = choosing.prepare(source, wanted)
    assert {name: curve.refitted for name, curve in found.measured.items()} == {FIRST: False, SECOND: True}
    curve = found.measured[FIRST]
    assert curve.removed == [0, 2, 4, 6, 8, 10, 12, 14]
    assert 0 < curve.damage[1] < curve.damage[4] < curve.damage[-1]
    by_ratio = choosing.choose(source, choosing.Wanted(**{**vars(wanted), "target": None})).kept
    by_norm = prune(model, criterion="l2", dry_run=True, save_plan=model.with_name("plan.json"))
    assert kept(by_norm)[FIRST] == len(by_ratio[FIRST]) == 8
    assert f'"kept": {by_ratio[FIRST].tolist()}'.replace(" ", "") in model.with_name("plan.json").read_text().replace(
        "\n", ""
    ).replace(" ", "")


def test_the_order_by_norm_is_that_of_the_selection() -> None:
    scores = np.array([3.0, 1.0, 2.0, 1.0, 0.0])
    path = select.path(scores)
    assert path.order.tolist() == [4, 3, 1, 2]
    np.testing.assert_allclose(path.cost, [0, 0, 1 / 15, 2 / 15, 6 / 15])
    for count in range(1, 5):
        plan = select.select({"g": scores}, Allocation({"g": count}))
        assert sorted(path.order[: 5 - count]) == sorted(set(range(5)) - set(plan.kept["g"].tolist()))
    assert select.path(np.zeros(3)).cost.tolist() == [0, 0, 0]


def test_their_curve_is_measured_and_marked(model: Path) -> None:
    found = onnxprune.sensitivity(model, Config(calibration=model.with_name("rows.npz")))
    assert [(g.id, g.refitted) for g in found.groups] == [(FIRST, False), (SECOND, True)]
    assert found.groups[0].removed == (0, 2, 4, 8, 12) and found.groups[0].damage[-1] > 0.01
    lines = curves.sensitivity_text(found).splitlines()
    assert "*: the damage of the cut alone, as no layer that is refitted reads the group" in lines
    assert [line.split("*")[0].strip() for line in lines if "* " in line and not line.startswith("*")] == [
        "16 features of MatMul(a)"
    ]


# ---- Why groups stay whole -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"ratio": 0.5, "keep": ("w1",)}, FIRST, "--keep names it"),
        ({"ratio": 0.5, "only": ("w3",)}, FIRST, "--only names others"),
        ({"target": "macs=0.95"}, None, "the split takes from other groups alone"),
    ],
)
def test_a_group_that_is_kept_says_why(model: Path, options: dict[str, Any], name: str | None, reason: str) -> None:
    report = prune(model, dry_run=True, **options)
    whole = {entry.group.id: entry.reason for entry in report.groups if entry.status == "kept"}
    assert list(whole.values()) == [reason] and name in (None, *whole)
    assert all(entry.reason == "" for entry in report.groups if entry.status == "pruned")
    text = console.prune_text(report, every=True)
    assert "Groups kept whole" in text and reason in text
    assert "Groups kept whole" not in console.prune_text(report)


NARROW = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,4,4] x) => (float[N,4,4,4] y) {
    a = Conv(x, w1)
    b = Relu(a)
    c = Conv<group=4>(b, w2)
    d = Relu(c)
    e = Conv(d, w3)
    f = Relu(e)
    y = Conv(f, w4)
}
"""
"""Four groups of 16 channels, and a layer of 6, which is less than a step of 8."""


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    proto = parser.parse_model(NARROW)
    for name, shape in {"w1": (64, 3, 1, 1), "w2": (64, 16, 1, 1), "w3": (6, 64, 1, 1), "w4": (4, 6, 1, 1)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(random.normal(0, 0.4, shape).astype(np.float32), name))
    onnx.save(proto, tmp_path / "net.onnx")
    np.savez(tmp_path / "rows.npz", x=random.normal(size=(64, 3, 4, 4)).astype(np.float32))
    return tmp_path / "net.onnx"


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ({"ratio": 0.5, "round_to": 1}, {"it multiplies another group on one axis, and one of the two is cut"}),
        ({"ratio": 0.5, "heads": False, "round_to": 1}, {"--no-heads keeps it"}),
        (
            {"ratio": 0.5, "head_width": True, "round_to": 8},
            {"what --ratio 0.5 leaves of its 6, in steps of 8, is all of it"},
        ),
        ({"target": "macs=0.7", "head_width": True, "round_to": 8}, {"it has 6, and gets no narrower in steps of 8"}),
    ],
)
def test_products_and_steps_are_reasons(grouped: Path, options: dict[str, Any], reasons: set[str]) -> None:
    report = prune(grouped, dry_run=True, **options)
    said = {entry.reason for entry in report.groups if entry.status == "kept"}
    assert reasons <= said and "" not in said


def test_a_target_takes_from_groups_or_their_channels_what_harms_less(grouped: Path) -> None:
    """The second half of the channels in every group repeats the first; no group repeats another."""
    proto = onnx.load(grouped)
    tensors = {t.name: t for t in proto.graph.initializer}
    once = numpy_helper.to_array(tensors["w1"]).reshape(4, 16, 3, 1, 1)[:, :8]
    twice = np.concatenate([once, once], axis=1).reshape(64, 3, 1, 1)
    tensors["w1"].CopyFrom(numpy_helper.from_array(twice, "w1"))
    onnx.save(proto, grouped)
    factors = ("w1:0", "w1:0#2")
    split, evenly = (
        kept(prune(grouped, dry_run=True, target="macs=0.65", only=factors, allocation=allocation))
        for allocation in ("sensitivity", "uniform")
    )
    assert [split[name] for name in factors] == [4, 8]
    assert [evenly[name] for name in factors] == [2, 16]


def test_a_note_says_where_a_ratio_removes_less_than_it_says(grouped: Path) -> None:
    """Of the layer of 6 a step of 8 keeps all; of one of 1 it does not."""
    coarse, fine = (prune(grouped, dry_run=True, ratio=0.5, head_width=True, round_to=n) for n in (8, 1))
    whole = sum("what --ratio 0.5 leaves of its 6" in entry.reason for entry in coarse.groups)
    said = [note for note in coarse.notes if note.startswith(f"less goes than --ratio 0.5 says: {whole} of ")]
    assert whole == 1 and said and "steps of up to 8" in said[0] and "--round-to 4" in said[0]
    assert not any("less goes" in note for note in fine.notes)
    target = prune(grouped, dry_run=True, target="macs=0.7", head_width=True, round_to=8)
    assert not any("less goes" in note for note in target.notes)


def test_a_replayed_plan_and_an_inspection_are_reasons_too(model: Path) -> None:
    plan = model.with_name("plan.json")
    prune(model, ratio=0.5, keep=("w1",), dry_run=True, save_plan=plan)
    replayed = prune(model, plan=plan, dry_run=True)
    assert {e.group.id: e.reason for e in replayed.groups if e.status == "kept"} == {FIRST: "the plan keeps all of it"}
    found = {entry.reason for entry in onnxprune.inspect(model).groups if entry.status == "kept"}
    assert found == {"no channels are removed"}
