"""Shapes and small values of every tensor, and what of them follows the input."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from oracle import model

from onnxprune import shapes
from onnxprune.errors import ModelError, UsageError
from onnxprune.shapes import Sizes

CONVOLUTION = """(float[N,3,H,W] x) => (float[N,8,P,Q] y) <float[8,3,3,3] w> {
    y = Conv<strides=[2,2]>(x, w)
}"""


def test_axes_that_follow_the_input_are_dynamic() -> None:
    found = shapes.infer(model(CONVOLUTION))
    n, h, w = (found.inputs["x"][k] for k in (0, 2, 3))
    assert found.shape["y"] == (n, 8, (h - 3) // 2 + 1, (w - 3) // 2 + 1)
    assert found.dynamic_axes["y"].tolist() == [True, False, True, True]
    assert found.dynamic_axes["w"].tolist() == [False] * 4
    assert found.element_types["y"] == onnx.TensorProto.FLOAT


def test_nothing_is_dynamic_where_the_inputs_are_fixed() -> None:
    found = shapes.infer(model(CONVOLUTION.replace("N,3,H,W", "2,3,9,9")))
    assert found.shape["y"] == (2, 8, 4, 4)
    assert not any(d.any() for d in found.dynamic_axes.values())


def test_shapes_are_those_at_the_given_sizes() -> None:
    found = shapes.infer(model(CONVOLUTION), {"x": (1, 3, 33, 65)})
    assert found.shape["y"] == (1, 8, 16, 32)


def test_a_size_of_minus_one_is_none_and_takes_what_is_given() -> None:
    proto = model(CONVOLUTION)
    for axis in proto.graph.input[0].type.tensor_type.shape.dim:
        if axis.dim_param:
            axis.dim_value = -1
    assert shapes.infer(proto, {"x": (1, 3, 33, 65)}).inputs["x"] == (1, 3, 33, 65)


def test_a_question_mark_is_no_name() -> None:
    proto = model(CONVOLUTION)
    for axis in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "?"
    height, width = shapes.infer(proto).inputs["x"][2:]
    assert height != width


def test_one_name_is_one_size() -> None:
    found = shapes.infer(
        model("""(float[N,T,4] x, float[N,T] z) => (float[N,T,4] y) {
        y = Identity(x)
    }""")
    )
    assert found.inputs["x"][:2] == found.inputs["z"]


def test_values_come_out_of_chains_of_shapes() -> None:
    found = shapes.infer(
        model("""(float[N,3,H,W] x) => (float[N,A,B] y) <int64 zero = {0}, int64[1] front = {0},
        int64[2] tail = {-1, 6}> {
        s = Shape(x)
        n = Gather(s, zero)
        n1 = Unsqueeze(n, front)
        t = Concat<axis=0>(n1, tail)
        y = Reshape(x, t)
    }""")
    )
    n = found.inputs["x"][0]
    assert found.values["t"].tolist() == [n, -1, 6]
    assert found.dynamic_values["t"].tolist() == [True, False, False]
    assert found.dynamic_values["s"].tolist() == [True, False, True, True]
    assert {"s", "n", "n1", "t"} <= found.derived
    assert "tail" not in found.derived
    assert found.shape["y"][2] == 6


def test_shape_of_a_fixed_axis_is_not_dynamic() -> None:
    found = shapes.infer(
        model(
            """(float[N,6,4] x) => (int64[2] s, int64 z) {
        s = Shape<start=1>(x)
        z = Size(s)
    }""",
            opset=15,
        )
    )
    assert found.values["s"].tolist() == [6, 4]
    assert not found.dynamic_values["s"].any()
    assert int(found.values["z"]) == 2


def test_negative_bounds_of_shape() -> None:
    found = shapes.infer(model("(float[5,6,4] x) => (int64[1] s) { s = Shape<start=-2, end=-1>(x) }", opset=15))
    assert found.values["s"].tolist() == [6]


def test_weights_are_never_evaluated() -> None:
    found = shapes.infer(
        model("""(float[N,4] x) => (float[N,8] y) <float[8,4] w> {
        t = Transpose(w)
        y = MatMul(x, t)
    }""")
    )
    assert not {"w", "t"} & set(found.values)
    assert found.shape["t"] == (4, 8)


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value_ints=[2,3]", [2, 3]),
        ("value_int=5", 5),
        ("value_floats=[0.5]", [0.5]),
        ("value = int64[2] {7, 8}", [7, 8]),
    ],
)
def test_constant_nodes_hold_values_in_any_attribute(attribute: str, expected: object) -> None:
    found = shapes.infer(model(f"(float[N] x) => (float[N] y) {{ c = Constant<{attribute}>() y = Identity(x) }}"))
    assert found.values["c"].tolist() == expected
    assert "c" not in found.derived


def test_a_model_that_fits_only_some_sizes_is_tried_at_several() -> None:
    """A text recogniser: at a height of 48 one row is left, which Squeeze removes."""
    m = model("""(float[N,3,H,W] x) => (float[N,A,4] y) <float[8,3,48,8] w, float[8,4] v, int64[1] two = {2}> {
        h = Conv<strides=[48,8]>(x, w)
        q = Squeeze(h, two)
        t = Transpose<perm=[0,2,1]>(q)
        y = MatMul(t, v)
    }""")
    found = shapes.infer(m)
    assert found.inputs["x"][2] == 48
    assert found.dynamic_axes["y"].tolist() == [True, True, False]


def test_a_reshape_that_cannot_run_is_a_contradiction() -> None:
    m = model("""(float[N,3,H,W] x) => (float[N,A,4] y) <float[8,3,8,8] w, int64[3] s = {0,0,48}, float[48,4] v> {
        h = Conv<strides=[8,8]>(x, w)
        t = Transpose<perm=[0,3,1,2]>(h)
        r = Reshape(t, s)
        y = MatMul(r, v)
    }""")
    assert shapes.infer(m).inputs["x"][2] == 48


def test_shapes_that_contradict_each_other_are_an_error_with_the_way_out() -> None:
    m = model("(float[N,4] x) => (float[N,3] y) <float[5,3] w> { y = MatMul(x, w) }")
    with pytest.raises(ModelError, match=r"contradict each other .* --input-shape x:N,4"):
        shapes.infer(m)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"z": (1, 3, 8, 8)}, r"--input-shape names 'z', but the inputs of the model are x"),
        ({"x": (3, 8, 8)}, r"--input-shape gives 3 axes for 'x', the model has 4"),
        ({"x": (1, 4, 8, 8)}, r"--input-shape gives 4 for axis 1 of 'x', the model fixes 3"),
    ],
)
def test_given_shapes_that_do_not_fit_are_named(given: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shapes.infer(model(CONVOLUTION), given)


def test_given_sizes_leave_dynamic_axes_dynamic() -> None:
    found = shapes.infer(model(CONVOLUTION), {"x": (1, 3, 8, 8)})
    assert found.inputs == {"x": (1, 3, 8, 8)}
    assert found.dynamic_axes["x"].tolist() == [True, False, True, True]


def test_an_axis_that_fits_one_size_alone_is_fixed_and_the_others_stay_dynamic() -> None:
    m = model("""(float[N,T,4] x) => (float[A,B] y) <int64[1] twelve = {12}, int64[1] last = {2}> {
        batch = Shape<start=0, end=1>(x)
        target = Concat<axis=0>(batch, twelve)
        t = ReduceSum<keepdims=0>(x, last)
        y = Reshape(t, target)
    }""")
    found = shapes.infer(m, {"x": (2, 12, 4)})
    assert found.dynamic_axes["x"].tolist() == [True, False, False]
    assert found.dynamic_values["target"].tolist() == [True, False]


def test_variations_change_axes_of_one_name_together() -> None:
    m = model("(float[N,S] x, float[N,S] y) => (float[N,S] z) { z = Add(x, y) }")
    together, alone = shapes.variations(m, {"x": (1, 8), "y": (1, 8)})
    assert together == [{"x": (3, 4), "y": (3, 4)}, {"x": (3, 16), "y": (3, 16)}]
    assert alone[1] == [{"x": (1, 4), "y": (1, 4)}, {"x": (1, 16), "y": (1, 16)}]
    assert shapes.variations(model(CONVOLUTION.replace("N,3,H,W", "2,3,9,9")), {"x": (2, 3, 9, 9)}) == ([], [])


def test_a_name_with_a_given_size_has_it_in_other_inputs() -> None:
    m = model("(float[N,S] x, float[N,S] y) => (float[N,S] z) { z = Add(x, y) }")
    assert shapes.concrete_inputs(m, {"x": (1, 8)}, Sizes(5, (32, 64), 9))["y"] == (1, 8)


def test_is_dynamic() -> None:
    assert shapes.is_dynamic(model(CONVOLUTION), {})
    assert not shapes.is_dynamic(model(CONVOLUTION), {"x": (1, 3, 8, 8)})
    assert not shapes.is_dynamic(model(CONVOLUTION.replace("N,3,H,W", "2,3,9,9")), {})


def test_concrete_inputs() -> None:
    m = model("(float[N,3,H,W] x, int64[N,T] t) => (float[N,3,H,W] y) { y = Identity(x) }")
    sizes = Sizes(5, (32, 64), 9)
    assert shapes.concrete_inputs(m, {}, sizes) == {"x": (5, 3, 32, 64), "t": (5, 9)}
    assert shapes.concrete_inputs(m, {"t": (1, 2)}, sizes)["t"] == (1, 2)


def test_inputs_with_a_stored_value_need_not_be_fed() -> None:
    m = model("(float[N,4] x, float[4,3] w) => (float[N,3] y) { y = MatMul(x, w) }")
    m.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    assert [i.name for i in shapes.graph_inputs(m)] == ["x"]


def test_attributes_become_python_values() -> None:
    m = model('(float[N] x) => (float[N] y) { y = test.Op<a=1, b=[1,2], c="text", d=0.5, e = int64[1] {3}>(x) }')
    found = shapes.node_attributes(m.graph.node[0])
    assert {k: found[k] for k in "abcd"} == {"a": 1, "b": [1, 2], "c": "text", "d": 0.5}
    assert found["e"].tolist() == [3]


def test_an_operator_nobody_knows_has_no_shape_but_its_declared_one() -> None:
    m = model("(float[2,4] x) => (float[2,3] y) { h = test.Op(x) y = test.Op(h) }")
    found = shapes.infer(m)
    assert found.shape["y"] == (2, 3)
    assert "h" not in found.shape


def test_typical_sizes_come_first_and_fixed_ones_alone() -> None:
    free = onnx.parser.parse_graph("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }")
    fixed = onnx.parser.parse_graph("g (float[2,3,8,8] x) => (float[2,3,8,8] y) { y = Relu(x) }")
    found = list(shapes.typical_inputs(onnx.helper.make_model(free), {}, [16, 1]))
    assert found[:2] == [{"x": (16, 3, 224, 224)}, {"x": (1, 3, 224, 224)}]
    assert found[2:4] == [{"x": (16, 3, 64, 96)}, {"x": (1, 3, 64, 96)}]
    assert len(found) == 2 * (1 + len(shapes.RUN_SIZES))
    assert list(shapes.typical_inputs(onnx.helper.make_model(fixed), {}, [16, 1])) == [{"x": (2, 3, 8, 8)}]


def test_texts_are_shorter_than_sounds() -> None:
    graph = onnx.parser.parse_graph(
        "g (int64[N,T] ids, bool[N,S] mask, float[N,L] wave) => (float[N,L] y) { y = Relu(wave) }"
    )
    longest = max(shapes.RUN_SIZES, key=lambda s: s.sequence)
    found = shapes.concrete_inputs(onnx.helper.make_model(graph), {}, longest)
    assert found["wave"][1] == longest.sequence > 8 * found["ids"][1] and found["ids"] == found["mask"]
    lengths = [shapes.concrete_inputs(onnx.helper.make_model(graph), {}, s)["ids"][1] for s in shapes.ANALYSIS_SIZES]
    assert lengths[:2] == [24, 40] and len(set(lengths)) == len({s.sequence for s in shapes.ANALYSIS_SIZES})


def test_what_moves_is_told_by_sizes_that_differ() -> None:
    """Of the sizes tried, 40 is the first that the window fits in, twice; the next one is another."""
    m = model("""(float[N,T] x) => (float[N,S] y) <int64[3] t = {0,1,-1}, float[1,1,30] w, int64[1] a = {1}> {
        r = Reshape(x, t)
        c = Conv(r, w)
        y = Squeeze(c, a)
    }""")
    found = shapes.infer(m)
    assert found.inputs["x"] == (5, 40) and found.shape["y"] == (5, 11)
    assert found.dynamic_axes["y"].tolist() == [True, True]


def test_an_axis_named_as_a_sum_of_others_is_their_sum() -> None:
    """The mask of a decoder covers the cache and what is new, wherever it stands among the inputs."""
    value = onnx.helper.make_tensor_value_info
    mask, ids = (
        value("mask", onnx.TensorProto.INT64, ["b", "past + t"]),
        value("ids", onnx.TensorProto.INT64, ["b", "t"]),
    )
    total = value("total", onnx.TensorProto.INT64, ["b", "past + 1"])
    other = value("other", onnx.TensorProto.INT64, ["b", "unknown + 1"])
    cache = value("cache", onnx.TensorProto.FLOAT, ["b", 4, "past", 8])
    m = onnx.helper.make_model(onnx.helper.make_graph([], "g", [mask, ids, total, other, cache], []))
    found = shapes.concrete_inputs(m, {}, shapes.Sizes(7, (192, 256), 24))
    assert found == {"mask": (7, 216), "ids": (7, 24), "total": (7, 193), "other": (7, 24), "cache": (7, 4, 192, 8)}
    found = shapes.concrete_inputs(m, {"cache": (2, 4, 6, 8)}, shapes.Sizes(7, (192, 256), 24))
    assert found["mask"] == (2, 30) and found["total"] == (2, 7)
