"""What exporters write, brought into one form that means the same.

    Gemm without C                       beta, which then scales nothing, is left out
    a vector of one number throughout    every operator that reads it gets one of its own

Decompositions of normalisations read ones and zeros, and exporters store equal tensors once; as one tensor its axis
would be one and the same in layers that have nothing to do with each other.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.bodies import captured_names, defined_names
from onnxprune.shapes import constant_tensor

LARGEST = 1 << 14
"""Elements of a vector that is given to every reader apart, at most."""
LEAST_IR = 4
"""The first in which an initializer need not be a graph input as well."""
_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)


def canonicalise(proto: onnx.ModelProto) -> None:
    """Bring the main graph into that form, in place."""
    for node in proto.graph.node:
        if node.op_type == "Gemm" and node.domain in ("", "ai.onnx") and len([n for n in node.input if n]) == 2:
            kept = [a for a in node.attribute if a.name != "beta"]
            del node.attribute[:]
            node.attribute.extend(kept)
    if proto.ir_version >= LEAST_IR:
        _part(proto.graph)


def _part(graph: onnx.GraphProto) -> None:
    """Give every reader of a vector of one number a vector of its own; the first keeps the one there is."""
    counts = Counter(name for node in graph.node for name in node.input if name)
    bound = {i.name for i in graph.input} | {o.name for o in graph.output}
    bound |= {name for node in graph.node for name in captured_names(node)}
    stored = {t.name: t for t in graph.initializer}
    for node in graph.node:
        tensor = constant_tensor(node) if node.op_type == "Constant" else None
        if tensor is not None:
            stored[node.output[0]] = tensor
    alike = {n: stored[n] for n, count in counts.items() if count > 1 and n in stored and n not in bound}
    alike = {name: tensor for name, tensor in alike.items() if _is_one_number(tensor)}
    if not alike:
        return
    taken, seen = set(defined_names(graph)) | set(counts), set[str]()
    for node in graph.node:
        for operand, name in enumerate(node.input):
            if name not in alike:
                continue
            if name in seen:
                node.input[operand] = _copied(graph, alike[name], name, taken)
            seen.add(name)


def _is_one_number(tensor: onnx.TensorProto) -> bool:
    """Whether it is a vector, along any axis, that lies in the model and holds the same number everywhere."""
    size = math.prod(tensor.dims)
    is_vector = 1 < size <= LARGEST and max(tensor.dims) == size
    if not is_vector or tensor.data_type not in _FLOATS or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    values = numpy_helper.to_array(tensor).reshape(-1)
    return bool(np.all(values == values[0]))


def _copied(graph: onnx.GraphProto, tensor: onnx.TensorProto, name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    copy = graph.initializer.add()
    copy.CopyFrom(tensor)
    copy.name = f"{name}_{number}"
    taken.add(copy.name)
    return str(copy.name)
