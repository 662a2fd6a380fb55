"""Grids of quantized weights: what they hold, and when they get wider."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import runtime
from onnxprune.recover import grids
from onnxprune.recover.layers import Weights, weights_of

Array = npt.NDArray[Any]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array([-127, 100], np.int8), (-128, 127)),
        (np.array([-64, 63], np.int8), (-64, 64)),
        (np.array([-64, 10], np.int8), (-64, 64)),
        (np.array([0, 127], np.uint8), (0, 127)),
        (np.array([0, 255], np.uint8), (0, 255)),
        (np.array([0, 0], np.int8), (-128, 127)),
    ],
)
def test_a_bit_that_the_quantizer_left_unused_stays_unused(stored: Array, expected: tuple[int, int]) -> None:
    assert grids.limits(stored) == expected


def test_the_channels_that_are_cut_tell_the_grid_too() -> None:
    """One row alone needs all bits; without it the others do not become a grid of a bit less."""
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[n,4] x) => (float[n,3] y) { v = DequantizeLinear(w, s) y = MatMul(x, v) }""")
    stored = {"w": np.full((4, 3), 60, np.int8), "s": np.float32(0.01)}
    stored["w"][0] = 127
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items())
    weights = weights_of(proto, lambda n: np.asarray(stored[n]), {"w": lambda a: a[1:]})
    weights.put(weights.nodes["y"], 1, np.full((3, 3), 1.2, np.float32))
    assert np.array_equal(weights.values["w"], np.full((3, 3), 120)) and "s" not in weights.values


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("zero", [0, 120])
def test_a_wider_grid_errs_less_and_one_that_suffices_stays(axis: int | None, zero: int) -> None:
    random = np.random.default_rng(0)
    array = random.normal(size=(6, 40))
    shape = () if axis is None else tuple(n if k == axis else 1 for k, n in enumerate(array.shape))
    kind = np.int8 if zero == 0 else np.uint8
    zeros, scale = np.full(shape, zero, np.int32), np.full(shape, 0.01, np.float32)
    bounds = grids.limits(np.array([np.iinfo(kind).min, np.iinfo(kind).max], kind))

    def error(scales: Array) -> float:
        return float((((grids.quantized(array, scales, zeros, bounds) - zeros) * scales - array) ** 2).sum())

    found = grids.widened(array, scale, zeros, bounds)
    assert found.shape == scale.shape and found.dtype == scale.dtype and (found >= scale).all()
    assert error(found) < 0.1 * error(scale)
    wide = np.full(shape, 0.1, np.float32)
    assert (grids.widened(array, wide, zeros, bounds) == wide).all()


QDQ = """
<ir_version: 8, opset_import: ["": 17]>
g (float[n,3,6,6] x) => (float[n,4,6,6] y) {
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    v = DequantizeLinear<axis=0>(w, ws)  c = DequantizeLinear<axis=0>(b, bs)
    a = Conv(d, v, c)  p = QuantizeLinear(a, t, z)  y = DequantizeLinear(p, t, z)
}
"""


@pytest.mark.parametrize("shared", ["", "bs", "b", "c"])
def test_the_scale_of_the_bias_follows_that_of_the_weight(shared: str) -> None:
    """ONNX Runtime runs this as a QLinearConv only where it does; so the grid stays where it cannot."""
    random = np.random.default_rng(0)
    ws = np.full(4, 0.001, np.float32)
    arrays = {
        "s": np.float32(0.02), "z": np.uint8(128), "t": np.float32(0.02), "ws": ws, "bs": ws * np.float32(0.02),
        "w": random.integers(-127, 127, (4, 3, 1, 1)).astype(np.int8), "b": np.full(4, 20000, np.int32),
    }  # fmt: skip
    proto = parser.parse_model(QDQ)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    if shared:
        proto.graph.node.add(op_type="Identity", input=[shared], output=["other"])
    weights = Weights(proto, lambda n: np.asarray(arrays[n]))
    wanted = random.normal(0, 0.4, (4, 3, 1, 1)).astype(np.float32)
    near = weights.nearest("v", wanted)
    weights.put(weights.nodes["a"], 1, wanted)
    assert np.array_equal(weights.constant("v"), near)
    assert (np.abs(near - wanted).max() < 0.01) == (not shared)
    assert np.allclose(weights.constant("c"), 0.4, rtol=1e-3)
    assert ("bs" in weights.values) == (not shared)
    assert np.allclose(weights.get("bs"), weights.get("ws") * 0.02)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(weights.get(tensor.name)), tensor.name))
    x = random.normal(size=(2, 3, 6, 6)).astype(np.float32)
    (found,) = runtime.session(proto.SerializeToString()).run(["y"], {"x": x})
    on_grid = np.clip(np.rint(x / 0.02), -128, 127) * 0.02
    exact = np.einsum("nchw,oc->nohw", on_grid, near[:, :, 0, 0]) + 0.4
    assert np.abs(found - np.clip(exact, -128 * 0.02, 127 * 0.02)).max() <= 0.0201
    assert proto.graph.initializer[5].data_type == onnx.TensorProto.INT8
