"""Names that occur twice: made unique without changing what the model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from oracle import feeds, model, prunable, prune_and_compare, run, worst_difference

import onnxprune
from onnxprune.bodies import is_walkable
from onnxprune.modelfile import ModelFile
from onnxprune.naming import make_names_unique

SAME_RESULT = """(float[N,4] x, bool c) => (float[N,3] y) <float[4,8] w, float[8,8] u, float[8,3] v> {
    h = MatMul(x, w)
    e = If (c) <
        then_branch = f () => (float[N,8] p) { k = MatMul(h, u)
            p = Relu(k) },
        else_branch = g () => (float[N,8] p) { k = Abs(h)
            p = Neg(k) }>
    y = MatMul(e, v)
}"""
"""What exporters write: both branches call their results the same."""

NESTED = """(float[N,4] x, bool c) => (float[N,3] y) <float[4,8] w, float[8,3] v> {
    h = MatMul(x, w)
    e = If (c) <
        then_branch = f () => (float[N,8] q) { p = Abs(h)
            q = Add(p, h) },
        else_branch = i () => (float[N,8] q) { q = If (c) <
            then_branch = j () => (float[N,8] p) { p = Identity(h) },
            else_branch = k () => (float[N,8] p) { p = Sin(h) }> }>
    r = Relu(h)
    s = Add(e, r)
    y = MatMul(s, v)
}"""
"""p is defined in three bodies, two of them inside the third's sibling."""

LOOPS = """(float[N,4] x, int64 n) => (float[N,3] y) <float[4,8] w, float[8,8] u, float[8,3] v> {
    go = Constant<value = bool {1}>()
    h = MatMul(x, w)
    e = Loop (n, go, h) <body = f (int64 i, bool go, float[N,8] h) => (bool after, float[N,8] t) {
        after = Identity(go)
        m = MatMul(h, u)
        t = Tanh(m)
    }>
    l = Loop (n, go, e) <body = g (int64 i, bool go, float[N,8] h) => (bool after, float[N,8] t) {
        after = Identity(go)
        m = MatMul(h, u)
        t = Sin(m)
    }>
    y = MatMul(l, v)
}"""


def _renamed(text: str) -> onnx.ModelProto:
    m = model(text)
    assert not is_walkable(m)
    make_names_unique(m)
    return m


@pytest.mark.parametrize("text", [SAME_RESULT, NESTED, LOOPS], ids=["branches", "nested", "loops"])
def test_what_is_computed_stays_and_bodies_are_pruned(text: str) -> None:
    original, renamed = model(text), _renamed(text)
    assert is_walkable(renamed)
    for feed in feeds(original):
        for condition in (True, False):
            inputs = {**feed, **({"c": np.asarray(condition)} if "c" in feed else {})}
            assert worst_difference(run(original, inputs), run(renamed, inputs)) == 0
    assert prunable(original) == {}
    assert prunable(renamed) == {"w:1": 8}
    prune_and_compare(renamed)


def test_a_name_that_is_read_before_it_is_defined_anew() -> None:
    """The runtime refuses the original; the tensor outside is meant, and the p of the graph around is another one."""
    m = _renamed("""(float[N,4] x, bool c) => (float[N,4] y) {
        h = Exp(x)
        e = If (c) <
            then_branch = f () => (float[N,4] q) { p = Neg(h)
                h = Abs(p)
                q = Add(h, p) },
            else_branch = g () => (float[N,4] q) { q = Neg(h) }>
        p = Sub(h, h)
        y = Add(e, p)
    }""")
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(run(m, {"x": x, "c": np.asarray(True)})["y"], np.zeros((1, 4), np.float32))
    assert np.allclose(run(m, {"x": x, "c": np.asarray(False)})["y"], -np.exp(x))


@pytest.mark.parametrize("text", [SAME_RESULT, NESTED, LOOPS])
def test_the_main_graph_keeps_its_names(text: str) -> None:
    original, renamed = model(text), _renamed(text)
    assert [list(n.output) for n in renamed.graph.node] == [list(n.output) for n in original.graph.node]
    assert renamed.graph.input == original.graph.input
    assert renamed.graph.output == original.graph.output
    onnx.checker.check_model(renamed, full_check=True)


def test_names_that_are_unique_stay() -> None:
    m = model(SAME_RESULT)
    make_names_unique(m)
    before = m.SerializeToString()
    make_names_unique(m)
    assert m.SerializeToString() == before


def test_a_stored_weight_of_two_bodies(tmp_path: Path) -> None:
    """Both branches hold a weight called b, of different values; each is read and cut as its own."""
    m = model(SAME_RESULT)
    for k, attribute in enumerate(m.graph.node[1].attribute):
        weight = np.full((8,), k + 1.0, np.float32)
        attribute.g.initializer.append(onnx.numpy_helper.from_array(weight, "b"))
        attribute.g.node[1].CopyFrom(onnx.helper.make_node("Add", ["k", "b"], ["p"]))
    path = tmp_path / "m.onnx"
    onnx.save(m, path)
    opened = ModelFile.load(path, unique_names=True)
    tensors = opened.tensors()
    assert sorted(float(opened.read(tensors[name])[0]) for name in ("b", "b_1")) == [1.0, 2.0]
    report = onnxprune.prune(path, onnxprune.Config(output=tmp_path / "o.onnx", round_to=1))
    assert report.exactness is not None
    assert report.exactness.passed
    pruned = ModelFile.load(tmp_path / "o.onnx")
    assert {tuple(pruned.tensors()[name].dims) for name in ("b", "b_1")} == {(4,)}
