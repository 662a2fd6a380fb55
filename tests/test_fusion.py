"""What only scales, shifts and clips is taken into the layers around it, and nothing else is touched."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune import api, cli, fusing, runtime
from onnxprune.clock import Clock
from onnxprune.config import Config
from onnxprune.cut import Cut
from onnxprune.fusion import Fused, fused
from onnxprune.opening import open_model
from onnxprune.shapes import infer, stored_tensors

Array = npt.NDArray[Any]
HEAD = '<ir_version: 8, opset_import: ["": {opset}]> g (float[n,8,12,12] x) => (float[{out}] y) {{ {text} }}'
IMAGES, ROWS = "n,8,h,w", "n,8"


def model(text: str, out: str = IMAGES, opset: int = 17, **arrays: Array) -> onnx.ModelProto:
    """A model of x (n, 8, 12, 12) with random weights: `w` (8, 8, 1, 1), `k` (8, 8, 3, 3), `d` depthwise, `g` in two
    groups, `b` a bias, `m` a matrix, `v` a number per channel; `s0` to `s9` are 0.0 to 9.0, and `half` is 0.5."""
    random = np.random.default_rng(0)
    shapes = {
        "w": (8, 8, 1, 1),
        "k": (8, 8, 3, 3),
        "d": (8, 1, 3, 3),
        "g": (8, 4, 3, 3),
        "t": (8, 4, 3, 3),
        "m": (8, 8),
    }
    stored = {name: random.standard_normal(shape) / 3 for name, shape in shapes.items()}
    stored |= {name: random.uniform(0.5, 2, 8) for name in ("b", "scale", "bias", "mean", "variance")}
    stored |= {"v": random.uniform(0.5, 2, (8, 1, 1)), "half": np.array(0.5), "minus": np.array(-0.5)}
    stored |= {f"s{k}": np.array(k) for k in range(10)} | {"one": np.array([2.5]), **arrays}
    proto = parser.parse_model(HEAD.format(opset=opset, out=out, text=text))
    made = {name for node in proto.graph.node for name in node.output}
    read = {name for node in proto.graph.node for name in node.input} - made
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in stored.items() if name in read
    )
    for tensor in proto.graph.initializer:
        if tensor.name == "laid":
            tensor.CopyFrom(numpy_helper.from_array(np.array([1, -1, 1, 1], np.int64), "laid"))
    return proto


def reader(proto: onnx.ModelProto) -> Callable[[str], Array | None]:
    tensors = stored_tensors(proto)
    return lambda name: numpy_helper.to_array(tensors[name]) if name in tensors else None


def fuse(proto: onnx.ModelProto) -> Fused | None:
    return fused(proto, {}, reader(proto), infer(proto).shape, blocked=True)


def written(found: Fused, read: Callable[[str], Array | None]) -> onnx.ModelProto:
    """The fused model with its edits carried out."""
    proto = onnx.ModelProto()
    proto.CopyFrom(found.proto)
    for name, edit in found.edits.items():
        array = read(name)
        tensor = stored_tensors(proto)[name]
        tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor) if array is None else array), name))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def outputs(proto: onnx.ModelProto, feed: Mapping[str, Array]) -> dict[str, Array]:
    return runtime.run(runtime.session(proto.SerializeToString(), optimize=False), dict(feed))


def require_equal(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    feed = {"x": np.random.default_rng(1).standard_normal((2, 8, 12, 12)).astype(np.float32) * 3}
    expected, found = outputs(before, feed), outputs(after, feed)
    assert list(expected) == list(found)
    for name, array in expected.items():
        assert array.shape == found[name].shape
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5 * float(np.abs(array).max()))


def operators(proto: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in proto.graph.node if n.op_type != "Constant"]


SWISH = "a = Add({x}, s3) c = Clip(a, s0, s6) p = Mul({x}, c) {y} = Div(p, s6)"
FUSED = {
    "behind a convolution": ("h = Conv(x, k) m = Mul(one, h) y = Add(m, half)", IMAGES, ["Conv"]),
    "behind biases and copies": (
        "h = Conv(x, k) a = Add(h, v) i = Identity(a) j = Identity(i) m = Mul(j, half) l = Identity(m) y = Add(l, s1)",
        IMAGES, ["Conv"],
    ),
    "behind biases with axes of their own": (
        "h = Conv(x, k) l = Identity(laid) r = Reshape(b, l) a = Add(h, r) m = Mul(a, half) y = Add(m, s1)", IMAGES,
        ["Conv"],
    ),
    "behind one with a bias": ("h = Conv(x, k, b) m = Sub(s2, h) y = Div(m, s4)", IMAGES, ["Conv"]),
    "behind one in groups": ("h = Conv<group=2>(x, g) a = Mul(h, v) y = Sub(a, half)", IMAGES, ["Conv"]),
    "behind a depthwise one": ("h = Conv<group=8>(x, d, b) y = Mul(h, half)", IMAGES, ["Conv"]),
    "a normalisation and a number behind one": (
        "h = Conv(x, k) a = BatchNormalization(h, scale, bias, mean, variance) y = Mul(a, half)", IMAGES, ["Conv"],
    ),
    "a normalisation and numbers behind a transposed one": (
        "h = ConvTranspose<group=2>(x, t) a = BatchNormalization(h, scale, bias, mean, variance) y = Add(a, half)",
        IMAGES, ["ConvTranspose"],
    ),
    "behind a matrix": (
        "p = GlobalAveragePool(x) f = Flatten(p) h = Gemm<alpha=0.5>(f, m, b) y = Mul(h, s3)", ROWS,
        ["GlobalAveragePool", "Flatten", "Gemm"],
    ),
    "behind a turned matrix": (
        "p = GlobalAveragePool(x) f = Flatten(p) h = Gemm<transB=1>(f, m) a = Add(h, s3) y = Mul(a, half)", ROWS,
        ["GlobalAveragePool", "Flatten", "Gemm"],
    ),
    "an activation spelled out": (
        f"h = Conv(x, k) {SWISH.format(x='h', y='z')} y = Conv(z, w)", IMAGES, ["Conv", "HardSigmoid", "Mul", "Conv"],
    ),
    "one whose numbers come in another order": (
        "h = Conv(x, k) a = Add(h, s3) c = Clip(a, s0, s6) d = Div(c, s6) z = Mul(d, h) y = Conv(z, w)", IMAGES,
        ["Conv", "HardSigmoid", "Mul", "Conv"],
    ),
    "a map ahead of a convolution": (
        "r = Relu(x) a = Mul(r, half) c = Add(a, s2) y = Conv(c, w, b)", IMAGES, ["Relu", "Conv"],
    ),
    "a map of vectors ahead of one in groups": (
        "r = Relu(x) a = Mul(r, v) c = Add(v, a) y = Conv<group=2>(c, g)", IMAGES, ["Relu", "Conv"],
    ),
    "a scale ahead of a border of zeros": (
        "r = Relu(x) a = Mul(r, half) y = Conv<pads=[1,1,1,1]>(a, k)", IMAGES, ["Relu", "Conv"],
    ),
    "a scale ahead of a transposed one": (
        "r = Relu(x) a = Mul(r, v) y = ConvTranspose<group=2>(a, t, one4)", IMAGES, ["Relu", "ConvTranspose"],
    ),
    "a shift that a border of zeros keeps apart": (
        "h = Conv(x, k) r = Relu(h) a = Mul(r, half) c = Add(a, s2) y = Conv<pads=[1,1,1,1]>(c, k)", IMAGES,
        ["Conv", "Relu", "BatchNormalization", "Conv"],
    ),
    "through what keeps the order": (
        "r = Relu(x) a = Mul(r, half) c = Add(a, s2) p = MaxPool<kernel_shape=[2,2]>(c) y = Conv(p, w)", IMAGES,
        ["Relu", "MaxPool", "Conv"],
    ),
    "through a rectifier and a mean": (
        "a = Mul(x, half) r = LeakyRelu(a) p = GlobalAveragePool(r) f = Flatten(p) c = Add(f, s1) y = Gemm(c, m)", ROWS,
        ["LeakyRelu", "GlobalAveragePool", "Flatten", "Gemm"],
    ),
    "maps far from any layer": (
        "a = Mul(x, half) c = Add(a, s1) d = Mul(c, s3) e = Sub(d, s2) z = Sin(e) y = Abs(z)", IMAGES,
        ["Mul", "Add", "Sin", "Abs"],
    ),
    "maps of vectors far from any layer": (
        "a = Mul(x, v) c = Add(a, v) d = Mul(c, s3) z = Sin(d) y = Abs(z)", IMAGES,
        ["Mul", "Add", "Sin", "Abs"],
    ),
    "one slope of a PRelu, behind a scale": (
        "r = Sin(x) a = Mul(r, half) p = PRelu(a, one) y = Conv(p, k)", IMAGES, ["Sin", "LeakyRelu", "Conv"],
    ),
    "vectors that the runtime does not take in": ("h = Conv(x, k) y = Sub(h, v)", IMAGES, ["Conv"]),
    "constants that are inverse to the last digit but one": (
        "h = Conv(x, k) a = Add(h, s3) c = Clip(a, s0, s6) d = Mul(c, sixth) p = Mul(h, d) z = Sin(p) y = Abs(z)",
        IMAGES, ["Conv", "HardSigmoid", "Mul", "Sin", "Abs"],
    ),
    "a clip that falls": (
        "h = Conv(x, k) r = Relu(h) a = Sub(s3, r) c = Clip(a, s0, s6) z = Div(c, s6) y = Conv(z, w)", IMAGES,
        ["Conv", "Relu", "HardSigmoid", "Conv"],
    ),
    "a normalisation with a channel that is off": (
        "r = Relu(x) n = BatchNormalization(r, off, bias, mean, variance) y = Conv(n, w)", IMAGES, ["Relu", "Conv"],
    ),
    "a hard sigmoid of a map": (
        "h = Conv(x, k) r = Relu(h) a = Mul(r, half) c = Add(a, s1) z = HardSigmoid<alpha=0.3>(c) y = Conv(z, w)",
        IMAGES, ["Conv", "Relu", "HardSigmoid", "Conv"],
    ),
}  # fmt: skip
LEFT = {
    "copies alone": ("h = Conv(x, k) i = Identity(h) r = Relu(i) j = Identity(r) y = Conv(j, w)", IMAGES),
    "nothing to fuse": ("h = Conv(x, k, b) r = Relu(h) y = Conv(r, w)", IMAGES),
    "a normalisation that the runtime takes in": (
        "h = Conv(x, k) y = BatchNormalization(h, scale, bias, mean, variance)", IMAGES,
    ),
    "vectors that the runtime takes in": ("h = Conv(x, k) a = Mul(h, v) y = Add(a, v)", IMAGES),
    "a Gelu": ("a = Div(x, s3) e = Erf(a) o = Add(e, s1) p = Mul(x, o) z = Mul(p, half) y = Conv(z, w)", IMAGES),
    "a map that is read twice": ("h = Conv(x, k) m = Mul(h, half) z = Mul(m, h) y = Add(z, m)", IMAGES),
    "numbers along another axis": ("h = Conv(x, k) y = Mul(h, wide)", IMAGES),
    "a weight that two read": ("h = Conv(x, k) a = Mul(h, half) e = Conv(x, k) y = Add(a, e)", IMAGES),
    "a clip that starts above zero": (
        "h = Conv(x, k) r = Relu(h) a = Add(r, s1) c = Clip(a, s2, s6) y = Sin(c)", IMAGES,
    ),
    "a gate that is small": (
        "p = GlobalAveragePool(x) g = Conv(p, w) r = Relu(g) s = Mul(r, s2) h = Mul(x, s) z = Sin(h) y = Abs(z)",
        IMAGES,
    ),
    "a map that an activation and its product read": (
        "h = Conv(x, k) r = Relu(h) a = Mul(r, half) c = Add(a, s1) g = HardSigmoid(c) y = Mul(c, g)", IMAGES,
    ),
    "a map of several readers": (
        "h = Relu(x) a = Mul(h, half) p = MaxPool<kernel_shape=[1,1]>(a) l = LeakyRelu(a) s = Add(p, l) y = Sub(s, a)",
        IMAGES,
    ),
    "biases of a matrix for each row": (
        "p = GlobalAveragePool(x) f = Flatten(p) h = Gemm(f, m, rows) y = Mul(h, half)", "2,8",
    ),
    "a rectifier of the other sign": ("h = Relu(x) a = Mul(h, minus) r = Relu(a) y = Conv(r, w)", IMAGES),
    "a mean with zeros around it": (
        "r = Relu(x) a = Add(r, s1) p = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(a) q = Abs(p) y = Abs(q)",
        IMAGES,
    ),
    "numbers that cost digits": ("h = Conv(x, k) m = Mul(h, tiny) y = Add(m, half)", IMAGES),
    "vectors that one channel is spread by": (
        "p = ReduceMax<axes=[1]>(x) r = Relu(p) a = Mul(r, v) c = Add(a, v) z = Sin(c) y = Abs(z)", IMAGES,
    ),
    "a number of more axes": ("h = Conv(x, k) p = GlobalAveragePool(h) f = Flatten(p) y = Mul(f, deep)", "a,b,c"),
}  # fmt: skip
OTHERS = {
    "laid": np.zeros(4), "sixth": np.array(1 / 6), "off": np.r_[np.zeros(2), np.ones(6)], "rows": np.ones((8, 1)),
    "one4": np.full(8, 1.5), "wide": np.linspace(1, 2, 10), "tiny": np.array(1e-9), "deep": np.full((1, 1, 1), 2.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_maps_are_taken_in(name: str) -> None:
    text, out, expected = FUSED[name]
    before = model(text, out, **OTHERS)
    copy = before.SerializeToString()
    found = fuse(before)
    assert found is not None
    after = written(found, reader(before))
    assert operators(after) == expected
    copies = sum(operators(before).count(op) for op in ("Identity", "Reshape"))
    assert found.nodes == len(operators(before)) - copies - len(expected) + operators(before).count("PRelu")
    assert before.SerializeToString() == copy
    require_equal(before, after)


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_as_it_is(name: str) -> None:
    text, out = LEFT[name]
    assert fuse(model(text, out, **OTHERS)) is None


def test_slopes_per_channel_stay_in_the_layout_of_convolutions() -> None:
    before = model("h = Conv(x, k) p = PRelu(h, v) y = Conv(p, w)")
    found = fuse(before)
    assert found is not None and found.nodes == 1
    after = written(found, reader(before))
    assert operators(after) == ["Conv", "Relu", "BatchNormalization", "BatchNormalization", "Add", "Conv"]
    require_equal(before, after)
    assert fused(before, {}, reader(before), infer(before).shape, blocked=False) is None
    assert fuse(model("p = PRelu(x, v) y = Conv(p, w)")) is None


@pytest.mark.parametrize("spelled", ["p = Mish(h)", "s = Softplus(h) t = Tanh(s) p = Mul(t, h)"])
def test_mish_does_without_softplus(spelled: str) -> None:
    before = model(f"h = Conv(x, k) {spelled} y = Conv(p, w)", opset=18)
    found = fuse(before)
    assert found is not None
    after = written(found, reader(before))
    assert operators(after) == ["Conv", "Sigmoid", "Sub", "Mul", "Sub", "Div", "Mul", "Conv"]
    require_equal(before, after)
    assert fused(before, {}, reader(before), infer(before).shape, blocked=False) is None


def test_results_that_are_given_out_stay() -> None:
    before = model("h = Conv(x, k) m = Mul(h, half) y = Add(m, s1)")
    before.graph.output.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, ["n", 8, "h", "w"]))
    found = fuse(before)
    assert found is not None
    after = written(found, reader(before))
    assert operators(after) == ["Conv", "Add"]
    require_equal(before, after)


def test_weights_that_are_given_out_are_not_changed() -> None:
    before = model("h = Conv(x, k) m = Mul(h, half) y = Add(m, s1)")
    before.graph.output.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [8, 8, 3, 3]))
    assert fuse(before) is None


def test_new_names_are_new_in_bodies_too() -> None:
    before = model(
        "h = Conv(x, k) m = Add(h, half) q = ReduceMax<keepdims=0>(x) o = Greater(q, s0) z = If(o) <"
        "then_branch = t () => (float[n,8,10,10] p) { h_bias = Sin(x) p = Slice(h_bias, from, to, axes) },"
        "else_branch = e () => (float[n,8,10,10] r) { r = Slice(x, from, to, axes) }> y = Add(m, z)"
    )
    sizes = {"from": [0, 0], "to": [10, 10], "axes": [2, 3]}
    for name, values in sizes.items():
        before.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    found = fuse(before)
    assert found is not None
    require_equal(before, written(found, reader(before)))


def test_what_doubles_at_every_step_is_walked_once() -> None:
    steps = " ".join(f"z{k + 1} = Mul(z{k}, z{k})" for k in range(200))
    before = model(f"h = Conv(x, k) m = Mul(h, half) z0 = Relu(m) {steps} y = Conv(z200, w)")
    found = fuse(before)
    assert found is not None and found.nodes == 1


def test_weights_that_may_be_given_as_inputs_are_not_changed() -> None:
    before = model("h = Conv(x, k) y = Mul(h, half)")
    before.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [8, 8, 3, 3]))
    assert fuse(before) is None


def test_half_precision_is_left() -> None:
    before = model("h = Conv(x, k) y = Mul(h, half)")
    for value in (*before.graph.input, *before.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in before.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    assert fuse(before) is None


def test_what_a_body_reads_stays() -> None:
    before = model(
        "h = Conv(x, k) m = Mul(h, half) q = ReduceMax<keepdims=0>(x) o = Greater(q, s0) y = If(o) <"
        "then_branch = t () => (float[n,8,10,10] p) { p = Sin(m) },"
        "else_branch = e () => (float[n,8,10,10] r) { r = Identity(h) }>"
    )
    assert fuse(before) is None


def test_edits_of_the_cut_come_first() -> None:
    before = model("h = Conv(x, k) m = Mul(h, half) y = Add(m, v)", "n,c,h,w")
    kept = [0, 2, 3, 7]
    edits = {"k": lambda a: a[kept], "v": lambda a: a[kept]}
    found = fused(before, edits, reader(before), infer(before).shape, blocked=True)
    assert found is not None
    after = stored_tensors(written(found, reader(before)))
    weight = numpy_helper.to_array(stored_tensors(before)["k"])
    np.testing.assert_allclose(numpy_helper.to_array(after["k"]), weight[kept] * 0.5, rtol=1e-6)
    assert [list(t.dims) for n, t in after.items() if n != "k"] == [[4]]


# ---- Random models ---------------------------------------------------------------------------------------------------


class _Maker:
    """A random chain of maps, activations, pools and convolutions, now and then with a branch."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, Array] = {}
        self.last = ["x"]

    def stored(self, array: Array) -> str:
        name = f"c{len(self.arrays)}"
        self.arrays[name] = np.asarray(array, np.float32)
        return name

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.last.append(name)
        return name

    def number(self) -> str:
        shape = [(), (1,), (8, 1, 1), (1, 8, 1, 1)][self.random.integers(4)]
        sign = self.random.choice([1.0, 1.0, -1.0])
        return self.stored(sign * self.random.uniform(0.3, 2.0, shape))

    def convolution(self, x: str) -> str:
        groups = int(self.random.choice([1, 2, 8]))
        op = self.random.choice(["Conv", "Conv", "ConvTranspose"])
        size = int(self.random.choice([1, 3]))
        shape = (8, 8 // groups, size, size)
        inputs = [x, self.stored(self.random.standard_normal(shape) / size)]
        if self.random.random() < 0.5:
            inputs.append(self.stored(self.random.standard_normal(8)))
        padded = op == "Conv" and self.random.random() < 0.5
        if padded or size == 1:
            return self.add(op, inputs, group=groups, pads=[size // 2] * 4)
        if op == "ConvTranspose":
            return self.add(op, inputs, group=groups, pads=[1, 1, 1, 1])
        smaller = self.add(op, inputs, group=groups)
        self.last.pop()
        return self.add("Resize", [smaller, "", "", "sizes"], mode="nearest")

    def step(self) -> None:
        x = self.last[-1] if self.random.random() < 0.8 else str(self.random.choice(self.last[-4:]))
        kind = int(self.random.integers(14))
        if kind < 4:
            op = ["Add", "Sub", "Mul", "Div"][kind]
            pair = [x, self.number()]
            self.add(op, pair[::-1] if op != "Div" and self.random.random() < 0.3 else pair)
        elif kind < 6:
            self.convolution(x)
        elif kind == 6:
            low, high = [(0.0, 6.0), (0.0, 1.0), (-1.0, 2.0)][self.random.integers(3)]
            self.add("Clip", [x, self.stored(np.array(low)), self.stored(np.array(high))])
        elif kind == 7:
            if self.random.random() < 0.3:
                slopes = self.random.uniform(-0.2, 1.5, [(1,), (8, 1, 1)][self.random.integers(2)])
                self.add("PRelu", [x, self.stored(slopes)])
                return
            self.add(str(self.random.choice(["Relu", "LeakyRelu", "HardSigmoid", "Sigmoid", "Neg"])), [x])
        elif kind == 8:
            self.add("MaxPool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif kind == 9:
            include = int(self.random.integers(2))
            self.add("AveragePool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=include)
        elif kind == 10:
            values = [self.stored(self.random.uniform(0.5, 2.0, 8)) for _ in range(4)]
            self.add("BatchNormalization", [x, *values])
        elif kind == 11:
            before = list(self.last)
            pooled = self.add("GlobalAveragePool", [x])
            gate = self.add("Conv", [pooled, self.stored(self.random.standard_normal((8, 8, 1, 1)) / 8)])
            self.last = before
            self.add("Mul", [x, gate])
        else:
            op = str(self.random.choice(["Add", "Mul"]))
            self.add(op, [x, str(self.random.choice(self.last[-4:]))])

    def model(self) -> onnx.ModelProto:
        for _ in range(14):
            self.step()
        self.nodes.append(helper.make_node("Softsign", [self.last[-1]], ["y"]))
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes, "g", [value("x", TensorProto.FLOAT, [2, 8, 12, 12])],
            [value("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(a, n) for n, a in self.arrays.items()]
            + [numpy_helper.from_array(np.array([2, 8, 12, 12], np.int64), "sizes")],
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(proto)


@pytest.mark.parametrize("seed", range(60))
def test_random_models_keep_their_results(seed: int) -> None:
    before = _Maker(seed).model()
    found = fuse(before)
    if found is None:
        return
    after = written(found, reader(before))
    slopes = sum(n.op_type == "PRelu" for n in before.graph.node)
    assert len(operators(after)) < len(operators(before)) + 3 * slopes
    assert all(count == 1 for count in Counter(n.name for n in after.graph.node if n.name).values())
    feed = {"x": np.random.default_rng(1).standard_normal((2, 8, 12, 12)).astype(np.float32)}
    np.testing.assert_allclose(outputs(after, feed)["y"], outputs(before, feed)["y"], atol=2e-4)


def test_random_models_are_fused_often() -> None:
    assert sum(fuse(_Maker(seed).model()) is not None for seed in range(20)) >= 10


# ---- The whole tool --------------------------------------------------------------------------------------------------

NETWORK = (
    "h = Conv<pads=[1,1,1,1]>(x, k) m = Mul(h, half) n = Add(m, s1) "
    f"{SWISH.format(x='n', y='z')} l = Mul(z, half) o = Add(l, s2) "
    "i = Conv<pads=[1,1,1,1]>(o, e) r = Relu(i) y = Conv(r, f)"
)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    wide = {
        name: random.standard_normal(shape) / 9 for name, shape in {"k": (32, 8, 3, 3), "e": (32, 32, 3, 3)}.items()
    }
    path = tmp_path / "network.onnx"
    onnx.save(model(NETWORK, **wide, f=random.standard_normal((8, 32, 1, 1))), path)
    return path


def test_the_tool_fuses_what_it_writes(network: Path, tmp_path: Path) -> None:
    arguments = [str(network), "--round-to", "4", "-o", str(tmp_path / "out.onnx"), "--json", str(tmp_path / "r.json")]
    done = CliRunner().invoke(cli.command, arguments, prog_name="onnxprune")
    assert done.exit_code == 0, done.output
    assert "Fused: 5 nodes" in done.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["fused"] == 5 and report["exactness"]["passed"]
    after = onnx.load(tmp_path / "out.onnx")
    assert operators(after) == ["Conv", "HardSigmoid", "Mul", "BatchNormalization", "Conv", "Relu", "Conv"]
    assert report["after"]["nodes"] == len(after.graph.node)


@pytest.mark.parametrize("recover", [True, False])
def test_the_fused_model_is_the_plain_one(network: Path, tmp_path: Path, recover: bool) -> None:
    results = []
    for fuse_it in (True, False):
        output = tmp_path / f"{fuse_it}.onnx"
        report = api.prune(network, Config(output=output, recover=recover, fuse=fuse_it))
        assert bool(report.fused) is fuse_it
        results.append(onnx.load(output))
    require_equal(results[1], results[0])
    assert len(operators(results[1])) == len(operators(onnx.load(network)))


@pytest.mark.parametrize("recover", [True, False])
def test_a_fusion_that_is_wrong_is_left_out(
    network: Path, tmp_path: Path, recover: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*arguments: Any, blocked: bool) -> Fused | None:
        found = fused(*arguments, blocked=blocked)
        assert found is not None
        found.edits["k"] = lambda array: array * np.float32(1.001)
        return found

    monkeypatch.setattr(fusing.fusion, "fused", wrong)
    output = tmp_path / "out.onnx"
    report = api.prune(network, Config(output=output, recover=recover))
    assert report.fused == 0 and "nothing was fused" in caplog.text
    assert any("nothing was fused" in note for note in report.notes)
    assert len(operators(onnx.load(output))) == len(operators(onnx.load(network)))


def test_targets_of_storage_are_not_exceeded(tmp_path: Path) -> None:
    """A vector of biases takes more than the numbers that went into it."""
    random = np.random.default_rng(3)
    wide = {"k": random.standard_normal((64, 8, 3, 3)), "e": random.standard_normal((64, 64, 3, 3))}
    path = tmp_path / "network.onnx"
    onnx.save(model(NETWORK, **wide, f=random.standard_normal((8, 64, 1, 1))), path)
    for target, expected in (("params=0.5", False), ("macs=0.5", True)):
        config = Config(output=tmp_path / "out.onnx", recover=False, target=target, allocation="uniform", force=True)
        assert bool(api.prune(path, config).fused) is expected


GATES = {
    "before a slope": "gt = Conv(x, one1) q = Sigmoid(gt) m = Mul(c, q) z = PRelu(m, u) y = Conv(z, n)",
    "before another operator": "gt = Conv(x, one1) q = Sigmoid(gt) m = Mul(c, q) z = Sin(m) y = Conv(z, n)",
    "of a lower rank": (
        "f = Reshape(x, rows) gt = Conv(f, one2) q = Sigmoid(gt) m = Mul(c, q) z = PRelu(m, u) y = Conv(z, n)"
    ),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_that_is_spread_does_not_say_how_many_channels_there_are(name: str) -> None:
    """Of one channel, in front of maps that are put together as a normalisation of all."""
    random = np.random.default_rng(5)
    proto = model(
        "h0 = Conv(x, l) h = Mul(h0, s2) r0 = Relu(h) a = Add(r0, s1) c = Clip(a, s0, s6) " + GATES[name],
        l=random.standard_normal((12, 8, 1, 1)),
        n=random.standard_normal((8, 12, 1, 1)),
        u=random.uniform(0.2, 0.8, (12, 1, 1)),
        one1=random.standard_normal((1, 8, 1, 1)),
        one2=random.standard_normal((12, 96, 1)),
        rows=np.zeros(3),
    )
    for tensor in proto.graph.initializer:
        if tensor.name == "rows":
            tensor.CopyFrom(numpy_helper.from_array(np.array([-1, 96, 12], np.int64), "rows"))
    if name == "of a lower rank":
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_value = 1
    found = fuse(proto)
    assert found is not None
    after = written(found, reader(proto))
    feed = {"x": np.random.default_rng(1).standard_normal((1, 8, 12, 12)).astype(np.float32)}
    expected, result = outputs(proto, feed)["y"], outputs(after, feed)["y"]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))


def _opened(tmp_path: Path, proto: onnx.ModelProto) -> tuple[Any, Cut]:
    onnx.save(proto, tmp_path / "model.onnx")
    opened = open_model(tmp_path / "model.onnx", {}, Clock())
    return opened, Cut(opened.model.proto, {}, {})


@pytest.mark.parametrize(("kind", "is_fused"), [(TensorProto.FLOAT, True), (TensorProto.FLOAT16, False)])
def test_normalisations_of_half_precision_with_single_parameters_are_left(
    tmp_path: Path, kind: int, is_fused: bool
) -> None:
    chain = (f"{y} = BatchNormalization({x}, scale, bias, mean, variance)" for x, y in ("xa", "ab", "bc"))
    proto = model(" ".join(chain) + " z = Sin(c) y = Abs(z)")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = kind
    opened, cut = _opened(tmp_path, proto)
    assert (fusing.fused(opened, Config(), cut)[1] > 0) == is_fused


def test_a_fault_of_the_fusion_leaves_the_model_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened, cut = _opened(tmp_path, model("h = Conv(x, k) y = Mul(h, half)"))

    def faulty(*_: Any, **__: Any) -> None:
        raise KeyError("core")

    monkeypatch.setattr(fusing.fusion, "fused", faulty)
    assert fusing.fused(opened, Config(), cut) == (cut, 0)
    assert "nothing was fused: KeyError" in caplog.text
