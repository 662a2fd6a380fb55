"""The masked original, by hand on a model small enough to write down."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper
from oracle import graph, model, run, stored

from onnxprune import masking


def test_masked_channels_reach_no_sum() -> None:
    m = model("""(float[2,3] x) => (float[2,2] y) <float[3,4] w, float[4] b, float[4,2] v> {
        h = MatMul(x, w)
        a = Add(h, b)
        s = Sigmoid(a)
        y = MatMul(s, v)
    }""")
    found, sizes = graph(m)
    keep = {g.dim: np.array([True, False, True, True]) for g in found.groups if g.id == "w:1"}
    w, b, v = (numpy_helper.to_array(stored(m)[n]) for n in "wbv")
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    hidden = 1 / (1 + np.exp(-(x @ w + b)))
    expected = (hidden * [1, 0, 1, 1]) @ v
    y = run(masking.masked_model(m, found, keep, sizes.element_types), {"x": x})["y"]
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_averages_are_over_what_is_kept() -> None:
    m = model("""(float[2,3] x) => (float[2,1] y) <float[3,4] w> {
        h = MatMul(x, w)
        y = ReduceMean<axes=[1]>(h)
    }""")
    found, sizes = graph(m)
    keep = {g.dim: np.array([True, False, True, False]) for g in found.groups if g.id == "w:1"}
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    expected = (x @ numpy_helper.to_array(stored(m)["w"]))[:, [0, 2]].mean(1, keepdims=True)
    y = run(masking.masked_model(m, found, keep, sizes.element_types), {"x": x})["y"]
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_nothing_masked_is_the_original() -> None:
    m = model("(float[2,3] x) => (float[2,2] y) <float[3,4] w, float[4,2] v> { h = MatMul(x, w) y = MatMul(h, v) }")
    found, sizes = graph(m)
    masked = masking.masked_model(m, found, {}, sizes.element_types)
    assert list(masked.graph.node) == list(m.graph.node)
