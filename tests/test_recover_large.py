"""Operators with more inputs than a Gram matrix is made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import choosing, recovery
from onnxprune.records import Feed
from onnxprune.recover import damage, large
from onnxprune.recover.moments import Moments
from onnxprune.recover.solve import Equations

RNG = np.random.default_rng


def test_the_solution_over_columns_is_the_ridge_solution_over_inputs() -> None:
    x, y = RNG(0).normal(2, 1, (1, 40, 30)).astype(np.float32), RNG(1).normal(1, 1, (1, 3, 30)).astype(np.float32)
    prior, bias = RNG(2).normal(size=(1, 3, 40)), np.zeros((1, 3))
    moments = Moments.about(np.zeros((1, 40)), np.zeros((1, 3)))
    moments.add(x, y)
    for fit_bias in (True, False):
        weight, shifted = large._Columns(x, y, prior, bias, fit_bias).solution(1e-2)
        equations = Equations.of(moments, None if fit_bias else bias)
        expected = equations.fit(prior, 1e-2)
        np.testing.assert_allclose(weight, expected, atol=1e-3)
        np.testing.assert_allclose(shifted, equations.intercept(expected), atol=5e-3)


def test_the_plain_cut_stays_where_nothing_is_better() -> None:
    x = RNG(0).normal(size=(1, 20, 50)).astype(np.float32)
    weight, bias = RNG(1).normal(size=(1, 4, 20)), RNG(2).normal(size=(1, 4))
    y = (weight @ x + bias[:, :, None]).astype(np.float32)
    noise = RNG(3).normal(0, 5, (1, 4, 25)).astype(np.float32)
    found = large.solve((x[..., :25], y[..., :25] + noise), (x[..., 25:], y[..., 25:]), [weight], bias, fit_bias=True)
    assert found.ridge is None
    np.testing.assert_array_equal(found.weight, weight)


def test_the_plain_cut_stays_where_nothing_is_held_out() -> None:
    x, y = RNG(0).normal(size=(1, 20, 9)).astype(np.float32), RNG(1).normal(size=(1, 4, 9)).astype(np.float32)
    weight, bias = RNG(2).normal(size=(1, 4, 20)), np.zeros((1, 4))
    found = large.solve((x, y), (x[..., :0], y[..., :0]), [weight], bias, fit_bias=True)
    assert found.ridge is None
    error = np.square(y - weight @ x).sum() / np.square(y - y.mean(2, keepdims=True)).sum()
    assert found.before == found.after == pytest.approx(error, rel=1e-5)


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


SHAPES = {FLAT: (5, 512), CONV: (5, 8, 3, 3)}


def opened(folder: Path, text: str) -> recovery.Source:
    """A model whose last three of eight channels are three times the first three, with some inputs."""
    random = RNG(0)
    values = {"w1": random.normal(size=(8, 3, 3, 3)), "b1": random.normal(size=8)}
    values["w1"][5:], values["b1"][5:] = 3 * values["w1"][:3], 3 * values["b1"][:3]
    values.update(w2=random.normal(size=SHAPES[text]), b2=random.normal(size=5))
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in values.items())
    onnx.save(proto, folder / "model.onnx")
    feeds: list[Feed] = [{"x": random.normal(size=(8, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    return recovery.Source(str(folder / "model.onnx"), {}, feeds, 0, 1, 1 << 30)


@pytest.mark.parametrize("text", [FLAT, CONV], ids=["flatten", "conv"])
def test_channels_that_others_follow_from_cost_nothing_with_few_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("onnxprune.recover.task.LARGEST", 30)
    found = recovery.recover(opened(tmp_path, text), {"w1:0": np.arange(5)}, tuned=False)
    (layer,) = found.layers
    assert layer.before > 0.1
    assert layer.after < 1e-4


@pytest.mark.parametrize("text", [FLAT, CONV], ids=["flatten", "conv"])
def test_a_group_that_only_large_operators_read_has_an_order_and_a_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Channels that repeat others are the first to go and cost nothing, at every tap."""
    monkeypatch.setattr(damage, "LARGEST", 30)
    source = opened(tmp_path, text)
    wanted = choosing.Wanted(["w1:0"], "sensitivity", ("macs", 0.6), 0.5, {"w1:0": 1}, "obs")
    found = choosing.prepare(source, wanted)
    assert sorted(found.order["w1:0"].order[:3] % 5) == [0, 1, 2]
    curve = found.measured["w1:0"]
    assert max(d for n, d in zip(curve.removed, curve.damage, strict=True) if n <= 3) < 1e-3
    assert curve.damage[-1] > 0.01
    assert len(choosing.choose(source, wanted).kept["w1:0"]) < 8
