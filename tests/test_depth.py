"""Whole residual blocks: what is one, which goes first, and that what is left is exact."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, numpy_helper
from oracle import TOLERANCE, differences, feeds, graph, model, run

from onnxprune import api, cli, depth, verify, worker
from onnxprune.config import Config
from onnxprune.errors import NothingToPruneError, UsageError, VerificationError
from onnxprune.records import Block, Feed, RemovedBlock

CNN = """(float[N,3,8,8] x) => (float[N,4] y)
<float[8,3,3,3] stem, float[8,8,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8,8,1,1] w3, float[16,8,1,1] w4,
 float[16,8,1,1] skip, float[4,16] head> {
    s = Conv<pads=[1,1,1,1]>(x, stem)
    c1 = Conv<pads=[1,1,1,1]>(s, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2)
    y1 = Add(c2, s)
    a1 = Relu(y1)
    c3 = Conv(a1, w3)
    y2 = Sum(a1, c3)
    c4 = Conv(y2, w4)
    p = Conv(y2, skip)
    y3 = Add(c4, p)
    g = GlobalAveragePool(y3)
    f = Flatten(g)
    y = Gemm<transB=1>(f, head)
}"""
"""Two blocks, and a third sum whose skip is a projection."""

TRANSFORMER = """(float[N,T,8] x, float[N,1,T] mask) => (float[N,T,8] y)
<float[8] g1, float[8] n1, float[8,24] qkv, float[8,8] out, float[8] g2, float[8] n2, float[8,16] up, float[16] b,
 float[16,8] down> {
    l = LayerNormalization(x, g1, n1)
    p = MatMul(l, qkv)
    q, k, v = Split<axis=2, num_outputs=3>(p)
    t = Transpose<perm=[0,2,1]>(k)
    s = MatMul(q, t)
    m = Add(s, mask)
    w = Softmax<axis=-1>(m)
    c = MatMul(w, v)
    o = MatMul(c, out)
    h = Add(x, o)
    i = LayerNormalization(h, g2, n2)
    u = MatMul(i, up)
    z = Add(u, b)
    e = Erf(z)
    j = Mul(z, e)
    d = MatMul(j, down)
    y = Add(h, d)
}"""

NESTED = """(float[N,6] x) => (float[N,6] y) <float[6,6] a, float[6,6] b, float[6,6] c> {
    p = MatMul(x, a)
    q = MatMul(p, b)
    inner = Add(p, q)
    r = Tanh(inner)
    s = MatMul(r, c)
    outer = Add(s, x)
    y = Relu(outer)
}"""


def blocks_of(proto: onnx.ModelProto) -> dict[str, Block]:
    """The blocks of a model by the name of their sum's result."""
    found = depth.find_blocks(proto, graph(proto)[1])
    return {proto.graph.node[b.node].output[0]: b for b in found}


def choose(proto: onnx.ModelProto, count: int, given: Sequence[Feed] = ()) -> list[RemovedBlock]:
    """`depth.choose` in this process."""
    _, shapes = graph(proto)

    def here(function: str, arguments: Mapping[str, Any], **_: Any) -> Any:
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(**arguments)

    with mock.patch.object(worker, "call", here):
        return depth.choose(
            proto,
            depth.find_blocks(proto, shapes),
            count,
            shapes=shapes,
            folder=Path(),
            sizes=[{i.name: shapes.shape[i.name] for i in proto.graph.input}],
            bounds={},
            feeds=given,
        )


def stored(proto: onnx.ModelProto) -> set[str]:
    return {t.name for t in proto.graph.initializer}


# ---- What is a block -------------------------------------------------------------------------------------------------


def test_blocks_of_a_convolutional_network_and_no_projection() -> None:
    found = blocks_of(model(CNN))
    assert list(found) == ["y1", "y2"]
    first = found["y1"]
    assert (first.kept, first.branch, first.weights) == ("s", "c2", ("b1", "w1", "w2"))
    assert first.parameters == 8 * 8 * 9 * 2 + 8
    assert (found["y2"].kept, found["y2"].branch) == ("a1", "c3")


def test_blocks_of_a_transformer() -> None:
    found = blocks_of(model(TRANSFORMER, opset=18))
    assert list(found) == ["y"], "the attention alone reads the mask, an input that must not become useless"
    again = model(TRANSFORMER.replace("y = Add(h, d)", "k2 = Add(d, h)\n y = Add(k2, mask)"), opset=18)
    assert list(blocks_of(again)) == ["h", "k2"]


def test_nested_blocks_are_all_found() -> None:
    found = blocks_of(model(NESTED))
    assert list(found) == ["inner", "outer"]
    assert set(found["inner"].nodes) < set(found["outer"].nodes)


@pytest.mark.parametrize(
    "body",
    [
        "p = MatMul(x, w) \n q = MatMul(v, u) \n y = Add(p, q)",  # neither is computed from the other
        "p = MatMul(x, w) \n s = Add(x, p) \n t = Relu(p) \n y = Add(s, t)",  # the branch feeds something else too
        "p = Mul(x, x) \n q = Mul(p, g) \n y = Add(x, q)",  # no weight of two axes: an activation, not a block
        "p = MatMul(v, w) \n y = Add(p, g)",  # shapes differ
        "p = MatMul(x, w) \n y = Sum(p, x, v)",  # three operands
        "p = MatMul(x, w) \n y = Sub(p, x)",
        "y = Add(x, x)",
    ],
)
def test_what_is_no_block(body: str) -> None:
    text = f"(float[N,6] x, float[N,6] v) => (float[N,6] y) <float[6,6] w, float[6,6] u, float[6] g> {{ {body} \n}}"
    assert not blocks_of(model(text))


def test_a_branch_that_is_an_output_is_no_block() -> None:
    text = "(float[N,6] x) => (float[N,6] y, float[N,6] p) <float[6,6] w> { p = MatMul(x, w) \n y = Add(p, x) \n}"
    assert not blocks_of(model(text))


def test_shapes_shared_with_later_nodes_do_not_tie_a_block() -> None:
    m = model("""(float[N,T,6] x) => (float[N,T,6] y) <float[6,6] w, float[6,6] v> {
        s = Shape(x)
        p = MatMul(x, w)
        q = Reshape(p, s)
        h = Add(x, q)
        o = MatMul(h, v)
        r = Reshape(o, s)
        y = Add(h, r)
    }""")
    found = blocks_of(m)
    assert list(found) == ["h", "y"]
    left = depth.remove(m, [found["h"]])
    assert [n.op_type for n in left.graph.node] == ["Shape", "MatMul", "Reshape", "Add"]


# ---- Taking out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [CNN, NESTED, TRANSFORMER])
def test_each_block_taken_out_equals_its_branch_at_zero(text: str) -> None:
    m = model(text, opset=18)
    types = graph(m)[1].element_types
    for block in blocks_of(m).values():
        left, silenced = depth.remove(m, [block]), depth.silenced(m, [block], types)
        onnx.checker.check_model(left, full_check=True)
        assert differences({"silenced": silenced}, left, feeds(m))["silenced"] <= TOLERANCE
        assert differences({"original": m}, left, feeds(m))["original"] > 100 * TOLERANCE
        assert left.graph.input == m.graph.input
        assert left.graph.output == m.graph.output


def test_blocks_in_a_row_are_taken_out_together() -> None:
    m = model(CNN)
    found = list(blocks_of(m).values())
    left = depth.remove(m, found[::-1])
    assert differences({"": depth.silenced(m, found, graph(m)[1].element_types)}, left, feeds(m))[""] <= TOLERANCE
    assert stored(left) == {"stem", "w4", "skip", "head"}
    assert [n.op_type for n in left.graph.node if n.op_type != "Conv"] == [
        "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm",
    ]  # fmt: skip


def test_nothing_else_changes() -> None:
    m = model(CNN)
    m.metadata_props.add(key="k", value="v")
    m.graph.value_info.extend(onnx.ValueInfoProto(name=n) for n in ("s", "c1", "y1"))
    m.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    before = m.SerializeToString()
    left = depth.remove(m, [blocks_of(m)["y1"]])
    assert m.SerializeToString() == before
    assert stored(left) == stored(m) - {"w1", "b1", "w2"}
    assert [v.name for v in left.graph.value_info] == ["s"]
    assert left.metadata_props == m.metadata_props
    assert [n.output[0] for n in left.graph.node] == ["s", "a1", "c3", "y2", "c4", "p", "y3", "g", "f", "y"]
    assert list(left.graph.node[1].input) == ["s"]


def test_shared_weights_stay() -> None:
    m = model(
        CNN.replace("Conv(y2, w4)", "Conv<pads=[1,1,1,1]>(y2, w1) \n z4 = Conv(c4, w4)").replace("c4, p", "z4, p")
    )
    left = depth.remove(m, [blocks_of(m)["y1"]])
    assert stored(m) - stored(left) == {"b1", "w2"}


def test_weights_that_are_also_inputs_leave_no_input_behind() -> None:
    m = model(CNN, ir=3)
    m.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, TensorProto.FLOAT, list(t.dims)) for t in m.graph.initializer
    )
    left = depth.remove(m, [blocks_of(m)["y1"]])
    assert [i.name for i in left.graph.input] == ["x", "stem", "w3", "w4", "skip", "head"]


def test_a_sum_that_is_an_output_keeps_its_name() -> None:
    m = model("(float[N,6] x) => (float[N,6] y) <float[6,6] w> { p = MatMul(x, w) \n y = Add(p, x) \n}")
    left = depth.remove(m, list(blocks_of(m).values()))
    assert [(n.op_type, list(n.input), list(n.output)) for n in left.graph.node] == [("Identity", ["x"], ["y"])]
    for feed in feeds(m):
        assert np.array_equal(run(left, feed)["y"], feed["x"])


def test_a_sum_read_inside_a_subgraph_keeps_its_name() -> None:
    m = model("""(float[N,6] x, bool c) => (float[N,6] y) <float[6,6] w> {
        p = MatMul(x, w)
        s = Add(p, x)
        y = If(c) <then_branch = t () => (float[N,6] a) { a = Relu(s) },
                   else_branch = e () => (float[N,6] b) { b = Neg(s) }>
    }""")
    left = depth.remove(m, list(blocks_of(m).values()))
    assert [n.op_type for n in left.graph.node] == ["Identity", "If"]
    feed = {"x": np.ones((2, 6), np.float32), "c": np.array(False)}
    assert np.array_equal(run(left, feed)["y"], -feed["x"])


def test_weights_in_constant_nodes_go_too() -> None:
    m = model("""(float[N,2] x) => (float[N,2] y) {
        w = Constant<value = float[2,2] {1.0, 2.0, 3.0, 4.0}>()
        p = MatMul(x, w)
        h = Add(p, x)
        y = Relu(h)
    }""")
    (block,) = blocks_of(m).values()
    assert (block.weights, block.parameters) == (("w",), 4)
    assert [n.op_type for n in depth.remove(m, [block]).graph.node] == ["Relu"]


# ---- Which goes first ------------------------------------------------------------------------------------------------


def scaled(proto: onnx.ModelProto, **factors: float) -> onnx.ModelProto:
    """The model with some weights multiplied."""
    for tensor in proto.graph.initializer:
        if tensor.name in factors:
            tensor.CopyFrom(
                numpy_helper.from_array(
                    (numpy_helper.to_array(tensor) * factors[tensor.name]).astype(np.float32), tensor.name
                )
            )
    return proto


def relative(reference: npt.NDArray[Any], result: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(result - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize(("weak", "expected"), [("w2", "y1"), ("w3", "y2")])
def test_the_least_harmful_block_is_chosen_by_its_measured_damage(weak: str, expected: str) -> None:
    m = scaled(model(CNN), **{weak: 1e-2})
    feed = next(feeds(m))
    (removed,) = choose(m, 1, [feed])
    assert m.graph.node[removed.block.node].output[0] == expected
    by_hand = run(depth.silenced(m, [removed.block], graph(m)[1].element_types), feed)["y"]
    assert removed.damage == pytest.approx(relative(run(m, feed)["y"], by_hand), rel=1e-3)


def test_damage_is_measured_again_after_each_removal() -> None:
    m = model(CNN)
    feed = next(feeds(m))
    removed = choose(m, 2, [feed])
    both = depth.remove(m, [r.block for r in removed])
    assert removed[1].damage == pytest.approx(relative(run(m, feed)["y"], run(both, feed)["y"]), rel=1e-3)


def test_overlapping_blocks_are_never_both_removed() -> None:
    m = model(NESTED)
    assert len(choose(m, 1)) == 1
    with pytest.raises(NothingToPruneError, match=r"--depth 2: only 1 residual block of .* can be removed together"):
        choose(m, 2)


def test_an_outer_block_does_not_use_up_the_inner_ones_that_are_needed() -> None:
    turned = np.float32(-2) * np.eye(6, dtype=np.float32)
    m = model(
        """(float[N,6] x) => (float[N,6] y) <float[6,6] a, float[6,6] b, float[6,6] c> {
        p = MatMul(x, a)
        i = Add(p, x)
        q = MatMul(i, b)
        j = Add(q, i)
        r = MatMul(j, c)
        outer = Add(r, x)
        y = Neg(outer)
    }""",
        a=turned,  # without an inner block, what the outer one adds is turned round: twice the harm
        b=turned,
    )
    results = [m.graph.node[r.block.node].output[0] for r in choose(m, 1)]
    assert results == ["outer"]
    assert {m.graph.node[r.block.node].output[0] for r in choose(m, 2)} == {"i", "j"}


def test_made_up_inputs_serve_where_none_are_given() -> None:
    (removed,) = choose(scaled(model(CNN), w3=1e-3), 1)
    assert removed.damage is not None
    assert removed.damage < 0.1


def test_a_model_without_blocks_says_so() -> None:
    m = model("(float[N,6] x) => (float[N,6] y) <float[6,6] w> { y = MatMul(x, w) \n}")
    with pytest.raises(NothingToPruneError, match="no residual block that can be removed"):
        choose(m, 1)


@pytest.mark.parametrize(
    ("reference", "result", "damage"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 1.0),
        ([3.0, 4.0], [np.nan, 4.0], 1.0),
        ([3.0, np.inf], [1.5, 7.0], 0.5),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [1.0, 0.0], 1.0),
        ([1.0, 2.0], [1.0], 1.0),
    ],
)
def test_damage_of_one_output(reference: list[float], result: list[float], damage: float) -> None:
    assert depth.damage_of([{"y": np.array(reference)}], [{"y": np.array(result)}]) == damage


def test_damage_is_averaged_over_outputs_and_counts_other_classes() -> None:
    one = {"y": np.array([1.0]), "k": np.array([1, 2, 3, 4])}
    two = {"y": np.array([1.0]), "k": np.array([1, 2, 3, 5])}
    assert depth.damage_of([one], [two]) == 0.125


def test_calibration_data_is_measured_on_its_first_rows() -> None:
    batches = [{"x": np.zeros((32, 3)), "s": np.array(1.0)}] * 5
    assert len(depth.first_rows(batches)) == 2


# ---- The command -----------------------------------------------------------------------------------------------------


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.command, [str(a) for a in arguments], prog_name="onnxprune")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(scaled(model(CNN), w2=1e-2).SerializeToString())
    return path


def test_depth_alone(network: Path, tmp_path: Path) -> None:
    result = call(network, "--depth", 1, "--ratio", 0, "--no-recover", "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "removed the residual block 'Add(y1)': 3 nodes and 1160 parameters, damage " in result.stdout
    left = onnx.load(tmp_path / "net_pruned.onnx")
    original = onnx.load(network)
    assert stored(original) - stored(left) == {"w1", "b1", "w2"}
    kept = {t.name: t for t in left.graph.initializer}
    assert all(kept[t.name] == t for t in original.graph.initializer if t.name in kept)
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["options"]["depth"] == 1
    assert data["options"]["removed_blocks"] == ["Add(y1)"]
    assert data["before"]["parameters"] - data["after"]["parameters"] == 1160
    assert data["before"]["nodes"] - data["after"]["nodes"] == 4
    assert data["before"]["macs"] > data["after"]["macs"]


def test_a_removed_block_is_made_up_for_by_the_layers_behind_it(network: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(256, 3, 8, 8)).astype(np.float32))
    errors = {}
    for recover in (True, False):
        options = Config(depth=1, ratio=0, calibration=data, recover=recover, force=True)
        quality = api.prune(network, options).quality
        assert quality is not None
        errors[recover] = quality.outputs["y"].relative_error
    assert errors[True] < 0.8 * errors[False]


def test_a_removed_block_is_made_up_for_without_data_too(network: Path) -> None:
    report = api.prune(network, Config(depth=1, ratio=0))
    assert report.inputs is not None
    assert report.inputs.kind == "synthetic"
    assert any(layer.after < layer.before for layer in report.layers)


def test_depth_before_width_and_its_plan_replayed(network: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    options = ["--no-recover", "--round-to", 1]
    assert call(network, "--depth", 1, "--save-plan", plan, *options).exit_code == 0
    data = json.loads(plan.read_text())
    assert data["blocks"] == ["Add(y1)"]
    assert "w1" not in {entry["name"] for entry in data["tensors"]}
    assert call(network, "--plan", plan, "-o", tmp_path / "again.onnx", "--no-recover").exit_code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "net_pruned.onnx").read_bytes()
    shapes = {t.name: tuple(t.dims) for t in onnx.load(tmp_path / "again.onnx").graph.initializer}
    assert shapes["w3"] == (4, 4, 1, 1)


def test_a_plan_of_blocks_alone_is_replayed(network: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert call(network, "--depth", 2, "--ratio", 0, "--no-recover", "--save-plan", plan).exit_code == 0
    assert json.loads(plan.read_text())["groups"] == []
    assert call(network, "--plan", plan, "-o", tmp_path / "again.onnx", "--no-recover").exit_code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "net_pruned.onnx").read_bytes()


@pytest.mark.parametrize(
    ("blocks", "words"),
    [(["Add(gone)"], "'Add(gone)', which the model does not have"), (["Add(y1)"] * 2, "twice"), (3, "must be a list")],
)
def test_a_plan_with_other_blocks_is_refused(network: Path, tmp_path: Path, blocks: Any, words: str) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"schema": 1, "groups": [], "blocks": blocks}))
    result = call(network, "--plan", plan, "--no-recover")
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_external_data_of_removed_weights_is_gone(tmp_path: Path) -> None:
    m = model(CNN)
    path = tmp_path / "big.onnx"
    onnx.save(model(CNN), path, save_as_external_data=True, location="big.bin", size_threshold=1024)
    result = call(path, "--depth", 2, "--ratio", 0, "--no-recover", "-o", tmp_path / "small.onnx")
    assert result.exit_code == 0, result.output
    (tmp_path / "big.bin").unlink()
    left = onnx.load(tmp_path / "small.onnx")
    assert stored(left) == {"stem", "w4", "skip", "head"}
    found = list(blocks_of(m).values())
    silenced = depth.silenced(m, found, graph(m)[1].element_types)
    assert differences({"silenced": silenced}, left, feeds(m))["silenced"] <= TOLERANCE


def test_too_few_blocks_end_with_4(network: Path) -> None:
    result = call(network, "--depth", 3, "--no-recover")
    assert result.exit_code == 4
    assert "--depth 3: only 2 residual blocks of the model can be removed together" in result.stderr
    assert "Add(y1), Sum(y2)" in result.stderr
    assert not network.with_name("net_pruned.onnx").exists()


def test_a_wrong_removal_is_caught(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = depth.remove

    def wrong(proto: onnx.ModelProto, blocks: Sequence[Block]) -> onnx.ModelProto:
        return scaled(right(proto, blocks), w3=1.01)

    monkeypatch.setattr(depth, "remove", wrong)
    with pytest.raises(VerificationError, match="differs from the original with their branches at zero"):
        api.prune(network, Config(depth=1, ratio=0, recover=False))
    assert not network.with_name("net_pruned.onnx").exists()


def test_the_last_operator_may_read_another_name(tmp_path: Path) -> None:
    m = model("(float[N,6] x) => (float[N,6] y) <float[6,6] w> { p = MatMul(x, w) \n h = Add(p, x) \n y = Tanh(h) \n}")
    (tmp_path / "m.onnx").write_bytes(m.SerializeToString())
    report = api.prune(tmp_path / "m.onnx", Config(depth=1, ratio=0, recover=False))
    assert report.exactness is not None
    assert report.exactness.passed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": -1}, "--depth must not be negative"),
        ({"ratio": 0}, r"or be 0, with --depth"),
        ({"depth": 1, "ratio": 0, "target": "macs=0.5"}, "leave --target out"),
        ({"depth": 1, "ratio": 1}, "--ratio must lie between 0 and 1"),
        ({"depth": 1, "plan": Path("p.json")}, "leave --depth out"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Config(**options).validate()


def test_exactness_of_two_steps_is_the_worse_one() -> None:
    a, b = verify.Exactness(1.0, 0.5, False, 2), verify.Exactness(2.0, 0.1, True, 1)
    assert verify.worst_of(a, b) == verify.Exactness(2.0, 0.5, False, 1)
    unshown = verify.Exactness(0.0, 0.0, True, 2, shown=False)
    assert not verify.worst_of(a, unshown).shown and not verify.worst_of(unshown, a).shown


DEAF = """(float[N,6] x) => (float[N,4] y)
<float[6,6] w1, float[6,8] w2, float[8,4] w3, float[4] b> {
    c1 = MatMul(x, w1)
    a = Add(c1, x)
    c2 = MatMul(a, w2)
    m = MatMul(c2, w3)
    y = Add(m, b)
}"""
"""A block, then a group of 8."""


@pytest.mark.parametrize(
    ("still", "ratio", "shown"),
    [((), 0.0, True), ((), 0.5, True), (("w1",), 0.0, False), (("w1",), 0.5, False), (("w3",), 0.5, False)],
)
def test_the_proof_says_where_the_removal_of_blocks_or_the_cut_behind_it_could_not_be_seen(
    tmp_path: Path, still: Sequence[str], ratio: float, shown: bool
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(scaled(model(DEAF), **dict.fromkeys(still, 0.0)).SerializeToString())
    report = api.prune(path, Config(depth=1, ratio=ratio, recover=False, round_to=1))
    assert report.exactness is not None and report.exactness.passed
    assert report.exactness.shown == shown
    said = any("no output changes with the removed channels or residual blocks" in note for note in report.notes)
    assert said == (not shown)


def test_a_cut_that_changes_nothing_is_not_shown_by_the_removal_of_a_block(tmp_path: Path) -> None:
    """The block matters, the channels that go behind it do not."""
    proto = model(DEAF)
    half = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "w2")).copy()
    half[:, :4] = 0
    next(t for t in proto.graph.initializer if t.name == "w2").CopyFrom(numpy_helper.from_array(half, "w2"))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    report = api.prune(path, Config(depth=1, ratio=0.5, recover=False, round_to=1))
    assert report.exactness is not None and not report.exactness.shown
