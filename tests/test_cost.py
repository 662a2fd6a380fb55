"""Exact cost, by hand and against the pruned model analysed anew."""

from __future__ import annotations

import pytest
from oracle import graph, model, prune_and_compare, reasons

from onnxprune import cost
from onnxprune.records import Analysis

NETWORK = """(float[2,3,6,6] x) => (float[2,5] y) <float[8,3,3,3] w, float[8] b, float[8,4,1,1] u, float[288,5] v> {
    h = Conv<pads=[1,1,1,1]>(x, w, b)
    k = Conv<group=2>(h, u)
    f = Flatten(k)
    y = Gemm(f, v)
}"""


def _by_hand(width: int = 8, inner: int = 4, out: int = 8) -> int:
    return 2 * 36 * width * 27 + 2 * 36 * out * inner + 2 * 36 * out * 5


def test_macs_by_hand() -> None:
    found, _ = graph(model(NETWORK))
    assert cost.macs(found) == _by_hand()
    assert cost.parameters(found, ["w", "b", "u", "v"]) == 216 + 8 + 32 + 1440


@pytest.mark.parametrize("seed", range(4))
def test_the_cost_of_a_plan_is_that_of_the_pruned_model(seed: int) -> None:
    result = prune_and_compare(model(NETWORK), ratio=0.2 + 0.2 * seed, seed=seed, factors=bool(seed % 2))
    kept = {g.dim: len(result.kept[g.id]) for g in result.analysis.groups if g.id in result.kept}
    again, _ = graph(result.pruned)
    assert cost.macs(result.analysis, kept) == cost.macs(again)
    assert cost.parameters(result.analysis, "wbuv", kept) == cost.parameters(again, "wbuv")


def _share(found: Analysis, size: int) -> float:
    return cost.macs_shares(found)[next(g.dim for g in found.groups if g.size == size and g.refusal is None)]


def test_shares_are_of_the_nodes_that_shrink_with_a_group() -> None:
    m = model("""(float[1,4] x) => (float[1,3] y) <float[4,8] w, float[8,6] u, float[6,3] v> {
        h = MatMul(x, w)
        k = MatMul(h, u)
        y = MatMul(k, v)
    }""")
    found, _ = graph(m)
    total = 32 + 48 + 18
    assert _share(found, 8) == pytest.approx((32 + 48) / total)
    assert _share(found, 6) == pytest.approx((48 + 18) / total)


def test_refusals_count_the_nodes_that_could_shrink_without_them() -> None:
    m = model("""(float[1,4] x) => (float[1,3] y) <float[4,8] w, float[8,6] u, float[6,3] v> {
        h = MatMul(x, w)
        s = Softmax(h)
        k = MatMul(s, u)
        y = MatMul(k, v)
    }""")
    found, _ = graph(m)
    shares = {f"{r.op}: {r.reason}": share for r, share in cost.refusal_shares(found).items()}
    assert set(shares) == set(reasons(m).values())
    assert shares["Softmax: Softmax compares along this axis"] == pytest.approx((32 + 48) / 98)
    assert shares["graph output: the interface keeps its shape"] == pytest.approx(18 / 98)


def test_parameters_that_a_refusal_freezes_and_what_is_reachable() -> None:
    m = model("""(float[1,4] x) => (float[1,3] y) <float[4,8] w, float[8,6] u, float[6,3] v, float[8] s> {
        h = MatMul(x, w)
        a = Add(h, s)
        p = Softmax(a)
        k = MatMul(p, u)
        y = MatMul(k, v)
    }""")
    found, _ = graph(m)
    names = ["w", "u", "v", "s"]
    total = 32 + 48 + 18 + 8
    shares = {r.op: share for r, share in cost.refusal_parameter_shares(found, names).items()}
    assert shares == pytest.approx({"Softmax": (32 + 48 + 8) / total, "graph output": 18 / total})
    free = {g.dim for g in found.groups if g.refusal is None}
    assert cost.reachable_parameters(found, names, free) == 48 + 18
    assert cost.reachable_macs(found, free) == 48 + 18
    assert cost.reachable_macs(found, free, dict.fromkeys(free, 3)) == 8 * 3 + 3 * 3
    assert cost.reachable_macs(found, set()) == 0


def test_a_model_without_work_costs_nothing() -> None:
    found, _ = graph(model("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"))
    assert cost.macs(found) == 0
    assert cost.macs_shares(found) == {}
    assert cost.refusal_shares(found) == {}
