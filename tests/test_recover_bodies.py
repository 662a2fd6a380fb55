"""Choosing and recovering where the main graph holds If, Loop and Scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracle import model

from onnxprune import choosing, recovery
from onnxprune.bodies import bodies
from onnxprune.records import Feed
from onnxprune.recover import damage, sites
from onnxprune.recover.relax import flat_regions

IF = """(float[N,6] x) => (float[N,3] y) <float[6,8] w, float[8,3] v> {
    a = MatMul(x, w)
    b = Relu(a)
    s = ReduceMax<keepdims=0>(x)
    z = Constant<value_float=2.0>()
    k = Greater(s, z)
    c = If (k) <
        then_branch = f () => (float[N,8] p) { u = Neg(b)  p = Abs(u) },
        else_branch = g () => (float[N,8] q) { o = Neg(b)  q = Neg(o) }>
    y = MatMul(c, v)
}"""
LOOP = """(float[N,6] x) => (float[N,3] y) <float[6,8] w, float[8,3] v> {
    a = MatMul(x, w)
    b = Relu(a)
    h = MatMul(b, v)
    n = Constant<value_int=2>()
    go = Constant<value = bool {1}>()
    y = Loop (n, go, h) <body = f (int64 i, bool before, float[N,3] state) => (bool after, float[N,3] next) {
        after = Identity(before)
        next = Tanh(state)
    }>
}"""
HELD = """(float[N,6] x) => (float[N,3] y) <float[6,8] w, float[3,3] v> {
    a = MatMul(x, w)
    b = Relu(a)
    s = ReduceMax<keepdims=0>(x)
    z = Constant<value_float=2.0>()
    k = Greater(s, z)
    c = If (k) <
        then_branch = f () => (float[N,3] p) { p = MatMul(b, r) },
        else_branch = g () => (float[N,3] q) { t = Constant<value = float[8,3] {1,2,3,4,5,6,7,8,9,10,11,12,
            13,14,15,16,17,18,19,20,21,22,23,24}>()  q = MatMul(b, t) }>
    y = MatMul(c, v)
}"""


def source(folder: Path, proto: onnx.ModelProto) -> recovery.Source:
    """The model with six batches of inputs."""
    onnx.save(proto, folder / "model.onnx")
    random = np.random.default_rng(0)
    feeds: list[Feed] = [{"x": random.normal(size=(40, 6)).astype(np.float32)} for _ in range(6)]
    return recovery.Source(str(folder / "model.onnx"), {}, feeds, 0, 1, 1 << 30)


def held() -> onnx.ModelProto:
    """A model whose branches hold a weight each, an initializer and a Constant; half of the units do nothing."""
    proto = model(HELD, w=np.pad(np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32), ((0, 0), (0, 4))))
    branch = bodies(next(n for n in proto.graph.node if n.op_type == "If"))[0]
    branch.initializer.append(numpy_helper.from_array(np.arange(24, dtype=np.float32).reshape(8, 3), "r"))
    return proto


@pytest.mark.parametrize("text", [IF, LOOP], ids=["if", "loop"])
@pytest.mark.parametrize("target", [None, ("macs", 0.6)], ids=["ratio", "target"])
def test_channels_are_chosen_by_damage_beside_a_body(
    tmp_path: Path, text: str, target: tuple[str, float] | None
) -> None:
    wanted = choosing.Wanted(["w:1"], "sensitivity", target, 0.5, {"w:1": 1}, "obs")
    found = choosing.choose(source(tmp_path, model(text)), wanted)
    assert 0 < len(found.kept["w:1"]) < 8
    assert (target is None) == (not found.curves)


def test_a_cut_model_runs_with_what_its_bodies_hold(tmp_path: Path) -> None:
    opened = source(tmp_path, held())
    found = recovery.open_source(opened)
    weights = recovery.cut_weights(found, {"w:1": np.arange(4)})
    limits = {"threads": 1, "memory_bytes": 1 << 30}
    whole = damage.probed(found.file.proto, found.read, opened.feeds, **limits)
    left = damage.probed(weights.proto, weights.get, opened.feeds, **limits)
    for a, b in zip(whole, left, strict=True):
        np.testing.assert_allclose(b[0], a[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", [IF, LOOP], ids=["if", "loop"])
def test_a_layer_that_lost_inputs_is_refitted_under_its_own_name(tmp_path: Path, text: str) -> None:
    found = recovery.recover(source(tmp_path, model(text)), {"w:1": np.arange(4)}, tuned=False)
    lost = next(n for n in model(text).graph.node if "v" in n.input)
    assert [layer.node for layer in found.layers] == [f"MatMul({lost.output[0]})"]
    assert found.layers[0].after < found.layers[0].before
    assert set(found.values) == {"v"}
    assert not found.notes


def test_a_layer_behind_a_body_that_lost_inputs_is_refitted(tmp_path: Path) -> None:
    proto = held()
    random = np.random.default_rng(2)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(random.normal(size=(6, 8)).astype(np.float32), "w"))
    found = recovery.recover(source(tmp_path, proto), {"w:1": np.arange(4)}, tuned=False)
    assert [layer.node for layer in found.layers] == ["MatMul(y)"]
    assert found.layers[0].after < found.layers[0].before
    inside = "2 layers that lost inputs could not be refitted, weights stay as cut: MatMul(p), MatMul(q)"
    assert list(found.notes) == [inside]


def test_the_analysis_tells_where_in_the_main_graph_a_node_lies(tmp_path: Path) -> None:
    found = recovery.open_source(source(tmp_path, model(IF)))
    names = [found.analysis.nodes[number] for number in found.analysis.main]
    assert names == [f"{n.op_type}({n.output[0]})" for n in found.file.proto.graph.node]
    holders = dict(zip(found.analysis.nodes, found.analysis.holders, strict=True))
    assert {holders[n] for n in ("Neg(u)", "Abs(p)", "Neg(o)", "Neg(q)", "If(c)")} == {names.index("If(c)")}
    assert all(holders[name] == k for k, name in enumerate(names))


@pytest.mark.parametrize("captured", [False, True])
def test_what_a_body_reads_is_matched_as_it_is(tmp_path: Path, captured: bool) -> None:
    text = """(float[N,6] x, bool k) => (float[N,8] y, float[N,8] z) <float[6,8] w, float[8,8] v, float[8] o> {
        a = MatMul(x, w)  h = MatMul(a, v)  b = Add(h, o)  y = Relu(b)
        z = If (k) <
            then_branch = f () => (float[N,8] p) { p = Neg(READ) },
            else_branch = g () => (float[N,8] q) { q = Identity(READ) }>
    }"""
    proto = model(text.replace("READ", "h" if captured else "x"))
    stored = {"w", "v", "o"}
    sizes = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    found = list(sites.find(proto, stored, stored.__contains__, lambda n: sizes.get(n, (4, 8))))[-1]
    assert (found.out, found.bias) == (("h", None) if captured else ("b", 1))
    flat = flat_regions(model(text.replace("READ", "b" if captured else "a")))
    assert ("b" in flat) == (not captured)
