"""Numbers that a model computes from sizes."""

from __future__ import annotations

import pytest
from oracle import graph, model, prunable, prune_and_compare, reasons

from onnxprune.bodies import flat_nodes
from onnxprune.computed import Numbers

_TOKENS = """(float[N,T,4] x) => (float[N,T,3] y) <float[4,8] w, float[8,6] u, float[6,3] v, int64 two = {{2}},
    int64 four = {{4}}> {{
    h = MatMul(x, w)
    s = Shape(h)
    {number}
    f = Cast<to=1>(p)
    d = Div(h, f)
    k = MatMul(d, u)
    y = MatMul(k, v)
}}"""


def test_a_width_in_a_number_that_follows_the_input_stays() -> None:
    """The mean over all tokens and features, written out: the rest of the model is pruned all the same."""
    m = model(_TOKENS.format(number="p = ReduceProd<keepdims=0>(s)"))
    assert prunable(m) == {"u:1": 6}
    assert reasons(m)["w:1"] == "Div: takes a number computed from this width and from the size of the input"
    prune_and_compare(m)


def test_a_width_in_a_number_that_is_fixed_goes() -> None:
    m = model(_TOKENS.format(number="p = Gather(s, two)"))
    assert prunable(m) == {"w:1": 8, "u:1": 6}
    prune_and_compare(m)


def test_a_number_that_only_follows_the_input_freezes_nothing() -> None:
    m = model(_TOKENS.format(number="one = Constant<value_int=1>()\n    p = Gather(s, one)"))
    assert prunable(m) == {"w:1": 8, "u:1": 6}
    prune_and_compare(m)


def test_a_size_that_is_a_result_freezes_only_the_widths_in_it() -> None:
    """Shape reads the width too, but what is kept of it is the number of tokens."""
    m = model("""(float[N,T,4] x) => (float[N,T,3] y, int64 p) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        s = Shape(h)
        one = Constant<value_int=1>()
        p = Gather(s, one)
        y = MatMul(h, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize(("number", "width"), [("p = ReduceProd<keepdims=0>(s)", True), ("p = Div(two, four)", False)])
def test_the_widths_behind_a_number(number: str, width: bool) -> None:
    m = model(_TOKENS.format(number=number))
    found, shapes = graph(m)
    numbers = Numbers([node for _, node in flat_nodes(m)], found.tensors, shapes)
    [group] = [g for g in found.groups if g.id == "w:1"]
    group.dim.frozen = None
    assert numbers.widths("f") == ([group.dim] if width else [])


_UNKNOWN = """(float[N,T,4] x) => (float[N,T,3] y) <float[4,8] w, float[1,8] e, float[8,6] u, float[6,3] v,
    float[1] width = {8}, int64[1] wide = {8}, int64[1] many = {-1}> {
    h = MatMul(x, w)
    s = Shape<end=2>(x)
    c = Cast<to=7>(width)
"""


def test_sizes_that_nobody_could_compute_are_put_right_where_they_change() -> None:
    """Two of the three follow the input, so no -1 can stand for them; the width is put in its place."""
    m = model(
        _UNKNOWN
        + """t = Concat<axis=0>(s, c)
        b = Expand(e, t)
        a = Add(h, b)
        k = MatMul(a, u)
        y = MatMul(k, v)
    }"""
    )
    assert prunable(m)["w:1"] == 8
    assert prune_and_compare(m).node("Expand").input[1] != "t"


def test_a_width_that_the_input_multiplies_is_kept_where_nobody_could_compute_it() -> None:
    m = model(
        _UNKNOWN
        + """f = Reshape(h, many)
        p = ReduceProd<keepdims=1>(s)
        t = Mul(p, c)
        b = Expand(f, t)
        t3 = Concat<axis=0>(s, wide)
        a = Reshape(b, t3)
        k = MatMul(a, u)
        y = MatMul(k, v)
    }"""
    )
    assert reasons(m)["w:1"] == "Expand: takes sizes that only the data tells"
    assert prunable(m) == {"u:1": 6}
    prune_and_compare(m)
