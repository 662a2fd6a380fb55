"""Mean and deviation of every channel brought back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import recovery
from onnxprune.holdout import Holdout
from onnxprune.records import Feed
from onnxprune.recover import statistics
from onnxprune.recover.execution import Shelf, Walk, reader

RNG = np.random.default_rng

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,12,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  y = Conv<pads=[1,1,1,1]>(r, w2, b2)
}
"""
NORMED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,5,6] x) => (float[n,5,4] y) {
    a = MatMul(x, w1)  h = Add(a, b1)  l = LayerNormalization(h, scale, beta)
    s = Softmax<axis=1>(l)  y = MatMul(s, w2)
}
"""
NORMED_FROM_THE_FRONT = NORMED.replace("LayerNormalization(", "LayerNormalization<axis=2>(")
DEPTHWISE = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,12,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  d = Conv<pads=[1,1,1,1], group=8>(r, w3, b3)
    y = Conv<pads=[1,1,1,1]>(d, w2, b2)
}
"""
SHAPES = {
    DEPTHWISE: {"w1": (8, 3, 3, 3), "b1": (8,), "w3": (8, 1, 3, 3), "b3": (8,), "w2": (12, 8, 3, 3), "b2": (12,)},
    CHAIN: {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (12, 8, 3, 3), "b2": (12,)},
    NORMED: {"w1": (6, 16), "b1": (16,), "scale": (16,), "beta": (16,), "w2": (16, 4)},
    NORMED_FROM_THE_FRONT: {"w1": (6, 16), "b1": (16,), "scale": (16,), "beta": (16,), "w2": (16, 4)},
}


def saved(folder: Path, text: str) -> tuple[recovery.Source, list[Feed]]:
    random = RNG(0)
    proto = parser.parse_model(text)
    for name, shape in SHAPES[text].items():
        proto.graph.initializer.append(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    onnx.save(proto, folder / "m.onnx")
    shape = [3, 8, 8] if "n,5,6" not in text else [5, 6]
    feeds: list[Feed] = [{"x": random.normal(1, 2, (16, *shape)).astype(np.float32)} for _ in range(4)]
    return recovery.Source(str(folder / "m.onnx"), {}, feeds, 0, 1, 1 << 30), feeds


def tensors(source: recovery.Source, values: dict[str, np.ndarray], feeds: list[Feed], name: str) -> np.ndarray:
    proto = onnx.load(source.model)
    walk = Walk(proto, reader(proto, lambda _: None, values), feeds, shelf=Shelf(1 << 30))
    walk.compute([name])
    return np.concatenate([walk.get(name, b) for b in range(walk.batches)])


def cut_values(source: recovery.Source, kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    model = recovery.open_source(source)
    weights = recovery.cut_weights(model, kept)
    return {n: weights.get(n) for n in SHAPES[CHAIN] | SHAPES[NORMED] if n in weights.stored}


def test_moments_are_those_of_the_original(tmp_path: Path) -> None:
    source, feeds = saved(tmp_path, CHAIN)
    kept = {"w1:0": np.arange(4)}
    found = recovery.recover(source, kept, tuned=False, fits=False)
    (layer,) = found.layers
    original = tensors(source, {}, feeds, "y")
    plain = cut_values(source, kept)
    result = tensors(source, {**plain, **found.values}, feeds, "y")
    axes = (0, 2, 3)
    assert np.abs(tensors(source, plain, feeds, "y").std(axes) / original.std(axes) - 1).max() > 0.2
    np.testing.assert_allclose(result.mean(axes), original.mean(axes), atol=1e-3)
    np.testing.assert_allclose(result.std(axes), original.std(axes), rtol=1e-4)
    spread = original.var(axes).sum()
    # Reported is the error on batches that the fit left out.
    assert layer.after == pytest.approx(np.square(result - original).mean(axes).sum() / spread, rel=0.2)


def test_moments_behind_a_depthwise_convolution(tmp_path: Path) -> None:
    source, feeds = saved(tmp_path, DEPTHWISE)
    kept = {"w1:0": np.arange(5)}
    found = recovery.recover(source, kept, tuned=False, fits=False)
    original = tensors(source, {}, feeds, "y")
    model = recovery.open_source(source)
    weights = recovery.cut_weights(model, kept)
    walk = Walk(weights.proto, lambda n: found.values.get(n, weights.get(n)), feeds, shelf=Shelf(1 << 30))
    walk.compute(["y"])
    result = np.concatenate([walk.get("y", b) for b in range(walk.batches)])
    np.testing.assert_allclose(result.mean((0, 2, 3)), original.mean((0, 2, 3)), atol=1e-3)


class _Batches:
    """Stands in for a walk over the batches of one tensor (n, channels, 1)."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays, self.batches = arrays, len(arrays)
        self.holdout = Holdout([len(a) for a in arrays])

    def get(self, name: str, batch: int) -> np.ndarray:
        return self.arrays[batch]

    def results(self, name: str) -> list[np.ndarray]:
        return self.arrays


@pytest.mark.parametrize("seed", range(5))
def test_the_error_of_a_normalisation_is_that_on_batches_left_out(seed: int) -> None:
    """Nothing to learn: the better it fits the few rows it sees, the worse it is on others."""
    random = np.random.default_rng(seed)
    teacher, student = ([random.normal(size=(2, 400, 1)) for _ in range(5)] for _ in range(2))
    found = statistics.change(_Batches(teacher), _Batches(student), "x", 1, {}, fit=True)
    seen = [np.concatenate(side[:4]) for side in (teacher, student)]
    own = np.square(seen[0] - found.scale[:, None] * seen[1] - found.offset[:, None]).mean((0, 2)).sum()
    assert own / seen[0].var((0, 2)).sum() < 1
    assert found.after > 1


@pytest.mark.parametrize("text", [NORMED, NORMED_FROM_THE_FRONT])
def test_the_affine_part_of_a_normalisation_over_fewer_channels_is_fitted(tmp_path: Path, text: str) -> None:
    source, feeds = saved(tmp_path, text)
    kept = {"w1:1": np.arange(8)}
    found = recovery.recover(source, kept, tuned=False)
    report = next(layer for layer in found.layers if "LayerNormalization" in layer.node or layer.node == "l")
    original = tensors(source, {}, feeds, "l")[..., :8]
    plain = cut_values(source, kept)
    result = tensors(source, {**plain, **found.values}, feeds, "l")
    before = np.square(tensors(source, plain, feeds, "l") - original).mean()
    after = np.square(result - original).mean()
    assert report.after < report.before
    assert after < 0.9 * before
    # At the minimum the error does not depend on scale and offset to first order.
    error = (result - original).reshape(-1, 8)
    assert np.abs(error.mean(0)).max() < 1e-3


GROUPED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,h,w] x) => (float[n,4,h,w] y) <int64[3] apart = {0, 2, -1}> {
    a = Conv(x, w1, b1)  g = Reshape(a, apart)  i = InstanceNormalization(g, scale, beta)
    s = Shape(a)  j = Reshape(i, s)  r = Relu(j)  y = Conv(r, w2, b2)
}
"""
"""A normalisation of two groups of eight channels as exporters write it: the last axis is channels times places."""
SHAPES[GROUPED] = {
    "w1": (16, 3, 1, 1), "b1": (16,), "scale": (2,), "beta": (2,), "w2": (4, 16, 1, 1), "b2": (4,),
}  # fmt: skip


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("analysed", [8, 6])
def test_channels_within_the_groups_of_a_normalisation(tmp_path: Path, fits: bool, analysed: int) -> None:
    """Its elements correspond where the places are as many as in the analysis; elsewhere it stays as it was cut."""
    source, feeds = saved(tmp_path, GROUPED)
    source = dataclasses.replace(source, input_shapes={"x": (16, 3, analysed, analysed)})
    groups = recovery.open_source(source).analysis.groups
    (name,) = (g.id for g in groups if g.size == 8 and g.refusal is None)
    kept = {name: np.array([0, 2, 3, 5, 7])}
    found = recovery.recover(source, kept, tuned=False, fits=fits)
    assert ("InstanceNormalization(i)" in {layer.node for layer in found.layers}) == (analysed == 8)
    original = tensors(source, {}, feeds, "y")
    cut = recovery.cut_weights(recovery.open_source(source), kept)
    errors = []
    for values in ({}, found.values):
        walk = Walk(cut.proto, lambda n, v=values: v[n] if n in v else cut.get(n), feeds, shelf=Shelf(1 << 30))
        walk.compute(["y"])
        errors.append(np.square(np.concatenate([walk.get("y", b) for b in range(walk.batches)]) - original).mean())
    assert errors[1] < errors[0]
