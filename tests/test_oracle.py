"""The proofs themselves: a wrong cut and a wrong rule must fail them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracle import (
    TOLERANCE,
    applied,
    differences,
    feeds,
    forget,
    graph,
    model,
    prunable,
    prune,
    prune_and_compare,
    random_plan,
    replace_weight,
    run,
    stored,
    worst_difference,
    zeroed,
)

from onnxprune import masking, rules
from onnxprune.cut import cut
from onnxprune.plan import to_json
from onnxprune.records import Plan
from onnxprune.rules import registry

RESIDUAL = """(float[N,3,H,W] x) => (float[N,5,H,W] y)
    <float[8,3,1,1] w, float[8,8,3,3] u, float[8] b, float[5,8,1,1] v> {
    h = Conv(x, w)
    r = Relu(h)
    k = Conv<pads=[1,1,1,1]>(r, u, b)
    s = Add(k, h)
    y = Conv(s, v)
}"""


@pytest.fixture(name="references")
def _references() -> tuple[onnx.ModelProto, dict[str, onnx.ModelProto]]:
    """The right result of a pruning, and both references for it."""
    proto = model(RESIDUAL)
    found, sizes = graph(proto)
    kept = random_plan(found, ratio=0.5, seed=0)
    done = cut(proto, found, sizes, kept)
    keep = {g.dim: np.isin(np.arange(g.size), kept[g.id]) for g in found.groups if g.id in kept}
    data = to_json(Plan(kept), found, done.slices, model="m", sha256="")
    masked = masking.masked_model(proto, found, keep, sizes.element_types)
    return applied(done), {"masked": masked, "zeroed": zeroed(proto, data)}


def _break(proto: onnx.ModelProto, name: str, axis: int) -> onnx.ModelProto:
    """Swap the first two slices of one weight, as a cut that takes the kept indices of one consumer in wrong order."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    tensor = stored(result)[name]
    array = numpy_helper.to_array(tensor)
    replace_weight(tensor, np.take(array, [1, 0, *range(2, array.shape[axis])], axis))
    return result


def test_a_right_cut_passes(references: tuple[onnx.ModelProto, dict[str, onnx.ModelProto]]) -> None:
    result, expected = references
    assert max(differences(expected, result, feeds(result)).values()) <= TOLERANCE


@pytest.mark.parametrize(("name", "axis"), [("w", 0), ("u", 0), ("u", 1), ("b", 0), ("v", 1)])
def test_swapped_indices_of_one_weight_fail_both_proofs(
    references: tuple[onnx.ModelProto, dict[str, onnx.ModelProto]], name: str, axis: int
) -> None:
    result, expected = references
    found = differences(expected, _break(result, name, axis), feeds(result))
    assert min(found.values()) > 100 * TOLERANCE


@pytest.mark.parametrize(("name", "axis"), [("w", 0), ("u", 1), ("v", 1)])
def test_a_slice_that_is_lost_fails_both_proofs(
    references: tuple[onnx.ModelProto, dict[str, onnx.ModelProto]], name: str, axis: int
) -> None:
    result, expected = references
    broken = onnx.ModelProto()
    broken.CopyFrom(result)
    array = numpy_helper.to_array(stored(broken)[name]).copy()
    np.moveaxis(array, axis, 0)[0] = 0
    replace_weight(stored(broken)[name], array)
    assert min(differences(expected, broken, feeds(result)).values()) > 100 * TOLERANCE


def test_a_weight_of_the_wrong_size_does_not_run(
    references: tuple[onnx.ModelProto, dict[str, onnx.ModelProto]],
) -> None:
    result, expected = references
    array = numpy_helper.to_array(stored(result)["v"])
    replace_weight(stored(result)["v"], array[:, 1:])
    with pytest.raises(Exception, match=r"(?i)channel"):
        differences(expected, result, feeds(result))


def test_the_masked_models_are_not_the_original(references: tuple[onnx.ModelProto, dict[str, onnx.ModelProto]]) -> None:
    """Were nothing masked, the comparison would prove nothing."""
    original = model(RESIDUAL)
    for feed in feeds(original):
        for reference in references[1].values():
            assert worst_difference(run(original, feed), run(reference, feed)) > 100 * TOLERANCE


def test_another_shape_type_or_name_is_infinitely_different() -> None:
    a = np.ones(3, np.float32)
    assert worst_difference({"a": a}, {"b": a}) == np.inf
    assert worst_difference({"a": a}, {"a": a[:2]}) == np.inf
    assert worst_difference({"a": a}, {"a": a.astype(np.float64)}) == np.inf
    assert worst_difference({"a": a}, {"a": a * np.float32("nan")}) == np.inf
    assert worst_difference({"a": np.arange(3)}, {"a": np.arange(3)[::-1]}) == np.inf
    assert worst_difference({"a": 2 * a}, {"a": 3 * a}) == 0.5
    assert worst_difference({"a": a}, {"a": a.copy()}) == 0


# ---- Wrong rules -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_analysis() -> Iterator[None]:
    yield
    forget()


def _replace_rule(monkeypatch: pytest.MonkeyPatch, op: str, wrong: registry.Rule) -> None:
    right = rules.find
    monkeypatch.setattr(rules, "find", lambda domain, name, opset: wrong if name == op else right(domain, name, opset))
    forget()


def _as_pointwise(op: registry.Operator) -> None:
    op.broadcast([0])


@pytest.mark.parametrize("call", ["Softmax<axis=1>(h)", "LRN<size=3>(h)", "CumSum(h, one)", "LogSoftmax<axis=1>(h)"])
def test_an_operator_taken_for_an_element_wise_one_is_caught(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(f"""(float[N,3,6,6] x) => (float[N,5,6,6] y) <float[8,3,1,1] w, float[5,8,1,1] v, int64 one = {{1}}> {{
        h = Conv(x, w)
        r = {call}
        y = Conv(r, v)
    }}""")
    assert not prunable(m)
    _replace_rule(monkeypatch, call.partition("(")[0].partition("<")[0], _as_pointwise)
    assert prunable(m)
    with pytest.raises(AssertionError, match="masked"):
        prune_and_compare(m)


def test_a_consumer_whose_sum_is_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(op: registry.Operator) -> None:
        letters = op.apply("... m k, ... k n -> ... m n")
        op.contractions.clear()
        op.macs(*op.outputs[0], letters["k"])

    m = model("""(float[N,6,4] x) => (float[N,6,3] y) <float[4,8] w, float[8] b, float[8,3] v> {
        h = MatMul(x, w)
        a = Add(h, b)
        y = MatMul(a, v)
    }""")
    _replace_rule(monkeypatch, "MatMul", wrong)
    found, _ = graph(m)
    result = prune(m, random_plan(found, ratio=0.5, seed=0))
    assert result.differences["masked"] > 100 * TOLERANCE


def test_an_average_taken_for_a_sum_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(op: registry.Operator) -> None:
        op.contract(0, [len(op.dims(0)) - 1])
        op.broadcast([i for i in range(len(op.inputs)) if op.has(i)])

    m = model("""(float[N,6,4] x) => (float[N,6,3] y) <float[4,8] w, float[8] s, float[8,3] v> {
        h = MatMul(x, w)
        n = LayerNormalization(h, s)
        y = MatMul(n, v)
    }""")
    _replace_rule(monkeypatch, "LayerNormalization", wrong)
    with pytest.raises(AssertionError, match="masked"):
        prune_and_compare(m)
