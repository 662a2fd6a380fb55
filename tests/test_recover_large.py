"""Operators with more inputs than a Gram matrix is made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import recovery
from onnxprune.records import Feed
from onnxprune.recover import large, reconstruct
from onnxprune.recover.moments import Moments
from onnxprune.recover.solve import fit, intercept

RNG = np.random.default_rng


def test_the_solution_over_columns_is_the_ridge_solution_over_inputs() -> None:
    x, y = RNG(0).normal(2, 1, (1, 40, 30)).astype(np.float32), RNG(1).normal(1, 1, (1, 3, 30)).astype(np.float32)
    prior, bias = RNG(2).normal(size=(1, 3, 40)), np.zeros((1, 3))
    moments = Moments.about(np.zeros((1, 40)), np.zeros((1, 3)))
    moments.add(x, y)
    for fit_bias in (True, False):
        weight, shifted = large._Columns(x, y, prior, bias, fit_bias).solution(1e-2)
        expected = fit(moments, prior, bias, 1e-2, centred=fit_bias)
        np.testing.assert_allclose(weight, expected, atol=1e-3)
        np.testing.assert_allclose(shifted, intercept(moments, expected) if fit_bias else bias, atol=5e-3)


def test_the_plain_cut_stays_where_nothing_is_better() -> None:
    x = RNG(0).normal(size=(1, 20, 50)).astype(np.float32)
    weight, bias = RNG(1).normal(size=(1, 4, 20)), RNG(2).normal(size=(1, 4))
    y = (weight @ x + bias[:, :, None]).astype(np.float32)
    noise = RNG(3).normal(0, 5, (1, 4, 25)).astype(np.float32)
    found = large.solve((x[..., :25], y[..., :25] + noise), (x[..., 25:], y[..., 25:]), [weight], bias, fit_bias=True)
    assert found.ridge is None
    np.testing.assert_array_equal(found.weight, weight)


def test_a_channel_is_replaced_at_every_tap() -> None:
    mapping = np.array([[1.0, 0], [0, 1], [2, -1]])
    weight = RNG(0).normal(size=(4, 6))
    source, result = np.arange(6).reshape(3, 2), np.arange(4).reshape(2, 2)
    z = RNG(1).normal(size=(2, 2))
    whole = (mapping @ z).reshape(-1)
    np.testing.assert_allclose(large.spread(weight, mapping, source, result) @ z.reshape(-1), weight @ whole)


FLAT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  f = Flatten(r)  y = Gemm<transB=1>(f, w2, b2)
}
"""
CONV = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,5,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  y = Conv<pads=[1,1,1,1]>(r, w2, b2)
}
"""


@pytest.mark.parametrize(("text", "shape"), [(FLAT, (5, 512)), (CONV, (5, 8, 3, 3))])
def test_channels_that_others_follow_from_cost_nothing_with_few_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(reconstruct, "LARGEST", 30)
    random = RNG(0)
    values = {"w1": random.normal(size=(8, 3, 3, 3)), "b1": random.normal(size=8)}
    values["w1"][5:], values["b1"][5:] = 3 * values["w1"][:3], 3 * values["b1"][:3]
    values.update(w2=random.normal(size=shape), b2=random.normal(size=5))
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in values.items())
    onnx.save(proto, tmp_path / "model.onnx")
    feeds: list[Feed] = [{"x": random.normal(size=(8, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    source = recovery.Source(str(tmp_path / "model.onnx"), {}, feeds, 0, 1, 1 << 30)
    found = recovery.recover(source, {"w1:0": np.arange(5)}, tuned=False)
    (layer,) = found.layers
    assert layer.before > 0.1
    assert layer.after < 1e-4
