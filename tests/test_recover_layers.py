"""Where new weights are written to: in place of the stored ones wherever that can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import Config, api

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
MLP = (
    HEAD
    + """g (float[n,16] x) => (float[n,4] y) {{
    {made}
    a = MatMul(x, {first})
    r = Relu(a)
    y = MatMul(r, {second})
}}"""
)
BEHIND = {
    "cast": (MLP.format(made="c1 = Cast<to=1>(w1)  c2 = Cast<to=1>(w2)", first="c1", second="c2"), np.float16, False),
    "transpose": (
        MLP.format(made="t1 = Transpose(w1)  t2 = Transpose<perm=[1,0]>(w2)", first="t1", second="t2"),
        np.float32,
        True,
    ),
    "cast and transpose": (
        MLP.format(
            made="c1 = Cast<to=1>(w1)  t1 = Transpose(c1)  i2 = Identity(w2)  t2 = Transpose(i2)",
            first="t1",
            second="t2",
        ),
        np.float32,
        True,
    ),
}
RNG = np.random.default_rng


def saved(folder: Path, text: str, weights: dict[str, np.ndarray]) -> Path:
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    onnx.save(proto, folder / "m.onnx")
    random = RNG(1)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    mixed = random.normal(size=(int(np.prod(shape)),) * 2)
    rows = random.normal(size=(400, len(mixed))) @ (mixed * 0.5 ** np.arange(len(mixed)))
    np.savez(folder / "rows.npz", x=rows.reshape(400, *shape).astype(np.float32))
    return folder / "m.onnx"


def options(folder: Path, **given: object) -> Config:
    return Config(output=folder / "out.onnx", calibration=folder / "rows.npz", round_to=1, **given)  # type: ignore[arg-type]


def stored(path: Path) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", BEHIND)
def test_what_lies_between_a_weight_and_its_operator_is_undone(tmp_path: Path, name: str) -> None:
    text, dtype, turned = BEHIND[name]
    random = RNG(0)
    weights = {"w1": random.normal(size=(16, 32)) / 4, "w2": random.normal(size=(32, 4)) / 4}
    path = saved(tmp_path, text, {n: (w.T if turned else w).astype(dtype) for n, w in weights.items()})
    report = api.prune(path, options(tmp_path, ratio=0.5))
    assert report.quality is not None and report.cut_quality is not None
    assert report.quality.outputs["y"].relative_error < 0.7 * report.cut_quality.outputs["y"].relative_error
    before, after = onnx.load(path), onnx.load(tmp_path / "out.onnx")
    assert [n.op_type for n in after.graph.node][: len(before.graph.node)] == [n.op_type for n in before.graph.node]
    found = stored(tmp_path / "out.onnx")
    assert {n for n, t in found.items() if len(t.dims) == 2} == {"w1", "w2"}
    assert {t.data_type for t in found.values() if len(t.dims) == 2} == {
        onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    }
    assert report.after is not None
    assert report.after.parameters == sum(int(np.prod(t.dims)) for t in found.values())


def test_a_weight_that_cannot_be_written_back_makes_way_for_its_successor(tmp_path: Path) -> None:
    """Whole numbers that are cast: the fitted ones are none."""
    text = MLP.format(made="c1 = Cast<to=1>(w1)  c2 = Cast<to=1>(w2)", first="c1", second="c2")
    random = RNG(0)
    path = saved(
        tmp_path,
        text,
        {n: random.integers(-9, 9, s).astype(np.int8) for n, s in {"w1": (16, 32), "w2": (32, 4)}.items()},
    )
    report = api.prune(path, options(tmp_path, ratio=0.5))
    assert report.quality is not None and report.cut_quality is not None
    assert report.quality.outputs["y"].relative_error < 0.7 * report.cut_quality.outputs["y"].relative_error
    result = onnx.load(tmp_path / "out.onnx")
    assert sum(n.op_type == "Cast" for n in result.graph.node) < 2
    read = {name for node in result.graph.node for name in node.input}
    assert {t.name for t in result.graph.initializer} <= read


CONVS = (
    HEAD
    + """g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1)  b = Relu(a)  c = Conv<pads=[1,1,1,1]>(b, w2)  d = Relu(c)
    e = Conv<pads=[1,1,1,1]>(d, w3)  f = Relu(e)  y = Conv(f, w4)
}"""
)


@pytest.mark.parametrize("target", ["size=0.5", "params=0.5"])
def test_biases_that_recovery_adds_are_in_the_target(tmp_path: Path, target: str) -> None:
    random = RNG(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "w4": (4, 16, 1, 1)}
    weights = {n: (random.normal(size=s) / 8).astype(np.float32) for n, s in shapes.items()}
    report = api.prune(saved(tmp_path, CONVS, weights), options(tmp_path, target=target))
    found = stored(tmp_path / "out.onnx")
    assert any(len(t.dims) == 1 for t in found.values())
    assert report.after is not None
    assert report.after.parameters == sum(int(np.prod(t.dims)) for t in found.values())
    kept = {
        "size=0.5": (tmp_path / "out.onnx").stat().st_size / (tmp_path / "m.onnx").stat().st_size,
        "params=0.5": report.after.parameters / report.before.parameters,
    }[target]
    assert 0.45 < kept <= 0.5


def test_weights_that_a_node_makes_count_as_parameters(tmp_path: Path) -> None:
    text = MLP.format(made="w1 = ConstantOfShape<value = float[1] {0.25}>(s)", first="w1", second="w2")
    weights = {"s": np.array([16, 32]), "w2": RNG(0).normal(size=(32, 4)).astype(np.float32)}
    report = api.prune(saved(tmp_path, text, weights), Config(output=tmp_path / "o.onnx", ratio=0.5, round_to=1))
    assert report.after is not None
    assert (report.before.parameters, report.after.parameters) == (16 * 32 + 32 * 4, 16 * 16 + 16 * 4)


@pytest.mark.parametrize("second", ["v", "u"])
def test_weights_that_layers_share_are_refitted_apart_with_a_note(tmp_path: Path, second: str) -> None:
    text = f"""g (float[n,16] x, float[n,16] z) => (float[n,4] y, float[n,4] t) {{
        a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v)
        c = MatMul(z, w)  d = Relu(c)  t = MatMul(d, {second})
    }}"""
    proto, random = parser.parse_model(HEAD + text), np.random.default_rng(0)
    for name, size in {"w": (16, 32), "v": (32, 4), "u": (32, 4)}.items():
        array = random.normal(size=size).astype(np.float32)
        if name != "u" or second == "u":
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "model.onnx")
    rows = {name: random.normal(size=(200, 16)).astype(np.float32) for name in "xz"}
    np.savez(tmp_path / "rows.npz", **rows)
    report = api.prune(tmp_path / "model.onnx", Config(ratio=0.5, round_to=1, calibration=tmp_path / "rows.npz"))
    assert report.exactness is not None and report.exactness.passed
    said = [note for note in report.notes if "several layers share" in note]
    assert len(said) == (second == "v")
    assert all(note.startswith("1 weight that several layers share (v)") for note in said)
