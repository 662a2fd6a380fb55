"""Where the time goes: made-up profiles, and one real one. No speed is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxprune.latency import profile
from onnxprune.records import KernelTime, Profile

RUNS = 1 + profile._WARM_UPS


def _event(name: str, op: str, microseconds: float) -> dict[str, object]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": op}}


def _file(path: Path, events: list[dict[str, object]]) -> Path:
    path.write_text(json.dumps([{"cat": "Session", "name": "model_run", "dur": 9}, *events]))
    return path


def test_latency_of_nodes_leaves_the_warm_up_out(tmp_path: Path) -> None:
    events = []
    for run in range(RUNS + 5):
        slow = 100 if run < RUNS else 1
        events += [_event("a", "Conv", 20 * slow), _event("b", "Gemm", 10 * slow)]
    found = profile.read(_file(tmp_path / "p.json", events), np.full(5, 45e-6))
    assert found.kernels == (KernelTime("a", "Conv", 0.02), KernelTime("b", "Gemm", 0.01))
    assert found.whole == pytest.approx(0.045)


def test_runs_that_were_interrupted_do_not_count(tmp_path: Path) -> None:
    """Other work makes every second run five times as long; the ratio of run to nodes is what it is."""
    factors = [1.0] * RUNS + [1.0, 5.0] * 4
    events = [_event("a", "Conv", 30 * f) for f in factors]
    found = profile.read(_file(tmp_path / "p.json", events), np.array(factors[RUNS:]) * 33e-6)
    assert found.kernels == (KernelTime("a", "Conv", 0.03),)
    assert found.whole == pytest.approx(0.033)


def test_a_node_that_runs_several_times_counts_them_all(tmp_path: Path) -> None:
    events = [_event("inner", "Add", 2) for _ in range(3 * (RUNS + 2))]
    events += [_event("loop", "Loop", 50) for _ in range(RUNS + 2)]
    found = profile.read(_file(tmp_path / "p.json", events), np.full(2, 6e-6))
    assert found.kernels == (KernelTime("inner", "Add", 0.006),), "the time of a loop is that of its body"


def test_runs_of_different_lengths_give_the_mean(tmp_path: Path) -> None:
    events = [_event("a", "Conv", 10) for _ in range(RUNS + 3)]
    found = profile.read(_file(tmp_path / "p.json", events), np.full(2, 1e-5))
    assert found.kernels[0].ms == pytest.approx(0.01 * (RUNS + 3) / (RUNS + 2))


def test_on_a_device_only_the_whole_is_timed(tmp_path: Path) -> None:
    found = profile.read(tmp_path / "missing.json", np.array([4e-3, 2e-3, 8e-3]), timed=False)
    assert found == Profile(3.0, ())


def test_nodes_that_did_not_get_faster_are_named_worst_first() -> None:
    before = Profile(10, (KernelTime("a", "Conv", 4), KernelTime("b", "Conv", 4), KernelTime("c", "Conv", 2)))
    after = Profile(10, (KernelTime("a", "Conv", 2), KernelTime("b", "Conv", 7), KernelTime("c", "Conv", 1.99),
                         KernelTime("new", "Reorder", 0.5)))  # fmt: skip
    assert profile.not_faster(before, after) == [("b", 4, 7), ("new", 0, 0.5), ("c", 2, 1.99)]


def test_a_real_profile_of_two_models(tmp_path: Path) -> None:
    paths = []
    for k, body in enumerate(("y = Relu(x)", "h = Exp(x)  y = Tanh(h)")):
        text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8] x) => (float[N, 8] y) {{ {body} }}'
        model = onnx.parser.parse_model(text)
        for node in model.graph.node:
            node.name = f"the {node.op_type}"
        paths.append(tmp_path / f"{k}.onnx")
        paths[-1].write_bytes(model.SerializeToString())
    found = profile.profile_many([str(p) for p in paths], {"x": np.ones((2, 8), np.float32)}, threads=1, budget_s=0.01)
    assert [[(k.name, k.op) for k in p.kernels] for p in found] == [
        [("the Relu", "Relu")],
        [("the Exp", "Exp"), ("the Tanh", "Tanh")],
    ]
    assert all(p.whole > 0 and all(k.ms >= 0 for k in p.kernels) for p in found)
