"""Distillation: gradient steps on all weights of the pruned model at once, towards what the original gives.

No labels. The gradients come from `onnx-ad` (extra `gradients`), which turns the model into a model of its
gradient; both run in ONNX Runtime. Every linear operator takes part with its weight and bias, a BatchNormalization
behind it folded into them while it is trained. Loss: squared error of the outputs (before a last Softmax or Sigmoid),
over their variance. What is kept is the state with the lowest loss on held-out inputs, the start included.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter
from onnx import helper, numpy_helper

from onnxprune import runtime
from onnxprune.errors import UsageError
from onnxprune.records import Feed
from onnxprune.recover import sites
from onnxprune.recover.augmentation import augment, is_image
from onnxprune.recover.divergence import probes
from onnxprune.recover.execution import operands, stored_tensors
from onnxprune.recover.layers import Weights
from onnxprune.recover.sites import Site

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Read = Callable[[str], Array]
Teacher = Callable[[Feed], list[Array]]
Tests = Sequence[tuple[Feed, Sequence[Array]]]
"""Held-out inputs and what the original gives for them."""
LEAST_OPSET = 13
"""Older operator sets are converted before gradients are made."""


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
    """The gradient model of one pruned model at one batch size, and its Adam state."""

    def __init__(
        self,
        weights: Weights,
        feed: Feed,
        features: Mapping[str, float],
        threads: int,
    ) -> None:
        self.threads = threads
        self.layers: list[Layer] = []
        self.features = dict(features)
        model = self._training_model(weights, feed)
        self.session = self._gradients(model)

    def _training_model(self, weights: Weights, feed: Feed) -> onnx.ModelProto:
        """The model with the trained weights, the gates and the targets as inputs and the loss as its one output."""
        proto = weights.proto
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
            weight = np.asarray(weights.constant(node.input[1]))
            if weight.ndim < 2 or site.op == "ConvTranspose":
                continue
            matrix, bias, scale = weights.effective(site, proto.graph.node[site.node], weight)
            layer = Layer(
                site,
                sites.from_matrix(site, matrix, weight),
                None if site.bias is None else bias.reshape(-1).astype(np.float32),
                scale,
                (f"train_w{k}", f"train_b{k}"),
                None,
            )
            node.input[1] = layer.names[0]
            inputs.append(helper.make_tensor_value_info(layer.names[0], 1, weight.shape))
            if layer.bias is not None:
                _move_bias(graph, site, node, layer.names[1])
                inputs.append(helper.make_tensor_value_info(layer.names[1], 1, layer.bias.shape))
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
            graph.initializer.append(numpy_helper.from_array(np.asarray(weights.constant(t.name), order="C"), t.name))
        _drop_nodes(graph, drop)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self._add_gates(model.graph)
        return self._with_loss(model)

    def _add_gates(self, graph: onnx.GraphProto) -> None:
        """An addend of zeros behind each grouped convolution: its gradient is that of the result."""
        shape = _sizes(graph)
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
                graph.input.append(helper.make_tensor_value_info(gate, 1, shape[out]))
        del graph.node[:]
        graph.node.extend(nodes)

    def _with_loss(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model with the weighted squared error of the features as its one output."""
        graph = model.graph
        shape = _sizes(graph)
        terms = []
        del graph.output[:]
        for k, (name, weight) in enumerate(self.features.items()):
            graph.input.append(helper.make_tensor_value_info(f"target{k}", 1, shape[name]))
            graph.initializer.append(numpy_helper.from_array(np.asarray(weight, np.float32), f"factor{k}"))
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
        return onnx.shape_inference.infer_shapes(_modern(model), data_prop=True)

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
        """Mean loss of the weights as they are now."""
        return float(np.mean([self.step(feed, wanted)[0] for feed, wanted in tests]))

    def apply(self, adam: Adam, gradients: Mapping[str, Array], units: Mapping[str, float]) -> None:
        """One step of all weights and biases. `units`: the size of each at the start."""
        for layer in self.layers:
            name, bias = layer.names
            layer.weight = adam.update(name, layer.weight, gradients[name], units[name])
            if layer.bias is not None:
                layer.bias = adam.update(bias, layer.bias, gradients[bias], units[bias])


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an operator set that gradients can be made of."""
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), LEAST_OPSET)
    return model if version >= LEAST_OPSET else onnx.version_converter.convert_version(model, LEAST_OPSET)


def _sizes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Inferred shapes by tensor, 0 for an axis that is not known."""
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.output]}


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
    """Adam with a step in units of each tensor's own root mean square, so that one rate fits every layer."""

    def __init__(self, rate: float, steps: int) -> None:
        self.rate, self.steps, self.count = rate, steps, 0
        self.first: dict[str, Array] = {}
        self.second: dict[str, Array] = {}

    def update(self, name: str, value: Array, gradient: Array, unit: float) -> Array:
        """The new value; `unit` is the size that the rate is a share of."""
        m = self.first[name] = 0.9 * self.first.get(name, np.float32(0)) + 0.1 * gradient
        v = self.second[name] = 0.99 * self.second.get(name, np.float32(0)) + 0.01 * gradient * gradient
        step = (m / (1 - 0.9**self.count)) / (np.sqrt(v / (1 - 0.99**self.count)) + 1e-12)
        decay = 0.5 * (1 + math.cos(math.pi * min(self.count / self.steps, 1)))
        return np.asarray(value - self.rate * decay * unit * step, np.float32)


# ---- The loop --------------------------------------------------------------------------------------------------------

EPOCHS = 20
RATE = 0.007
BATCH = 50
LARGEST_CROP = 320
WORK_LIMIT = 3e12
"""Multiply-accumulates of all forward runs: fewer epochs where they would be more, and no training below two."""


def distil(
    original: onnx.ModelProto,
    folder: str,
    weights: Weights,
    feeds: Sequence[Feed],
    *,
    macs_per_item: float,
    seed: int = 0,
    threads: int = 1,
) -> tuple[float, float] | None:
    """Train the weights in place; held-out loss before and after, or None where there is too little data or time."""
    names = [p.name for p in probes(weights.proto)]
    pool = _pool(weights.proto, feeds)
    items = len(next(iter(pool.values()))) if pool else 0
    held = np.arange(items) % 5 == 4
    fixed = _fixed_batch(weights.proto)
    batch = fixed or min(BATCH, int((~held).sum()))
    epochs = min(EPOCHS, int(WORK_LIMIT // max(1, items * macs_per_item)))
    if held.sum() < 1 or (items < 2 * batch and fixed is None and items < 8) or epochs < 2 or (fixed or 1) > held.sum():
        return None
    teacher = _teacher(original, names, folder, threads)
    train = {n: a[~held] for n, a in pool.items()}
    test = [{n: a[held][i : i + batch] for n, a in pool.items()} for i in range(0, int(held.sum()), batch)]
    test = [_filled(f, batch) for f in test]
    wanted = [teacher(f) for f in test]
    factors = {n: 1 / max(w.size * float(w.var()), 1e-20) for n, w in zip(names, wanted[0], strict=True)}
    trainer = Trainer(weights, test[0], factors, threads)
    return _train(trainer, weights, train, list(zip(test, wanted, strict=True)), teacher, batch, epochs, seed)


def _train(
    trainer: Trainer,
    weights: Weights,
    train: Feed,
    tests: Tests,
    teacher: Teacher,
    batch: int,
    epochs: int,
    seed: int,
) -> tuple[float, float]:
    """Run the epochs and store the best state; held-out loss before and after."""
    random = np.random.default_rng(seed)
    count = len(next(iter(train.values())))
    adam = Adam(RATE, epochs * max(1, count // batch))
    units = {layer.names[0]: _size(layer.weight) for layer in trainer.layers}
    units.update({layer.names[1]: _size(layer.bias) + 1e-3 for layer in trainer.layers if layer.bias is not None})
    start = best = trainer.held_loss(tests)
    state: list[tuple[Array, Array | None]] | None = None
    for epoch in range(epochs):
        order = random.permutation(count)
        for i in range(0, count - batch + 1, batch):
            chosen = order[i : i + batch]
            feed = augment({n: a[chosen] for n, a in train.items()}, random)
            _, gradients = trainer.step(feed, teacher(feed))
            adam.count += 1
            trainer.apply(adam, gradients, units)
        found = trainer.held_loss(tests)
        log.info("distillation %d/%d: held-out loss %.5f -> %.5f", epoch + 1, epochs, start, found)
        if found < best:
            best, state = found, [(layer.weight, layer.bias) for layer in trainer.layers]
    if state is not None:
        for layer, (weight, bias) in zip(trainer.layers, state, strict=True):
            layer.weight, layer.bias = weight, bias
            _store(weights, layer)
    return start, best


def _size(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def _store(weights: Weights, layer: Layer) -> None:
    node = weights.proto.graph.node[layer.site.node]
    stored = weights.constant(node.input[1])
    bias = np.zeros(layer.scale.size) if layer.bias is None else layer.bias.astype(np.float64)
    weights.write(
        layer.site,
        node,
        stored,
        sites.to_matrix(layer.site, layer.weight),
        bias.reshape(layer.scale.shape),
        layer.scale,
    )


def _teacher(proto: onnx.ModelProto, names: Sequence[str], folder: str, threads: int) -> Teacher:
    """Runs the original up to the tensors `names`."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    session = runtime.session(model.SerializeToString(), threads=threads, folder=folder)
    return lambda feed: list(session.run(list(names), feed))


def _fixed_batch(proto: onnx.ModelProto) -> int | None:
    stored = {t.name for t in proto.graph.initializer}
    for value in proto.graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name not in stored and len(axes) and axes[0].dim_value:
            return int(axes[0].dim_value)
    return None


def _pool(proto: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, Array]:
    """All items of all feeds by input, cropped to common sizes; {} where the inputs have no common axis of items."""
    if any(a.ndim < 1 or len(a) != len(next(iter(f.values()))) for f in feeds for a in f.values()):
        return {}
    pool = {}
    for name in feeds[0]:
        shapes = {f[name].shape[1:] for f in feeds}
        if len({len(s) for s in shapes}) > 1:
            return {}
        least = [min(axis) for axis in zip(*shapes, strict=True)]
        axes = next(v for v in proto.graph.input if v.name == name).type.tensor_type.shape.dim
        free = [len(axes) > k + 1 and not axes[k + 1].dim_value for k in range(len(least))]
        if len(least) == 3 and is_image(feeds[0][name]):
            least = [min(n, LARGEST_CROP) if f and k else n for k, (n, f) in enumerate(zip(least, free, strict=True))]
        pool[name] = np.concatenate([crop for f in feeds for crop in _crops(f[name], least, len(feeds[0]) == 1)])
    return pool


def _crops(array: Array, sizes: Sequence[int], many: bool) -> list[Array]:
    """`array` (n, ...) cut to `sizes`: the first corner, or, of images and with `many`, a grid of crops."""
    if not many or not is_image(array):
        return [array[(slice(None), *(slice(0, n) for n in sizes))]]
    grid = [
        np.unique(np.linspace(0, full - n, -(-full // n)).astype(int))
        for full, n in zip(array.shape[2:], sizes[1:], strict=True)
    ]
    return [array[:, :, y : y + sizes[1], x : x + sizes[2]] for y in grid[0] for x in grid[1]]


def _filled(feed: Feed, batch: int) -> Feed:
    """The feed with its items repeated up to `batch`."""
    return {n: np.resize(a, (batch, *a.shape[1:])) if len(a) < batch else a for n, a in feed.items()}
