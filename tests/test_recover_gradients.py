"""Gradients of the training model, by differences of its loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxprune.recover.divergence import probes
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


def trainer(last: str) -> tuple[Trainer, dict[str, Any], list[Any]]:
    random = np.random.default_rng(0)
    sizes = {"w1": (8, 2, 3, 3), "b1": (8,), "w2": (5, 8), "b2": (5,)}
    proto = parser.parse_model(TEXT.replace("LAST", last))
    arrays = {n: random.normal(0, 0.7, shape).astype(np.float32) for n, shape in sizes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    weights = Weights(proto, reader(proto, arrays.get, {}))
    feed = {"x": random.normal(size=(3, 4, 6, 6)).astype(np.float32)}
    target = random.normal(0, 3, (3, 5)).astype(np.float32)
    features = [Feature.of(p, target) for p in probes(proto)]
    return Trainer(weights, feed, features, threads=1), feed, [target]


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
