"""Ifs that always take the same branch: ranks and fixed sizes are asked for in every export of scripted code."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from oracle import graph, model, prunable, prune_and_compare, reasons

from onnxprune import cli
from onnxprune.branches import has_branches, settled_numbers, take_branch
from onnxprune.errors import ModelError

ASKED = """(float[N,1,T] x, bool c) => (float[N,8,T] y) <float[8,1,1] w, float[8,8,1] v> {
    h = Conv(x, w)
    CONDITION
    e = If (asked) <
        then_branch = f () => (float[N,8,T] p) { p = Identity(h) },
        else_branch = g () => (float[M,K] q) { OTHER }>
    y = Conv(e, v)
}"""
RANK = """s = Shape(h) r = Shape(s) zero = Constant<value = int64 {0}>() three = Constant<value = int64 {3}>()
    rank = Gather(r, zero) asked = Equal(rank, three)"""
ONE = """s = Shape(x) one = Constant<value = int64 {1}>() axis = Constant<value = int64 {AXIS}>()
    size = Gather(s, axis) asked = Equal(size, one)"""
SQUEEZE = "zero = Constant<value_ints = [0]>() q = Squeeze(h, zero)"
TWICE = "deep = Add(h, h) flat = Constant<value_ints = [0, -1]>() q = Reshape(deep, flat)"


def asked(condition: str, other: str = SQUEEZE) -> str:
    return ASKED.replace("CONDITION", condition).replace("OTHER", other.replace("zero", "first"))


def test_the_rank_of_a_tensor_settles_a_branch() -> None:
    m = model(asked(RANK))
    assert dict(graph(m)[1].taken) == {"e": True}
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m, ratio=0.5)


def test_a_fixed_size_settles_a_branch_and_one_of_the_input_does_not() -> None:
    fixed, free = (model(asked(ONE.replace("AXIS", axis))) for axis in ("1", "0"))
    assert dict(graph(fixed)[1].taken) == {"e": True}
    assert prunable(fixed) == {"w:0": 8}
    prune_and_compare(fixed, ratio=0.5)
    assert dict(graph(free)[1].taken) == {}
    assert prunable(free) == {}


@pytest.mark.parametrize(
    "condition",
    [
        "s = Shape(x) t = Mod(s, s) k = Constant<value = int64 {0}>() size = Gather(t, k) asked = Equal(size, k)",
        "s = Size(x) zero = Constant<value = int64 {0}>() asked = Greater(s, zero)",
        "asked = Identity(c)",
    ],
)
def test_what_is_the_same_at_the_sizes_tried_alone_settles_nothing(condition: str) -> None:
    assert dict(graph(model(asked(condition)))[1].taken) == {}


def test_a_size_that_strides_make_one_settles_nothing() -> None:
    m = model("""(float[N,4,T] x) => (float[N,3,U] y) <float[8,4,1] w, float[3,8,1] v> {
        h = Conv<strides = [100]>(x, w)
        s = Shape(h) two = Constant<value = int64 {2}>() one = Constant<value = int64 {1}>()
        size = Gather(s, two) asked = Equal(size, one)
        e = If (asked) <
            then_branch = f () => (float[N,8,K] p) { p = Identity(h) },
            else_branch = g () => (float[N,8,L] q) { q = Concat<axis = 2>(h, h) }>
        y = Conv(e, v)
    }""")
    assert graph(m)[1].shape["h"][2] == 1
    assert dict(graph(m)[1].taken) == {}


def test_a_width_that_is_asked_for_stays() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        s = Shape(h) one = Constant<value = int64 {1}>() eight = Constant<value = int64 {8}>()
        size = Gather(s, one) asked = Equal(size, eight)
        e = If (asked) <
            then_branch = f () => (float[N,8] p) { p = Identity(h) },
            else_branch = g () => (float[N,8] q) { q = Identity(h) }>
        y = MatMul(e, v)
    }""")
    assert dict(graph(m)[1].taken) == {"e": True}
    assert reasons(m)["w:1"] == "If: asks for this width"


def test_what_a_dead_branch_computes_with_stays() -> None:
    m = model(asked(RANK, TWICE))
    assert reasons(m)["w:0"] == "If: read in a branch that never runs"


def test_a_dead_branch_is_numbered_and_its_weights_are_counted() -> None:
    other = "k = Constant<value = float[2,2] {1, 2, 3, 4}>() q = Identity(k)"
    found = graph(model(asked(RANK, other)))[0]
    assert [d.size for d in found.weights["k"]] == [2, 2]
    assert found.nodes[-5:] == ("Identity(p)", "Constant(k)", "Identity(q)", "If(e)", "Conv(y)")


def test_numbers_that_stay_within_a_body_do_not_freeze() -> None:
    m = model("""(float[N,4,1] x, bool c) => (float[N,3,1] y) <float[8,4,1] w, float[3,8,1] v> {
        y = If (c) <
            then_branch = f () => (float[N,3,1] p) {
                h = Conv(x, w) s = Shape(h) g = Reshape(h, s) p = Conv(g, v) },
            else_branch = g () => (float[N,3,1] q) { k = Conv(x, w) q = Conv(k, v) }>
    }""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m, ratio=0.5)


def test_only_the_other_ifs_are_forced() -> None:
    m = model(asked(RANK))
    taken = graph(m)[1].taken
    settled = settled_numbers(m, taken)
    assert settled == [0]
    assert has_branches(m)
    assert not has_branches(m, settled)
    take_branch(m, False, settled)
    assert next(n for n in m.graph.node if n.op_type == "If").input[0] == "asked"


def test_a_model_that_asks_for_ranks_is_pruned(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(asked(RANK).replace("8", "64")).SerializeToString())
    arguments = [str(path), "--ratio", "0.5", "--no-recover", "-o", str(tmp_path / "p.onnx")]
    result = CliRunner().invoke(cli.command, arguments, prog_name="onnxprune")
    assert result.exit_code == 0, result.output


def test_a_branch_that_does_not_fit_the_sizes_is_not_the_one_that_runs() -> None:
    m = model("""(float[1,512] x, bool c) => (float[1,3] y)
            <float[512,64] w, float[64,3] v, float[256,64] other, float[64,3] last> {
        y = If (c) <
            then_branch = f () => (float[1,3] p) { h = MatMul(x, w) p = MatMul(h, v) },
            else_branch = g () => (float[1,3] q) { k = MatMul(x, other) q = MatMul(k, last) }>
    }""")
    assert prunable(m) == {"w:1": 64}
    assert "other:1" not in prunable(m)


def test_where_no_branch_fits_the_model_is_refused() -> None:
    m = model("""(float[1,512] x, bool c) => (float[1,3] y) <float[256,3] w> {
        y = If (c) <
            then_branch = f () => (float[1,3] p) { p = MatMul(x, w) },
            else_branch = g () => (float[1,3] q) { q = MatMul(x, w) }>
    }""")
    with pytest.raises(ModelError, match="contradict each other"):
        graph(m)
