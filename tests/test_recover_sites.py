"""Every linear operator as a matrix over columns: W X + b must be what ONNX Runtime computes."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import runtime
from onnxprune.errors import ModelError
from onnxprune.records import Feed
from onnxprune.recover import sites
from onnxprune.recover.execution import Shelf, Walk, reader
from onnxprune.recover.layers import Weights
from onnxprune.recover.relax import flat_regions
from onnxprune.recover.task import pooled_source
from onnxprune.shapes import stored_tensors


def model_of(text: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 17]>\n'
    proto = parser.parse_model(head + text)
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        low = 0.5 if name in ("var", "scale") else -1
        proto.graph.initializer.append(numpy_helper.from_array(random.uniform(low, 1, shape).astype(np.float32), name))
    return proto


CONV = "g (float[2,4,9,8] x) => (float[2,c,h,k] y) { y = Conv<%s>(x, w, b) }"
CASES = {
    "plain": (CONV % "pads=[1,1,1,1]", {"w": (6, 4, 3, 3), "b": (6,)}),
    "pointwise": (CONV % "strides=[1,1]", {"w": (6, 4, 1, 1), "b": (6,)}),
    "strided, dilated": (CONV % "strides=[2,1], dilations=[2,1], pads=[2,0,1,1]", {"w": (6, 4, 3, 2), "b": (6,)}),
    "same upper": (CONV % 'auto_pad="SAME_UPPER", strides=[2,2]', {"w": (6, 4, 3, 3), "b": (6,)}),
    "same lower": (CONV % 'auto_pad="SAME_LOWER"', {"w": (6, 4, 2, 2), "b": (6,)}),
    "grouped": (CONV % "group=2", {"w": (6, 2, 3, 3), "b": (6,)}),
    "depthwise": (CONV % "group=4, pads=[1,1,1,1]", {"w": (4, 1, 3, 3), "b": (4,)}),
    "transposed": (CONV.replace("Conv", "ConvTranspose") % "strides=[2,2]", {"w": (4, 5, 2, 2), "b": (5,)}),
    "transposed, padded": (
        CONV.replace("Conv", "ConvTranspose") % "strides=[3,2], pads=[1,0,1,1], output_padding=[1,0]",
        {"w": (4, 5, 4, 3), "b": (5,)},
    ),
    "transposed, grouped": (
        CONV.replace("Conv", "ConvTranspose") % "group=2, strides=[2,1]",
        {"w": (4, 3, 3, 3), "b": (6,)},
    ),
    **{
        f"transposed, {attributes}": (
            CONV.replace("Conv", "ConvTranspose") % f"{attributes}, strides=[2,3]",
            {"w": (4, 5, 4, 2), "b": (5,)},
        )
        for attributes in (
            'auto_pad="SAME_UPPER"',
            'auto_pad="SAME_LOWER"',
            'auto_pad="VALID"',
            "output_shape=[17,23]",
            'output_shape=[17,23], auto_pad="SAME_UPPER"',
            "output_shape=[17,23], output_padding=[1,2]",
        )
    },
    "gemm": ("g (float[5,4] x) => (float[5,n] y) { y = Gemm(x, w, b) }", {"w": (4, 6), "b": (6,)}),
    "gemm, transposed": (
        "g (float[5,4] x) => (float[5,n] y) { y = Gemm<transB=1>(x, w, b) }",
        {"w": (6, 4), "b": (6,)},
    ),
    "matmul and bias": (
        "g (float[2,5,4] x) => (float[2,5,n] y) { p = MatMul(x, w)  y = Add(b, p) }",
        {"w": (4, 6), "b": (6,)},
    ),
    "behind a transpose": (
        "g (float[5,4] x) => (float[5,n] y) { t = Transpose<perm=[1,0]>(w)  y = Gemm(x, t, b) }",
        {"w": (6, 4), "b": (6,)},
    ),
    "normalised": (
        (
            "g (float[2,4,9,8] x) => (float[2,c,h,k] y) "
            "{ p = Conv(x, w)  y = BatchNormalization(p, scale, beta, mean, var) }"
        ),
        {"w": (6, 4, 3, 3), "scale": (6,), "beta": (6,), "mean": (6,), "var": (6,)},
    ),
}


def outputs(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(runtime.session(proto.SerializeToString(), threads=1).run(None, {"x": x})[0])


def found(proto: onnx.ModelProto) -> list[sites.Site]:
    """The sites of a model whose shapes can be inferred."""
    stored = stored_tensors(proto)
    values = {v.name: v.type.tensor_type.shape.dim for v in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    values.update((o.name, o.type.tensor_type.shape.dim) for o in proto.graph.output)

    def shape(name: str) -> tuple[int, ...]:
        return tuple(stored[name].dims) if name in stored else tuple(d.dim_value for d in values[name])

    return list(sites.find(proto, set(stored), lambda _: True, shape))


def opened(name: str) -> tuple[onnx.ModelProto, Weights, sites.Site, np.ndarray]:
    text, shapes = CASES[name]
    proto = model_of(text, **shapes)
    weights = Weights(proto, reader(proto, lambda _: None, {}))
    (site,) = found(proto)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    return proto, weights, site, np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_matrix_times_columns_is_what_the_runtime_computes(name: str) -> None:
    proto, weights, site, x = opened(name)
    node = proto.graph.node[site.node]
    weight = weights.constant(node.input[1])
    matrix, bias, _ = weights.effective(site, node, weight)
    columns = sites.columns(site, x, weight.shape[2:], None)
    g, d, _, count = columns.shape
    result = matrix @ columns.reshape(g, d, -1) + bias[:, :, None]
    expected = sites.targets(site, outputs(proto, x), None)
    np.testing.assert_allclose(result.reshape(expected.shape), expected, atol=2e-5)
    assert sites.position_count(site, outputs(proto, x).shape) == count
    assert sites.input_count(site, weight.shape) == d
    assert sites.result_shape(site, x.shape, weight.shape[2:], bias.size) == outputs(proto, x).shape


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_what_was_solved(name: str) -> None:
    proto, weights, site, x = opened(name)
    node = proto.graph.node[site.node]
    weight = weights.constant(node.input[1])
    matrix, bias, scale = weights.effective(site, node, weight)
    new_matrix, new_bias = matrix * 1.5 + 0.1, bias - 0.7
    weights.write(site, node, weight, new_matrix, new_bias, scale)
    for tensor in proto.graph.initializer:
        if tensor.name in weights.values:
            tensor.CopyFrom(numpy_helper.from_array(weights.values[tensor.name], tensor.name))
    columns = sites.columns(site, x, weight.shape[2:], None)
    result = new_matrix @ columns.reshape(*columns.shape[:2], -1) + new_bias[:, :, None]
    expected = sites.targets(site, outputs(proto, x), None)
    np.testing.assert_allclose(result.reshape(expected.shape), expected, atol=5e-5)


PRODUCT = "g (float[2,5,4] x) => (float[2,5,6] y) { p = MatMul(x, w)  y = Add(p, b) }"


@pytest.mark.parametrize("shape", [(1, 5, 6), (5, 1), (5, 6), (2, 1, 1), (1, 1, 5, 6)])
def test_a_constant_that_differs_between_rows_is_no_bias(shape: tuple[int, ...]) -> None:
    (site,) = found(model_of(PRODUCT, w=(4, 6), b=shape))
    assert (site.out, site.bias, site.bias_node, site.total) == ("p", None, None, None)


def test_a_table_of_as_many_rows_as_outputs_is_no_bias() -> None:
    (site,) = found(model_of(PRODUCT.replace("5", "6"), w=(4, 6), b=(6, 1)))
    assert (site.out, site.bias) == ("p", None)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (6,), (1, 6), (1, 1, 6)])
def test_a_number_per_output_or_one_for_all_is_a_bias(shape: tuple[int, ...]) -> None:
    (site,) = found(model_of(PRODUCT, w=(4, 6), b=shape))
    assert (site.out, site.bias, site.bias_node) == ("y", 1, 1)


def test_a_constant_that_adds_an_axis_is_no_bias() -> None:
    text = "g (float[5,4] x) => (float[1,5,6] y) { p = MatMul(x, w)  y = Add(p, b) }"
    (site,) = found(model_of(text, w=(4, 6), b=(1, 1, 6)))
    assert (site.out, site.bias) == ("p", None)


@pytest.mark.parametrize(("shape", "count"), [((5, 6), 0), ((5, 1), 0), ((6,), 1), ((1, 6), 1), ((1,), 1), ((), 1)])
def test_a_gemm_that_adds_a_matrix_is_not_solved(shape: tuple[int, ...], count: int) -> None:
    text = "g (float[5,4] x) => (float[5,6] y) { y = Gemm(x, w, b) }"
    assert len(found(model_of(text, w=(4, 6), b=shape))) == count


@pytest.mark.parametrize("shape", [(4,), (2, 4, 6)])
def test_a_product_with_a_vector_or_several_matrices_is_not_solved(shape: tuple[int, ...]) -> None:
    assert not found(model_of("g (float[2,5,4] x) => (float[n,m,k] y) { y = MatMul(x, w) }", w=shape))


def test_a_gemm_whose_addend_is_computed_is_not_solved() -> None:
    text = "g (float[5,4] x, float[6] b) => (float[5,6] y) { y = Gemm(x, w, b) }"
    assert not found(model_of(text, w=(4, 6)))


def test_a_weight_that_two_nodes_read_is_copied_and_not_changed() -> None:
    proto = model_of("g (float[5,4] x) => (float[5,4] y) { h = Gemm(x, w, b)  y = Gemm(h, w, b) }", w=(4, 4), b=(4,))
    weights = Weights(proto, reader(proto, lambda _: None, {}))
    weights.put(proto.graph.node[0], 1, np.zeros((4, 4), np.float32))
    assert list(proto.graph.node[0].input) == ["x", "h_operand1_recovered", "b"]
    assert proto.graph.node[1].input[1] == "w"
    assert weights.rewired == {("h", 1): "h_operand1_recovered"}


def test_a_bias_is_added_where_the_convolution_has_none() -> None:
    proto = model_of("g (float[2,4,9,8] x) => (float[2,6,7,6] y) { y = Conv(x, w) }", w=(6, 4, 3, 3))
    weights = Weights(proto, reader(proto, lambda _: None, {}))
    weights.put(proto.graph.node[0], 2, np.ones(6, np.float32))
    assert list(proto.graph.node[0].input) == ["x", "w", "y_operand2_recovered"]


def test_a_walk_runs_each_part_once_with_the_weights_of_the_moment() -> None:
    text = "g (float[n,4] x) => (float[n,4] y) { h = Gemm(x, w, b)  r = Relu(h)  y = Gemm(r, v, b) }"
    proto = model_of(text, w=(4, 4), v=(4, 4), b=(4,))
    weights = Weights(proto, reader(proto, lambda _: None, {}))
    feeds: list[Feed] = [{"x": np.random.default_rng(k).normal(size=(3, 4)).astype(np.float32)} for k in range(2)]
    walk = Walk(proto, weights.get, feeds, shelf=Shelf(1 << 30))
    walk.compute(["r"])
    before = walk.get("r", 1).copy()
    weights.put(proto.graph.node[2], 1, np.eye(4, dtype=np.float32))
    weights.put(proto.graph.node[0], 1, np.eye(4, dtype=np.float32))
    walk.compute(["y"])
    np.testing.assert_allclose(walk.get("y", 1), before + weights.get("b"), atol=1e-6)
    assert walk.live == {"x", "y"}


def test_inputs_of_a_size_the_model_does_not_take_are_told() -> None:
    proto = model_of("g (float[n,t] x) => (float[n,t] y) { y = Add(x, w) }", w=(1, 16))
    read, feed = reader(proto, lambda _: None, {}), {"x": np.zeros((2, 30), np.float32)}
    walk = Walk(proto, read, [feed], shelf=Shelf(1 << 30))
    with pytest.raises(
        ModelError, match=r"does not run on the inputs it is to be fitted to, 'x' of \(2, 30\): .*16 by"
    ):
        walk.compute(["y"])


def test_a_walk_over_its_memory_limit_uses_files_and_gives_the_same() -> None:
    proto = model_of("g (float[n,64] x) => (float[n,64] y) { h = Gemm(x, w, b)  y = Relu(h) }", w=(64, 64), b=(64,))
    read = reader(proto, lambda _: None, {})
    feeds: list[Feed] = [{"x": np.random.default_rng(k).normal(size=(50, 64)).astype(np.float32)} for k in range(3)]
    with contextlib.closing(Shelf(0)) as shelf:
        walk = Walk(proto, read, feeds, shelf=shelf)
        walk.compute(["h"])
        assert shelf.used == 0
        walk.compute(["y"])
        np.testing.assert_array_equal(walk.get("y", 2), outputs(proto, feeds[2]["x"]))


def test_flat_regions_are_found_where_only_the_activation_reads() -> None:
    proto = model_of(
        "g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x)  y = Relu(a)  c = Neg(x)  d = Relu(c)  z = Add(c, d) }"
    )
    assert flat_regions(proto) == {"a": (np.float32(0), np.float32(np.inf))}


def test_the_mean_over_space_is_recognised() -> None:
    proto = model_of(
        "g (float[1,2,3,3] x) => (float[1,2,1,1] y, float[1,2] z) "
        "{ y = GlobalAveragePool(x)  z = ReduceMean<axes=[2,3], keepdims=0>(x) }"
    )
    assert pooled_source(proto, "y") == pooled_source(proto, "z") == "x"
    assert pooled_source(proto, "x") is None
