"""Operators that pick or place by index."""

from __future__ import annotations

import pytest
from oracle import model, prunable, prune_and_compare, reasons


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
