"""Recurrent cells refitted: closer to the original's states than the cut, in every form of cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import api, recovery
from onnxprune.config import Config
from onnxprune.records import Feed
from onnxprune.recover import recurrent
from onnxprune.recover.execution import Shelf, Walk, reader

Array = npt.NDArray[Any]
STEPS, UNITS, INPUTS = 12, 12, 10


def build(folder: Path, op: str, *, direction: str = "forward", extra: str = "", bias: bool = True, last: bool = False,
          ) -> Path:  # fmt: skip
    """Features of x, a cell over them, and a reading of its states; half of the features and units nearly repeat the
    other half. `last`: only the final state is read and no sequence given."""
    d, gates = 2 if direction == "bidirectional" else 1, recurrent.GATES[op]
    results, read = (", h", "m = Transpose<perm=[1,0,2]>(h)") if last else ("s", "m = Transpose<perm=[0,2,1,3]>(s)")
    proto = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{STEPS},n,6] x) => (float y) {{
            f = MatMul(x, e)
            t = Tanh(f)
            {results} = {op}<hidden_size={UNITS}, direction="{direction}"{extra}>(t, w, r{", b" if bias else ""})
            {read}
            y = MatMul(m, v)
        }}""")
    random = np.random.default_rng(3)
    e = random.normal(0, 0.5, (6, INPUTS))
    e[:, INPUTS // 2 :] = e[:, : INPUTS // 2] + random.normal(0, 0.05, (6, INPUTS // 2))
    w, r = random.normal(0, 0.5, (d, gates, UNITS, INPUTS)), random.normal(0, 0.3, (d, gates, UNITS, UNITS))
    b = random.normal(0, 0.3, (d, 2, gates, UNITS))
    for array, axis in ((w, 2), (r, 2), (b, 3)):
        low, high = (np.take(array, np.arange(k, k + UNITS // 2), axis) for k in (0, UNITS // 2))
        array[...] = np.concatenate([low, low + 0.1 * high], axis)
    values = {
        "e": e, "w": w.reshape(d, -1, INPUTS), "r": r.reshape(d, -1, UNITS), "v": random.normal(size=(UNITS, 4)),
        **({"b": b.reshape(d, -1)} if bias else {}),
    }  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in values.items())
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    path = folder / "cell.onnx"
    onnx.save(proto, path)
    return path


def feeds(count: int = 8, seed: int = 1) -> list[Feed]:
    random = np.random.default_rng(seed)
    return [{"x": random.normal(size=(STEPS, 16, 6)).astype(np.float32)} for _ in range(count)]


def output(proto: onnx.ModelProto, read: Any, given: list[Feed]) -> Array:
    walk = Walk(proto, read, given, shelf=Shelf(1 << 30))
    walk.compute(["y"])
    return np.stack([np.asarray(walk.get("y", b)) for b in range(len(given))])


def recovered(path: Path, kept: Mapping[str, list[int]]) -> tuple[float, float, recovery.Recovered, onnx.ModelProto]:
    """Relative squared error at the output on new inputs, of the cut and after the recovery, and the model."""
    source = recovery.Source(str(path), {}, feeds(), 0, 1, 1 << 30)
    model = recovery.open_source(source)
    plan = {name: np.array(index) for name, index in kept.items()}
    weights = recovery.cut_weights(model, plan)
    fresh = feeds(2, 9)
    whole = output(model.file.proto, model.read, fresh)
    plain = output(weights.proto, weights.get, fresh)
    found = recovery.recover(source, plan, tuned=False)
    done = recovery.install(recovery.cut(model.file.proto, model.analysis, model.shapes, plan), found)
    for tensor in done.proto.graph.initializer:
        if tensor.name in done.edits:
            tensor.CopyFrom(numpy_helper.from_array(done.edits[tensor.name](model.read(tensor.name)), tensor.name))
    after = output(done.proto, reader(done.proto, lambda _: None, {}), fresh)
    scale = float(np.square(whole - whole.mean()).mean())
    return (
        float(np.square(whole - plain).mean()) / scale,
        float(np.square(whole - after).mean()) / scale,
        found,
        done.proto,
    )


CUT = {"e:1": list(range(INPUTS // 2)), "w:1": list(range(UNITS // 2 + 1))}
FORMS = [
    (op, direction, extra)
    for op, extra in (("LSTM", ""), ("GRU", ""), ("GRU", ", linear_before_reset=1"), ("RNN", ""))
    for direction in ("forward", "reverse", "bidirectional")
]


@pytest.mark.parametrize(("op", "direction", "extra"), FORMS)
def test_a_cell_is_closer_to_the_original_after_recovery(tmp_path: Path, op: str, direction: str, extra: str) -> None:
    plain, after, found, proto = recovered(build(tmp_path, op, direction=direction, extra=extra), CUT)
    (layer,) = [layer for layer in found.layers if op in layer.node]
    assert layer.before > 0.5
    assert layer.after < (0.1 if op == "GRU" and not extra else 0.02)
    assert after < 0.1 * plain
    shapes = {t.name: list(t.dims) for t in proto.graph.initializer}
    d, gates = 2 if direction == "bidirectional" else 1, recurrent.GATES[op]
    units = len(CUT["w:1"])
    assert shapes["w"] == [d, gates * units, INPUTS // 2]
    assert (shapes["r"], shapes["b"]) == ([d, gates * units, units], [d, 2 * gates * units])


@pytest.mark.parametrize("cut", ["e:1", "w:1"])
@pytest.mark.parametrize("last", [False, True])
def test_either_side_alone_without_a_bias_or_a_sequence(tmp_path: Path, cut: str, last: bool) -> None:
    plain, after, found, proto = recovered(build(tmp_path, "LSTM", bias=False, last=last), {cut: CUT[cut]})
    (layer,) = [layer for layer in found.layers if "LSTM" in layer.node]
    assert layer.after < 0.1 * layer.before
    assert after < 0.1 * plain
    (cell,) = [n for n in proto.graph.node if n.op_type == "LSTM"]
    assert len(cell.input) == 4
    assert cell.input[3].endswith("_operand3_recovered")


def test_a_cell_that_gets_no_better_stays_as_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "ROUNDS", 0)
    _, _, found, _ = recovered(build(tmp_path, "LSTM"), CUT)
    (layer,) = [layer for layer in found.layers if "LSTM" in layer.node]
    assert layer.ridge is None
    assert layer.before == layer.after
    assert not {"w", "r", "b"} & set(found.values)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_the_gates_are_linear_in_the_input_and_the_state_before(direction: str) -> None:
    """tanh(W x + R h + b) is the next state of an RNN, with lengths and first states, within the length of an item."""
    d = 2 if direction == "bidirectional" else 1
    proto = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[7,3,5] x, float[{d},3,4] first) => (float[7,{d},3,4] y) <int32[3] lengths = {{7, 2, 5}}> {{
            y = RNN<hidden_size=4, direction="{direction}">(x, w, r, b, lengths, first)
        }}""")
    random = np.random.default_rng(0)
    for name, shape in {"w": (d, 4, 5), "r": (d, 4, 4), "b": (d, 8)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    feed = {"x": (7, 3, 5), "first": (d, 3, 4)}
    walk = Walk(
        proto,
        reader(proto, lambda _: None, {}),
        [{n: random.normal(size=s).astype(np.float32) for n, s in feed.items()}],
        shelf=Shelf(1 << 30),
    )
    side = recurrent.Side(walk, proto.graph.node[0], walk.read)
    (part,) = recurrent.parts(side.node)
    weight, bias = side.parameters().linear(part, np.arange(4))
    (steps,) = side.steps(side.parameters())
    inputs = np.concatenate([steps.x, steps.before], axis=1)
    states = np.tanh(np.einsum("dok,dknt->dont", weight, inputs) + bias[:, :, None, None])
    assert steps.valid.sum(1).tolist() == [7, 2, 5]
    assert np.abs((states - steps.after)[:, :, steps.valid]).max() < 1e-6


def test_the_cut_of_a_recurrent_model_is_exact_and_its_recovery_is_written(tmp_path: Path) -> None:
    path = build(tmp_path, "LSTM")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(5).normal(size=(12, 200, 6)).astype(np.float32))
    config = Config(ratio=0.5, calibration=tmp_path / "x.npz", output=tmp_path / "out.onnx", round_to=1)
    report = api.prune(path, config)
    assert report.exactness.passed
    assert any("LSTM" in layer.node and layer.after < layer.before for layer in report.layers)
