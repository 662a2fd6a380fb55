"""The writers: numbers for people, plain data for programs."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from onnxprune.dims import atom
from onnxprune.records import (
    Distillation,
    Exactness,
    Group,
    GroupReport,
    Latency,
    LatencySide,
    Occurrence,
    OutputQuality,
    Pruned,
    Quality,
    Reach,
    Refusal,
    RefusalReport,
    Report,
    Tie,
    Totals,
)
from onnxprune.report import console, numbers, plain_json, several

SIDE = LatencySide(2.0, 2.5, 3.0, 1.9, (2.0, 2.5))
LATENCY = Latency("cpu", 1, 2, SIDE, SIDE, 1.5, (1.4, 1.6), (0.99, 1.01), True, 40, {"CPUExecutionProvider": 3})
OCCURRENCES = (Occurrence("w [1]", 0, "produced"), *(Occurrence(f"b{i}", 0, "carried") for i in range(6)))
REFUSAL = Refusal("top", "TopK", "TopK compares along this axis")
FREE = Group("w [1]:0", 16, atom(16), OCCURRENCES, ("conv",), None, True)
FROZEN = Group("v:0", 8, atom(8), OCCURRENCES, ("conv",), REFUSAL, False)
TIES = (
    *(Tie(f"n{i}", "Conv", f"w{i}", 0, "produced", f"body.{i}") for i in range(5)),
    Tie("top", "Conv", "u", 1, "contracted", "head"),
    Tie("bn", "BatchNormalization", "b0", 0, "carried", "bn"),
)
REPORT = Report(
    model="net.onnx",
    output="net_pruned.onnx",
    seed=0,
    options={"output": Path("net_pruned.onnx"), "keep": ("a", "b"), "input_shapes": {"x": (1, 3)}},
    before=Totals(12, 1_234_567, 4_940_000, 1_800_000_000),
    after=Totals(12, 600_000, 2_500_000, 900_000_000),
    groups=(
        GroupReport(FREE, 8, "pruned", "", 0.75, 0.5, "16 channels in [body]", TIES),
        GroupReport(FROZEN, 8, "frozen", "TopK top: TopK compares along this axis", 0.25, 0.1),
    ),
    refusals=(RefusalReport(REFUSAL, 1, 0.25, 0.1),),
    exactness=Exactness(1e-6, 2e-7, True, 2),
    quality=Quality({"y": OutputQuality(0.99, math.inf, math.nan, None)}, "synthetic", 3),
    latency=LATENCY,
    seconds={"load": 0.1},
    notes=("recovery is not built yet",),
    reach=Reach(0.9, 0.8, 0.7, 0.6),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1234, "1.23 k"), (999_499, "999 k"), (999_600, "1.00 M"), (1.8e9, "1.80 G")],
)
def test_counts(value: float, text: str) -> None:
    assert numbers.count(value) == text


def test_sizes_and_shares() -> None:
    assert [numbers.size(3_400_000), numbers.size(12)] == ["3.40 MB", "12 B"]
    assert [numbers.share(0.0), numbers.share(0.0001), numbers.share(0.5)] == ["0.0%", "<0.1%", "50.0%"]


def test_milliseconds() -> None:
    assert [numbers.milliseconds(v) for v in (0.0123, 12.34, 999.7)] == ["0.0123 ms", "12.3 ms", "1000 ms"]


def test_page_of_a_run() -> None:
    text = console.prune_text(REPORT)
    for words in (
        "net.onnx -> net_pruned.onnx",
        "1.23 M",
        "4.94 MB",
        "1.80 G",
        "2.00x",
        "exact",
        "faster: 1.50x (95% interval 1.40 to 1.60)",
        "3 synthetic samples",
        "--calibration",
        "TopK compares along this axis",
        "note: recovery is not built yet",
        "1 pruned, 0 kept whole, 1 frozen",
    ):
        assert words in text
    assert "\x1b" not in text
    assert text.isascii()


def test_distillation_is_one_line_on_the_page_and_three_keys_for_programs() -> None:
    assert "Distillation" not in console.prune_text(REPORT)
    for found, line in (
        (Distillation(0.25, 0.125), "Distillation: loss on inputs held out 0.2500 -> 0.1250"),
        (
            Distillation(0.25, 0.5),
            "Distillation: loss on inputs held out 0.2500 -> 0.5000, which is no better, so it is not kept",
        ),
        (
            Distillation(0.25, math.nan),
            "Distillation: loss on inputs held out 0.2500 -> nan, which is no better, so it is not kept",
        ),
    ):
        report = replace(REPORT, distillation=found)
        assert line in console.prune_text(report, width=160).splitlines()
        after = None if math.isnan(found.after) else found.after
        expected = {"before": 0.25, "after": after, "kept": found.after == 0.125}
        assert plain_json.report_data(report)["distillation"] == expected


def test_colours_only_where_asked_for() -> None:
    assert "\x1b[" in console.prune_text(REPORT, colour=True)


@pytest.mark.parametrize(("speedup", "significant", "word"), [(0.8, True, "slower"), (1.01, False, "no significant")])
def test_bad_latency_is_said(speedup: float, significant: bool, word: str) -> None:
    latency = replace(LATENCY, speedup=speedup, significant=significant, warnings=("the machine was busy",))
    text = console.prune_text(replace(REPORT, latency=latency))
    assert word in text
    assert "warning: the machine was busy" in text


def test_dry_run_shows_no_file_size() -> None:
    text = console.prune_text(replace(REPORT, output=None, after=replace(REPORT.before, parameters=1, bytes=0)))
    assert "dry run" in text
    row = next(line for line in text.splitlines() if line.startswith("file size"))
    assert row.split() == ["file", "size", "4.94", "MB", "-", "-", "-"]


def test_page_of_an_inspection() -> None:
    text = console.inspect_text(REPORT)
    for words in (
        "1 prunable group, 1 frozen",
        "Reachable: 90.0% of the parameters, 80.0% of the MACs",
        "Half of every group removed: 70.0% of the parameters and 60.0% of the MACs go",
        "16 channels in [body] (renormalised)",
        "5 producers: body.0, body.1, body.2, ...",
        "1 consumer: head",
        "75.0%",
    ):
        assert words in text
    row = next(line for line in text.splitlines() if line.startswith("top"))
    assert row.split() == ["top", "TopK", "25.0%", "10.0%", "1", "TopK", "compares", "along", "this", "axis"]


def test_every_place_of_every_group_is_listed_where_asked_for() -> None:
    short, full = console.inspect_text(REPORT), console.inspect_text(REPORT, every=True)
    for words in ("w [1] axis 0 produced", "b5 axis 0 carried", "w [1]:0", "v:0"):
        assert words not in short
        assert words in full


def test_nodes_that_share_a_name_are_counted() -> None:
    ties = tuple(Tie(f"n{k}", "Conv", "w", 1, "contracted", "shared" if k < 2 else "head") for k in range(3))
    text = console.inspect_text(replace(REPORT, groups=(replace(REPORT.groups[0], ties=ties),)))
    assert "3 consumers: shared (2 nodes), head" in text


def test_long_names_are_shortened_at_their_beginning() -> None:
    names = [f"encoder.stages.{k}.layers.0.module.projection.linear" for k in range(3)]
    ties = tuple(Tie(name, "MatMul", name, 0, "produced", name) for name in names)
    text = console.inspect_text(replace(REPORT, groups=(replace(REPORT.groups[0], ties=ties),)), width=160)
    assert "3 producers: ..s.0.layers.0.module.projection.linear, ..s.1.layers.0" not in text
    assert "3 producers: .." in text and "projection.linear, ..." in text


def test_an_inspection_of_many_groups_is_one_screen() -> None:
    many = replace(
        REPORT,
        groups=tuple(replace(REPORT.groups[0], words=f"{k} channels", macs_share=k / 1000) for k in range(300)),
        refusals=tuple(replace(REPORT.refusals[0], refusal=replace(REFUSAL, node=f"n{k}")) for k in range(300)),
    )
    text = console.inspect_text(many)
    assert len(text.splitlines()) <= 45
    assert text.count("... and 292 more (use --json, or `onnxprune inspect -v`, for all)") == 2
    assert "299 channels" in text and "291 channels" not in text
    assert "0 channels" in console.inspect_text(many, every=True)


def test_long_lists_are_cut_and_say_so() -> None:
    report = replace(REPORT, refusals=REPORT.refusals * 20)
    assert "... and 12 more" in console.prune_text(report)


def test_page_of_a_comparison() -> None:
    text = console.comparison_text(["a.onnx", "b.onnx"], [LATENCY])
    for words in ("a.onnx", "b.onnx", "1.50x", "1.40 to 1.60", "noise floor", "40 pairs"):
        assert words in text


def test_json_holds_what_json_can() -> None:
    text = plain_json.dumps(plain_json.report_data(REPORT))
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["quality"]["outputs"]["y"] == {
        "cosine": 0.99,
        "relative_error": None,
        "sqnr_db": None,
        "top1_agreement": None,
    }
    assert data["options"] == {"output": "net_pruned.onnx", "keep": ["a", "b"], "input_shapes": {"x": [1, 3]}}
    assert data["refusals"] == [
        {
            "node": "top",
            "op": "TopK",
            "reason": "TopK compares along this axis",
            "groups": 1,
            "macs_share": 0.25,
            "parameters_share": 0.1,
        }
    ]
    assert data["reach"] == {"parameters": 0.9, "macs": 0.8, "parameters_at_half": 0.7, "macs_at_half": 0.6}
    assert data["groups"][0]["words"] == "16 channels in [body]"
    assert data["latency"]["ci95"] == [1.4, 1.6]
    assert data["groups"][0]["occurrences"][0] == {"tensor": "w [1]", "axis": 0, "role": "produced"}


def test_programs_get_all_that_a_run_found() -> None:
    data = plain_json.report_data(REPORT)
    elsewhere = {"cut_quality": "quality", "pursuit": "latency_target"}
    assert {elsewhere.get(f.name, f.name) for f in fields(Report)} == set(data) - {"schema", "tool_version"}
    assert data["notes"] == ["recovery is not built yet"]
    assert data["exactness"] == {"max_abs": 1e-6, "max_rel": 2e-7, "passed": True, "runs": 2, "shown": True}
    unshown = replace(REPORT, exactness=Exactness(0.0, 0.0, True, 2, shown=False))
    assert plain_json.report_data(unshown)["exactness"]["shown"] is False
    assert set(data["quality"]) == {f.name for f in fields(Quality)} | {"before_recovery"}
    assert (data["quality"]["data"], data["quality"]["samples"]) == ("synthetic", 3)


def test_notes_of_several_models_are_said_once_with_their_names() -> None:
    other = replace(REPORT, notes=("recovery is not built yet", "an [odd] note", "an [odd] note"))
    found = [Pruned(f"{name}.onnx", other if name == "b" else REPORT) for name in "abcd"]
    text = several.many_text([*found, Pruned("e.onnx", None, "no model", 3)])
    assert [line for line in text.splitlines() if line.startswith("note:")] == [
        "note: a.onnx, b.onnx, c.onnx and 1 more: recovery is not built yet",
        "note: b.onnx: an [odd] note",
    ]
    assert "note" not in several.many_text([Pruned("a.onnx", replace(REPORT, notes=()))])


def test_parts_that_were_not_made_are_null() -> None:
    data = plain_json.report_data(replace(REPORT, output=None, after=None, exactness=None, quality=None, latency=None))
    assert [data[key] for key in ("output", "after", "exactness", "quality", "latency")] == [None] * 5
