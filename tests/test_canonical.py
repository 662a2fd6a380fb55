"""What exporters write, brought into one form: layers that read equal constants are not tied, and nothing changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from onnxprune import api, recovery
from onnxprune.canonical import canonicalise
from onnxprune.config import Config
from onnxprune.modelfile import ModelFile
from onnxprune.records import Feed

NORMALISED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1)
    p = Mul(a, ones)
    b = Relu(p)
    c = Conv<pads=[1,1,1,1]>(b, w2)
    q = Mul(c, ones)
    d = Relu(q)
    y = Conv<pads=[1,1,1,1]>(d, w3)
}"""
SIZES = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (4, 16, 3, 3)}


def normalised(*, constant: bool, value: float = 2.0) -> onnx.ModelProto:
    """Two layers whose scale is one tensor, an initializer or what a Constant node holds."""
    proto, random = parser.parse_model(NORMALISED), np.random.default_rng(0)
    arrays = {name: random.normal(0, 0.3, size).astype(np.float32) for name, size in SIZES.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    ones = numpy_helper.from_array(np.full((16, 1, 1), value, np.float32), "ones")
    if constant:
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["ones"], value=ones))
    else:
        proto.graph.initializer.append(ones)
    return proto


def results(proto: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    return np.asarray(found)


@pytest.mark.parametrize("constant", [False, True])
def test_layers_that_read_one_vector_of_one_number_are_pruned_apart(tmp_path: Path, constant: bool) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(normalised(constant=constant), path)
    report = api.prune(path, Config(ratio=0.5, criterion="l2", recover=False, round_to=1))
    assert [g.kept for g in report.groups if g.status == "pruned"] == [8, 8]
    assert report.exactness is not None and report.exactness.passed
    before = normalised(constant=constant)
    canonicalise(before)
    assert {n.input[1] for n in before.graph.node if n.op_type == "Mul"} == {"ones", "ones_1"}
    onnx.checker.check_model(before, full_check=True)
    np.testing.assert_array_equal(results(before), results(normalised(constant=constant)))


def test_what_is_more_than_one_number_stays_one_tensor() -> None:
    proto = normalised(constant=False)
    proto.graph.initializer[-1].CopyFrom(
        numpy_helper.from_array(np.arange(16, dtype=np.float32)[:, None, None], "ones")
    )
    before = proto.SerializeToString()
    canonicalise(proto)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("kind", ["input", "output", "scalar", "matrix", "integers", "old", "body"])
def test_what_others_rely_on_stays_one_tensor(kind: str) -> None:
    proto = normalised(constant=False)
    ones = proto.graph.initializer[-1]
    if kind == "input":
        proto.graph.input.append(onnx.helper.make_tensor_value_info("ones", 1, [16, 1, 1]))
    elif kind == "output":
        proto.graph.output.append(onnx.helper.make_tensor_value_info("ones", 1, [16, 1, 1]))
    elif kind == "old":
        proto.ir_version = 3
    elif kind == "body":
        body = onnx.helper.make_graph(
            [onnx.helper.make_node("Neg", ["ones"], ["r"])], "b", [], [onnx.ValueInfoProto(name="r")]
        )
        proto.graph.node.append(onnx.helper.make_node("If", ["condition"], ["z"], then_branch=body, else_branch=body))
    else:
        arrays = {"scalar": np.float32([[[2]]]), "matrix": np.full((16, 8, 8), 2, np.float32)}
        arrays["integers"] = np.full((16, 1, 1), 2)
        ones.CopyFrom(numpy_helper.from_array(arrays[kind], "ones"))
    before = proto.SerializeToString()
    canonicalise(proto)
    assert proto.SerializeToString() == before


GEMMS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,6] x) => (float[n,3] y) <float[6,12] w, float[12,3] v, float[12] c> {
    a = Gemm<beta=0.5>(x, w, c)
    b = Relu(a)
    y = Gemm<beta=0.0>(b, v)
}"""


def test_a_product_without_a_bias_is_refitted_whatever_its_beta(tmp_path: Path) -> None:
    proto, random = parser.parse_model(GEMMS), np.random.default_rng(0)
    sizes = {t.name: tuple(t.dims) for t in proto.graph.initializer} or {"w": (6, 12), "v": (12, 3), "c": (12,)}
    del proto.graph.initializer[:]
    for name, size in sizes.items():
        proto.graph.initializer.append(numpy_helper.from_array(random.normal(size=size).astype(np.float32), name))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    loaded = ModelFile.load(path, unique_names=True).proto
    assert [[a.name for a in n.attribute] for n in loaded.graph.node] == [["beta"], [], []]
    feeds: list[Feed] = [{"x": random.normal(size=(40, 6)).astype(np.float32)} for _ in range(6)]
    source = recovery.Source(str(path), {}, feeds, 0, 1, 1 << 30)
    found = recovery.recover(source, {"w:1": np.arange(6)}, tuned=False)
    assert not found.notes
    assert [layer.node for layer in found.layers] == ["Gemm(y)"]
    assert found.layers[0].after < found.layers[0].before
