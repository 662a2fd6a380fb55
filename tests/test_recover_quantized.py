"""Quantized weights: solved as floats, stored on their grid, and never worse than the cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import api, recovery
from onnxprune.config import Config
from onnxprune.records import Feed

QDQ = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,5,8,8] y) {
    v1 = DequantizeLinear<axis=0>(w1, s1, z1)  c1 = DequantizeLinear<axis=0>(b1, sb1)
    a = Conv<pads=[1,1,1,1]>(x, v1, c1)  r = Relu(a)
    v2 = DequantizeLinear<axis=0>(w2, s2, z2)  c2 = DequantizeLinear<axis=0>(b2, sb2)
    y = Conv<pads=[1,1,1,1]>(r, v2, c2)
}
"""


def saved(folder: Path) -> Path:
    random = np.random.default_rng(0)
    proto = parser.parse_model(QDQ)
    for k, (out, inner) in enumerate([(16, 3), (5, 16)], 1):
        arrays = {
            f"w{k}": random.integers(-100, 100, (out, inner, 3, 3)).astype(np.int8),
            f"s{k}": random.uniform(0.002, 0.01, out).astype(np.float32),
            f"z{k}": np.zeros(out, np.int8),
            f"b{k}": random.integers(-900, 900, out).astype(np.int32),
            f"sb{k}": np.full(out, 1e-3, np.float32),
        }
        proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


def test_a_quantized_model_is_refitted_on_its_own_grid(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(1).normal(size=(200, 3, 8, 8)).astype(np.float32))
    errors = {}
    for recover in (True, False):
        options = Config(ratio=0.5, round_to=1, calibration=data, recover=recover, force=True)
        quality = api.prune(path, options).quality
        assert quality is not None
        errors[recover] = quality.outputs["y"].relative_error
        pruned = {t.name: t for t in onnx.load(tmp_path / "m_pruned.onnx").graph.initializer}
        assert pruned["w2"].data_type == onnx.TensorProto.INT8
        assert list(pruned["w2"].dims) == [5, 8, 3, 3]
        assert pruned["b2"].data_type == onnx.TensorProto.INT32
        assert len(pruned) == 10
    assert errors[True] < 0.7 * errors[False]


@pytest.mark.parametrize("typed", [True, False])
def test_weights_that_the_model_itself_quantizes_are_refitted(tmp_path: Path, typed: bool) -> None:
    """Stored floats behind QuantizeLinear and DequantizeLinear, as tools for training on grids write them."""
    random = np.random.default_rng(0)
    zero = ", z" if typed else ""
    proto = parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[n,3,8,8] x) => (float[n,5,8,8] y) {{
        q1 = QuantizeLinear(w1, s{zero})  v1 = DequantizeLinear(q1, s{zero})  a = Conv<pads=[1,1,1,1]>(x, v1, b1)
        r = Relu(a)
        q2 = QuantizeLinear(w2, s{zero})  v2 = DequantizeLinear(q2, s{zero})  y = Conv<pads=[1,1,1,1]>(r, v2, b2)
    }}""")
    arrays = {
        "w1": random.normal(0.3, 0.3, (16, 3, 3, 3)), "b1": random.normal(size=16), "b2": np.zeros(5),
        "w2": random.normal(0.3, 0.3, (5, 16, 3, 3)), "s": np.array(0.01),
    }  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    if typed:
        proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "z"))
    onnx.save(proto, tmp_path / "m.onnx")
    feeds: list[Feed] = [{"x": random.normal(size=(16, 3, 8, 8)).astype(np.float32)} for _ in range(8)]
    source = recovery.Source(str(tmp_path / "m.onnx"), {}, feeds, 0, 1, 1 << 30)
    found = recovery.recover(source, {"w1:0": np.arange(8)}, tuned=False)
    (layer,) = found.layers
    assert layer.after < 0.8 * layer.before
    weight = found.values["w2"]
    assert weight.shape == (5, 8, 3, 3) and weight.dtype == np.float32
    low, high = (-128, 127) if typed else (0, 255)
    assert np.allclose(weight / 0.01, np.clip(np.rint(weight / 0.01), low, high), atol=1e-3)


@pytest.mark.parametrize("kind", ["macs", "params", "size"])
def test_quantized_weights_count_in_every_target(tmp_path: Path, kind: str) -> None:
    path, data = saved(tmp_path), tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(1).normal(size=(200, 3, 8, 8)).astype(np.float32))
    report = api.prune(path, Config(target=f"{kind}=0.6", round_to=1, calibration=data, output=tmp_path / "o.onnx"))
    assert report.after is not None
    totals = {"macs": "macs", "params": "parameters", "size": "bytes"}[kind]
    kept = getattr(report.after, totals) / getattr(report.before, totals)
    assert 0.5 < kept <= 0.6


HALF = """
<ir_version: 8, opset_import: ["" : 17]>
g (float16[n,3,8,8] x) => (float16[n,5,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  y = Conv<pads=[1,1,1,1]>(r, w2, b2)
}
"""


def test_half_precision_weights_are_solved_in_single_and_stored_in_half(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    proto = parser.parse_model(HALF)
    for name, shape in {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (5, 16, 3, 3), "b2": (5,)}.items():
        array = random.normal(0, 0.3, shape).astype(np.float16)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx")
    feeds: list[Feed] = [{"x": random.normal(size=(16, 3, 8, 8)).astype(np.float16)} for _ in range(8)]
    source = recovery.Source(str(tmp_path / "m.onnx"), {}, feeds, 0, 1, 1 << 30)
    found = recovery.recover(source, {"w1:0": np.arange(8)}, tuned=False)
    (layer,) = found.layers
    assert layer.after < 0.6 * layer.before
    assert {a.dtype for a in found.values.values()} == {np.dtype(np.float16)}
