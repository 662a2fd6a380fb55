"""wire: a model without its large weights points at them, and comes out of `write` as it was."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import wire
from onnxprune.modelfile import ModelFile, skeleton, write

TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[n, 64] x) => (float[n, 64] y) {
    a = MatMul (x, W)
    b = Add (a, B)
    y = Reshape (b, S)
}
"""
WEIGHT = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)


def save(folder: Path) -> Path:
    proto = parser.parse_model(TEXT)
    indices = np.full(1024, -1)
    arrays = (("W", WEIGHT), ("B", np.ones(64, np.float32)), ("S", np.array([-1, 64])), ("unused", indices))
    for name, array in arrays:
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    proto.graph.initializer[0].doc_string = "kept"
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_only_large_weights_stay_behind_and_are_read_where_they_lie(tmp_path: Path) -> None:
    model = ModelFile.load(save(tmp_path), lean=True)
    left = {t.name for t in model.proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert left == {"W"}
    assert not model.has_external_data
    np.testing.assert_array_equal(model.read(model.tensors()["W"]), WEIGHT)


def test_a_runtime_finds_them_there(tmp_path: Path) -> None:
    from onnxprune import runtime

    path = save(tmp_path)
    session = runtime.session(skeleton(path, lean=True).SerializeToString(), folder=str(tmp_path))
    x = np.eye(64, dtype=np.float32)
    np.testing.assert_array_equal(runtime.run(session, {"x": x})["y"], WEIGHT + 1)


@pytest.mark.parametrize("edited", [False, True])
def test_what_is_written_is_the_same_as_from_the_whole_model(tmp_path: Path, edited: bool) -> None:
    path = save(tmp_path)
    edits = {"W": lambda array: array[:, ::-1].copy()} if edited else {}
    results = []
    for lean in (False, True):
        model = ModelFile.load(path, lean=lean)
        write(model, model.proto, edits, tmp_path / f"{lean}.onnx")
        results.append((tmp_path / f"{lean}.onnx").read_bytes())
    protos = [onnx.load_model_from_string(r) for r in results]
    assert protos[0] == protos[1]
    assert not any(t.data_location for t in protos[1].graph.initializer)
    assert len(list(tmp_path.iterdir())) == 3


def test_links_are_read_whole(tmp_path: Path) -> None:
    path = save(tmp_path)
    (tmp_path / "soft.onnx").symlink_to(path)
    os.link(path, tmp_path / "hard.onnx")
    for name in ("soft.onnx", "hard.onnx", "net.onnx"):
        assert skeleton(tmp_path / name, lean=True) == onnx.load(path)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    data = save(tmp_path).read_bytes()
    whole = wire.without_weights(memoryview(data), "net.onnx")
    assert len(whole) < len(data) - WEIGHT.nbytes + 200
    for length in range(len(data) - 9000, len(data), 97):
        with pytest.raises(ValueError, match=r"byte"):
            wire.without_weights(memoryview(data[:length]), "net.onnx")


@pytest.mark.parametrize("data", [b"\x3b", b"\x80" * 12, b"\x3a\x7f"])
def test_what_is_no_protobuf_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"byte"):
        wire.without_weights(memoryview(data), "net.onnx")
