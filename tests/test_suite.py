"""benchmarks/suite.py: the helpers that decide what is reported."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("suite")


def row(**found: Any) -> dict[str, Any]:
    ours = {"seconds": 1.0, "resident_bytes": 300, "macs_ratio": 2.0, "speedup": 1.9, "ci95": [1.8, 2.0], "gain": 0.95}
    tools = {"onnxprune": {**ours, **found}, "torch-pruning": {"seconds": 4.0}, "onnxsim": {"error": "one\ntwo"}}
    return {"model": "net", "kind": "convolutional", "bytes": 100, "runtime_resident_bytes": 100, "tools": tools}


def test_bisection_ends_on_the_side_that_meets_the_share(suite: ModuleType) -> None:
    found = suite.bisected(lambda ratio: (1 - ratio) ** 2, 0.5, 0.1, 0.9, 12)
    assert (1 - found) ** 2 <= 0.5
    assert found == pytest.approx(1 - 0.5**0.5, abs=1e-3)


def test_aims_that_are_met_say_nothing(suite: ModuleType) -> None:
    assert suite.verdicts([row()]) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"gain": 0.84}, "0.84"),
        ({"ci95": [0.8, 0.9], "speedup": 0.85}, "slower"),
        ({"seconds": 2.0}, "2.0x faster"),
        ({"resident_bytes": 500}, "2.5 times"),
    ],
)
def test_every_aim_that_is_missed_is_named(suite: ModuleType, found: dict[str, Any], words: str) -> None:
    short = suite.verdicts([row(**found)])
    assert len(short) == 1
    assert words in short[0]


def test_the_table_has_a_line_for_each_tool_and_the_end_of_an_error(suite: ModuleType) -> None:
    lines = suite.table([{**row(), "tools": {k: v for k, v in row()["tools"].items() if k != "torch-pruning"}}])
    assert lines.count("\n") == 3
    assert "failed: two" in lines
    assert "1.80 to 2.00" in lines


def test_children_count_in_the_memory_of_a_command(suite: ModuleType) -> None:
    grandchild = "import time; data = bytearray(b'1') * (64 << 20); time.sleep(0.5)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}], check=True)"
    found = suite.processes.run([sys.executable, "-c", program], {})
    assert found.anonymous >= 64 << 20
    assert found.seconds >= 0.5


def test_a_command_that_fails_says_why(suite: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="why"):
        suite.processes.run([sys.executable, "-c", "raise SystemExit('why')"], {})


def test_the_suite_has_a_help() -> None:
    environment = {"PYTHONPATH": str(FOLDER.parent)}
    command = [sys.executable, str(FOLDER / "suite.py"), "--help"]
    assert "--provider" in subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
