"""Every evaluator of shape arithmetic against the reference implementation of ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxprune import folding
from onnxprune.folding import EVALUATORS, evaluate

I = np.array([[3, -1, 4], [1, 5, -9]], np.int64)  # noqa: E741
J = np.array([[2, 7, -1], [8, 2, 8]], np.int64)
F = np.array([[0.5, -1.5, 2.5], [3.25, -0.25, 0.75]], np.float32)
P = np.abs(F)
B = np.array([[True, False, True], [False, False, True]])
C = np.array([[True, True, False], [False, True, True]])
ONE = np.array([1], np.int64)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: list[tuple[str, list[Any], dict[str, Any], int]] = [
    *[
        (op, [I, J], {}, 17)
        for op in ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ],
    *[(op, [F, np.float32(2)], {}, 17) for op in ("Add", "Sub", "Mul", "Div", "Pow", "Greater", "Less")],
    *[(op, [B, C], {}, 17) for op in ("And", "Or")],
    *[
        (op, [F], {}, 17)
        for op in ("Abs", "Ceil", "Floor", "Cos", "Sin", "Exp", "Neg", "Round", "Identity", "Reciprocal")
    ],
    *[(op, [P], {}, 17) for op in ("Sqrt", "Log")],
    *[(op, [F], {}, 17) for op in ("Relu", "Sign")],
    *[(op, [I], {}, 17) for op in ("Abs", "Neg", "Relu", "Sign", "Identity")],
    *[(op, [I, J[:1], _ints(2)], {}, 17) for op in ("Max", "Min")],
    ("Not", [B], {}, 17),
    ("Mod", [I, J], {}, 17),
    ("Mod", [I, _ints(-4)], {"fmod": 0}, 17),
    ("Pow", [I, _ints(2)], {}, 17),
    ("Div", [_ints(-7, 7, -8), _ints(2, -2, 3)], {}, 17),
    ("Cast", [F], {"to": onnx.TensorProto.INT64}, 17),
    ("Cast", [I], {"to": onnx.TensorProto.FLOAT}, 17),
    ("Cast", [I], {"to": onnx.TensorProto.BOOL}, 17),
    ("Clip", [I, np.int64(0), np.int64(4)], {}, 17),
    ("Clip", [F, np.float32(0)], {}, 17),
    ("Clip", [F], {}, 17),
    ("Clip", [F], {"min": -1.0, "max": 1.0}, 6),
    ("Concat", [I, J], {"axis": 0}, 17),
    ("Concat", [I, J], {"axis": -1}, 17),
    ("ConstantOfShape", [_ints(2, 3)], {"value": np.array([7], np.int64)}, 17),
    ("ConstantOfShape", [_ints(2, 3)], {}, 17),
    ("CumSum", [I, np.int64(1)], {}, 17),
    ("Expand", [I[:, :1], _ints(2, 4)], {}, 17),
    ("Expand", [I, _ints(1)], {}, 17),
    ("Gather", [I, np.int64(-1)], {}, 17),
    ("Gather", [I, _ints(0, 2, 1)], {"axis": 1}, 17),
    ("Range", [np.int64(2), np.int64(11), np.int64(3)], {}, 17),
    ("Range", [np.int64(5), np.int64(-2), np.int64(-2)], {}, 17),
    *[(op, [I, ONE], {"keepdims": 0}, 18) for op in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum")],
    *[(op, [I], {"axes": [0]}, 12) for op in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum")],
    *[(op, [I], {}, 18) for op in ("ReduceMax", "ReduceSum")],
    ("Reshape", [I, _ints(3, -1)], {}, 17),
    ("Reshape", [I, _ints(0, 3, 1)], {}, 17),
    ("Reshape", [np.zeros((0, 3), np.int64), _ints(3, 0)], {"allowzero": 1}, 17),
    ("ScatterND", [_ints(1, 2, 3, 4), np.array([[1], [3]], np.int64), _ints(9, 8)], {}, 17),
    ("ScatterND", [I, np.array([[0, 2], [1, 0]], np.int64), _ints(9, 8)], {}, 17),
    ("Slice", [I, _ints(1), _ints(3), _ints(1)], {}, 17),
    ("Slice", [I, _ints(-1), _ints(-100), _ints(1), _ints(-1)], {}, 17),
    ("Slice", [I, _ints(0, 0), _ints(2, 2**62), _ints(0, 1), _ints(1, 2)], {}, 17),
    ("Slice", [I], {"starts": [1], "ends": [2], "axes": [-1]}, 9),
    ("Slice", [I], {"starts": [0, 1], "ends": [1, 3]}, 9),
    ("Squeeze", [I[None, :, :, None]], {}, 17),
    ("Squeeze", [I[None, :, :, None], _ints(0)], {}, 17),
    ("Squeeze", [I[None, :, :, None]], {"axes": [-1]}, 11),
    ("Unsqueeze", [I, _ints(0, 3)], {}, 17),
    ("Unsqueeze", [I, _ints(-1)], {}, 17),
    ("Unsqueeze", [I], {"axes": [1]}, 11),
    ("Split", [I, _ints(1, 2)], {"axis": 1}, 17),
    ("Split", [I], {"axis": 0}, 17),
    ("Split", [_ints(1, 2, 3, 4, 5)], {"num_outputs": 2}, 18),
    ("Split", [I], {"axis": 1, "split": [2, 1]}, 11),
    ("Tile", [I, _ints(1, 2)], {}, 17),
    ("Transpose", [I], {}, 17),
    ("Transpose", [I[None]], {"perm": [2, 0, 1]}, 17),
    ("Trilu", [I], {}, 17),
    ("Trilu", [I, np.int64(1)], {"upper": 0}, 17),
    ("Where", [B, I, J], {}, 17),
    ("Where", [B, I, _ints(0)], {}, 17),
]


def _reference(op: str, inputs: list[Any], attributes: dict[str, Any], opset: int, outputs: int) -> list[Any]:
    names = [f"i{k}" for k in range(len(inputs))]
    results = [f"o{k}" for k in range(outputs)]
    stored = {k: onnx.numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}
    node = helper.make_node(op, names, results, **stored)
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.asarray(v).dtype), None)
        for n, v in zip(names, inputs, strict=True)
    ]
    made = [onnx.ValueInfoProto(name=r) for r in results]
    graph = helper.make_graph([node], "g", given, made)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return list(ReferenceEvaluator(proto).run(None, {n: np.asarray(v) for n, v in zip(names, inputs, strict=True)}))


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "opset"), CASES, ids=[f"{c[0]}-{k}" for k, c in enumerate(CASES)]
)
def test_an_evaluator_agrees_with_the_reference(
    op: str, inputs: list[Any], attributes: dict[str, Any], opset: int
) -> None:
    outputs = 2 if op == "Split" else 1
    expected = _reference(op, inputs, attributes, opset, outputs)
    found = evaluate(op, [np.asarray(v) for v in inputs], attributes, outputs)
    assert found is not None
    assert len(found) == len(expected)
    for a, b in zip(found, map(np.asarray, expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_every_evaluator_is_tested() -> None:
    assert set(EVALUATORS) == {c[0] for c in CASES}


def test_large_integers_are_divided_exactly() -> None:
    found = evaluate("Div", [_ints(2**62 + 6), _ints(2)], {}, 1)
    assert found is not None
    assert found[0].tolist() == [2**61 + 3]


def test_an_absent_operand_is_none() -> None:
    found = evaluate("Slice", [I, _ints(0), _ints(1), None, _ints(1)], {}, 1)
    assert found is not None
    np.testing.assert_array_equal(found[0], I[:1])


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("MatMul", [I, J]),
        ("Gather", [I, _ints(7)]),
        ("Reshape", [I, _ints(4, 4)]),
        ("Concat", [I, J]),
        ("ScatterND", [I, _ints(9, 9), _ints(1)]),
    ],
)
def test_what_fails_or_is_not_shape_arithmetic_is_not_known(op: str, inputs: list[Any]) -> None:
    assert evaluate(op, inputs, {}, 1) is None


def test_absent_bounds_of_clip_are_none() -> None:
    found = evaluate("Clip", [I, None, np.int64(2)], {}, 1)
    assert found is not None
    np.testing.assert_array_equal(found[0], np.minimum(I, 2))


def test_results_that_are_too_large_are_not_kept() -> None:
    assert evaluate("Expand", [ONE, _ints(folding.LARGEST + 1)], {}, 1) is None
    assert evaluate("Expand", [ONE, _ints(folding.LARGEST)], {}, 1) is not None
