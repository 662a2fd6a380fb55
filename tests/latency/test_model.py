"""Latency at widths not cut to, from made-up profiles."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import graph, model

from onnxprune import target
from onnxprune.dims import Dim
from onnxprune.latency import model as latency_model
from onnxprune.records import KernelTime, NodeLatency, Profile

NET = model("""(float[1,3,8,8] x) => (float[1,5] y)
    <float[64,3,3,3] a, float[96,64,3,3] b, float[5,96] c> {
    h = Conv<pads=[1,1,1,1]>(x, a)
    i = Relu(h)
    j = Conv<pads=[1,1,1,1]>(i, b)
    k = Relu(j)
    m = GlobalAveragePool(k)
    f = Flatten(m)
    y = Gemm<transB=1>(f, c)
}""")
ANALYSIS = graph(NET)[0]
FIRST, SECOND = (next(g.dim for g in ANALYSIS.groups if g.size == size) for size in (64, 96))
LEVELS = (1.0, 0.5, 0.25)
KEPT: list[dict[Dim, int]] = [{FIRST: int(64 * s), SECOND: int(96 * s)} for s in LEVELS]


def _profile(first: int, second: int) -> Profile:
    """1 ns per multiply-accumulate, 0.02 ms for each operator, 0.3 ms beside the operators."""
    times = {0: 27 * 64 * first, 2: 9 * 64 * first * second, 6: 5 * second}
    kernels = [
        KernelTime(f"onnxprune:{n}:", op, times[n] * 1e-6 + 0.02) for n, op in ((0, "Conv"), (2, "Conv"), (6, "Gemm"))
    ]
    kernels += [KernelTime("ReorderOutput", "ReorderOutput", 0.05)]
    return Profile(sum(k.ms for k in kernels) + 0.3, tuple(kernels))


def _predicted(found: latency_model.LatencyModel, kept: dict[Dim, int]) -> float:
    return found.overhead + found.factor * target.total(latency_model.costs(NET, ANALYSIS, found.nodes), kept)


def test_latency_between_measured_widths() -> None:
    profiles = [_profile(counts[FIRST], counts[SECOND]) for counts in KEPT]
    found = latency_model.fit(NET, ANALYSIS, KEPT, profiles, LEVELS)
    assert [n.node for n in found.nodes] == [0, 2, 6]
    for first, second in ((64, 96), (32, 48), (48, 72), (32, 96), (64, 24), (16, 24)):
        assert _predicted(found, {FIRST: first, SECOND: second}) == pytest.approx(
            _profile(first, second).whole, rel=0.02
        )
    assert found.factor == pytest.approx(1.0, rel=0.02)
    assert found.overhead == pytest.approx(0.35, rel=0.1)
    assert found.ratios[0] < found.ratios[-1], "what is beside the nodes does not shrink"


def test_every_step_down_saves_something() -> None:
    """Also where the machine says that the smaller width is the slower one."""
    found = latency_model._curve(0, {100: [5.0], 50: [6.0], 25: [1.0]})
    assert found.sizes == (25, 50, 100)
    assert list(np.diff(found.ms) > 0) == [True, True]
    price = latency_model._interpolation(found)
    assert price(10) < price(25) < price(40) < price(50) < price(75) < price(100)
    assert price(0) > 0, "a node costs something however small"


@pytest.mark.parametrize(
    ("name", "op", "number"),
    [
        ("onnxprune:2:", "Conv", 2),
        ("fused onnxprune:3:/onnxprune:2:", "Conv", 2),
        ("k_nchwc", "Conv", 2),
        ("h_nchwc", "Conv", 0),
        ("k", "FusedConv", 2),
        ("onnxprune:6:", "FusedGemm", 6),
        ("onnxprune:3:", "Relu", 3),
        ("m_nchwc", "GlobalAveragePool", 4),
        ("ReorderInput", "ReorderInput", None),
    ],
)
def test_nodes_that_run_are_found_in_the_original(name: str, op: str, number: int | None) -> None:
    assert latency_model.labels(NET).find(name, op) == number


def test_a_profile_gets_the_names_of_the_model() -> None:
    """One runtime names a fused Conv by what it writes, another by itself."""
    copy = latency_model.labelled(NET)
    copy.graph.node[2].name = "second"
    kernels = (
        KernelTime("k_nchwc", "Conv", 2.0),
        KernelTime("second", "FusedConv", 3.0),
        KernelTime("x", "Reorder", 1.0),
    )
    found = latency_model.named(Profile(9.0, kernels), copy)
    assert [(k.name, k.ms) for k in found.kernels] == [("second", 2.0), ("second", 3.0), ("x", 1.0)]


def test_labels_change_names_alone() -> None:
    before = NET.SerializeToString()
    copy = latency_model.labelled(NET)
    assert [n.name for n in copy.graph.node] == [f"onnxprune:{k}:" for k in range(7)]
    assert NET.SerializeToString() == before
    for a, b in zip(copy.graph.node, NET.graph.node, strict=True):
        assert a.name != b.name
        a.ClearField("name")
        if b.HasField("name"):
            a.name = b.name
    assert copy.SerializeToString(deterministic=True) == NET.SerializeToString(deterministic=True)


def test_nodes_that_cannot_be_timed_share_the_whole_by_their_work() -> None:
    profiles = [Profile(1.0 + 3.0 * (s * s), ()) for s in LEVELS]
    found = latency_model.fit(NET, ANALYSIS, KEPT, profiles, LEVELS)
    assert _predicted(found, {}) == pytest.approx(4.0, rel=0.05)
    assert _predicted(found, KEPT[1]) == pytest.approx(1.75, rel=0.05)
    assert found.overhead == pytest.approx(1.0, rel=0.1)


def test_a_falling_line_is_replaced_by_a_ratio() -> None:
    slope, height = latency_model._line(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))
    assert height == 0.0
    assert slope > 0


def test_a_node_of_one_size_costs_what_it_costs() -> None:
    price = latency_model._interpolation(NodeLatency(0, (10,), (2.0,)))
    assert price(10) == price(20) == 2.0
