"""Gradients of the training model, by differences of its loss."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from onnxprune.recover import tune
from onnxprune.recover.divergence import Probe, probes
from onnxprune.recover.execution import reader
from onnxprune.recover.layers import Weights

pytest.importorskip("onnx_ad", reason="extra 'gradients' is not installed")

from onnxprune.recover.gradients import Feature, Trainer

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,4,6,6] x) => (float[n,5] out) {
    a = Conv<pads=[1,1,1,1], group=2>(x, w1, b1)
    r = Tanh(a)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w2, b2)
    out = LAST(y)
}
"""


def trainer(last: str, frozen: Set[str] = frozenset()) -> tuple[Trainer, dict[str, Any], list[Any]]:
    """The weights in place of those of the file, of which `w2` lies in a Constant node and is zero."""
    random = np.random.default_rng(0)
    sizes = {"w1": (8, 2, 3, 3), "b1": (8,), "w2": (5, 8), "b2": (5,)}
    proto = parser.parse_model(TEXT.replace("LAST", last))
    arrays = {n: random.normal(0, 0.7, shape).astype(np.float32) for n, shape in sizes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items() if n != "w2")
    stored = numpy_helper.from_array(np.zeros_like(arrays["w2"]), "w2")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w2"], value=stored))
    weights = Weights(proto, reader(proto, arrays.get, {}))
    feed = {"x": random.normal(size=(3, 4, 6, 6)).astype(np.float32)}
    target = random.normal(0, 3, (3, 5)).astype(np.float32)
    features = [Feature.of(p, [target]) for p in probes(proto)]
    return Trainer(weights, feed, features, threads=1, frozen=frozen, memory_bytes=1 << 30), feed, [target]


@pytest.mark.parametrize("last", ["Softmax", "Sigmoid", "Neg"])
def test_gradients_are_differences_of_the_loss(last: str) -> None:
    found, feed, targets = trainer(last)
    _, gradients = found.step(feed, targets)
    random = np.random.default_rng(1)
    for layer in found.layers:
        for name, field in zip(layer.names, ("weight", "bias"), strict=True):
            value = getattr(layer, field)
            along = random.normal(size=value.shape).astype(np.float32)
            losses = []
            for step in (1e-2, -1e-2):
                setattr(layer, field, value + np.float32(step) * along)
                losses.append(found.step(feed, targets)[0])
            setattr(layer, field, value)
            slope = (losses[0] - losses[1]) / 2e-2
            assert slope == pytest.approx(float((gradients[name] * along).sum()), rel=2e-2, abs=1e-4)


def test_the_loss_of_probabilities_is_zero_where_they_are_the_same() -> None:
    found, feed, _ = trainer("Softmax")
    zeros = [np.zeros((3, 5), np.float32)]
    for layer in found.layers:
        layer.weight = np.zeros_like(layer.weight)
        layer.bias = np.zeros_like(layer.bias) if layer.bias is not None else None
    assert found.step(feed, zeros)[0] == pytest.approx(0, abs=1e-6)
    shifted = [zeros[0] + np.array([[2], [-1], [7]], np.float32)]
    assert found.step(feed, shifted)[0] == pytest.approx(0, abs=1e-6)
    other = [zeros[0] + np.array([0, 0, 1, 0, 0], np.float32)]
    assert found.step(feed, other)[0] > 1e-3


def test_a_frozen_operator_keeps_its_weights_and_passes_gradients_on() -> None:
    free, feed, targets = trainer("Softmax")
    found, _, _ = trainer("Softmax", frozen={"y"})
    assert [layer.names[0] for layer in found.layers] == [layer.names[0] for layer in free.layers][:1]
    loss, gradients = found.step(feed, targets)
    whole, every = free.step(feed, targets)
    assert loss == pytest.approx(whole)
    np.testing.assert_allclose(gradients["train_w0"], every["train_w0"], rtol=1e-5, atol=1e-7)
    assert "train_w1" not in gradients


QUANTIZED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,6] x) => (float[n,5] y)
    <float s = {0.05}, uint8 z = {40}, int8[7,6] w1, float[7] s1, float s2 = {0.02}, int8 z2 = {0}, int8[7,5] w2> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = DequantizeLinear<axis=0>(w1, s1)
    a = Gemm<transB=1>(d, v)
    r, rs, rz = DynamicQuantizeLinear(a)
    b = DequantizeLinear(r, rs, rz)
    u = DequantizeLinear(w2, s2, z2)
    y = MatMul(b, u)
}
"""


def quantized() -> tuple[Weights, Trainer, dict[str, Any], Any]:
    """A model of int8 weights and quantized activations, which reach what their integers hold at both ends."""
    random = np.random.default_rng(2)
    proto = parser.parse_model(QUANTIZED)
    arrays = {
        "w1": random.integers(-127, 128, (7, 6), np.int8),
        "w2": random.integers(-127, 128, (7, 5), np.int8),
        "s1": np.linspace(0.003, 0.02, 7, dtype=np.float32),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    weights = Weights(proto, reader(proto, arrays.get, {}))
    feed = {"x": random.normal(0, 6, (40, 6)).astype(np.float32)}
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (told,) = session.run(None, feed)
    features = [Feature.of(p, [told]) for p in probes(proto)]
    return weights, Trainer(weights, feed, features, threads=1, memory_bytes=1 << 30), feed, told


def test_gradients_pass_what_is_quantized_and_stop_at_its_ends() -> None:
    _, found, feed, told = quantized()
    assert [layer.names[0] for layer in found.layers] == ["train_w0", "train_w1"]
    loss, _ = found.step(feed, [told])
    assert 0 < loss < 1e-3, "all but the rounding of the activations"
    far, gradients = found.step(feed, [told + 1])
    for layer in found.layers:
        along = np.random.default_rng(3).normal(size=layer.weight.shape).astype(np.float32)
        value, losses = layer.weight, []
        for step in (1e-3, -1e-3):
            layer.weight = value + np.float32(step) * along
            losses.append(found.step(feed, [told + 1])[0])
        layer.weight = value
        slope = (losses[0] - losses[1]) / 2e-3
        assert slope == pytest.approx(float((gradients[layer.names[0]] * along).sum()), rel=2e-2)
        assert abs(slope) > 1e-3 * far


def test_what_is_trained_of_quantized_weights_is_judged_and_stored_on_their_grid() -> None:
    weights, found, _, _ = quantized()
    for layer in found.layers:
        before = layer.weight
        layer.weight = before * np.float32(0.9)
        tune._round(weights, layer)
        step = np.abs(before - layer.weight).max()
        np.testing.assert_allclose(layer.weight, before * 0.9, atol=0.011)
        assert step > 0
        tune._store(weights, layer)
        node = weights.proto.graph.node[layer.site.node]
        np.testing.assert_allclose(weights.constant(node.input[1]), layer.weight, rtol=1e-5, atol=1e-7)
    assert {weights.get(n).dtype for n in ("w1", "w2")} == {np.dtype(np.int8)}


@pytest.mark.parametrize(("rows", "frozen"), [(4, True), (5, False)])
def test_more_classes_than_rows_are_not_trained(rows: int, frozen: bool) -> None:
    target = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    for kind, expected in (("categorical", {"y"} if frozen else set()), ("real", set())):
        feature = Feature.of(Probe("y", kind, -1), [target])
        assert tune._frozen([feature], rows / 2) == expected


def test_batches_of_one_row_have_a_spread_together_and_none_alone() -> None:
    rows = list(np.random.default_rng(0).normal(size=(4, 1, 5)).astype(np.float32))
    probe = Probe("y", "categorical", -1)
    assert 0 < Feature.of(probe, rows).factor < 1e3
    assert Feature.of(probe, rows[:1]).factor == 0
    assert Feature.of(probe, [rows[0]] * 3).factor == 0
