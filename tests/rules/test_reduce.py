"""Reductions."""

from __future__ import annotations

import pytest
from oracle import groups, model, prunable, prune_and_compare, reasons


def _over(op: str, axes: str, keepdims: int, opset: int = 18) -> str:
    """A reduction of [N, 6, 8] with a bias added to the sum, so that the result is the output."""
    rank = 3 if keepdims else 2
    shape = ",".join("NABC"[:rank])
    call = f"{op}<keepdims={keepdims}>(h, a)" if opset >= 18 else f"{op}<keepdims={keepdims}, axes=[{axes}]>(h)"
    declared = f", int64[{len(axes.split(','))}] a = {{{axes}}}" if opset >= 18 else ""
    return f"""(float[N,6,4] x) => (float[{shape}] y) <float[4,8] w{declared}> {{
        h = MatMul(x, w)
        y = {call}
    }}"""


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"])
def test_a_sum_contracts_the_axis(op: str, keepdims: int, opset: int) -> None:
    text = _over(op, "-1", keepdims, 18 if op == "ReduceSum" and opset >= 13 else opset)
    m = model(text, opset=opset)
    assert prunable(m) == {"w:1": 8}
    assert not groups(m)["w:1"].renormalised
    assert set(prune_and_compare(m).differences) == {"masked"}


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_renormalises_the_axis(keepdims: int) -> None:
    m = model(_over("ReduceMean", "2", keepdims), opset=18)
    assert groups(m)["w:1"].renormalised
    prune_and_compare(m)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"])
def test_any_other_reduction_needs_the_whole_axis(op: str) -> None:
    assert reasons(model(_over(op, "-1", 0), opset=18))["w:1"] == f"{op}: {op} over this axis"


@pytest.mark.parametrize(
    "op",
    ["ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean", "ReduceSum", "ReduceL2", "ReduceLogSumExp", "ReduceLogSum"],
)
def test_a_reduction_over_another_axis_passes_the_channels(op: str) -> None:
    m = model(
        f"""(float[N,6,4] x) => (float[N,3] y) <float[4,8] w, int64[1] a = {{1}}, float[8,3] v> {{
        h = MatMul(x, w)
        s = Sigmoid(h)
        r = {op}<keepdims=0>(s, a)
        y = MatMul(r, v)
    }}""",
        opset=18,
    )
    assert prunable(m) == {"w:1": 8}
    assert not groups(m)["w:1"].renormalised
    prune_and_compare(m)


def test_global_average_pooling_written_as_a_mean_over_space() -> None:
    m = model(
        """(float[N,3,H,W] x) => (float[N,5] y) <float[8,3,1,1] w, int64[2] a = {-1, -2}, float[8,5] v> {
        h = Conv(x, w)
        p = ReduceMean<keepdims=0>(h, a)
        y = Gemm(p, v)
    }""",
        opset=18,
    )
    assert prunable(m) == {"w:0": 8}
    assert not groups(m)["w:0"].renormalised
    prune_and_compare(m)


def test_layer_normalization_in_loose_primitives() -> None:
    m = model("""(float[N,T,4] x) => (float[N,T,3] y)
        <float[4,8] w, float[8] scale, float[8] shift, float two = {2}, float eps = {1e-5}, float[8,3] v> {
        h = MatMul(x, w)
        mean = ReduceMean<axes=[-1]>(h)
        d = Sub(h, mean)
        q = Pow(d, two)
        variance = ReduceMean<axes=[-1]>(q)
        e = Add(variance, eps)
        s = Sqrt(e)
        n = Div(d, s)
        a = Mul(n, scale)
        b = Add(a, shift)
        y = MatMul(b, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    assert groups(m)["w:1"].renormalised
    assert prune_and_compare(m).weights["scale"] == (4,)


def test_a_mean_over_all_axes() -> None:
    m = model(
        """(float[N,4] x) => (float y) <float[4,8] w> {
        h = MatMul(x, w)
        y = ReduceMean<keepdims=0>(h)
    }""",
        opset=18,
    )
    assert groups(m)["w:1"].renormalised
    prune_and_compare(m)


def test_no_axes_may_mean_none() -> None:
    m = model(
        """(float[N,4] x) => (float[N,3] y) <float[4,8] w, int64[0] a = {}, float[8,3] v> {
        h = MatMul(x, w)
        r = ReduceMax<noop_with_empty_axes=1>(h, a)
        y = MatMul(r, v)
    }""",
        opset=18,
    )
    assert prunable(m) == {"w:1": 8}


def test_axes_that_depend_on_the_input_freeze_everything() -> None:
    m = model("""(float[N,6,4] x, int64[1] a) => (float[N,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        r = ReduceSum<keepdims=0>(h, a)
        y = MatMul(r, v)
    }""")
    assert "w:1" in reasons(m)
    assert prunable(m) == {}


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg_max_freezes_its_axis_and_passes_the_others(op: str, keepdims: int) -> None:
    text = """(float[N,6,4] x) => (float[N,T] y) <float[4,8] w, float[8,3] v, int64[1] one = {1}> {
        h = MatMul(x, w)
        i = OP<axis=AXIS, keepdims=KEEP>(h)
        f = Cast<to=1>(i)
        y = REST
    }""".replace("OP", op).replace("KEEP", str(keepdims))
    frozen = model(
        text.replace("AXIS", "-1").replace("REST", "Identity(f)").replace("[N,T]", "[N,T,K]" if keepdims else "[N,T]")
    )
    assert reasons(frozen)["w:1"] == f"{op}: {op} over this axis"
    passed = model(
        text.replace("AXIS", "1").replace("REST", "MatMul(f, v)").replace("[N,T]", "[N,T,K]" if keepdims else "[N,T]")
    )
    assert prunable(passed) == {"w:1": 8}
    prune_and_compare(passed)


def test_top_k_freezes_its_axis_and_passes_the_others() -> None:
    text = """(float[N,6,4] x) => (float[N,T,3] y) <float[4,8] w, float[WIDTH,3] v, int64[1] k = {2}> {
        h = MatMul(x, w)
        t, i = TopK<axis=AXIS>(h, k)
        y = MatMul(t, v)
    }"""
    frozen = model(text.replace("AXIS", "-1").replace("WIDTH", "2"))
    assert reasons(frozen)["w:1"] == "TopK: TopK over this axis"
    passed = model(text.replace("AXIS", "1").replace("WIDTH", "8"))
    assert prunable(passed) == {"w:1": 8}
    prune_and_compare(passed)
