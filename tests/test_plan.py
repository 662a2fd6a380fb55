"""Plans as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import TOLERANCE, applied, differences, feeds, graph, model, zeroed

from onnxprune import plan as plans
from onnxprune.cut import cut
from onnxprune.errors import OutputError, UsageError
from onnxprune.records import Group, Plan

TEXT = """(float[N,3,H,W] x) => (float[N,5,H,W] y) <float[8,3,1,1] w, float[8] b, float[5,8,1,1] v> {
    h = Conv(x, w, b)
    y = Conv(h, v)
}"""
KEPT = [0, 3, 5]


def _data(text: str = TEXT, **kept: list[int]) -> tuple[dict[str, Any], dict[str, Group]]:
    found, sizes = graph(m := model(text))
    plan = Plan({k.replace("_", ":"): np.array(v) for k, v in (kept or {"w_0": KEPT}).items()})
    done = cut(m, found, sizes, plan.kept)
    data = plans.to_json(plan, found, done.slices, model="net.onnx", sha256="abc")
    return data, {g.id: g for g in found.groups if g.refusal is None}


def test_a_plan_says_what_shrinks_where_and_how() -> None:
    data, _ = _data()
    assert data["schema"] == 1
    assert data["model"] == {"name": "net.onnx", "sha256": "abc"}
    assert data["groups"] == [{"id": "w:0", "size": 8, "kept": KEPT}]
    assert data["tensors"] == [
        {"name": "w", "axis": 0, "size": 8, "kept": KEPT, "role": "produced"},
        {"name": "b", "axis": 0, "size": 8, "kept": KEPT, "role": "carried"},
        {"name": "v", "axis": 1, "size": 8, "kept": KEPT, "role": "contracted"},
    ]


def test_kept_indices_of_a_product_are_those_of_the_axis() -> None:
    data, _ = _data(
        """(float[N,3,2,2] x) => (float[N,5] y) <float[4,3,1,1] w, float[16,5] v> {
        h = Conv(x, w)
        f = Flatten(h)
        y = MatMul(f, v)
    }""",
        w_0=[1, 3],
    )
    assert data["tensors"][-1]["kept"] == [4, 5, 6, 7, 12, 13, 14, 15]


def test_a_dimension_summed_over_by_activations_alone_is_masked_by_all_its_slices() -> None:
    m = model("""(float[N,6,4] x) => (float[N,6,6] y) <float[4,8] q, float[8] c, float[4,8] k> {
        p = MatMul(x, q)
        a = Add(p, c)
        b = MatMul(x, k)
        t = Transpose<perm=[0,2,1]>(b)
        y = MatMul(a, t)
    }""")
    found, sizes = graph(m)
    kept = {"q:1": np.array([1, 2, 6])}
    done = cut(m, found, sizes, kept)
    data = plans.to_json(Plan(kept), found, done.slices, model="m", sha256="")
    assert {e["role"] for e in data["tensors"]} == {"contracted"}
    assert max(differences({"zeroed": zeroed(m, data)}, applied(done), feeds(m)).values()) <= TOLERANCE


def test_saved_plans_are_read_back(tmp_path: Path) -> None:
    data, groups = _data()
    plans.save(data, tmp_path / "plan.json")
    plan = plans.load(tmp_path / "plan.json", groups)
    assert {name: kept.tolist() for name, kept in plan.kept.items()} == {"w:0": KEPT}
    assert plan.kept["w:0"].dtype == np.int64


def test_a_plan_is_written_as_it_is_read_and_the_same_each_time(tmp_path: Path) -> None:
    data, _ = _data()
    plans.save(data, tmp_path / "a.json")
    plans.save(data, tmp_path / "b.json")
    assert json.loads((tmp_path / "a.json").read_text()) == data
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing/plan\.json: cannot be written"):
        plans.save({}, tmp_path / "missing" / "plan.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, r"plan schema 9, this version reads 1"),
        ({"groups": [{"id": "gone:0", "size": 8, "kept": [0]}]}, r"the model has no prunable group 'gone:0'"),
        ({"groups": [{"id": "w:0", "size": 9, "kept": [0]}]}, r"group 'w:0' has 8 indices in the model, 9 in the plan"),
        ({"groups": [{"id": "w:0", "size": 8, "kept": []}]}, r"must rise within 0\.\.7 and not be empty"),
        ({"groups": [{"id": "w:0", "size": 8, "kept": [3, 1]}]}, r"must rise within"),
        ({"groups": [{"id": "w:0", "size": 8, "kept": [1, 1]}]}, r"must rise within"),
        ({"groups": [{"id": "w:0", "size": 8, "kept": [-1, 2]}]}, r"must rise within"),
        ({"groups": [{"id": "w:0", "size": 8, "kept": [8]}]}, r"must rise within"),
        ({"groups": [{"id": "w:0", "kept": [1]}]}, r"not a plan \(KeyError"),
        ({"groups": 3}, r"not a plan \(TypeError"),
        ({"groups": [{"id": "w:0", "size": 8, "kept": ["x"]}]}, r"not a plan \(TypeError"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_entry(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    data, groups = _data()
    path = tmp_path / "plan.json"
    plans.save({**data, **change}, path)
    with pytest.raises(UsageError, match=message) as raised:
        plans.load(path, groups)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "null", "{not json"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a plan"):
        plans.load(path, {})


def test_a_plan_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a plan .FileNotFoundError"):
        plans.load(tmp_path / "none.json", {})


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a plan"):
        plans.load(tmp_path / "plan.json", {})
