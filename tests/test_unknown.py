"""Why something stays, in words: shapes nobody knows, operators without a rule, axes that do not go together."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracle import groups, model, prunable, prune_and_compare, reasons

from onnxprune import rules
from onnxprune.rules.opaque import REASONS, why_no_rule


def test_the_operator_that_gave_no_shape_is_named() -> None:
    """Not the one that reads the tensor, and not the ones in between."""
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] v, float[4,6] u, float[6,4] t> {
        k = MatMul(x, u)
        l = MatMul(k, t)
        a = test.Strange(l)
        b = Relu(a)
        h = MatMul(x, w)
        c = Add(b, h)
        y = MatMul(c, v)
    }""")
    told = "neither onnx nor a run of the model tells what the test::Strange that makes 'a' gives"
    assert reasons(m)["t:1"] == "Strange: no rule for operator test::Strange"
    assert reasons(m)["w:1"] == f"Add: the shape of 'b' is not known: {told}"
    assert prunable(m) == {"u:1": 6}


def test_a_tensor_without_a_shape_is_no_scalar() -> None:
    """The target comes from outside, so nothing tells the shape of b; it is not taken for one without axes."""
    m = model("""(float[N,T,4] x, int64[3] target) => (float[N,T,3] y)
        <float[4,8] w, float[1,8] e, float[8,6] u, float[6,3] v, float[N,T,8] b> {
        h = MatMul(x, w)
        b = Expand(e, target)
        s = Add(h, b)
        k = MatMul(s, u)
        y = MatMul(k, v)
    }""")
    told = "neither onnx nor a run of the model tells what the Expand that makes 'b' gives"
    assert reasons(m)["w:1"] == f"Add: the shape of 'b' is not known: {told}"
    assert prunable(m) == {"u:1": 6}


def test_sequences_are_named_as_the_cause() -> None:
    m = model("""(float[2,4] x) => (float[2,3] y) <float[4,8] w, float[4,3] v, int64[2] parts = {4,4},
        int64 first = {0}> {
        h = MatMul(x, w)
        s = SplitToSequence<axis=1>(h, parts)
        p = SequenceAt(s, first)
        y = MatMul(p, v)
    }""")
    assert reasons(m)["w:1"] == "SplitToSequence: SplitToSequence: a sequence of tensors has no axes of its own"


def test_sparse_weights_are_named() -> None:
    m = model(
        """(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,6] u, float[6,3] v> {
        h = MatMul(x, w)
        k = MatMul(h, s)
        l = Add(k, h)
        r = MatMul(l, u)
        y = MatMul(r, v)
    }""".replace("MatMul(h, s)", "MatMul(h, w2)").replace("float[4,8] w,", "float[4,8] w, float[8,8] w2,")
    )
    dense = next(t for t in m.graph.initializer if t.name == "w2")
    values = numpy_helper.from_array(np.asarray([1.0, 2.0], np.float32), "w2")
    sparse = onnx.helper.make_sparse_tensor(values, numpy_helper.from_array(np.asarray([3, 17])), list(dense.dims))
    m.graph.initializer.remove(dense)
    m.graph.sparse_initializer.append(sparse)
    assert reasons(m)["w:1"] == "MatMul: 'w2' is a sparse tensor; only dense weights are supported"
    assert prunable(m) == {"u:1": 6}
    prune_and_compare(m)


def test_sparse_constants_are_named() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] v> {
        s = Constant<value = float[1] {1}>()
        h = MatMul(x, w)
        k = Mul(h, s)
        y = MatMul(k, v)
    }""")
    values = numpy_helper.from_array(np.asarray([1.0], np.float32))
    sparse = onnx.helper.make_sparse_tensor(values, numpy_helper.from_array(np.asarray([3])), [8])
    m.graph.node[0].attribute[0].CopyFrom(onnx.helper.make_attribute("sparse_value", sparse))
    assert reasons(m)["w:1"] == "Mul: 's' is a sparse tensor; only dense weights are supported"


def test_no_operator_with_a_rule_is_called_opaque() -> None:
    known = {name for domain, name, _, _ in rules.supported() if not domain}
    assert not known & set(REASONS)
    assert {s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain} >= set(REASONS)


def test_operators_that_cannot_have_a_rule_say_why() -> None:
    assert why_no_rule("", "NonZero") == "NonZero: how many it finds depends on the data"
    assert why_no_rule("other", "NonZero") == "no rule for operator other::NonZero"
    assert why_no_rule("ai.onnx", "Bernoulli").endswith("its result is random, so that nothing could be proved of it")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = Reshape(h, a)\n t = Transpose<perm=[0,2,1]>(r)\n k = Reshape(t, b)\n l = Reshape(k, a)", "taken"),
        ("r = Reshape(h, a)\n t = Transpose<perm=[0,2,1]>(r)\n k = Reshape(t, b)\n l = Add(k, h)", "made equal"),
    ],
)
def test_how_axes_are_made_up(body: str, reason: str) -> None:
    """A shuffle: 4 x 6 becomes 6 x 4, which is not the axis it came from."""
    m = model(f"""(float[2,4] x) => (float[2,3] y) <float[4,24] w, int64[3] a = {{2,4,6}}, int64[2] b = {{2,24}},
        float[24,3] v> {{
        h = MatMul(x, w)
        {body}
        f = Reshape(l, b)
        y = MatMul(f, v)
    }}""")
    told = next(iter(reasons(m).values()))
    assert "made up as" in told
    assert reason in told or "4 x 6" in told
    assert groups(m)
