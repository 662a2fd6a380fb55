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
from onnxprune.naming import unique
from onnxprune.shapes import stored_tensors

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
        _part(proto)


def _part(proto: onnx.ModelProto) -> None:
    """Give every reader of a vector of one number a vector of its own; the first keeps the one there is."""
    graph, stored = proto.graph, stored_tensors(proto)
    counts = Counter(name for node in graph.node for name in node.input if name)
    bound = {i.name for i in graph.input} | {o.name for o in graph.output}
    bound |= {name for node in graph.node for name in captured_names(node)}
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
                copy = graph.initializer.add()
                copy.CopyFrom(alike[name])
                copy.name = unique(name, taken)
                node.input[operand] = copy.name
            seen.add(name)


def _is_one_number(tensor: onnx.TensorProto) -> bool:
    """Whether it is a vector, along any axis, that lies in the model and holds the same number everywhere."""
    size = math.prod(tensor.dims)
    is_vector = 1 < size <= LARGEST and max(tensor.dims) == size
    if not is_vector or tensor.data_type not in _FLOATS or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    values = numpy_helper.to_array(tensor).reshape(-1)
    return bool(np.all(values == values[0]))
