"""What the walk over the graph does besides applying rules: where weights are, what the unknown freezes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracle import forget, graph, groups, model, places, prunable, prune_and_compare, reasons, stored

from onnxprune import analysis, score, shapes
from onnxprune.errors import ModelError
from onnxprune.rules import Operator, registry

# ---- Where weights are -----------------------------------------------------------------------------------------------


def _constant_nodes(proto: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """Move initializers into Constant nodes, as Paddle exports them."""
    moved = [t for t in proto.graph.initializer if t.name in names]
    nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in moved] + list(proto.graph.node)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    for t in moved:
        proto.graph.initializer.remove(t)
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    return proto


def test_weights_in_constant_nodes() -> None:
    m = model("""(float[N,3,H,W] x) => (float[N,5,H,W] y) <float[8,3,3,3] w, float[8] b, float[5,8,1,1] v> {
        h = Conv<pads=[1,1,1,1]>(x, w, b)
        y = Conv(h, v)
    }""")
    m = _constant_nodes(m, "w", "b", "v")
    assert prunable(m) == {"w:0": 8}
    result = prune_and_compare(m)
    assert result.weights == {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4, 1, 1)}
    assert set(result.differences) == {"masked", "zeroed"}


def test_weights_behind_a_transpose_and_a_cast() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float16[8,4] w, float[3,8] v> {
        f = Cast<to=1>(w)
        t = Transpose<perm=[1,0]>(f)
        h = MatMul(x, t)
        r = Relu(h)
        u = Transpose<perm=[1,0]>(v)
        y = MatMul(r, u)
    }""")
    assert prunable(m) == {"w:0": 8}
    assert places(groups(m)["w:0"]) == {("w", 0): "produced", ("v", 1): "contracted"}
    result = prune_and_compare(m)
    assert result.weights == {"w": (4, 4), "v": (3, 4)}
    assert set(result.differences) == {"masked", "zeroed"}


def test_weights_behind_a_reshape() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,2,4] w, int64[2] flat = {4,8}, float[8,3] v> {
        t = Reshape(w, flat)
        h = MatMul(x, t)
        y = MatMul(h, v)
    }""")
    assert prunable(m) == {"w:1": 2, "w:2": 4}
    prune_and_compare(m, factors=True)


def test_a_weight_made_by_constant_of_shape() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <int64[2] s = {4,8}, float[8] b, float[8,3] v> {
        w = ConstantOfShape<value = float[1] {0.25}>(s)
        h = MatMul(x, w)
        a = Add(h, b)
        y = MatMul(a, v)
    }""")
    assert list(prunable(m).values()) == [8]
    prune_and_compare(m)


def test_one_weight_used_by_two_layers_of_the_same_role() -> None:
    m = model("""(float[N,4] x, float[N,4] z) => (float[N,3] y) <float[4,8] w, float[8,3] u, float[8,3] v> {
        a = MatMul(x, w)
        b = MatMul(z, w)
        p = MatMul(a, u)
        q = MatMul(b, v)
        y = Add(p, q)
    }""")
    assert prunable(m) == {"w:1": 8}
    assert places(groups(m)["w:1"]) == {("w", 1): "produced", ("u", 0): "contracted", ("v", 0): "contracted"}
    assert len(groups(m)["w:1"].nodes) == 4
    prune_and_compare(m)


def test_one_weight_used_in_two_roles() -> None:
    """Tied embeddings: the table is looked up first and projects back at the end."""
    m = model("""(int64[N,T] ids) => (float[N,T,9] y) <float[9,8] table, float[8,8] w> {
        h = Gather(table, ids)
        k = MatMul(h, w)
        r = Tanh(k)
        s = Add(r, h)
        t = Transpose<perm=[1,0]>(table)
        y = MatMul(s, t)
    }""")
    assert list(prunable(m).values()) == [8]
    result = prune_and_compare(m, high=9)
    assert result.weights == {"table": (9, 4), "w": (4, 4)}


@pytest.mark.parametrize("tied", ["t = Transpose(w)\ny = MatMul(a, t)", "y = Gemm<transB=1>(a, w)"])
def test_a_tied_weight_produces_and_sums_over_the_same_axis(tied: str) -> None:
    """An autoencoder whose decoder is the transposed encoder."""
    m = model(f"""(float[N,6] x) => (float[N,6] y) <float[6,8] w, float[8] b> {{
        h = MatMul(x, w)
        k = Add(h, b)
        a = Sigmoid(k)
        {tied}
    }}""")
    assert prunable(m) == {"w:1": 8}
    found = [(o.tensor, o.role) for o in groups(m)["w:1"].occurrences]
    assert found == [("w", "contracted"), ("b", "carried"), ("w", "produced")]
    result = prune_and_compare(m)
    assert result.weights == {"w": (6, 4), "b": (4,)}
    assert set(result.differences) == {"masked", "zeroed"}


def test_a_tied_weight_counts_once_in_the_score() -> None:
    """The encoder alone and with the decoder tied to it rank the hidden units alike."""
    tied = model("""(float[N,6] x) => (float[N,6] y) <float[6,8] w> {
        h = MatMul(x, w)
        t = Transpose(w)
        y = MatMul(h, t)
    }""")
    found = graph(tied)[0]
    weight = numpy_helper.to_array(stored(tied)["w"])
    scores = score.score(
        found, [groups(tied)["w:1"]], lambda name: weight if name == "w" else None, criterion="l1", seed=0
    )
    norms = np.abs(weight).sum(axis=0)
    np.testing.assert_allclose(scores["w:1"], norms / norms.mean(), rtol=1e-6)


def test_a_weight_that_is_an_input_too_is_a_weight() -> None:
    m = model("""(float[N,4] x, float[4,8] w) => (float[N,3] y) <float[8,3] v> {
        h = MatMul(x, w)
        y = MatMul(h, v)
    }""")
    weight = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    m.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    assert prunable(m) == {"w:1": 8}


# ---- What stays ------------------------------------------------------------------------------------------------------


def test_graph_outputs_and_inputs_keep_their_shape() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y, float[N,8] h) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        y = MatMul(h, v)
    }""")
    assert prunable(m) == {}
    assert reasons(m) == dict.fromkeys(["w:1", "v:1"], "graph output: the interface keeps its shape")


def test_an_unknown_operator_freezes_what_it_touches_and_nothing_else() -> None:
    m = model("""(float[2,4] x) => (float[2,3] y) <float[4,8] w, float[8,6] u, float[2,6] k, float[6,3] v> {
        h = MatMul(x, w)
        g = MatMul(h, u)
        k = test.Mystery(g)
        y = MatMul(k, v)
    }""")
    m.graph.value_info.append(onnx.helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, [2, 6]))
    assert prunable(m) == {"w:1": 8}
    assert reasons(m)["u:1"] == "Mystery: no rule for operator test::Mystery"


def test_a_rule_that_contradicts_the_shapes_freezes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results keep the shapes the model has, so that no operator behind it is taken for damaged."""

    def turned(op: Operator) -> None:
        op.outputs[0] = op.dims(0)[::-1]

    forget()
    monkeypatch.setitem(registry._RULES, ("test", "Mystery"), [(1, turned)])
    m = model("""(float[2,4] x) => (float[2,3] y) <float[4,8] w, float[8,6] u, float[2,6] k, float[6,3] v> {
        h = MatMul(x, w)
        g = MatMul(h, u)
        k = test.Mystery(g)
        y = MatMul(k, v)
    }""")
    m.graph.value_info.append(onnx.helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, [2, 6]))
    assert prunable(m) == {"w:1": 8}
    assert reasons(m)["u:1"] == "Mystery: the rule of Mystery does not give the shape (2, 6) of 'k'"
    forget()


def test_an_unknown_operator_of_the_default_domain_is_named_without_a_domain() -> None:
    m = model("""(float[4,4] x, int64[4] l) => (float d) <float[4,4] w> {
        h = MatMul(x, w)
        d = NegativeLogLikelihoodLoss(h, l)
    }""")
    assert reasons(m)["w:1"].endswith(": no rule for operator NegativeLogLikelihoodLoss")


def test_what_a_body_captures_stays_where_its_names_are_not_unique() -> None:
    """Both branches call their result p, so the name does not say which tensor is meant."""
    m = model("""(float[N,4] x, bool c) => (float[N,3] y, float[N,8] e) <float[4,8] w, float[4,6] u, float[6,3] v> {
        h = MatMul(x, w)
        e = If (c) <
            then_branch = f () => (float[N,8] p) { p = Identity(h) },
            else_branch = f () => (float[N,8] p) { p = Neg(h) }>
        k = MatMul(x, u)
        y = MatMul(k, v)
    }""")
    assert prunable(m) == {"u:1": 6}
    assert reasons(m)["w:1"].startswith("If: ")


def test_a_dimension_that_nothing_produces_is_no_group() -> None:
    m = model("""(float[N,8] x) => (float[N,8] y) <float[8] scale, float[8] shift> {
        a = Mul(x, scale)
        y = Add(a, shift)
    }""")
    assert groups(m) == {}


def test_names_of_nodes_without_a_name_tell_operator_and_result() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        y = MatMul(h, v)
    }""")
    assert groups(m)["w:1"].nodes == ("MatMul(h)", "MatMul(y)")
    m.graph.node[0].name = "first"
    assert groups(m)["w:1"].nodes == ("first", "MatMul(y)")


def test_two_groups_on_one_axis_have_ids_of_their_own() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, int64[2] s = {2,6}, float[2,3] u, float[6,3] v> {
        h = MatMul(x, w)
        a, b = Split<axis=1>(h, s)
        p = MatMul(a, u)
        q = MatMul(b, v)
        y = Add(p, q)
    }""")
    assert list(groups(m)) == ["w:1", "w:1#2", "u:1"]


def test_a_damaged_weight_is_an_error_that_names_node_and_sizes() -> None:
    """onnx.checker, strict shape inference and session creation all accept a Conv with a wrong number of channels."""
    m = model("""(float[2,3,8,8] x) => (float[2,5,8,8] y) <float[8,3,1,1] w, float[5,7,1,1] v> {
        h = Conv(x, w)
        y = Conv(h, v)
    }""")
    found = shapes.infer(m)
    with pytest.raises(ModelError, match=r"Conv node 'Conv\(y\)' .*(7.*8|8.*7).* damaged"):
        analysis.analyse(m, found)
