"""The writers: numbers for people, plain data for programs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from onnxprune.dims import atom
from onnxprune.records import (
    Exactness,
    Group,
    GroupReport,
    Latency,
    LatencySide,
    Occurrence,
    OutputQuality,
    Quality,
    Refusal,
    Report,
    Totals,
)
from onnxprune.report import console, numbers, plain_json

SIDE = LatencySide(2.0, 2.5, 3.0, 1.9, (2.0, 2.5))
LATENCY = Latency("cpu", 1, 2, SIDE, SIDE, 1.5, (1.4, 1.6), (0.99, 1.01), True, 40, {"CPUExecutionProvider": 3})
OCCURRENCES = (Occurrence("w [1]", 0, "produced"), *(Occurrence(f"b{i}", 0, "carried") for i in range(6)))
REFUSAL = Refusal("top", "TopK", "TopK compares along this axis")
FREE = Group("w [1]:0", 16, atom(16), OCCURRENCES, ("conv",), None, True)
FROZEN = Group("v:0", 8, atom(8), OCCURRENCES, ("conv",), REFUSAL, False)
REPORT = Report(
    model="net.onnx",
    output="net_pruned.onnx",
    seed=0,
    options={"output": Path("net_pruned.onnx"), "keep": ("a", "b"), "input_shapes": {"x": (1, 3)}},
    before=Totals(12, 1_234_567, 4_940_000, 1_800_000_000),
    after=Totals(12, 600_000, 2_500_000, 900_000_000),
    groups=(
        GroupReport(FREE, 8, "pruned", "", 0.75, 0.5),
        GroupReport(FROZEN, 8, "frozen", "TopK top: TopK compares along this axis", 0.25, 0.1),
    ),
    refusals=((REFUSAL, 0.25),),
    exactness=Exactness(1e-6, 2e-7, True, 2),
    quality=Quality({"y": OutputQuality(0.99, math.inf, math.nan, None)}, "synthetic", 3),
    latency=LATENCY,
    seconds={"load": 0.1},
    notes=("recovery is not built yet",),
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
        "3 made-up samples",
        "--calibration",
        "TopK compares along this axis",
        "note: recovery is not built yet",
        "1 pruned, 0 kept whole, 1 frozen",
    ):
        assert words in text
    assert "\x1b" not in text
    assert text.isascii()


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
    for words in ("1 prunable groups, 1 frozen", "w [1] axis 0 produced", "3 more (-v lists all)", "75.0%"):
        assert words in text
    assert "b5 axis 0 carried" not in text
    assert "b5 axis 0 carried" in console.inspect_text(REPORT, every=True)
    assert "w [1]:0 (renormalised)" in text


def test_long_lists_are_cut_and_say_so() -> None:
    report = replace(REPORT, refusals=tuple((replace(REFUSAL, node=f"n{i}"), 0.01) for i in range(20)))
    assert "... 12 more" in console.prune_text(report)


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
        {"node": "top", "op": "TopK", "reason": "TopK compares along this axis", "macs_share": 0.25}
    ]
    assert data["latency"]["ci95"] == [1.4, 1.6]
    assert data["groups"][0]["occurrences"][0] == {"tensor": "w [1]", "axis": 0, "role": "produced"}


def test_parts_that_were_not_made_are_null() -> None:
    data = plain_json.report_data(replace(REPORT, output=None, after=None, exactness=None, quality=None, latency=None))
    assert [data[key] for key in ("output", "after", "exactness", "quality", "latency")] == [None] * 5
