"""Arithmetic on shapes: numpy evaluators for the operators exporters use to compute sizes and indices.

Each evaluator takes (inputs as arrays, attributes, opset) and returns the output array, after the operator
specification of ai.onnx. Only small tensors are evaluated; weights never pass through here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
Evaluator = Callable[[Sequence[Any], Attributes], Any]

CHANGES_TYPE = {"Cast", "ConstantOfShape", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where"}
"""Operators whose result has another type than their first operand."""
LARGEST = 1 << 18
"""Most elements a value may have to be evaluated."""


def _axes(inputs: Sequence[Any], attributes: Attributes) -> tuple[int, ...] | None:
    given = attributes.get("axes") if len(inputs) < 2 or inputs[1] is None else inputs[1]
    return None if given is None else tuple(int(a) for a in np.ravel(given))


def _unsqueeze(inputs: Sequence[Any], attributes: Attributes) -> Array:
    axes = _axes(inputs, attributes) or ()
    rank = inputs[0].ndim + len(axes)
    shape = iter(inputs[0].shape)
    new = {a % rank for a in axes}
    return np.reshape(inputs[0], [1 if k in new else next(shape) for k in range(rank)])


def _squeeze(inputs: Sequence[Any], attributes: Attributes) -> Array:
    return np.asarray(np.squeeze(inputs[0], _axes(inputs, attributes)))


def _slice(inputs: Sequence[Any], attributes: Attributes) -> Array:
    data, *rest = inputs
    if not rest:
        starts, ends = attributes["starts"], attributes["ends"]
        axes, steps = attributes.get("axes"), None
    else:
        starts, ends = rest[0], rest[1]
        axes, steps = (*rest[2:], None, None)[:2]
    index = [slice(None)] * data.ndim
    for k, (start, end) in enumerate(zip(np.ravel(starts), np.ravel(ends), strict=True)):
        axis = k if axes is None else int(np.ravel(axes)[k])
        step = 1 if steps is None else int(np.ravel(steps)[k])
        stop = None if step < 0 and end < -data.shape[axis] else int(end)
        index[axis] = slice(int(start), stop, step)
    return np.asarray(data[tuple(index)])


def _reshape(inputs: Sequence[Any], attributes: Attributes) -> Array:
    target = [int(v) for v in np.ravel(inputs[1])]
    if not attributes.get("allowzero"):
        target = [inputs[0].shape[k] if v == 0 else v for k, v in enumerate(target)]
    return np.reshape(inputs[0], target)


def _reduce(function: Callable[..., Any]) -> Evaluator:
    def evaluate(inputs: Sequence[Any], attributes: Attributes) -> Any:
        axes = _axes(inputs, attributes)
        if not axes:
            axes = () if attributes.get("noop_with_empty_axes") else None
        return function(inputs[0], axis=axes, keepdims=bool(attributes.get("keepdims", 1)))

    return evaluate


def _divide(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):
        return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))
    return np.asarray(a / b)


def _cast(inputs: Sequence[Any], attributes: Attributes) -> Array:
    return np.asarray(inputs[0]).astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))


def _constant_of_shape(inputs: Sequence[Any], attributes: Attributes) -> Array:
    value = attributes.get("value", np.zeros(1, np.float32))
    return np.full([int(v) for v in inputs[0]], np.ravel(value)[0])


def _split(inputs: Sequence[Any], attributes: Attributes) -> list[Array]:
    axis = attributes.get("axis", 0)
    sizes = attributes.get("split") if len(inputs) < 2 or inputs[1] is None else inputs[1]
    if sizes is None:
        size, count = inputs[0].shape[axis], attributes["outputs"]
        sizes = np.minimum(-(-size // count), size - -(-size // count) * np.arange(count))
    return [np.asarray(a) for a in np.split(inputs[0], np.cumsum(sizes)[:-1], axis)]


def _trilu(inputs: Sequence[Any], attributes: Attributes) -> Array:
    k = int(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else 0
    return np.triu(inputs[0], k) if attributes.get("upper", 1) else np.tril(inputs[0], k)


def _scatter_nd(inputs: Sequence[Any], attributes: Attributes) -> Array:
    if attributes.get("reduction", "none") != "none":
        raise ValueError("ScatterND with a reduction")
    result = np.array(inputs[0])
    result[tuple(np.moveaxis(inputs[1], -1, 0))] = inputs[2]
    return result


def _cumulative_sum(inputs: Sequence[Any], attributes: Attributes) -> Array:
    if attributes.get("exclusive") or attributes.get("reverse"):
        raise ValueError("CumSum backwards or without the first element")
    return np.asarray(np.cumsum(inputs[0], int(inputs[1])))


def _clip(inputs: Sequence[Any], attributes: Attributes) -> Array:
    bounds = [*inputs[1:], None, None][:2]
    low, high = (attributes.get(n) if b is None else b for n, b in zip(("min", "max"), bounds, strict=True))
    above = inputs[0] if low is None else np.maximum(inputs[0], low)
    return np.asarray(above if high is None else np.minimum(above, high))


def _unary(function: Callable[[Any], Any]) -> Evaluator:
    return lambda inputs, _: function(inputs[0])


def _binary(function: Callable[[Any, Any], Any]) -> Evaluator:
    return lambda inputs, _: function(inputs[0], inputs[1])


EVALUATORS: dict[str, Evaluator] = {
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "And": _binary(np.logical_and),
    "Cast": _cast,
    "Ceil": _unary(np.ceil),
    "Concat": lambda inputs, attributes: np.concatenate(inputs, attributes["axis"]),
    "Clip": _clip,
    "ConstantOfShape": _constant_of_shape,
    "Cos": _unary(np.cos),
    "CumSum": _cumulative_sum,
    "Div": _binary(_divide),
    "Equal": _binary(np.equal),
    "Exp": _unary(np.exp),
    "Expand": lambda inputs, _: inputs[0] * np.ones([int(v) for v in inputs[1]], inputs[0].dtype),
    "Floor": _unary(np.floor),
    "Gather": lambda inputs, attributes: np.take(inputs[0], inputs[1], attributes.get("axis", 0)),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "Identity": _unary(lambda a: a),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Log": _unary(np.log),
    "Max": lambda inputs, _: np.maximum.reduce(np.broadcast_arrays(*inputs)),
    "Min": lambda inputs, _: np.minimum.reduce(np.broadcast_arrays(*inputs)),
    "Mod": lambda inputs, attributes: (np.fmod if attributes.get("fmod") else np.mod)(inputs[0], inputs[1]),
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Or": _binary(np.logical_or),
    "Pow": _binary(np.power),
    "Range": lambda inputs, _: np.arange(*(np.ravel(v)[0] for v in inputs)).astype(inputs[0].dtype),
    "Reciprocal": _unary(np.reciprocal),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Relu": _unary(lambda a: np.maximum(a, 0)),
    "Round": _unary(np.round),
    "ScatterND": _scatter_nd,
    "Sign": _unary(np.sign),
    "Sin": _unary(np.sin),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _unary(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Tile": lambda inputs, _: np.tile(inputs[0], [int(v) for v in inputs[1]]),
    "Transpose": lambda inputs, attributes: np.transpose(inputs[0], attributes.get("perm")),
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": lambda inputs, _: np.where(inputs[0], inputs[1], inputs[2]),
}


def evaluate(op: str, inputs: Sequence[Array | None], attributes: Attributes, outputs: int) -> list[Array] | None:
    """The outputs of one node of the default domain on known inputs, or None where it is not shape arithmetic.

    `inputs` hold None for absent optional operands. A failing evaluation (bad index, division by zero) is None too:
    the value is then simply not known.
    """
    function = EVALUATORS.get(op)
    if function is None:
        return None
    try:
        with np.errstate(all="ignore"):
            result = function(inputs, {**attributes, "outputs": outputs} if op == "Split" else attributes)
    except (ValueError, IndexError, TypeError, KeyError, MemoryError, OverflowError):
        return None
    arrays = [np.asarray(a) for a in (result if isinstance(result, list) else [result])]
    if op not in CHANGES_TYPE and inputs and inputs[0] is not None:
        arrays = [a.astype(inputs[0].dtype) for a in arrays]
    return arrays if all(a.size <= LARGEST for a in arrays) else None
