"""Measured widths, remembered by machine."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from onnxprune import processor, widths, worker
from onnxprune.cli import command
from onnxprune.errors import UsageError
from onnxprune.latency import machine, staircase
from onnxprune.records import FastWidths, Staircases

FOUND = Staircases(
    FastWidths(8, 16, 32, 16, 4, measured=True),
    {kind: dict.fromkeys(staircase.widths_to_measure(), 1.25) for kind in staircase.KINDS},
    ("product",),
)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A machine that measures FOUND, and a cache of its own; the calls are listed."""
    calls: list[dict[str, Any]] = []

    def call(function: str, arguments: dict[str, Any], *, timeout_s: float) -> Staircases:
        assert function == "onnxprune.latency.staircase:measure"
        calls.append(arguments)
        return FOUND

    monkeypatch.setattr(worker, "call", call)
    monkeypatch.setattr(machine, "busy_share", lambda: 0.0)
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    return calls


def test_without_a_measurement_the_table_holds(measured: list[dict[str, Any]], tmp_path: Path) -> None:
    assert widths.known("cpu") == processor.table("cpu")
    assert not measured
    assert not (tmp_path / "cache").exists()


def test_a_measurement_is_made_once_and_remembered(measured: list[dict[str, Any]]) -> None:
    assert widths.measured("cpu", 1) == FOUND.widths
    assert widths.measured("cpu", 1) == widths.known("cpu", 1) == FOUND.widths
    assert measured == [{"provider": "cpu", "threads": 1}]


def test_what_a_busy_machine_showed_is_remembered_only_where_it_was_asked_for(
    measured: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "busy_share", lambda: 0.9)
    assert widths.measured("cpu", 1) == FOUND.widths
    assert widths.known("cpu", 1) == processor.table("cpu")
    assert "busy" not in caplog.text
    with caplog.at_level(logging.WARNING):
        widths.calibrate("cpu", 1)
    assert "90% busy with other work" in caplog.text
    assert widths.known("cpu", 1) == FOUND.widths


def test_another_machine_has_its_own(measured: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    widths.calibrate("cpu", 1)
    assert widths.known("cpu", 2) == processor.table("cpu")
    monkeypatch.setattr(widths, "_runtime_version", lambda: "onnxruntime 9.9")
    assert widths.known("cpu", 1) == processor.table("cpu")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data | {"schema": 99}, "schema 99"),
        (lambda data: data | {"widths": data["widths"] | {"convolution": 3}}, "steps that are not fast"),
        (lambda data: data | {"widths": {}}, "KeyError|convolution"),
        (lambda data: [], "list"),
    ],
    ids=["schema", "slow step", "missing", "no object"],
)
def test_a_damaged_memory_is_said_and_not_used(
    measured: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, damage: Any, message: str
) -> None:
    path = Path(widths.calibrate("cpu", 1).path or "")
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with caplog.at_level(logging.WARNING):
        assert widths.known("cpu", 1) == processor.table("cpu")
    assert "calibrate-widths" in caplog.text


def test_a_cache_that_cannot_be_written_costs_a_warning(
    measured: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert widths.calibrate("cpu", 1).path is None
    assert "cannot be written" in caplog.text


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "own"))
    assert widths.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ONNXPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert widths.cache_folder() == tmp_path / "onnxprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert widths.cache_folder() == Path.home() / ".cache" / "onnxprune"


def test_nonsense_is_refused(measured: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="--provider must be one of"):
        widths.calibrate("tpu")
    with pytest.raises(UsageError, match="--threads must be 0"):
        widths.calibrate("cpu", -1)
    with pytest.raises(UsageError, match="--threads must be at most"):
        widths.calibrate("cpu", 100_000)


def test_the_command_says_what_it_found(measured: list[dict[str, Any]], tmp_path: Path) -> None:
    report = tmp_path / "widths.json"
    result = CliRunner().invoke(command, ["calibrate-widths", "--threads", "1", "--json", str(report)])
    assert result.exit_code == 0, result.output
    assert "no clear steps for product" in result.output
    assert "Remembered in" in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["width", *staircase.KINDS] in lines
    assert ["20", *["1.250"] * 5] in lines
    assert ["step", "8", "16", "32", "16", "4", "?"] in lines
    data = json.loads(report.read_text())
    assert data["widths"] == {**vars(FOUND.widths)}
    assert data["provider"] == "cpu"
    assert data["threads"] == 1


def test_measured_steps_decide_the_widths(measured: list[dict[str, Any]], tmp_path: Path) -> None:
    assert replace(FOUND.widths, measured=False) != processor.table("cpu")
    widths.calibrate("cpu")
    assert widths.known("cpu") == FOUND.widths
