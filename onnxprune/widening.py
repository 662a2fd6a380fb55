"""Half precision models in float32 arithmetic, so that rounding does not hide what a proof must show.

ONNX Runtime has no bfloat16 kernels on the CPU, and float16 ones round every result to 1e-3; the surgery is the same.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.bodies import bodies

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def has_half(proto: onnx.ModelProto) -> bool:
    """Whether a stored tensor, an input or an output of the main graph is float16 or bfloat16."""
    graph = proto.graph
    if any(t.data_type in HALF for t in graph.initializer):
        return True
    if any(v.type.tensor_type.elem_type in HALF for v in (*graph.input, *graph.output)):
        return True
    return any(
        a.t.data_type in HALF for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    )


def widen(proto: onnx.ModelProto) -> None:
    """Turn every float16 and bfloat16 of a model whose data is loaded into float32, in place."""
    _widen_graph(proto.graph)


def _widen_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in HALF:
                attribute.i = TensorProto.FLOAT
        for body in bodies(node):
            _widen_graph(body)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
