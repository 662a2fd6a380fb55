"""Distillation: gradient steps on all weights of the pruned model at once, towards what the original gives.

No labels. The gradients come from `onnx-ad` (extra `gradients`), which turns the model into a model of its gradient; both run in ONNX
Runtime. Every linear operator takes part with its weight and bias, a BatchNormalization behind it folded into them
while it is trained. Loss: squared error of the outputs (before a last Softmax or Sigmoid), over their variance.
What is kept is the state with the lowest loss on held-out inputs, the start included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnxprune import runtime
from onnxprune.errors import UsageError
from onnxprune.records import Feed
from onnxprune.recover import sites
from onnxprune.recover.execution import operands, stored_tensors
from onnxprune.recover.sites import Site

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
_LAST = {"Softmax", "Sigmoid", "LogSoftmax", "ArgMax"}


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


def probes(proto: onnx.ModelProto) -> list[str]:
    """The outputs, each traced back to before a last Softmax or Sigmoid."""
    producers = {o: n for n in proto.graph.node for o in n.output}
    found = []
    for output in proto.graph.output:
        name = output.name
        while name in producers and producers[name].op_type in _LAST:
            name = producers[name].input[0]
        found.append(name)
    return list(dict.fromkeys(found))


class Trainer:
    """The gradient model of one pruned model at one batch size, and its Adam state."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        constant: Callable[[str], Array],
        effective,
        feed: Feed,
        features: Mapping[str, float],
        threads: int,
    ) -> None:  # type: ignore[no-untyped-def]
        self.threads = threads
        self.layers: list[Layer] = []
        self.features = dict(features)
        model = self._training_model(proto, constant, effective, feed)
        self.session = self._gradients(model)

    def _training_model(self, proto, constant, effective, feed) -> onnx.ModelProto:  # type: ignore[no-untyped-def]
        model = onnx.ModelProto()
        model.CopyFrom(proto)
        graph = model.graph
        tensors = stored_tensors(proto)
        known = {n for n, t in tensors.items() if t.data_type == onnx.TensorProto.FLOAT}
        found = list(sites.find(proto, known, lambda n: True))
        drop: set[int] = set()
        del graph.value_info[:]
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feed.items()
        ]
        for k, site in enumerate(found):
            node = graph.node[site.node]
            weight = np.asarray(constant(node.input[1]))
            if weight.ndim < 2 or site.op == "ConvTranspose" and site.groups > 1:
                continue
            matrix, bias, scale = effective(site, proto.graph.node[site.node], weight)
            has_bias = site.bias is not None
            layer = Layer(
                site,
                sites.from_matrix(site, matrix, weight),
                bias.reshape(-1).astype(np.float32) if has_bias else None,
                scale,
                (f"train_w{k}", f"train_b{k}"),
                None,
            )
            node.input[1] = layer.names[0]
            inputs.append(helper.make_tensor_value_info(layer.names[0], 1, weight.shape))
            if has_bias:
                self._move_bias(graph, site, node, layer.names[1])
                inputs.append(helper.make_tensor_value_info(layer.names[1], 1, layer.bias.shape))  # type: ignore[union-attr]
            if site.norm is not None:
                drop.add(site.norm)
                node.output[0] = site.out
            if site.groups > 1:
                layer.gate = f"train_g{k}"
            self.layers.append(layer)
        del graph.input[:]
        graph.input.extend(inputs)
        used = {n for node in graph.node for n in operands(node)}
        kept = [t for t in graph.initializer if t.name in used]
        del graph.initializer[:]
        for t in kept:
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(constant(t.name)), t.name))
        self._drop_norms(graph, drop)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self._add_gates(model.graph)
        return self._with_loss(model)

    def _move_bias(self, graph, site, node, name) -> None:  # type: ignore[no-untyped-def]
        holder = node if site.op != "MatMul" else graph.node[site.bias_node]
        operand = site.bias if site.op == "MatMul" else 2
        while len(holder.input) <= operand:
            holder.input.append("")
        holder.input[operand] = name

    def _drop_norms(self, graph, drop) -> None:  # type: ignore[no-untyped-def]
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for i, n in enumerate(graph.node) if i not in drop]
        del graph.node[:]
        graph.node.extend(nodes)

    def _add_gates(self, graph) -> None:  # type: ignore[no-untyped-def]
        """An addend of zeros behind each grouped convolution: its gradient is that of the result."""
        shape = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.output]
        }
        gates = {layer.names[0]: layer for layer in self.layers if layer.gate}
        nodes = []
        for node in graph.node:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            nodes.append(copy)
            layer = gates.get(node.input[1]) if len(node.input) > 1 else None
            if layer is not None:
                out = copy.output[0]
                copy.output[0] = f"{out}__ungated"
                nodes.append(helper.make_node("Add", [copy.output[0], str(layer.gate)], [out]))
                graph.input.append(helper.make_tensor_value_info(layer.gate, 1, shape[out]))
        del graph.node[:]
        graph.node.extend(nodes)

    def _with_loss(self, model: onnx.ModelProto) -> onnx.ModelProto:
        graph = model.graph
        shape = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.output]
        }
        terms = []
        del graph.output[:]
        for k, (name, weight) in enumerate(self.features.items()):
            graph.input.append(helper.make_tensor_value_info(f"target{k}", 1, shape[name]))
            graph.initializer.append(numpy_helper.from_array(np.float32(weight), f"factor{k}"))
            graph.node.extend(
                [
                    helper.make_node("Sub", [name, f"target{k}"], [f"miss{k}"]),
                    helper.make_node("Mul", [f"miss{k}", f"miss{k}"], [f"square{k}"]),
                    helper.make_node("Mul", [f"square{k}", f"factor{k}"], [f"weighted{k}"]),
                    helper.make_node("ReduceSum", [f"weighted{k}"], [f"term{k}"], keepdims=0),
                ]
            )
            terms.append(f"term{k}")
        graph.node.append(helper.make_node("Sum", terms, ["loss"]))
        graph.output.append(helper.make_tensor_value_info("loss", 1, []))
        return onnx.shape_inference.infer_shapes(model, data_prop=True)

    def _gradients(self, model: onnx.ModelProto) -> Any:
        try:
            import onnx_ad
        except ImportError as error:
            raise UsageError("--tune needs gradients: pip install 'onnxprune[gradients]'") from error
        wanted = [n for layer in self.layers for n in ([layer.gate] if layer.gate else [layer.names[0]])]
        wanted += [layer.names[1] for layer in self.layers if layer.bias is not None]
        gradient = onnx_ad.reverse(model, inputs=wanted, outputs=["loss"], layout="onnx")
        self.wanted = wanted
        for layer in self.layers:
            if layer.gate:
                gradient.graph.output.append(onnx.ValueInfoProto(name=layer.site.x))
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


def _grouped_gradient(layer: Layer, x: Array, dy: Array) -> Array:
    """dL/dW of a grouped convolution from its input and dL/dy, tap by tap."""
    site, w = layer.site, layer.weight
    kernel = w.shape[2:]
    strides, dilations = sites._list(site, "strides", len(kernel)), sites._list(site, "dilations", len(kernel))
    padded = np.pad(x, [(0, 0), (0, 0), *sites._padding(site, x.shape[2:], kernel, strides, dilations)])
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
    """Adam with a step in units of each tensor's own root mean square, so that one rate fits every layer."""

    def __init__(self, rate: float) -> None:
        self.rate, self.count = rate, 0
        self.first: dict[str, Array] = {}
        self.second: dict[str, Array] = {}

    def update(self, name: str, value: Array, gradient: Array, unit: float, decay: float) -> Array:
        m = self.first[name] = 0.9 * self.first.get(name, 0) + 0.1 * gradient
        v = self.second[name] = 0.99 * self.second.get(name, 0) + 0.01 * gradient * gradient
        step = (m / (1 - 0.9**self.count)) / (np.sqrt(v / (1 - 0.99**self.count)) + 1e-12)
        return np.asarray(value - self.rate * decay * unit * step, np.float32)
