"""Bodies of If, Loop and Scan: walked, tied to the outside, masked and cut."""

from __future__ import annotations

import onnx
import pytest
from oracle import groups, model, places, prunable, prune_and_compare, reasons

from onnxprune.bodies import captured_names, flat_nodes, held_tensors, numbered_graphs, operands

BRANCHES = """(float[N,4] x, bool c) => (float[N,3] y) <float[4,8] w, float[8,8] u, float[8,3] v> {
    h = MatMul(x, w)
    e = If (c) <
        then_branch = f () => (float[N,8] p) { p = MatMul(h, u) },
        else_branch = g () => (float[N,8] q) { q = Neg(h) }>
    s = Relu(e)
    y = MatMul(s, v)
}"""

LOOP = """(float[N,4] x, int64 n) => (float[N,3] y) <float[4,8] w, float[8,8] u, float[8,3] v> {
    go = Constant<value = bool {1}>()
    h = MatMul(x, w)
    e = Loop (n, go, h) <body = f (int64 i, bool before, float[N,8] state) => (bool after, float[N,8] next) {
        after = Identity(before)
        m = MatMul(state, u)
        t = Tanh(m)
        next = Add(t, state)
    }>
    y = MatMul(e, v)
}"""

SCAN = """(float[T,N,4] x) => (float[N,3] y, float[T,N,3] z) <float[8,8] r, float[4,8] w, float[8] zero, float[8,3] v> {
    first = Constant<value_ints=[0]>()
    one = Gather(x, first)
    flat = Squeeze(one, first)
    start = MatMul(flat, w)
    last, steps = Scan<num_scan_inputs=1,
                       body = f (float[N,8] state, float[N,4] now) => (float[N,8] new, float[N,8] out) {
        a = MatMul(now, w)
        b = MatMul(state, r)
        c = Add(a, b)
        new = Tanh(c)
        out = Relu(new)
    }>(start, x)
    y = MatMul(last, v)
    z = MatMul(steps, v)
}"""


@pytest.mark.parametrize(
    ("text", "groups"), [(BRANCHES, {"w:1": 8}), (LOOP, {"w:1": 8}), (SCAN, {"r:0": 8})], ids=["if", "loop", "scan"]
)
def test_a_body_is_pruned_with_what_it_captures(text: str, groups: dict[str, int]) -> None:
    m = model(text)
    assert list(prunable(m).values()) == list(groups.values())
    prune_and_compare(m, ratio=0.5)


def test_a_nested_body_is_walked() -> None:
    m = model("""(float[N,4] x, bool c) => (float[N,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        e = If (c) <then_branch = f () => (float[N,8] p) {
            p = If (c) <
                then_branch = g () => (float[N,8] a) { a = Abs(h) },
                else_branch = k () => (float[N,8] b) { b = Neg(h) }>
        }, else_branch = j () => (float[N,8] q) { q = Neg(h) }>
        y = MatMul(e, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m, ratio=0.5)


def test_branches_of_different_shapes_stay() -> None:
    m = model("""(float[N,4] x, bool c) => (float[N,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        e = If (c) <
            then_branch = f () => (float[N,8] p) { p = Identity(h) },
            else_branch = g () => (float[M,8] q) { q = Concat<axis=0>(h, h) }>
        y = MatMul(e, v)
    }""")
    assert prunable(m) == {}
    assert "w:1" in reasons(m)


def test_inner_graphs_come_before_the_one_that_holds_them() -> None:
    m = model(LOOP)
    assert [g.name for g, _ in numbered_graphs(m)] == ["f", m.graph.name]
    assert [n.op_type for _, n in flat_nodes(m)][-2:] == ["Loop", "MatMul"]
    assert isinstance(numbered_graphs(m)[0][0], onnx.GraphProto)


def test_a_body_reads_what_it_neither_makes_nor_holds() -> None:
    m = model("""(float[N,4] x, bool c, int64 n) => (float[N,4] y) <float[4,4] w> {
        h = MatMul(x, w)
        y = If (c) <
            then_branch = f () => (float[N,4] p) {
                a = Abs(h)
                b = If (c) <
                    then_branch = g () => (float[N,4] d) { d = Add(a, x) },
                    else_branch = k () => (float[N,4] e) { e = Identity(own) }>
                p = Loop (n, c, b) <body = l (int64 i, bool before, float[N,4] state)
                    => (bool before, float[N,4] next) { next = Add(state, i) }>
            },
            else_branch = j () => (float[N,4] x) { z = Neg(x)  x = Neg(z) }>
    }""")
    conditional = m.graph.node[-1]
    conditional.attribute[0].g.initializer.append(onnx.helper.make_tensor("own", 1, [1, 4], [1, 2, 3, 4]))
    assert sorted(captured_names(conditional)) == ["c", "c", "h", "n", "x", "x"]
    assert sorted(operands(conditional)) == ["c", "c", "c", "h", "n", "x", "x"]
    assert [name for name, _ in held_tensors(conditional)] == ["own"]


@pytest.mark.parametrize(
    ("handed_on", "roles"),
    [("copy = Identity(u)", ["contracted", "produced"]), ("copy = Neg(u)", ["carried", "carried"])],
)
def test_weights_that_go_round_a_loop_are_weights_where_every_step_hands_them_on(
    handed_on: str, roles: list[str]
) -> None:
    m = model(
        """(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,8] r, float[8,3] v, int64 n = {3}, bool go = {1}> {
        h = MatMul(x, w)
        e, last = Loop (n, go, h, r) <body = f (int64 i, bool before, float[N,8] state, float[8,8] u)
            => (bool after, float[N,8] next, float[8,8] copy) {
            after = Identity(before)
            k = MatMul(state, u)
            next = Tanh(k)
            HANDED
        }>
        y = MatMul(e, v)
    }""".replace("HANDED", handed_on)
    )
    found = places(groups(m)["w:1"])
    assert [found["r", axis] for axis in (0, 1)] == roles
    assert prune_and_compare(m).weights["r"] == (4, 4)
