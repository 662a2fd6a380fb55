"""A model of the gradient of a pruned model, made by `onnx-ad` and run by ONNX Runtime.

Every linear operator takes part with its weight and bias, a BatchNormalization behind it folded into them while it is
trained; they become inputs of the model. The gradients of grouped convolutions are made here, tap by tap.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter
from onnx import helper, numpy_helper

from onnxprune import runtime
from onnxprune.bodies import above, operands
from onnxprune.dequantized import GRIDS
from onnxprune.errors import UsageError
from onnxprune.records import Feed
from onnxprune.recover import sites
from onnxprune.recover.divergence import Probe, spread
from onnxprune.recover.execution import Shelf, Walk
from onnxprune.recover.layers import Weights
from onnxprune.recover.sites import Site
from onnxprune.shapes import stored_tensors

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Tests = Sequence[tuple[Feed, Sequence[Array], int]]
"""Held-out inputs, what the original gives for them, and how many of their items are not repeated ones."""
WARM_UP = 0.07
"""Share of the steps over which the rate of Adam rises."""
LEAST_OPSET = 13
"""Older operator sets are converted before gradients are made."""
TEMPERATURE = 3.0
"""Of probabilities in the loss: what the original says of classes that are not the likeliest counts too."""
LEAST_SPREAD = 1e-12
"""Of an output, for every element: what varies less has nothing to be learned from."""


@dataclass(frozen=True)
class Feature:
    """A tensor of the model, with its shape and the factor of its term in the loss."""

    probe: Probe
    shape: tuple[int, ...]
    factor: float

    @classmethod
    def of(cls, probe: Probe, wanted: Sequence[Array]) -> Feature:
        """Such that a loss of 1 is that of a model that gives the mean of `wanted`, one array for each batch, whatever
        its input is; without weight where they are all the same."""
        soft = probe.kind == "categorical"
        told = np.concatenate([np.atleast_1d(w) for w in wanted]).astype(np.float64)
        whole = spread(probe, told / TEMPERATURE) if soft else spread(Probe(probe.name, "real"), told)
        return cls(probe, wanted[0].shape, len(wanted) / whole if whole > LEAST_SPREAD * told.size else 0.0)


@dataclass
class Layer:
    """One linear operator in training. `weight` in the shape of the stored one, `bias` (out,) or None; names of the
    graph inputs they became; `gate` where the weight's gradient is taken from that of the result."""

    site: Site
    weight: Array
    bias: Array | None
    scale: Float
    names: tuple[str, str]
    gate: str | None


class Trainer:
    """The gradient model of one pruned model at one batch size."""

    def __init__(
        self,
        weights: Weights,
        feed: Feed,
        features: Sequence[Feature],
        threads: int,
        frozen: Set[str] = frozenset(),
        *,
        memory_bytes: int,
    ) -> None:
        """`frozen`: the operators that make these tensors keep their weights. `memory_bytes`: activations held in
        memory while their shapes are found."""
        self.threads = threads
        self.layers: list[Layer] = []
        self.features = features
        model = self._training_model(weights, _values(weights, feed, memory_bytes), feed, frozen)
        self.session = self._gradients(model)

    def _training_model(
        self, weights: Weights, values: Mapping[str, onnx.ValueInfoProto], feed: Feed, frozen: Set[str]
    ) -> onnx.ModelProto:
        """The model with the trained weights, the gates and the targets as inputs and the loss as its one output."""
        proto = weights.proto
        model = onnx.ModelProto()
        model.CopyFrom(proto)
        graph = model.graph
        tensors = stored_tensors(proto)
        integers = {n for n, t in tensors.items() if t.data_type in GRIDS}
        known = integers | {n for n, t in tensors.items() if t.data_type == onnx.TensorProto.FLOAT}

        def shape(name: str) -> tuple[int, ...]:
            if name in tensors:
                return weights.get(name).shape
            return tuple(d.dim_value for d in values[name].type.tensor_type.shape.dim)

        found = list(sites.find(proto, known, lambda n: n not in integers, shape))
        del graph.value_info[:]
        del graph.input[:]
        graph.input.extend(
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feed.items()
        )
        drop = self._add_layers(graph, weights, found, frozen)
        used = {n for node in graph.node for n in operands(node)}
        del graph.initializer[:]
        for name in sorted(used & tensors.keys()):
            graph.initializer.append(numpy_helper.from_array(np.asarray(weights.constant(name), order="C"), name))
        constants = {i for i, n in enumerate(graph.node) if n.op_type == "Constant" and n.output[0] in tensors}
        _pass_straight(graph, weights)
        _drop_nodes(graph, drop | constants)
        _drop_unread(graph, [f.probe.name for f in self.features])
        self._add_gates(graph, values)
        return self._with_loss(_modern(model), values)

    def _add_layers(
        self, graph: onnx.GraphProto, weights: Weights, found: Sequence[Site], frozen: Set[str]
    ) -> set[int]:
        """Make the weights and biases of the sites inputs of the graph; the numbers of the normalisations that lie in
        them now."""
        drop: set[int] = set()
        for k, site in enumerate(found):
            node = graph.node[site.node]
            weight = np.asarray(weights.constant(node.input[1]))
            if site.op == "ConvTranspose" or site.out in frozen:
                continue
            layer = _layer(weights, site, weight, k)
            node.input[1] = layer.names[0]
            graph.input.append(helper.make_tensor_value_info(layer.names[0], 1, weight.shape))
            if layer.bias is not None:
                _move_bias(graph, site, node, layer.names[1])
                graph.input.append(helper.make_tensor_value_info(layer.names[1], 1, layer.bias.shape))
            if site.norm is not None:
                drop.add(site.norm)
                node.output[0] = site.out
            self.layers.append(layer)
        return drop

    def _add_gates(self, graph: onnx.GraphProto, values: Mapping[str, onnx.ValueInfoProto]) -> None:
        """An addend of zeros behind each grouped convolution: its gradient is that of the result."""
        gates = {layer.names[0]: layer.gate for layer in self.layers if layer.gate}
        nodes = []
        for node in graph.node:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            nodes.append(copy)
            gate = gates.get(node.input[1]) if len(node.input) > 1 else None
            if gate is not None:
                out = copy.output[0]
                copy.output[0] = f"{out}__ungated"
                nodes.append(helper.make_node("Add", [copy.output[0], gate], [out]))
                graph.input.append(onnx.ValueInfoProto(name=gate, type=values[out].type))
        del graph.node[:]
        graph.node.extend(nodes)

    def _with_loss(self, model: onnx.ModelProto, values: Mapping[str, onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The model with the weighted loss of the features as its one output."""
        graph = model.graph
        terms = []
        made = {o for node in graph.node for o in node.output}
        del graph.output[:], graph.value_info[:]
        graph.value_info.extend(v for n, v in values.items() if n in made)
        graph.initializer.append(numpy_helper.from_array(np.asarray(TEMPERATURE, np.float32), "temperature"))
        for k, feature in enumerate(self.features):
            name = feature.probe.name
            graph.input.append(onnx.ValueInfoProto(name=f"target{k}", type=values[name].type))
            graph.initializer.append(numpy_helper.from_array(np.asarray(feature.factor, np.float32), f"factor{k}"))
            make = _divergence if feature.probe.kind == "categorical" else _squares
            graph.node.extend(make(feature.probe, k))
            graph.node.append(helper.make_node("Mul", [f"miss{k}", f"factor{k}"], [f"weighted{k}"]))
            graph.node.append(helper.make_node("ReduceSum", [f"weighted{k}"], [f"term{k}"], keepdims=0))
            terms.append(f"term{k}")
        graph.node.append(helper.make_node("Sum", terms, ["loss"]))
        graph.output.append(helper.make_tensor_value_info("loss", 1, []))
        return onnx.shape_inference.infer_shapes(model, data_prop=True)

    def _gradients(self, model: onnx.ModelProto) -> Any:
        """A session of the gradient model, which gives the inputs of grouped convolutions too."""
        try:
            import onnx_ad
        except ImportError as error:
            raise UsageError("--tune needs gradients: pip install 'onnxprune[gradients]'") from error
        wanted = [layer.gate or layer.names[0] for layer in self.layers]
        wanted += [layer.names[1] for layer in self.layers if layer.bias is not None]
        gradient = onnx_ad.reverse(model, inputs=wanted, outputs=["loss"], layout="onnx")
        self.wanted = wanted
        for layer in self.layers:
            if layer.gate:
                gradient.graph.output.append(onnx.ValueInfoProto(name=layer.site.x))
        _without_choices(gradient)
        return runtime.session(gradient.SerializeToString(), threads=self.threads)

    def step(self, feed: Feed, targets: Sequence[Array]) -> tuple[float, dict[str, Array]]:
        """Loss and its gradients by name."""
        values: dict[str, Array] = dict(feed)
        values.update((f"target{k}", t) for k, t in enumerate(targets))
        for layer in self.layers:
            values[layer.names[0]] = layer.weight
            if layer.bias is not None:
                values[layer.names[1]] = layer.bias
        names = {i.name: i.shape for i in self.session.get_inputs()}
        for name, shape in names.items():
            if name not in values:
                values[name] = (
                    np.ones([d if isinstance(d, int) else 1 for d in shape], np.float32)
                    if name.startswith("adj")
                    else np.zeros(shape, np.float32)
                )
        outputs = [o.name for o in self.session.get_outputs()]
        found = dict(zip(outputs, self.session.run(outputs, {n: values[n] for n in names}), strict=True))
        gradients = {n: found[f"adj_{n}"][..., 0] for n in self.wanted}
        for layer in self.layers:
            if layer.gate:
                gradients[layer.names[0]] = _grouped_gradient(layer, found[layer.site.x], gradients.pop(layer.gate))
        return float(found["loss"]), gradients

    def held_loss(self, tests: Tests) -> float:
        """Mean loss of the weights as they are now, each batch with the weight of its items."""
        losses = [self.step(feed, wanted)[0] for feed, wanted, _ in tests]
        return float(np.average(losses, weights=[count for _, _, count in tests]))

    def apply(self, adam: Adam, gradients: Mapping[str, Array], units: Mapping[str, float]) -> None:
        """One step of all weights and biases. `units`: the size of each at the start."""
        for layer in self.layers:
            name, bias = layer.names
            layer.weight = adam.update(name, layer.weight, gradients[name], units[name])
            if layer.bias is not None:
                layer.bias = adam.update(bias, layer.bias, gradients[bias], units[bias])


def _layer(weights: Weights, site: Site, weight: Array, k: int) -> Layer:
    """The operator of a site as it is before training."""
    matrix, bias, scale = weights.effective(site, weights.proto.graph.node[site.node], weight)
    return Layer(
        site,
        sites.from_matrix(site, matrix, weight),
        None if site.bias is None else bias.reshape(-1).astype(np.float32),
        scale,
        (f"train_w{k}", f"train_b{k}"),
        f"train_g{k}" if site.groups > 1 else None,
    )


def _squares(probe: Probe, k: int) -> list[onnx.NodeProto]:
    """miss = (found - target)^2"""
    return [
        helper.make_node("Sub", [probe.name, f"target{k}"], [f"less{k}"]),
        helper.make_node("Mul", [f"less{k}", f"less{k}"], [f"miss{k}"]),
    ]


def _divergence(probe: Probe, k: int) -> list[onnx.NodeProto]:
    """miss = p (log p - log q), p and q the probabilities of target and found at `TEMPERATURE`
    (G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015)."""
    nodes = []
    for name, side in ((f"target{k}", "p"), (probe.name, "q")):
        nodes.append(helper.make_node("Div", [name, "temperature"], [f"soft_{side}{k}"]))
        nodes.append(helper.make_node("LogSoftmax", [f"soft_{side}{k}"], [f"log_{side}{k}"], axis=probe.axis))
    return [
        *nodes,
        helper.make_node("Exp", [f"log_p{k}"], [f"p{k}"]),
        helper.make_node("Sub", [f"log_p{k}", f"log_q{k}"], [f"less{k}"]),
        helper.make_node("Mul", [f"p{k}", f"less{k}"], [f"miss{k}"]),
    ]


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an operator set that gradients can be made of."""
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), LEAST_OPSET)
    return model if version >= LEAST_OPSET else onnx.version_converter.convert_version(model, LEAST_OPSET)


def _without_choices(model: onnx.ModelProto) -> None:
    """Where(c, x, 0) as x times c: ONNX Runtime's Where is many times slower with a scalar."""
    graph = model.graph
    floats = {n: t for n, t in stored_tensors(model).items() if t.data_type == onnx.TensorProto.FLOAT}
    zeros = {n for n, t in floats.items() if not numpy_helper.to_array(t).any()}
    nodes = []
    for node in graph.node:
        if node.op_type == "Where" and node.input[2] in zeros:
            factor = f"{node.output[0]}__factor"
            nodes.append(helper.make_node("Cast", [node.input[0]], [factor], to=1))
            nodes.append(helper.make_node("Mul", [node.input[1], factor], [node.output[0]]))
        else:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(nodes)


def _values(weights: Weights, feed: Feed, memory_bytes: int) -> dict[str, onnx.ValueInfoProto]:
    """Type and shape of every tensor that nodes make of `feed`, as one run gives them: inference of the rank fails
    where sizes are computed."""
    names = [o for node in weights.proto.graph.node for o in node.output if o]
    with contextlib.closing(Shelf(memory_bytes)) as shelf:
        walk = Walk(weights.proto, weights.get, [feed], shelf=shelf)
        walk.compute(names)
        arrays = ((n, walk.get(n, 0)) for n in names)
        return {
            n: helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in arrays
            if isinstance(a, np.ndarray)
        }


def _move_bias(graph: onnx.GraphProto, site: Site, node: onnx.NodeProto, name: str) -> None:
    """Have the bias of an operator (of the addition behind it, for MatMul) read from the tensor `name`."""
    holder, operand = node, 2
    if site.op == "MatMul":
        if site.bias_node is None or site.bias is None:
            raise ValueError(f"{site.out} has no bias")
        holder, operand = graph.node[site.bias_node], site.bias
    while len(holder.input) <= operand:
        holder.input.append("")
    holder.input[operand] = name


def _drop_nodes(graph: onnx.GraphProto, drop: set[int]) -> None:
    """Leave out the nodes at these indices."""
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for i, n in enumerate(graph.node) if i not in drop]
    del graph.node[:]
    graph.node.extend(nodes)


def _pass_straight(graph: onnx.GraphProto, weights: Weights) -> None:
    """In place of activations that are quantized and dequantized: what the integers can hold of them, unrounded, so
    that gradients pass (Y. Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013)."""
    made = {o: n for n in graph.node for o in n.output}
    for number, node in enumerate(graph.node):
        source = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is None or source.op_type not in ("QuantizeLinear", "DynamicQuantizeLinear"):
            continue
        x, y = source.input[0], node.output[0]
        ends: list[str] = []
        if source.op_type == "QuantizeLinear":
            if source.input[1] not in weights.stored or weights.get(source.input[1]).size > 1:
                continue
            scale, zero = sites.grid(source, weights.constant, ())
            bounds = np.iinfo(sites.grid_type(source, lambda name: weights.constant(name).dtype))
            ends = [f"pass{number}_{k}" for k in range(2)]
            for name, end in zip(ends, (bounds.min, bounds.max), strict=True):
                value = np.asarray((end - zero.astype(np.float64)) * scale, np.float32)
                graph.initializer.append(numpy_helper.from_array(value, name))
        node.CopyFrom(helper.make_node("Clip" if ends else "Identity", [x, *ends], [y]))


def _drop_unread(graph: onnx.GraphProto, wanted: Sequence[str]) -> None:
    """Leave out the nodes that the tensors `wanted` do not need."""
    needed = set(above(graph.node, wanted, {o: i for i, n in enumerate(graph.node) for o in n.output if o}, set()))
    _drop_nodes(graph, set(range(len(graph.node))) - needed)


def _grouped_gradient(layer: Layer, x: Array, dy: Array) -> Array:
    """dL/dW of a grouped convolution from its input and dL/dy, tap by tap."""
    site, w = layer.site, layer.weight
    kernel = w.shape[2:]
    strides, dilations = sites.spatial(site, "strides", len(kernel)), sites.spatial(site, "dilations", len(kernel))
    padded = np.pad(x, [(0, 0), (0, 0), *sites.padding(site, x.shape[2:], kernel, strides, dilations)])
    g = site.groups
    result = np.empty_like(w)
    dyg = dy.reshape(dy.shape[0], g, -1, *dy.shape[2:])
    for tap in np.ndindex(*kernel):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, dy.shape[2:], strides, strict=True)
        )
        xg = padded[(slice(None), slice(None), *window)].reshape(x.shape[0], g, -1, *dy.shape[2:])
        if xg.shape[2] == 1 and dyg.shape[2] == 1:
            grad = np.einsum("ngs,ngs->g", xg.reshape(len(x), g, -1), dyg.reshape(len(x), g, -1))[:, None, None]
        else:
            grad = np.einsum(
                "ngis,ngos->goi", xg.reshape(len(x), g, xg.shape[2], -1), dyg.reshape(len(x), g, dyg.shape[2], -1)
            )
        result[(slice(None), slice(None), *tap)] = grad.reshape(w.shape[:2])
    return result


class Adam:
    """Adam with a step in units of each tensor's own root mean square, so that one rate fits every layer. The rate
    rises over the first `WARM_UP` of `steps` and falls to zero as a cosine; `count` of them are done."""

    def __init__(self, rate: float, steps: int, count: int = 0) -> None:
        self.rate, self.steps, self.count, self.began = rate, steps, count, count
        self.first: dict[str, Array] = {}
        self.second: dict[str, Array] = {}

    def update(self, name: str, value: Array, gradient: Array, unit: float) -> Array:
        """The new value; `unit` is the size that the rate is a share of."""
        m = self.first[name] = 0.9 * self.first.get(name, np.float32(0)) + 0.1 * gradient
        v = self.second[name] = 0.99 * self.second.get(name, np.float32(0)) + 0.01 * gradient * gradient
        own = self.count - self.began
        step = (m / (1 - 0.9**own)) / (np.sqrt(v / (1 - 0.99**own)) + 1e-12)
        way = self.count / self.steps
        decay = 0.5 * (1 + math.cos(math.pi * min(way, 1))) * min(1.0, way / WARM_UP)
        return np.asarray(value - self.rate * decay * unit * step, np.float32)
