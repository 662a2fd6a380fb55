"""Operators that pick or place by index."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import groups, model, places, prunable, prune_and_compare, reasons


def test_gather_nd_of_tokens_passes_the_width() -> None:
    m = model("""(float[2,6,4] x) => (float[2,3] y) <float[4,8] w, int64[2,2] i = {0,3,1,5}, float[8,3] v> {
        h = MatMul(x, w)
        t = GatherND(h, i)
        y = MatMul(t, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_gather_nd_of_channels_freezes_them() -> None:
    m = model("""(float[2,4] x) => (float[2] y) <float[4,8] w, int64[2,2] i = {0,3,1,5}> {
        h = MatMul(x, w)
        y = GatherND(h, i)
    }""")
    assert reasons(m)["w:1"] == "GatherND: GatherND picks from this axis"


def test_scatter_nd_of_tokens_passes_the_width() -> None:
    m = model("""(float[6,4] x) => (float[6,3] y) <float[4,8] w, float[4,8] u, int64[6,1] i = {0,3,1,5,2,4},
        float[8,3] v> {
        h = MatMul(x, w)
        k = MatMul(x, u)
        t = ScatterND(h, i, k)
        y = MatMul(t, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize(
    ("call", "opset"),
    [("GatherElements<axis=1>(h, i)", 13), ("ScatterElements<axis=1>(h, i, k)", 13), ("Scatter<axis=1>(h, i, k)", 10)],
)
def test_picking_single_elements_freezes_the_axis(call: str, opset: int) -> None:
    m = model(
        f"""(float[2,4] x, int64[2,8] i) => (float[2,3] y) <float[4,8] w, float[4,8] u, float[8,3] v> {{
        h = MatMul(x, w)
        k = MatMul(x, u)
        t = {call}
        y = MatMul(t, v)
    }}""",
        opset=opset,
    )
    assert "w:1" not in prunable(m)


def test_gather_elements_with_an_index_that_shrinks_too() -> None:
    m = model("""(float[6,4] x) => (float[6,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        g = Abs(h)
        c = Constant<value_float=0.5>()
        b = Greater(g, c)
        i = Cast<to=7>(b)
        t = GatherElements<axis=0>(h, i)
        y = MatMul(t, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_one_hot_adds_an_axis_that_stays() -> None:
    m = model("""(int64[N] x) => (float[N,3] y) <float[9,8] w, float[8,3] v, int64 depth = {9},
        float[2] values = {0,1}> {
        o = OneHot(x, depth, values)
        h = MatMul(o, w)
        y = MatMul(h, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m, high=9)


def test_trilu_freezes_both_axes_it_compares() -> None:
    m = model("""(float[2,6,4] x) => (float[2,6,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        t = Trilu(h)
        y = MatMul(t, v)
    }""")
    assert reasons(m)["w:1"] == "Trilu: Trilu compares positions on this axis"


def test_dft_freezes_its_axis_and_passes_the_others() -> None:
    m = model(
        """(float[2,6,4] x) => (float[2,6,3,2] y) <float[4,8] w, float[3,8] v, int64[1] end = {3}> {
        h = MatMul(x, w)
        u = Unsqueeze(h, end)
        d = DFT<axis=1>(u)
        y = MatMul(v, d)
    }""",
        opset=17,
    )
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)
    frozen = model(
        """(float[2,6,4] x) => (float[2,6,8,2] y) <float[4,8] w, int64[1] end = {3}> {
        h = MatMul(x, w)
        u = Unsqueeze(h, end)
        y = DFT<axis=2>(u)
    }""",
        opset=17,
    )
    assert reasons(frozen)["w:1"] == "DFT: DFT works along this axis"


def test_a_cache_that_is_written_into_keeps_its_steps() -> None:
    m = model(
        """(float[2,3,4] x, int64[2] at) => (float[2,6,3] y) <float[4,8] w, float[2,6,8] cache, float[8,3] v> {
        h = MatMul(x, w)
        c = TensorScatter(cache, h, at)
        y = MatMul(c, v)
    }""",
        opset=24,
        ir=10,
    )
    assert prunable(m) == {"w:1": 8}
    assert prune_and_compare(m).weights["cache"] == (2, 6, 4)


def test_compress_picks_rows() -> None:
    m = model("""(float[6,4] x) => (float[M,3] y) <float[4,8] w, bool[6] c = {1,0,1,1,0,0}, float[8,3] v> {
        h = MatMul(x, w)
        p = Compress<axis=0>(h, c)
        y = MatMul(p, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize(
    ("axis", "reason"), [("axis=1", "Compress picks from this axis"), ("", "all elements in a row")]
)
def test_compress_of_the_width_keeps_it(axis: str, reason: str) -> None:
    m = model(f"""(float[6,4] x) => (float[A] z) <float[4,8] w, bool[8] c = {{1,0,1,1,0,0,1,1}}> {{
        h = MatMul(x, w)
        p = Compress{f"<{axis}>" if axis else ""}(h, c)
        z = ReduceSum<keepdims=0>(p)
    }}""")
    assert reason in reasons(m)["w:1"]


def test_sequences_are_turned_round() -> None:
    m = model("""(float[6,2,4] x) => (float[6,2,3] y) <float[4,8] w, int64[2] l = {4, 6}, float[8,3] v> {
        h = MatMul(x, w)
        r = ReverseSequence(h, l)
        y = MatMul(r, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize(("call", "shape"), [("Det(h)", "2,8"), ("com.microsoft.Inverse(h)", "2,8,3,3")])
def test_functions_of_whole_matrices(call: str, shape: str) -> None:
    m = model(f"""(float[2,3,3,3] x) => (float[{shape.replace("8", "5")}] y) <float[8,3,1,1] w, float[8,1,1] e,
        int64[2] rows = {{2,8}}, int64[4] back, float[8,5] v, float[5,8,1,1] u> {{
        h = Conv(x, w)
        d = {call}
        y = {"MatMul(d, v)" if call == "Det(h)" else "Conv(d, u)"}
    }}""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


@pytest.mark.parametrize("call", ["com.microsoft.GatherND(h, i)", "com.microsoft.Trilu(t)", "com.microsoft.Pad(h, p)"])
def test_the_forms_of_the_contributed_domain(call: str) -> None:
    m = model(f"""(float[2,6,4] x) => (float[A,B,3] y) <float[4,8] w, int64[2,2,2] i = {{0,3,1,5,0,0,1,1}},
        int64[6] p = {{0,1,0,0,2,0}}, float[8,3] v> {{
        h = MatMul(x, w)
        t = Transpose<perm=[2,0,1]>(h)
        g = {call}
        r = {"Transpose<perm=[1,2,0]>" if "Trilu" in call else "Identity"}(g)
        y = MatMul(r, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


_PART = """(float[N,4] x) => (float[N,3] y) <float[4,12] w, float[12] b, int64[{count},1] at, float[{count}] part,
    int64[2] sizes = {{4,8}}, float[4,3] u, float[8,3] v> {{
    c = ScatterND{reduction}(b, at, part)
    h = MatMul(x, w)
    a = Add(h, c)
    p, q = Split<axis=1>(a, sizes)
    r = MatMul(p, u)
    s = MatMul(q, v)
    y = Add(r, s)
}}"""


@pytest.mark.parametrize("reduction", ["", '<reduction="add">'])
def test_a_run_of_constant_indices_writes_one_part(reduction: str) -> None:
    m = model(_PART.format(count=4, reduction=reduction), at=np.arange(4).reshape(4, 1))
    assert prunable(m) == {"w:1": 4, "w:1#2": 8}
    assert places(groups(m)["w:1"]) == {
        ("w", 1): "produced",
        ("b", 0): "carried",
        ("at", 0): "carried",
        ("part", 0): "carried",
        ("u", 0): "contracted",
    }
    assert prune_and_compare(m).weights["part"] == (2,)


def test_a_run_at_the_end_and_across_a_border() -> None:
    m = model(_PART.format(count=3, reduction=""), at=np.array([[-3], [-2], [-1]]))
    assert prunable(m) == {"w:1": 4, "w:1#2": 5, "w:1#3": 3}
    prune_and_compare(m)


def test_scattered_constant_indices_keep_the_axis() -> None:
    m = model(_PART.format(count=3, reduction=""), at=np.array([[1], [5], [6]]))
    assert reasons(m)["w:1"] == "ScatterND: ScatterND places into this axis"
