"""Quantized operators in terms of floating point: the same numbers, and solved on their grid in their own form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import api, choosing, ranking, recovery, runtime
from onnxprune.config import Config
from onnxprune.dequantized import Dequantized, dequantized
from onnxprune.latency.model import costs as latency_costs
from onnxprune.latency.model import sizes_of
from onnxprune.records import Analysis, LatencyModel, NodeLatency
from onnxprune.synthetic import features

Array = npt.NDArray[Any]
HEAD = '<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> g {text}'
IN, OUT, STEP = 6, 8, 0.02
"""Channels of the inputs and of the outputs, and the step of quantized results."""

QUANTIZED = "q = QuantizeLinear(x, xs, xz) "
SCALED = "q, s, z = DynamicQuantizeLinear(x) "
FORMS = {
    "QLinearConv": f"(float[n,6,7,7] x) => (float[n,8,7,7] y) {{ {QUANTIZED}"
    "r = QLinearConv<pads=[1,1,1,1]>(q, xs, xz, conv, ws, wz, ys, yz, bias) y = DequantizeLinear(r, ys, yz) }",
    "QLinearConv without a bias": f"(float[n,6,7,7] x) => (float[n,8,7,7] y) {{ {QUANTIZED}"
    "r = QLinearConv<pads=[1,1,1,1]>(q, xs, xz, conv, ws, wz, ys, yz) y = DequantizeLinear(r, ys, yz) }",
    "QLinearMatMul": f"(float[n,6] x) => (float[n,8] y) {{ {QUANTIZED}"
    "r = QLinearMatMul(q, xs, xz, matrix, ws, wz, ys, yz) y = DequantizeLinear(r, ys, yz) }",
    "QGemm": f"(float[n,6] x) => (float[n,8] y) {{ {QUANTIZED}"
    "r = com.microsoft.QGemm<transB=1>(q, xs, xz, turned, ws, wz, bias, ys, yz) y = DequantizeLinear(r, ys, yz) }",
    "QGemm to floating point": f"(float[n,6] x) => (float[n,8] y) {{ {QUANTIZED}"
    "y = com.microsoft.QGemm(q, xs, xz, matrix, ws, wz, bias) }",
    "MatMulInteger": f"(float[n,6] x) => (float[n,8] y) {{ {SCALED}"
    "i = MatMulInteger(q, matrix, z, wz) c = Cast<to=1>(i) p = Mul(s, ws) m = Mul(c, p) y = Add(m, offset) }",
    "ConvInteger": f"(float[n,6,7,7] x) => (float[n,8,7,7] y) {{ {SCALED}"
    "i = ConvInteger<pads=[1,1,1,1]>(q, conv, z, one) c = Cast<to=1>(i) p = Mul(s, whole) m = Mul(c, p) "
    "b = Reshape(offset, shape) y = Add(m, b) }",
    "ConvInteger without a bias": f"(float[n,6,7,7] x) => (float[n,8,5,5] y) {{ {SCALED}"
    "i = ConvInteger(q, conv, z, one) c = Cast<to=1>(i) p = Mul(s, whole) y = Mul(c, p) }",
    "ConvInteger and numbers along another axis": f"(float[n,6,7,8] x) => (float[n,8,5,8] y) {{ {SCALED}"
    "i = ConvInteger<pads=[0,1,0,1]>(q, conv, z, one) c = Cast<to=1>(i) p = Mul(s, whole) m = Mul(c, p) "
    "b = Reshape(offset, along) y = Add(m, b) }",
    "MatMulIntegerToFloat": f"(float[n,6] x) => (float[n,8] y) {{ {SCALED}"
    "y = com.microsoft.MatMulIntegerToFloat(q, matrix, s, ws, z, wz, offset) }",
    "DynamicQuantizeMatMul": "(float[n,6] x) => (float[n,8] y) {"
    "y = com.microsoft.DynamicQuantizeMatMul(x, matrix, ws, wz, offset) }",
    "DynamicQuantizeLSTM": "(float[t,n,6] x) => (float[t,1,n,8] y) { h, y1, y2 = com.microsoft.DynamicQuantizeLSTM"
    "<hidden_size=8>(x, inner, state, gates, , , , , whole, one, whole, one) y = Identity(h) }",
}
LEFT = {
    "a weight that two read": f"(float[n,6] x) => (float[n,8] y) {{ {SCALED}"
    "a = com.microsoft.MatMulIntegerToFloat(q, matrix, s, ws, z, wz) "
    "b = com.microsoft.MatMulIntegerToFloat(q, matrix, s, ws, z, wz) y = Add(a, b) }",
    "a scale of something else": f"(float[n,6] x) => (float[n,8] y) {{ {SCALED}"
    "i = MatMulInteger(q, matrix, z, wz) c = Cast<to=1>(i) y = Mul(c, ws) }",
    "a zero point of another size": f"(float[n,6] x) => (float[n,8] y) {{ {SCALED}"
    "y = com.microsoft.MatMulIntegerToFloat(q, matrix, s, ws, z, one, offset) }",
    "a bias of another size": f"(float[n,6] x) => (float[n,8] y) {{ {QUANTIZED}"
    "y = com.microsoft.QGemm(q, xs, xz, matrix, ws, wz, single) }",
    "channels at the end": f"(float[n,7,7,6] x) => (float[n,7,7,8] y) {{ {QUANTIZED}"
    "r = com.microsoft.QLinearConv<channels_last=1,pads=[1,1,1,1]>(q, xs, xz, conv, ws, wz, ys, yz, bias) "
    "y = DequantizeLinear(r, ys, yz) }",
}


def model(text: str, *, opset: int = 17, outputs: int = OUT) -> onnx.ModelProto:
    """The graph with the stored tensors that it reads."""
    random = np.random.default_rng(0)

    def grid(*shape: int) -> Array:
        return random.integers(-100, 100, shape).astype(np.int8)

    arrays = {
        "xs": np.float32(0.03), "xz": np.uint8(120), "ys": np.float32(STEP), "yz": np.uint8(130),
        "conv": grid(outputs, IN, 3, 3), "matrix": grid(IN, outputs), "turned": grid(outputs, IN),
        "ws": random.uniform(0.001, 0.003, outputs).astype(np.float32), "wz": np.zeros(outputs, np.int8),
        "bias": random.integers(-3000, 3000, outputs).astype(np.int32),
        "offset": random.normal(0, 0.3, outputs).astype(np.float32), "shape": np.array([1, -1, 1, 1]),
        "gamma": np.full(outputs, 1.5, np.float32), "beta": random.normal(0, 0.3, outputs).astype(np.float32),
        "along": np.array([1, 1, 1, -1]), "single": np.ones(1, np.int32),
        "whole": np.full(1, 0.002, np.float32), "one": np.full(1, 3, np.int8),
        "inner": grid(1, IN, 32), "state": grid(1, 8, 32), "gates": random.normal(0, 0.3, (1, 64)).astype(np.float32),
    }  # fmt: skip
    proto = parser.parse_model(HEAD.format(opset=opset, text=text))
    read = {n for node in proto.graph.node for n in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items() if n in read)
    return proto


def spelled(proto: onnx.ModelProto) -> Dequantized | None:
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return dequantized(proto, arrays.get)


def given(proto: onnx.ModelProto, rows: int = 4) -> Array:
    shape = [d.dim_value or rows for d in proto.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", FORMS)
def test_the_numbers_are_the_same(name: str, opset: int) -> None:
    proto = model(FORMS[name], opset=opset)
    found = spelled(proto)
    assert found is not None
    kinds = {n.op_type for n in found.proto.graph.node}
    assert kinds & {"Conv", "MatMul", "Gemm", "LSTM"} and name.split(maxsplit=1)[0] not in kinds
    x = given(proto)
    before, after = (runtime.session(p.SerializeToString()).run(None, {"x": x})[0] for p in (proto, found.proto))
    assert np.ptp(before) > 10 * STEP
    tolerance = 1.01 * STEP if name.startswith("Q") else 0.03 * np.ptp(before) if "LSTM" in name else 1e-4
    assert np.abs(before - after).max() <= tolerance
    assert set(found.arrays) >= set(found.places.values())


@pytest.mark.parametrize("name", LEFT)
def test_other_forms_stay_as_they_are(name: str) -> None:
    assert spelled(model(LEFT[name])) is None


def test_an_output_of_the_model_is_still_made() -> None:
    proto = model(FORMS["MatMulInteger"])
    proto.graph.output.append(onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, [OUT]))
    found = spelled(proto)
    assert found is not None and "MatMul" in {n.op_type for n in found.proto.graph.node}
    before, after = (
        runtime.session(p.SerializeToString()).run(None, {"x": given(proto)}) for p in (proto, found.proto)
    )
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(before, after, strict=True))


TWO = {
    "QLinearConv": "(float[n,6,7,7] x) => (float[n,8,7,7] y) {" + QUANTIZED + "h = QLinearConv<pads=[1,1,1,1]>"
    "(q, xs, xz, conv, ws, wz, ys, yz) r = QLinearConv(h, ys, yz, last, whole, one, ys, yz) "
    "y = DequantizeLinear(r, ys, yz) }",
    "ConvInteger": "(float[n,6,7,7] x) => (float[n,8,7,7] y) {" + SCALED + "i = ConvInteger<pads=[1,1,1,1]>"
    "(q, conv, z, one) c = Cast<to=1>(i) p = Mul(s, whole) m = Mul(c, p) "
    "n = BatchNormalization(m, gamma, beta, beta, gamma) h = Relu(n) hq, hs, hz = DynamicQuantizeLinear(h) "
    "j = ConvInteger(hq, last, hz, one) d = Cast<to=1>(j) o = Mul(hs, whole) y = Mul(d, o) }",
    "MatMulInteger": "(float[n,6] x) => (float[n,8] y) {" + SCALED + "i = MatMulInteger(q, matrix, z, wz) "
    "c = Cast<to=1>(i) p = Mul(s, ws) m = Mul(c, p) a = Add(m, offset) h = Relu(a) hq, hs, hz = "
    "DynamicQuantizeLinear(h) j = MatMulInteger(hq, last, hz, one) d = Cast<to=1>(j) o = Mul(hs, whole) "
    "y = Mul(d, o) }",
}


def saved(folder: Path, form: str) -> tuple[Path, Path]:
    """A model of two layers, the second of 16 inputs, and inputs of it; images are of one colour each."""
    proto = model(TWO[form], outputs=16)
    shape = (OUT, 16, 1, 1) if form.endswith("Conv") or form == "ConvInteger" else (16, OUT)
    last = np.random.default_rng(2).integers(-100, 100, shape).astype(np.int8)
    proto.graph.initializer.append(numpy_helper.from_array(last, "last"))
    onnx.save(proto, folder / "m.onnx")
    x = given(proto, 256)
    np.savez(folder / "x.npz", x=np.broadcast_to(x[:, :, :1, :1], x.shape) if x.ndim == 4 else x)
    return folder / "m.onnx", folder / "x.npz"


@pytest.mark.parametrize("form", TWO)
def test_a_quantized_model_is_refitted_and_keeps_its_form(tmp_path: Path, form: str) -> None:
    path, data = saved(tmp_path, form)
    errors = {}
    for recover in (False, True):
        config = Config(ratio=0.5, round_to=1, calibration=data, recover=recover, force=True)
        report = api.prune(path, config)
        assert report.quality is not None
        errors[recover] = report.quality.outputs["y"].relative_error
        pruned = onnx.load(tmp_path / "m_pruned.onnx").graph
        assert [n.op_type for n in pruned.node] == [n.op_type for n in onnx.load(path).graph.node]
        stored = {t.name: t for t in pruned.initializer}
        assert stored["last"].data_type == onnx.TensorProto.INT8 and 8 in stored["last"].dims
    assert errors[True] < 0.8 * errors[False]


def test_a_bias_that_was_not_there_is_added_on_its_grid(tmp_path: Path) -> None:
    path, data = saved(tmp_path, "QLinearConv")
    api.prune(path, Config(ratio=0.5, round_to=1, calibration=data, output=tmp_path / "o.onnx"))
    pruned = onnx.load(tmp_path / "o.onnx").graph
    bias = pruned.node[2].input[8]
    (tensor,) = (t for t in pruned.initializer if t.name == bias)
    assert tensor.data_type == onnx.TensorProto.INT32 and list(tensor.dims) == [OUT]
    assert np.abs(numpy_helper.to_array(tensor)).max() > 0


def test_added_biases_count_in_a_target_of_size(tmp_path: Path) -> None:
    path, data = saved(tmp_path, "QLinearConv")
    config = Config(target="size=0.8", round_to=1, calibration=data, output=tmp_path / "o.onnx")
    api.prune(path, config)
    assert (tmp_path / "o.onnx").stat().st_size <= 0.8 * path.stat().st_size


@pytest.mark.parametrize("form", TWO)
def test_latencies_are_those_of_the_nodes_of_the_file(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes have the numbers that they have in the file, which spelled out are those of others."""
    path, data = saved(tmp_path, form)
    nodes = onnx.load(path).graph.node
    last = max(k for k, node in enumerate(nodes) if "last" in node.input)
    with np.load(data) as arrays:
        x = arrays["x"]
    source = recovery.Source(str(path), {}, [{"x": x[k : k + 32]} for k in range(0, 256, 32)], 0, 1, 1 << 30)
    (group,) = (g for g in recovery.open_source(source).listed.groups if g.refusal is None)
    wanted = choosing.Wanted([group.id], "sensitivity", ("macs", 0.5), 0.5, {group.id: 1}, "obs")
    whole = cost_of(path, last)
    latency = LatencyModel((NodeLatency(last, (1, whole), (0.0, 1.0)),), 1.0, 0.0, (1.0,), (1.0,))
    looked_up: list[str] = []

    def costs(proto: onnx.ModelProto, found: Analysis, listed: Sequence[NodeLatency]) -> Any:
        looked_up.extend(proto.graph.node[n.node].op_type for n in listed)
        return latency_costs(proto, found, listed)

    monkeypatch.setattr(ranking, "costs", costs)
    found = ranking.rank(source, wanted, latency, 0.5)
    assert looked_up == [nodes[last].op_type]
    assert len(set(found[group.id].order.tolist())) >= group.size - 1
    assert (np.diff(found[group.id].damage) >= 0).all()


@pytest.mark.parametrize("form", TWO)
def test_the_layers_of_a_quantized_model_tell_inputs_apart(tmp_path: Path, form: str) -> None:
    path, _ = saved(tmp_path, form)
    assert not features.features_of(onnx.load(path).graph)
    assert features.features_of(features.opened(path).proto.graph)


def cost_of(path: Path, node: int) -> int:
    """Multiply-accumulates of a node of the file."""
    opened = recovery.open_source(recovery.Source(str(path), {}, [], 0, 1, 1 << 30))
    (size,) = (s for k, s in enumerate(sizes_of(opened.file.proto.graph.node, opened.listed)) if k == node)
    assert size is not None
    return math.prod(d.size for d in size)


def test_where_channels_are_tied_in_another_way_nothing_is_spelled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = saved(tmp_path, "MatMulInteger")
    with np.load(data) as arrays:
        source = recovery.Source(str(path), {}, [dict(arrays)], 0, 1, 1 << 30)
    assert {n.op_type for n in recovery.open_source(source).proto.graph.node} >= {"MatMul"}
    other = dequantized(
        onnx.load(path), {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}.get
    )
    assert other is not None
    other.proto.graph.node.add(op_type="Softmax", input=["h"], output=["tied"])
    other.proto.graph.output.add(name="tied")
    monkeypatch.setattr("onnxprune.dequantized.dequantized", lambda *_: other)
    assert {n.op_type for n in recovery.open_source(source).proto.graph.node} >= {"MatMulInteger"}
