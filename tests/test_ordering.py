"""Graphs whose nodes are out of order, as runtimes take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from onnxprune import cli
from onnxprune.modelfile import ModelFile
from onnxprune.ordering import put_in_order

CHAIN = """
<ir_version: 9, opset_import: ["" : 17]>
chain (float[n, 8] x, bool c) => (float[n, 4] y)
{ a = MatMul (x, V)  b = Relu (a)  r = Relu (x)
  d = If (c) <then_branch = t () => (float[n, 64] p) { q = Abs (b) p = Neg (q) },
              else_branch = e () => (float[n, 64] u) { u = Identity (b) }>
  y = MatMul (d, W) }
"""


def chain() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(CHAIN)
    for name, shape in (("V", (8, 64)), ("W", (64, 4))):
        model.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape, np.float32), name))
    return model


def out_of_order() -> onnx.ModelProto:
    model = chain()
    for graph in (model.graph, model.graph.node[3].attribute[0].g):
        nodes = list(graph.node)
        del graph.node[:]
        graph.node.extend(reversed(nodes))
    return model


def operators(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


def test_nodes_are_sorted_and_a_body_counts_with_its_node() -> None:
    model = out_of_order()
    assert operators(model.graph) == ["MatMul", "If", "Relu", "Relu", "MatMul"]
    put_in_order(model.graph)
    assert operators(model.graph) == ["Relu", "MatMul", "Relu", "If", "MatMul"]
    then = next(a.g for a in model.graph.node[3].attribute if a.name == "then_branch")
    assert operators(then) == ["Abs", "Neg"]
    onnx.checker.check_model(model)


def test_a_graph_in_order_is_not_touched() -> None:
    model = chain()
    before = model.SerializeToString(deterministic=True)
    put_in_order(model.graph)
    assert model.SerializeToString(deterministic=True) == before


def test_a_cycle_stays_where_it_was() -> None:
    model = chain()
    model.graph.node[0].input[0] = "d"
    put_in_order(model.graph)
    assert operators(model.graph) == ["Relu", "MatMul", "Relu", "If", "MatMul"]
    assert list(model.graph.node[0].input) == ["x"]


def test_a_model_out_of_order_is_pruned(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(out_of_order().SerializeToString())
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(onnx.load(path))
    assert ModelFile.load(path).proto.graph.node[0].op_type == "Relu"
    arguments = [str(path), "--ratio", "0.5", "--no-recover", "-o", str(tmp_path / "p.onnx")]
    result = CliRunner().invoke(cli.command, arguments, prog_name="onnxprune")
    assert result.exit_code == 0, result.stderr
    feed = {"x": np.ones((2, 8), np.float32), "c": np.asarray(True)}
    assert ort.InferenceSession(tmp_path / "p.onnx").run(None, feed)[0].shape == (2, 4)
    assert ModelFile.load(tmp_path / "p.onnx").tensors()["V"].dims == [8, 32]
