"""Opening a model at sizes that it can take."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune import api, opening, proving, shapes
from onnxprune.clock import Clock
from onnxprune.config import Config
from onnxprune.errors import ModelError

FIXED_LENGTH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,s,4] x) => (float[n,4] y) <int64[3] shape = {0, 12, 6}> {
    a = MatMul(x, w1)
    h = Relu(a)
    r = Reshape(h, shape)
    m = ReduceMean<axes=[1], keepdims=0>(r)
    y = MatMul(m, w2)
}
"""


def test_a_length_that_the_export_fixed_is_learnt_from_the_calibration_data(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    proto = onnx.parser.parse_model(FIXED_LENGTH)
    for name, shape in {"w1": (4, 6), "w2": (6, 4)}.items():
        array = random.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx")
    data = tmp_path / "data.npz"
    np.savez(data, x=random.normal(size=(40, 12, 4)).astype(np.float32))
    plain = Config(output=tmp_path / "out.onnx", ratio=0.5, round_to=1, recover=False)
    with pytest.raises(ModelError):
        api.prune(tmp_path / "m.onnx", plain)
    report = api.prune(tmp_path / "m.onnx", dataclasses.replace(plain, calibration=data, recover=True))
    assert report.after is not None and report.after.parameters == 24
    assert report.exactness is not None and report.exactness.passed


def test_the_sizes_of_the_analysis_are_the_last_to_run_at(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(FIXED_LENGTH.replace("12, 6", "-1, 6"))
    for name, shape in {"w1": (4, 6), "w2": (6, 4)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(proto, tmp_path / "m.onnx")
    opened = opening.open_model(tmp_path / "m.onnx", {}, Clock())
    found = proving.run_shapes(opened, Config())
    assert len(found) == len(shapes.RUN_SIZES) + 1 and found[-1] == opened.shapes.inputs
