"""Sensitivity: groups that cost nothing are told from those that do, and every format says so."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser

import onnxprune
from onnxprune import cli
from onnxprune.config import Config
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.records import GroupCurve, Sensitivity
from onnxprune.report import curves

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,4] x) => (float[n,3] y) {
    a = Gemm(x, spare, b1)
    r = Relu(a)
    c = Gemm(r, needed, b2)
    q = Relu(c)
    y = Gemm(q, last, b3)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The 16 units of `spare` repeat four; those of `needed` are all different."""
    random = np.random.default_rng(0)
    spare, b1 = np.tile(random.normal(size=(4, 4)), 4), np.tile(random.normal(size=4), 4)
    values = {"spare": spare, "b1": b1, "needed": random.normal(size=(16, 8)), "b2": random.normal(size=8)}
    values |= {"last": random.normal(size=(8, 3)), "b3": random.normal(size=3)}
    proto = parser.parse_model(TEXT)
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in values.items())
    onnx.save(proto, tmp_path / "net.onnx")
    np.savez(tmp_path / "rows.npz", x=random.normal(size=(256, 4)).astype(np.float32))
    return tmp_path / "net.onnx"


def test_units_that_repeat_others_cost_nothing(model: Path) -> None:
    found = onnxprune.sensitivity(model, Config(calibration=model.parent / "rows.npz"))
    spare, needed = (next(g for g in found.groups if g.id == name) for name in ("spare:1", "needed:1"))
    assert (spare.removed, needed.removed) == ((0, 2, 4, 8, 12), (0, 1, 2, 4, 6))
    assert max(spare.damage) < 1e-5
    assert needed.damage[0] == 0
    assert needed.damage[-1] > 0.01
    assert list(needed.damage) == sorted(needed.damage)
    assert 0 < needed.macs_share < 1


def test_the_command_prints_a_line_per_group_and_writes_both_files(model: Path) -> None:
    data, picture = model.parent / "r.json", model.parent / "c.svg"
    arguments = ["sensitivity", model, "--calibration", model.parent / "rows.npz", "--json", data, "--svg", picture]
    before = sorted(p.name for p in model.parent.iterdir())
    result = CliRunner().invoke(cli.command, [str(a) for a in arguments], prog_name="onnxprune")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    rows = [line for line in lines if line.startswith(("16 ", "8 "))]
    assert [row.split()[0] for row in rows] == ["16", "8"], "the most harmless first"
    assert all("%" in row for row in rows)
    assert "-10%" in result.stdout
    written = json.loads(data.read_text())
    assert [g["id"] for g in written["groups"]] == ["spare:1", "needed:1"]
    assert written["levels"] == [0.1, 0.25, 0.5, 0.75]
    lines_drawn = [e for e in ET.fromstring(picture.read_text()).iter() if e.tag.endswith("polyline")]
    assert len(lines_drawn) == 2
    assert sorted(p.name for p in model.parent.iterdir()) == sorted([*before, "r.json", "c.svg"])


def test_groups_that_nothing_refitted_reads_are_marked() -> None:
    measured = GroupCurve("a", "8 features of a", 8, 0.5, (0, 4), (0.0, 0.2))
    found = Sensitivity("net.onnx", 64, 0, "obs", (0.5,), (measured,))
    assert "*" not in curves.sensitivity_text(found)
    other = GroupCurve("b", "4 hidden units of b", 4, 0.5, (0, 2), (0.0, 0.1), refitted=False)
    lines = curves.sensitivity_text(replace(found, groups=(measured, other))).splitlines()
    assert "*: the damage of the cut alone, as no layer that is refitted reads the group" in lines
    assert next(line for line in lines if line.startswith("4 hidden")).split()[-3:] == ["*", "50.0%", "0.1000"]


def test_what_cannot_be_measured_is_an_error(model: Path) -> None:
    rows = model.parent / "rows.npz"
    with pytest.raises(UsageError, match="sensitivity needs --calibration"):
        onnxprune.sensitivity(model, Config())
    with pytest.raises(UsageError, match="sensitivity needs one of obs"):
        onnxprune.sensitivity(model, Config(calibration=rows, criterion="l1"))
    with pytest.raises(NothingToPruneError, match="no group"):
        onnxprune.sensitivity(model, Config(calibration=rows, keep=("*",)))
