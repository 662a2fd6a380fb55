"""The pictures: well-formed SVG that names what it shows."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from onnxprune.records import Latency, LatencySide, Measured, SearchReport, Totals, Trial, TrialResult
from onnxprune.report import drawing, picture, scatter


def _latency(before: tuple[float, ...], after: tuple[float, ...], significant: bool = True) -> Latency:
    def side(samples: tuple[float, ...]) -> LatencySide:
        p50, p90, p99 = (float(value) for value in np.percentile(samples, [50, 90, 99]))
        return LatencySide(p50, p90, p99, min(samples), samples)

    sides = side(before), side(after)
    return Latency("cpu", 1, 2, *sides, 1.9, (1.85, 1.95), (0.99, 1.01), significant, len(before), {}, ())


def test_the_picture_names_axes_models_and_result() -> None:
    random = np.random.default_rng(0)
    record = _latency(tuple(np.linspace(19, 21, 300)), (*random.normal(10, 0.5, 299), 500.0))
    svg = picture.histogram(record, "a <b> & c")
    text = " ".join(ET.fromstring(svg).itertext())
    for words in (
        "a <b> & c",
        "latency of one run (ms)",
        "share of runs",
        f"before: median {record.before.p50:.4g} ms",
        f"after: median {record.after.p50:.4g} ms",
        "speed-up 1.9x (95% interval 1.85 to 1.95)",
        "300 pairs of runs, cpu, 2 threads, batch 1; 1 slow run beyond the right edge",
    ):
        assert words in text
    assert "href" not in svg


def test_the_picture_says_where_there_is_no_difference() -> None:
    svg = picture.histogram(_latency((1.0, 1.1), (1.0, 1.1), significant=False), "same")
    assert "no significant difference: speed-up 1.9x" in svg


@pytest.mark.parametrize("samples", [(3.0,) * 8, (0.00012, 0.00013), (1e6, 2e6)])
def test_the_picture_survives_any_scale(samples: tuple[float, ...]) -> None:
    svg = picture.histogram(_latency(samples, samples), "scale")
    ET.fromstring(svg)
    assert "nan" not in svg


def test_the_picture_of_a_record_without_samples_shows_the_medians() -> None:
    record = _latency((1.0, 2.0), (2.0, 4.0))
    sides = (dataclasses.replace(side, samples=()) for side in (record.before, record.after))
    svg = picture.histogram(dataclasses.replace(record, **dict(zip(("before", "after"), sides, strict=True))), "bare")
    dashed = [e for e in ET.fromstring(svg).iter() if e.tag.endswith("line") and e.get("stroke-dasharray") == "5 3"]
    span = 0.05 * (record.after.p99 - 1.0)
    low, high = 1.0 - span, record.after.p99 + span
    assert [e.get("stroke") for e in dashed] == [drawing.BLUE, drawing.VERMILION]
    for line, median in zip(dashed, (1.5, 3.0), strict=True):
        assert line.get("x1") == line.get("x2") == f"{64 + 632 * (median - low) / (high - low):.1f}"


def test_pictures_of_several_models_stand_below_each_other() -> None:
    record = _latency((1.0, 2.0), (1.0, 2.0))
    assert picture.histograms(["a", "b"], [record]) == picture.histogram(record, "a and b")
    found = ET.fromstring(picture.histograms(["a", "b", "c"], [record, record]))
    text = " ".join(found.itertext())
    assert "a and b" in text and "a and c" in text
    assert found.get("viewBox") == "0 0 720 760"
    ET.fromstring(drawing.page(picture.histogram(record, "x"), "a < b").split("\n", 1)[1])


def test_ticks_are_few_and_round() -> None:
    assert drawing.ticks(0.0, 10.0) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    for low, high in ((0.0, 1.0), (3.1, 3.9), (17.0, 18.01), (0.0, 99.0)):
        assert 4 <= len(drawing.ticks(low, high)) <= 11


def test_the_picture_of_a_search() -> None:
    def result(amount: str, quality: float, speedup: float) -> TrialResult:
        measured = Measured(quality, None)
        latency = dataclasses.replace(_latency((1.0, 2.0), (1.0, 2.0)), speedup=speedup)
        totals = Totals(1, 1, 50, 1)
        return TrialResult(
            Trial(amount, "obs<"),
            "k",
            metric="cosine",
            quality=measured,
            original=measured,
            after=totals,
            latency=latency,
        )

    results = (result("ratio=0.1", 0.9, 1.5), result("macs=0.5", 0.8, 1.2), TrialResult(Trial("x", "l2"), "k", "no", 4))
    found = SearchReport("net.onnx", "found", 0, {}, Totals(1, 1, 100, 1), results, (0,), 0)
    tree = ET.fromstring(scatter.front(found))
    text = " ".join(tree.itertext())
    for words in ("net.onnx: cosine against latency, relative to the original", "original", "ratio=0.1 obs<"):
        assert words in text
    circles = {c.get("class"): c for c in tree.iter() if c.tag.endswith("circle")}
    assert set(circles) == {"front", "beaten"}
    assert float(circles["front"].get("cx", 0)) < float(circles["beaten"].get("cx", 0))
    assert float(circles["front"].get("cy", 0)) < float(circles["beaten"].get("cy", 0))
