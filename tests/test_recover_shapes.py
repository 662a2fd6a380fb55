"""Recovery where operands differ in shape, where columns are many, and where outputs are no numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from onnxprune import choosing, recovery, runtime
from onnxprune.records import Feed
from onnxprune.recover import damage, divergence, execution, reconstruct
from onnxprune.recover.layers import Weights
from onnxprune.recover.task import Task

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def source(folder: Path, text: str, shapes: Mapping[str, Sequence[int]], sizes: Sequence[int]) -> recovery.Source:
    """A model of random weights, with four batches of inputs of the given sizes."""
    random = np.random.default_rng(0)
    proto = parser.parse_model(HEAD + text)
    for name, shape in shapes.items():
        array = random.normal(size=shape).astype(np.float32) / math.sqrt(math.prod(shape[1:]) or 1)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, folder / "model.onnx")
    feeds: list[Feed] = [{"x": random.normal(size=sizes).astype(np.float32)} for _ in range(4)]
    return recovery.Source(str(folder / "model.onnx"), {}, feeds, 0, 1, 1 << 30)


POOLED = """
g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
    d = Conv(x, w3)  a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  m = GlobalAveragePool(r)
    c = Conv(m, w2, b2)  y = Add(d, c)
}
"""
POOLED_SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (4, 8, 1, 1), "b2": (4,), "w3": (4, 3, 1, 1)}
FORMS = {
    "addend per image": (POOLED, POOLED_SHAPES, (8, 3, 8, 8)),
    "addend per row": (
        "g (float[n,5,4] x) => (float[n,5,6] y) { a = MatMul(x, w1)  r = Relu(a)  p = MatMul(r, w2)  y = Add(p, t) }",
        {"w1": (4, 8), "w2": (8, 6), "t": (1, 5, 6)},
        (8, 5, 4),
    ),
    "column of as many rows as outputs": (
        "g (float[n,6,4] x) => (float[n,6,6] y) { a = MatMul(x, w1)  r = Relu(a)  p = MatMul(r, w2)  y = Add(p, t) }",
        {"w1": (4, 8), "w2": (8, 6), "t": (6, 1)},
        (8, 6, 4),
    ),
    "matrix in a Gemm": (
        (
            "g (float[5,4] x) => (float[5,3] y) "
            "{ a = Gemm(x, w1)  r = Relu(a)  p = Gemm(r, w2, t)  s = Relu(p)  y = Gemm(s, w3) }"
        ),
        {"w1": (4, 8), "w2": (8, 6), "t": (5, 6), "w3": (6, 3)},
        (5, 4),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_broadcast_addend_is_neither_a_bias_nor_a_residual(tmp_path: Path, name: str) -> None:
    opened = source(tmp_path, *FORMS[name])
    found = recovery.recover(opened, {"w1:0" if "Conv" in FORMS[name][0] else "w1:1": np.arange(5)}, tuned=False)
    assert found.layers
    assert all(layer.after <= layer.before + 1e-9 for layer in found.layers)
    assert "t" not in found.values
    assert not [operand for operand in found.rewired if "t" in operand]


def test_an_addend_of_one_shape_is_a_residual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: list[bool] = []
    check = Task.is_plain_sum
    monkeypatch.setattr(Task, "is_plain_sum", lambda *given: plain.append(check(*given)) or plain[-1])
    recovery.recover(source(tmp_path, POOLED, POOLED_SHAPES, (8, 3, 8, 8)), {"w1:0": np.arange(5)}, tuned=False)
    text = POOLED.replace("m = GlobalAveragePool(r)", "m = Relu(r)")
    recovery.recover(source(tmp_path, text, POOLED_SHAPES, (8, 3, 8, 8)), {"w1:0": np.arange(5)}, tuned=False)
    assert plain == [False, True]


# ---- How many columns ------------------------------------------------------------------------------------------------

FLAT = """
g (float[n,3,8,8] x) => (float[n,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  f = Flatten(r)  y = Gemm(f, w2, b2)
}
"""
FLAT_SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (512, 5), "b2": (5,)}


def task_of(opened: recovery.Source) -> tuple[Task, reconstruct.Site]:
    """The model as it is on both sides, and its last operator."""
    model = recovery.open_source(opened)
    proto = model.file.proto
    walk = execution.Walk(proto, model.read, opened.feeds, shelf=execution.Shelf(1 << 30))
    weights = Weights(proto, model.read)
    task = Task(walk, walk, proto, weights, model.analysis, {}, np.random.default_rng(0))
    site = list(reconstruct.find_sites(proto, model.analysis))[-1]
    walk.compute([site.x, site.out])
    return task, site


def test_items_are_drawn_where_each_is_one_column(tmp_path: Path) -> None:
    task, site = task_of(source(tmp_path, FLAT, FLAT_SHAPES, (50, 3, 8, 8)))
    parts = list(task.columns(site, (), site.out, False, most=20))
    assert sum(x.shape[2] * x.shape[3] for x, *_ in parts) == 20
    assert sum(int(held.sum()) for *_, held in parts) == 4
    for x, y, _, held in parts:
        assert held.shape == x.shape[2:] == y.shape[2:]
    whole = {r.tobytes() for b in range(4) for r in task.teacher.get(site.x, b)}
    assert all(row.tobytes() in whole for x, *_ in parts for row in x[0, :, :, 0].T)


def test_every_item_is_looked_at_where_there_are_no_more_than_wanted(tmp_path: Path) -> None:
    task, site = task_of(source(tmp_path, FLAT, FLAT_SHAPES, (5, 3, 8, 8)))
    parts = list(task.columns(site, (), site.out, False, most=20))
    assert [x.shape[2:] for x, *_ in parts] == [(5, 1)] * 4


def test_the_columns_looked_at_go_by_the_number_of_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.recover.task.LEAST_COLUMNS", 1)
    monkeypatch.setattr("onnxprune.recover.task.COLUMNS_PER_INPUT", 1)
    task, site = task_of(source(tmp_path, FLAT, FLAT_SHAPES, (200, 3, 8, 8)))
    assert task.budget(site, site.out) == 512 / 800


# ---- Measured damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_count_as_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    measured = iter([0.1, bad, 0.2])
    monkeypatch.setattr(damage.divergence, "divergence", lambda *_: next(measured))
    opened = source(tmp_path, FLAT, FLAT_SHAPES, (8, 3, 8, 8))
    wanted = choosing.Wanted(["w1:0"], "sensitivity", ("macs", 0.6), 0.5, {"w1:0": 1}, "obs")
    curve = choosing.prepare(opened, wanted, levels=(0.25, 0.5, 0.75)).measured["w1:0"]
    assert curve.damage == [0, 0.1, damage.WORST, damage.WORST]
    assert [math.isfinite(curve.at(k)) for k in range(8)] == [True] * 8
    assert curve.at(3) > curve.at(2)


def test_measuring_damage_keeps_to_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    start = execution.Shelf.__init__
    monkeypatch.setattr(execution.Shelf, "__init__", lambda self, limit: (limits.append(limit), start(self, limit))[1])
    opened = source(tmp_path, FLAT, FLAT_SHAPES, (8, 3, 8, 8))
    opened = recovery.Source(opened.model, {}, opened.feeds, 0, 1, 12345678)
    wanted = choosing.Wanted(["w1:0"], "sensitivity", ("macs", 0.6), 0.5, {"w1:0": 1}, "obs")
    choosing.choose(opened, wanted)
    assert len(limits) > 3
    assert max(limits) <= 12345678


# ---- Inputs without axes ---------------------------------------------------------------------------------------------

SCALED = (
    "g (float t, float[n,6] x) => (float[n,4] y) { a = MatMul(x, w1)  r = Relu(a)  s = Mul(r, t)  y = MatMul(s, w2) }"
)
SCALAR = """g (float t) => (float[1,4] y) {
    k = Constant<value_ints=[1,1]>()  m = Reshape(t, k)  a = MatMul(m, w1)  r = Relu(a)  y = MatMul(r, w2)
}"""


@pytest.mark.parametrize(("text", "rows"), [(SCALED, 8), (SCALAR, 0)], ids=["first of two", "the only one"])
def test_an_input_may_have_no_axis(tmp_path: Path, text: str, rows: int) -> None:
    opened = source(tmp_path, text, {"w1": (6 if rows else 1, 8), "w2": (8, 4)}, (8, 6))
    feeds: list[Feed] = [{"t": np.array(1 + k, np.float32)} for k in range(12)]
    feeds = [{**f, **({"x": opened.feeds[k % 4]["x"]} if rows else {})} for k, f in enumerate(feeds)]
    opened = dataclasses.replace(opened, feeds=feeds)
    wanted = choosing.Wanted(["w1:1"], "sensitivity", ("macs", 0.6), 0.5, {"w1:1": 1}, "obs")
    assert 0 < len(choosing.choose(opened, wanted).kept["w1:1"]) < 8
    assert len(choosing.limited(feeds, 8)) == (1 if rows else 8)


# ---- Sequences and maps ----------------------------------------------------------------------------------------------

SEQUENCE = """
g (float[n,6] x) => (float[2,4] y) {
    a = MatMul(x, w1)  r = Relu(a)  h = MatMul(r, w2)  s = SplitToSequence<axis=0>(h, two)
    i = SequenceAt(s, zero)  b = MatMul(i, w3)  q = Relu(b)  c = MatMul(q, w4)  j = SequenceAt(s, one)  y = Add(c, j)
}
"""
SEQUENCE_SHAPES = {"w1": (6, 8), "w2": (8, 4), "w3": (4, 8), "w4": (8, 4)}
MAPS = """g (float[n,6] x) => (float[n,3] y) {
    a = MatMul(x, w1)  r = Relu(a)  h = MatMul(r, w2)  p = Softmax(h)  y = Identity(p)
    z = ai.onnx.ml.ZipMap<classlabels_int64s=[0,1,2]>(p)
}"""


def with_sequence(folder: Path) -> recovery.Source:
    """A model in which rows go through a sequence that is read on both sides of a layer."""
    opened = source(folder, SEQUENCE, SEQUENCE_SHAPES, (8, 6))
    proto = onnx.load(opened.model)
    numbers = {"two": 2, "zero": 0, "one": 1}
    proto.graph.initializer.extend(numpy_helper.from_array(np.array(k, np.int64), n) for n, k in numbers.items())
    onnx.save(proto, opened.model)
    return opened


def with_maps(folder: Path) -> recovery.Source:
    """A classifier that gives probabilities as a tensor and as a map for each row."""
    opened = source(folder, MAPS, {"w1": (6, 8), "w2": (8, 3)}, (8, 6))
    proto = onnx.load(opened.model)
    proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    map_type = onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, onnx.helper.make_tensor_type_proto(1, None))
    proto.graph.output.append(onnx.helper.make_value_info("z", onnx.helper.make_sequence_type_proto(map_type)))
    onnx.save(proto, opened.model)
    return opened


def test_a_walk_goes_through_sequences(tmp_path: Path) -> None:
    opened = with_sequence(tmp_path)
    model = recovery.open_source(opened)
    walk = execution.Walk(model.file.proto, model.read, opened.feeds, shelf=execution.Shelf(1 << 30))
    left = {}
    for name in ("a", "i", "b", "c", "y"):
        walk.compute([name])
        left[name] = walk.live - {"x", name}
    assert left["i"] == left["b"] == left["c"] == {"h"}  # what the sequence is made from
    assert not left["y"]
    session = onnxruntime.InferenceSession(opened.model)
    for batch, feed in enumerate(opened.feeds):
        np.testing.assert_allclose(walk.get("y", batch), session.run(["y"], feed)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [with_sequence, with_maps])
def test_models_with_sequences_and_maps_are_recovered(tmp_path: Path, make: Callable[[Path], recovery.Source]) -> None:
    wanted = choosing.Wanted(["w1:1"], "sensitivity", ("macs", 0.6), 0.5, {"w1:1": 1}, "obs")
    opened = make(tmp_path)
    kept = choosing.choose(opened, wanted).kept
    assert 0 < len(kept["w1:1"]) < 8
    layers = recovery.recover(opened, kept, tuned=False).layers
    assert layers
    assert layers[0].after < layers[0].before


def test_maps_are_measured_by_the_tensor_they_are_made_from(tmp_path: Path) -> None:
    proto = onnx.load(with_maps(tmp_path).model)
    del proto.graph.output[0]
    assert divergence.probes(proto) == [divergence.Probe("h", "categorical", -1)]


# ---- Large weights ---------------------------------------------------------------------------------------------------

MIXED = """
g (float[n,6] x) => (float[n,4] y, string[1] s) {
    a = MatMul(x, w1)  h = DequantizeLinear(q, scale)  r = MatMul(a, h)  b = Cast<to=1>(brain)  t = Add(r, b)
    u = Cast<to=1>(half)  y = MatMul(t, u)  s = Identity(word)
}
"""


@pytest.mark.parametrize(("room", "beside"), [(1 << 30, set()), (400, {"w1"}), (0, {"brain", "half", "q", "w1"})])
def test_weights_that_no_model_has_room_for_are_given_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, beside: set[str]
) -> None:
    opened = source(tmp_path, MIXED, {"w1": (6, 12)}, (8, 6))
    random = np.random.default_rng(3)
    stored = {
        "q": random.integers(-99, 99, (12, 10)).astype(np.int8),
        "scale": np.array(0.01, np.float32),
        "brain": random.normal(size=(10,)).astype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)),
        "half": random.normal(size=(10, 4)).astype(np.float16),
        "word": np.array(["a"], object),
    }
    proto = onnx.load(opened.model)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in stored.items())
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for array in arrays.values():
        array.flags.writeable = False
    monkeypatch.setattr(execution, "INLINE_BYTES", room)
    monkeypatch.setattr(execution, "SMALL_BYTES", 10)
    given: list[set[str]] = []
    open_session = runtime.session

    def session(model: bytes, **options: Any) -> Any:
        given.append(set(options["weights"]))
        return open_session(model, **options)

    monkeypatch.setattr(execution.runtime, "session", session)
    limits = {"threads": 1, "memory_bytes": 1 << 30}
    found = damage.tensors_of(proto, arrays.__getitem__, ["y", "s"], opened.feeds, **limits)
    assert given == [beside]
    whole = onnxruntime.InferenceSession(proto.SerializeToString())
    for feed, (y, s) in zip(opened.feeds, found, strict=True):
        np.testing.assert_allclose(y, whole.run(["y"], feed)[0], rtol=1e-6, atol=1e-6)
        assert s.tolist() == ["a"]


def test_an_operator_along_another_axis_than_the_one_that_is_cut(tmp_path: Path) -> None:
    """The channels that go are positions of the product over the tokens, as in an MLP-Mixer."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,4,6] x) => (float[n,4,3] y) {
            c = MatMul(x, w1)
            t = Transpose<perm=[0,2,1]>(c)
            m = MatMul(t, w2)
            r = Relu(m)
            o = MatMul(r, w3)
            b = Transpose<perm=[0,2,1]>(o)
            s = Add(b, c)
            y = MatMul(s, w4)
        }""")
    random = np.random.default_rng(0)
    sizes = {"w1": (6, 10), "w2": (4, 7), "w3": (7, 4), "w4": (10, 3)}
    values = {n: random.normal(size=s).astype(np.float32) for n, s in sizes.items()}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in values.items())
    onnx.save(proto, tmp_path / "mixer.onnx")
    given = [{"x": random.normal(size=(16, 4, 6)).astype(np.float32)} for _ in range(8)]
    opened = recovery.Source(str(tmp_path / "mixer.onnx"), {}, given, 0, 1, 1 << 30)
    model = recovery.open_source(opened)
    groups = [g.id for g in model.analysis.groups if g.refusal is None]
    found = recovery.recover(opened, {name: np.array([0, 2, 3, 5]) for name in groups}, tuned=False)
    assert len(found.layers) >= 2
    assert all(np.isfinite(layer.after) and layer.after <= layer.before for layer in found.layers)
