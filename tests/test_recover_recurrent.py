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

from onnxprune import api, choosing, recovery
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


def in_pieces(path: Path) -> None:
    """W, R and B of the cell put together from pieces of stored tensors without the first axis, as exporters do."""
    proto = onnx.load(path)
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    cell = next(k for k, n in enumerate(proto.graph.node) if n.op_type in recurrent.GATES)
    nodes, numbers = [], {"zero": 0, "half": 2 * UNITS, "end": 1 << 20}
    for name in ("w", "r", "b"):
        nodes += [
            onnx.helper.make_node("Slice", [f"{name}_all", "zero", "half", "zero"], [f"{name}_1"]),
            onnx.helper.make_node("Slice", [f"{name}_all", "half", "end", "zero"], [f"{name}_2"]),
            onnx.helper.make_node("Concat", [f"{name}_1", f"{name}_2"], [f"{name}_whole"], axis=0),
            onnx.helper.make_node("Unsqueeze", [f"{name}_whole", "zero"], [name]),
        ]
    after = [*proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend([*after[:cell], *nodes, *after[cell:]])
    for tensor in proto.graph.initializer:
        if tensor.name in ("w", "r", "b"):
            tensor.CopyFrom(numpy_helper.from_array(stored[tensor.name][0], f"{tensor.name}_all"))
    proto.graph.initializer.extend(numpy_helper.from_array(np.array([v]), n) for n, v in numbers.items())
    onnx.save(proto, path)


def test_weights_put_together_from_pieces_are_refitted_alike(tmp_path: Path) -> None:
    path = build(tmp_path, "LSTM")
    whole = recovered(path, CUT)
    in_pieces(path)
    pieces = recovered(path, {"e:1": CUT["e:1"], "w_all:0": CUT["w:1"]})
    assert pieces[:2] == pytest.approx(whole[:2], rel=1e-3)
    assert [n.op_type for n in pieces[3].graph.node] == [n.op_type for n in whole[3].graph.node]


@pytest.mark.parametrize(("op", "direction", "extra"), FORMS)
def test_what_only_a_cell_reads_goes_by_what_its_gates_can_spare(
    tmp_path: Path, op: str, direction: str, extra: str
) -> None:
    source = recovery.Source(str(build(tmp_path, op, direction=direction, extra=extra)), {}, feeds(), 0, 1, 1 << 30)
    wanted = choosing.Wanted(["e:1", "w:1"], "sensitivity", ("macs", 0.5), 0.5, {"e:1": 1, "w:1": 1}, "obs")
    found = choosing.prepare(source, wanted)
    removed = found.order["e:1"].order[: INPUTS // 2]
    assert sorted(removed % (INPUTS // 2)) == list(range(INPUTS // 2))  # one of each pair that nearly repeats
    curve = found.measured["e:1"]
    assert curve.refitted
    plan = {"e:1": np.setdiff1d(np.arange(INPUTS), removed)}
    cut = recovery.cut_weights(found.model, plan)
    whole = output(found.model.file.proto, found.model.read, feeds())
    plain = float(np.square(whole - output(cut.proto, cut.get, feeds())).sum() / np.square(whole - whole.mean()).sum())
    assert curve.at(INPUTS // 2) < 0.2 * plain


def test_units_that_only_a_cell_reads_are_chosen_by_it(tmp_path: Path) -> None:
    """Of a cell below another; without statistics of the one above the larger half would stay, whatever it says."""
    path = stacked(tmp_path)
    source = recovery.Source(str(path), {}, feeds(), 0, 1, 1 << 30)
    wanted = choosing.Wanted(["w:1"], "sensitivity", ("macs", 0.9), 0.5, {"w:1": 1}, "obs")
    found = choosing.prepare(source, wanted)
    removed = found.order["w:1"].order[: UNITS // 2]
    assert sorted(removed % (UNITS // 2)) == list(range(UNITS // 2))
    assert found.measured["w:1"].refitted


def stacked(folder: Path) -> Path:
    """Two cells, the units of the lower one in pairs that nearly repeat each other, and a reading of the upper one."""
    path = build(folder, "LSTM")
    proto = onnx.load(path)
    random = np.random.default_rng(5)
    cell = next(n for n in proto.graph.node if n.op_type == "LSTM")
    upper = onnx.NodeProto()
    upper.CopyFrom(cell)
    flat = onnx.helper.make_node("Squeeze", ["s", "one"], ["below"])
    del upper.input[:], upper.output[:]
    upper.input.extend(["below", "w2", "r2"])
    upper.output.append("s2")
    nodes = [*proto.graph.node]
    nodes[nodes.index(cell) + 1 : nodes.index(cell) + 1] = [flat, upper]
    nodes[-2].input[0] = "s2"
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    weights = {"w2": random.normal(0, 0.5, (1, 4 * UNITS, UNITS)), "r2": random.normal(0, 0.3, (1, 4 * UNITS, UNITS))}
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    onnx.save(proto, path)
    return path
