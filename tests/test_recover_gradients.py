"""Gradients of the training model, by differences of its loss."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
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
