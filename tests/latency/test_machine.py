"""Whether the machine is busy."""

from __future__ import annotations

import os

import pytest

from onnxprune.latency import machine


def test_a_busy_machine_is_said() -> None:
    assert machine.busy_warnings(0.1) == machine.busy_warnings(None) == ()
    assert machine.busy_warnings(0.6) == (
        "the machine was 60% busy with other work before the measurement: timings are less certain",
    )


def test_busy_share_counts_the_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([(100, 1000), (130, 1100)])
    monkeypatch.setattr(machine, "_processor_ticks", lambda: next(ticks))
    assert machine.busy_share(0.0) == pytest.approx(0.7)


def test_busy_share_falls_back_to_the_load_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_processor_ticks", lambda: None)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert machine.busy_share(0.0) == 0.75
    monkeypatch.delattr(os, "getloadavg")
    assert machine.busy_share(0.0) is None
