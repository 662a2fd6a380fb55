"""Small models from ONNX text, and two proofs that a cut is right: masks in the graph (onnxprune.masking) and, written
again here and independent of it, zeros in the stored weights."""

from __future__ import annotations

import importlib
import textwrap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime
from onnx import helper, numpy_helper

from onnxprune import allocate, analysis, dims, masking, plan, shapes, worker
from onnxprune.bodies import flat_nodes
from onnxprune.cut import Cut, cut
from onnxprune.records import Analysis, Feed, Group, Plan
from onnxprune.shapes import Shapes

TOLERANCE = 1e-5
"""Largest allowed difference over the largest absolute output."""
RUNS = ({"first": 2, "rest": 8}, {"first": 3, "rest": 12})
"""Sizes of dynamic axes: the first axis and every other one."""
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Array = npt.NDArray[Any]
Outputs = dict[str, Array]


# ---- Models ----------------------------------------------------------------------------------------------------------


def model(text: str, *, opset: int = 17, ir: int = 8, seed: int = 0, **values: Array) -> onnx.ModelProto:
    """A model from ONNX text; `text` starts at the graph, or at its inputs.

    A tensor declared between < and > without a value, that no node makes, becomes a weight: `values` by name, else
    random. Operators of com.microsoft may be used, and of the domain "test", which nothing knows.
    """
    text = textwrap.dedent(text).strip()
    graph = text if not text.startswith("(") else f"g {text}"
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}, "test" : 1, "com.microsoft" : 1]>'
    proto = onnx.parser.parse_model(f"{header} {graph}")
    made = {o for n in proto.graph.node for o in n.output}
    positive = {n.input[4] for n in proto.graph.node if n.op_type == "BatchNormalization"}
    for value in [v for v in proto.graph.value_info if v.name not in made]:
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        generator = np.random.default_rng([seed, zlib.crc32(value.name.encode())])
        drawn = (
            generator.integers(1, 100, sizes)
            if dtype.kind in "iu"
            else _weight(generator, sizes, value.name in positive)
        )
        array = values.get(value.name, drawn)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array, dtype), value.name))
        proto.graph.value_info.remove(value)
    return proto


def _weight(generator: np.random.Generator, sizes: Sequence[int], positive: bool) -> Array:
    if positive:
        return np.asarray(generator.uniform(0.5, 2.0, sizes))
    return np.asarray(generator.standard_normal(sizes)) / max(1.0, float(np.prod(sizes[1:]))) ** 0.5


def graph(proto: onnx.ModelProto) -> tuple[Analysis, Shapes]:
    """The analysis of a model, and its shapes."""
    return _graph(proto.SerializeToString(deterministic=True))


@lru_cache(maxsize=16)
def _graph(serialized: bytes) -> tuple[Analysis, Shapes]:
    proto = onnx.ModelProto.FromString(serialized)
    with mock.patch.object(worker, "call", _call_here):
        found = shapes.infer(proto)
    return analysis.analyse(proto, found), found


def _call_here(function: str, arguments: Mapping[str, Any], **_: Any) -> Any:
    """Do in this process what a child process should: these models are small and harmless."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments)


def forget() -> None:
    """Analyse every model anew: for tests that change the rules."""
    _graph.cache_clear()


def groups(proto: onnx.ModelProto) -> dict[str, Group]:
    """The groups of a model by id."""
    return {g.id: g for g in graph(proto)[0].groups}


def prunable(proto: onnx.ModelProto) -> dict[str, int]:
    """The sizes of the prunable groups of a model by id."""
    return {g.id: g.size for g in graph(proto)[0].groups if g.refusal is None}


def places(group: Group) -> dict[tuple[str, int], str]:
    """The role of a group by (weight, axis)."""
    return {(o.tensor, o.axis): o.role for o in group.occurrences}


def reasons(proto: onnx.ModelProto) -> dict[str, str]:
    """For every frozen group, "operator: reason"."""
    return {g.id: f"{g.refusal.op}: {g.refusal.reason}" for g in graph(proto)[0].groups if g.refusal is not None}


# ---- Running ---------------------------------------------------------------------------------------------------------


def run(proto: onnx.ModelProto, feed: Feed) -> Outputs:
    """The outputs of a model in ONNX Runtime, by name, without graph optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def feeds(proto: onnx.ModelProto, seed: int = 0, high: int = 4) -> Iterator[Feed]:
    """Random inputs: two sizes where an input is dynamic, else one. Integers lie in [0, high)."""
    inputs = shapes.graph_inputs(proto)
    dynamic = any(d.dim_param or not d.dim_value for i in inputs for d in i.type.tensor_type.shape.dim)
    generator = np.random.default_rng(seed)
    for sizes in RUNS if dynamic else RUNS[:1]:
        feed: Feed = {}
        for i in inputs:
            shape = [
                d.dim_value or sizes["rest" if axis else "first"] for axis, d in enumerate(i.type.tensor_type.shape.dim)
            ]
            dtype = helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
            drawn = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, high, shape)
            feed[i.name] = np.asarray(drawn, dtype)
        yield feed


def worst_difference(reference: Outputs, result: Outputs) -> float:
    """Largest difference over all outputs, over the largest value of each; infinite where a shape, a type or the place
    of a value that is not finite differs."""
    if list(reference) != list(result):
        return float("inf")
    return max(_difference(a, result[name]) for name, a in reference.items())


def _difference(a: Array, b: Array) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else float("inf")
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    x, y = (
        np.nan_to_num(a.astype(np.float64), posinf=0, neginf=0),
        np.nan_to_num(b.astype(np.float64), posinf=0, neginf=0),
    )
    scale = float(np.abs(x).max(initial=0.0))
    return float(np.abs(x - y).max(initial=0.0)) / (scale or 1.0)


# ---- Stored weights --------------------------------------------------------------------------------------------------


def stored(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The tensors that hold the weights of the main graph: initializers and `value` attributes of Constant nodes."""
    found = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def replace_weight(tensor: onnx.TensorProto, array: Array) -> None:
    """Put another array into a stored tensor."""
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def zeroed(proto: onnx.ModelProto, data: Mapping[str, Any]) -> onnx.ModelProto:
    """A copy of the model whose `contracted` slices that the plan `data` drops are zero, so that no removed channel
    reaches a linear operator."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    weights = stored(result)
    for entry in data["tensors"]:
        if entry["role"] == "contracted":
            array = numpy_helper.to_array(weights[entry["name"]]).copy()
            dropped = np.setdiff1d(np.arange(array.shape[entry["axis"]]), entry["kept"])
            np.moveaxis(array, entry["axis"], 0)[dropped] = 0
            replace_weight(weights[entry["name"]], array)
    return result


def applied(done: Cut) -> onnx.ModelProto:
    """The pruned model: the cut with its edits made to the stored weights."""
    result = onnx.ModelProto()
    result.CopyFrom(done.proto)
    weights = stored(result)
    for name, edit in done.edits.items():
        replace_weight(weights[name], edit(numpy_helper.to_array(weights[name])))
    return result


def weights_alone_suffice(proto: onnx.ModelProto, found: Analysis, keep: Mapping[dims.Dim, Array]) -> bool:
    """Whether zeros in stored weights mask the plan: every sum over a pruned group multiplies by a stored weight, and
    nothing averages over one."""
    constant = {t.name for t in proto.graph.initializer}
    for node in proto.graph.node:
        if all(i in constant for i in node.input if i):
            constant.update(node.output)
    nodes = [n for _, n in flat_nodes(proto)]
    for c in found.contractions:
        node = nodes[c.node]
        multiplies = node.op_type in LINEAR and any(i in constant for i in node.input[:2])
        if any(a in keep for d in c.dims for a in dims.atoms(d)) and (c.average or not multiplies):
            return False
    return True


# ---- Both proofs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pruned:
    """One random pruning of a model: what was kept by group, and the largest relative difference by proof."""

    original: onnx.ModelProto
    pruned: onnx.ModelProto
    analysis: Analysis
    kept: Mapping[str, Array]
    differences: Mapping[str, float]

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights of the pruned model."""
        return {name: tuple(t.dims) for name, t in stored(self.pruned).items()}

    def node(self, op: str, at: int = 0) -> onnx.NodeProto:
        """A node of the pruned model by operator."""
        return [n for n in self.pruned.graph.node if n.op_type == op][at]

    def attribute(self, op: str, name: str, at: int = 0) -> Any:
        """An attribute of a node of the pruned model."""
        return next(helper.get_attribute_value(a) for a in self.node(op, at).attribute if a.name == name)


def random_plan(found: Analysis, *, ratio: float, seed: int, factors: bool = False) -> dict[str, Array]:
    """Random kept indices for every prunable group; `factors`: also for groups that multiply another one."""
    chosen = [g for g in found.groups if g.refusal is None]
    if not factors:
        chosen = allocate.choose_factors(found, chosen)
    generator = np.random.default_rng(seed)
    return {
        g.id: np.sort(
            generator.choice(g.size, max(g.least, min(g.size - 1, round(g.size * (1 - ratio)))), replace=False)
        )
        for g in chosen
    }


def prune(proto: onnx.ModelProto, kept: Mapping[str, Array], *, seed: int = 0, high: int = 4) -> Pruned:
    """Carry out a plan and measure the result against every proof that applies to it. Asserts nothing."""
    found, sizes = graph(proto)
    done = cut(proto, found, sizes, kept)
    result = applied(done)
    keep = {g.dim: np.isin(np.arange(g.size), kept[g.id]) for g in found.groups if g.id in kept}
    references = {"masked": masking.masked_model(proto, found, keep, sizes.element_types)}
    if weights_alone_suffice(proto, found, keep):
        data = plan.to_json(Plan(kept), found, done.slices, model="m", sha256="")
        references["zeroed"] = zeroed(proto, data)
    record = Pruned(proto, result, found, kept, {})
    return replace(record, differences=differences(references, result, feeds(proto, seed, high)))


def differences(
    references: Mapping[str, onnx.ModelProto], result: onnx.ModelProto, inputs: Iterator[Feed]
) -> dict[str, float]:
    """The worst difference of a model from each reference over all inputs."""
    worst = dict.fromkeys(references, 0.0)
    for feed in inputs:
        outputs = run(result, feed)
        for name, reference in references.items():
            worst[name] = max(worst[name], worst_difference(run(reference, feed), outputs))
    return worst


def prune_and_compare(
    proto: onnx.ModelProto, *, ratio: float = 0.5, seed: int = 0, factors: bool = False, high: int = 4
) -> Pruned:
    """Prune every prunable group at random and require that the result is a valid model, keeps the interface, has the
    shapes the analysis tells, and equals the masked original by every proof that applies."""
    found, _ = graph(proto)
    kept = random_plan(found, ratio=ratio, seed=seed, factors=factors)
    assert kept, "nothing can be pruned"
    result = prune(proto, kept, seed=seed, high=high)
    _require_valid(result)
    assert result.differences and max(result.differences.values()) <= TOLERANCE, result.differences
    changed = differences({"original": proto}, result.pruned, feeds(proto, seed, high))["original"]
    assert changed > 100 * TOLERANCE, "the removed part does not show in the outputs, so nothing is proved"
    return result


def _require_valid(result: Pruned) -> None:
    onnx.checker.check_model(result.pruned, full_check=_passes(result.original))
    assert result.pruned.graph.input == result.original.graph.input
    assert result.pruned.graph.output == result.original.graph.output
    counts = {g.dim: len(result.kept[g.id]) for g in result.analysis.groups if g.id in result.kept}
    shrunk = 0
    for name, tensor in stored(result.original).items():
        wanted = [dims.size(d, counts) for d in result.analysis.weights[name]]
        if name not in result.weights:
            assert not any(name in n.input for _, n in flat_nodes(result.pruned)), name
            continue
        assert list(result.weights[name]) == wanted, name
        shrunk += wanted != list(tensor.dims)
    assert shrunk, "no weight shrinks"
    graph(result.pruned)


def _passes(proto: onnx.ModelProto) -> bool:
    """Whether the strict shape inference of onnx takes the original: it knows no operators of other domains, and
    stumbles over a few of its own (MeanVarianceNormalization without `axes`)."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True
