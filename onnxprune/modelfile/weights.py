"""The tensors of a model: where they lie, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

Place = Literal["main", "nested", "other"]


class Weight(NamedTuple):
    """A tensor where it lies: "main" and "nested" are weights of the main graph and of subgraphs; "other" the rest."""

    name: str
    tensor: TensorProto
    place: Place


def all_tensors(proto: ModelProto) -> Iterator[Weight]:
    """Every stored tensor of a model: of its graph, their bodies, its functions and what is stored for training."""
    yield from _graph_tensors(proto.graph, "main")
    for function in proto.functions:
        yield from _node_tensors(function.node, "other")
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute, f"{function.name}.{attribute.name}", "other", "other")
    for training in proto.training_info:
        yield from _graph_tensors(training.initialization, "other")
        yield from _graph_tensors(training.algorithm, "other")


def _graph_tensors(graph: GraphProto, place: Place) -> Iterator[Weight]:
    for tensor in graph.initializer:
        yield Weight(tensor.name, tensor, place)
    for sparse in graph.sparse_initializer:
        yield Weight(sparse.values.name, sparse.values, "other")
        yield Weight(f"{sparse.values.name}.indices", sparse.indices, "other")
    yield from _node_tensors(graph.node, place)


def _node_tensors(nodes: Iterable[NodeProto], place: Place) -> Iterator[Weight]:
    inner: Place = "other" if place == "other" else "nested"
    for node in nodes:
        constant = _is_constant(node)
        for attribute in node.attribute:
            is_weight = constant and attribute.name == "value"
            name = node.output[0] if is_weight else f"{node.name or node.op_type}.{attribute.name}"
            yield from _attribute_tensors(attribute, name, place if is_weight else "other", inner)


def _attribute_tensors(attribute: AttributeProto, name: str, place: Place, inner: Place) -> Iterator[Weight]:
    if attribute.HasField("t"):
        yield Weight(name, attribute.t, place)
    for tensor in attribute.tensors:
        yield Weight(name, tensor, "other")
    single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for sparse in (*single, *attribute.sparse_tensors):
        yield Weight(name, sparse.values, "other")
        yield Weight(f"{name}.indices", sparse.indices, "other")
    for graph in subgraphs(attribute):
        yield from _graph_tensors(graph, inner)


def subgraphs(attribute: AttributeProto) -> list[GraphProto]:
    """The bodies that an attribute holds."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _is_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx") and bool(node.output)


def is_external(tensor: TensorProto) -> bool:
    """Whether the values lie in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def external_entries(tensor: TensorProto) -> dict[str, str]:
    """Location, offset and length as the file states them."""
    # protobuf hands out text that is not UTF-8 as bytes
    return {str(entry.key): str(entry.value) for entry in tensor.external_data}


def type_name(tensor: TensorProto) -> str:
    """The name of the element type; empty where this version of onnx does not know it."""
    return TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else ""
