"""States of zeros dropped: stacked cells are no longer tied to each other, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from onnxprune import analysis, api, shapes
from onnxprune.config import Config
from onnxprune.modelfile import ModelFile
from onnxprune.states import drop_zero_states

UNITS = 8


def stacked(folder: Path, state: str, *, op: str = "LSTM", names: str = "z1, z1") -> Path:
    """Two cells whose states `z1` and `z2` the lines `state` make of the batch size `n`."""
    proto = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[t,n,6] x, float[2,n,{UNITS}] given) => (float y)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] width = {{{UNITS}}}> {{
            sizes = Shape<start=1, end=2>(x)
            shape = Concat<axis=0>(two, sizes, width)
            {state}
            z1 = Slice(z, zero, one, zero)
            z2 = Slice(z, one, two, zero)
            s1, h1 = {op}<hidden_size={UNITS}>(x, w1, r1, , , {names})
            below = Squeeze(s1, one)
            s2, h2 = {op}<hidden_size={UNITS}>(below, w2, r2, , , {names.replace("1", "2")})
            flat = Squeeze(s2, one)
            y = MatMul(flat, v)
        }}""")
    random = np.random.default_rng(0)
    gates = {"LSTM": 4, "GRU": 3}[op]
    sizes = {"w1": (1, gates * UNITS, 6), "r1": (1, gates * UNITS, UNITS), "w2": (1, gates * UNITS, UNITS)}
    sizes |= {"r2": (1, gates * UNITS, UNITS), "v": (UNITS, 3)}
    values = {n: random.normal(size=s).astype(np.float32) for n, s in sizes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in values.items())
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    path = folder / "stacked.onnx"
    onnx.save(proto, path)
    return path


ZEROS = ["z = ConstantOfShape(shape)", "zs = Constant<value = float[1] {0.0}>()\nz = Expand(zs, shape)"]
OTHERS = ["z = ConstantOfShape<value = float[1] {1.0}>(shape)", "z = Identity(given)"]


def groups(proto: onnx.ModelProto) -> int:
    return sum(g.refusal is None for g in analysis.analyse(proto, shapes.infer(proto)).groups)


@pytest.mark.parametrize("state", ZEROS)
@pytest.mark.parametrize(("op", "names"), [("LSTM", "z1, z1"), ("GRU", "z1")])
def test_states_of_zeros_tie_no_cells(tmp_path: Path, state: str, op: str, names: str) -> None:
    path = stacked(tmp_path, state, op=op, names=names)
    before, after = (ModelFile.load(path, unique_names=u).proto for u in (False, True))
    assert (groups(before), groups(after)) == (1, 2)
    assert [n.op_type for n in after.graph.node] == [op, "Squeeze", op, "Squeeze", "MatMul"]
    assert {t.name for t in after.graph.initializer} == {"one", "w1", "r1", "w2", "r2", "v"}
    random = np.random.default_rng(1)
    feed = {"x": random.normal(size=(5, 3, 6)).astype(np.float32), "given": np.ones((2, 3, UNITS), np.float32)}
    results = [onnxruntime.InferenceSession(m.SerializeToString()).run(["y"], feed)[0] for m in (before, after)]
    np.testing.assert_array_equal(*results)
    report = api.prune(path, Config(output=tmp_path / "small.onnx", ratio=0.5, recover=False, round_to=1))
    assert report.exactness is not None and report.exactness.passed


@pytest.mark.parametrize("state", OTHERS)
def test_other_states_stay(tmp_path: Path, state: str) -> None:
    proto = onnx.load(stacked(tmp_path, state))
    before = proto.SerializeToString()
    drop_zero_states(proto)
    assert proto.SerializeToString() == before


def test_what_something_else_reads_stays(tmp_path: Path) -> None:
    proto = onnx.load(stacked(tmp_path, ZEROS[0]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z2", onnx.TensorProto.FLOAT, None))
    drop_zero_states(proto)
    kept = [n.op_type for n in proto.graph.node]
    assert kept[:4] == ["Shape", "Concat", "ConstantOfShape", "Slice"]
    assert [len(n.input) for n in proto.graph.node if n.op_type == "LSTM"] == [3, 3]
    onnxruntime.InferenceSession(proto.SerializeToString())
