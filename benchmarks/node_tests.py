"""Write the node tests of the onnx package as models that `sweep.py` can prune.

    python benchmarks/node_tests.py FOLDER

TEST/model.onnx is the test itself. TEST.stored has all float inputs but the first as initializers. TEST.last and
TEST.second stand between two matrix products with stored weights, over the last or the second axis of the first input
and output, so that the channels in between can go unless the operator forbids it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

NEW_WIDTH = 3


def main() -> int:
    """Write them all; print how many."""
    from onnx.backend.test.case.node import collect_testcases

    count = 0
    for case in collect_testcases(None):
        for suffix, model in _forms(case.model, *case.data_sets[0]):
            target = Path(sys.argv[1]) / f"{case.name}{suffix}"
            target.mkdir(parents=True, exist_ok=True)
            (target / "model.onnx").write_bytes(model.SerializeToString())
            count += 1
    print(count)
    return 0


def _forms(model: ModelProto, inputs: list[Any], outputs: list[Any]) -> Iterator[tuple[str, ModelProto]]:
    stored = _with_operands(model, inputs)
    yield "", model
    if stored is not model:
        yield ".stored", stored
    if not (inputs and outputs and _has_channels(inputs[0]) and _has_channels(outputs[0])):
        return
    if len(model.graph.input) == len(inputs):
        yield ".last", _between(stored, inputs[0], outputs[0], -1)
        if inputs[0].ndim > 2 or outputs[0].ndim > 2:
            yield ".second", _between(stored, inputs[0], outputs[0], 1)


def _has_channels(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.float32 and array.ndim > 1


def _with_operands(model: ModelProto, arrays: list[Any]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    for value, array in list(zip(model.graph.input, arrays, strict=False))[1:]:
        if isinstance(array, np.ndarray) and value.type.HasField("tensor_type") and array.dtype.kind == "f":
            result.graph.initializer.append(numpy_helper.from_array(array, value.name))
            result.graph.input.remove(value)
    return result if len(result.graph.initializer) > len(model.graph.initializer) else model


def _between(model: ModelProto, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], axis: int) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    first, last = axis % x.ndim, axis % y.ndim
    before, weight = _product("before", ("net_in", graph.input[0].name), x.ndim, first, (x.shape[first],) * 2)
    after, other = _product("after", (graph.output[0].name, "net_out"), y.ndim, last, (y.shape[last], NEW_WIDTH))
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend([weight, other])
    shape = [NEW_WIDTH if k == last else n for k, n in enumerate(y.shape)]
    graph.output.append(helper.make_tensor_value_info("net_out", TensorProto.FLOAT, shape))
    graph.input[0].CopyFrom(helper.make_tensor_value_info("net_in", TensorProto.FLOAT, x.shape))
    if not {o.domain for o in result.opset_import} & {"", "ai.onnx"}:
        result.opset_import.add(domain="", version=17)
    return result


def _product(
    name: str, ends: tuple[str, str], rank: int, axis: int, shape: tuple[int, int]
) -> tuple[list[NodeProto], TensorProto]:
    """MatMul over `axis` with a random weight."""
    random = np.random.default_rng(len(name))
    array = (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
    weight = numpy_helper.from_array(array, f"{name}_weight")
    perm = list(range(rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    nodes = [
        helper.make_node("Transpose", [ends[0]], [f"{name}_turned"], perm=perm),
        helper.make_node("MatMul", [f"{name}_turned", weight.name], [f"{name}_product"], name=name),
        helper.make_node("Transpose", [f"{name}_product"], [ends[1]], perm=perm),
    ]
    return nodes, weight


if __name__ == "__main__":
    sys.exit(main())
