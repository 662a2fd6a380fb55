"""The weights of a pruned model while they are solved, seen as matrices and biases of its linear operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.bodies import operands
from onnxprune.recover import grids, sites
from onnxprune.recover.execution import reader
from onnxprune.recover.sites import Site
from onnxprune.shapes import node_attributes, stored_tensors

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Read = Callable[[str], Array]
_CELLS = ("LSTM", "GRU", "RNN")
"""Operators whose second and third operands are weights."""
_BIASED = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose third operand is a bias, on the grid of input times weight where it is quantized."""


@dataclass
class Weights:
    """The weights of the pruned model while they are solved. `values`: changed ones by name; `added`: names that the
    model did not have; `rewired`: (output of the node, operand) -> name."""

    proto: onnx.ModelProto
    read: Callable[[str], Array]
    values: dict[str, Array] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    rewired: dict[tuple[str, int], str] = field(default_factory=dict)
    uncut: Read | None = None
    """Stored tensors before the cut; None where nothing is cut."""

    def __post_init__(self) -> None:
        self._bounds: dict[str, tuple[int, int]] = {}
        self.users: dict[str, int] = {}
        self.readers: dict[str, onnx.NodeProto] = {}
        for node in self.proto.graph.node:
            for name in operands(node):
                self.users[name] = self.users.get(name, 0) + 1
                self.readers[name] = node
        for output in self.proto.graph.output:
            self.users[output.name] = self.users.get(output.name, 0) + 1
        self.types = {name: tensor.data_type for name, tensor in stored_tensors(self.proto).items()}
        self.stored = set(self.types)
        self.nodes = {o: n for n in self.proto.graph.node for o in n.output}

    def get(self, name: str) -> Array:
        """A stored tensor as it is now."""
        return self.values[name] if name in self.values else self.read(name)

    def constant(self, name: str) -> Array:
        """A stored tensor, or one computed from stored ones alone, as it is now."""
        return sites.value(self.proto, self.get, name)

    def put(self, node: onnx.NodeProto, operand: int, array: Array) -> None:
        """Give one operand of one node a new value: in the stored tensor that it is made from, where nothing else reads
        that and what lies between can be undone, else in a tensor of its own."""
        name = node.input[operand] if operand < len(node.input) else ""
        chain = self._chain(name)
        if chain is not None:
            self._widen(name, chain, array)
            name, array = (chain[-1].input[0] if chain else name), self._undone(chain, array, self.get)
        elif name not in self.added:
            output = next(o for o in node.output if o)
            name = f"{output}_operand{operand}_recovered"
            while len(node.input) <= operand:
                node.input.append("")
            node.input[operand] = name
            self.rewired[output, operand] = name
            self.added.add(name)
            self.stored.add(name)
            self.proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        self.values[name] = array

    def _chain(self, name: str) -> list[onnx.NodeProto] | None:
        """The nodes from the tensor `name` up to the stored one that it alone is made from; None where there is no such
        tensor."""
        chain: list[onnx.NodeProto] = []
        while name not in self.stored and name in self.nodes and self.users.get(name) == 1:
            node = self.nodes[name]
            if not sites.is_constant_op(node) or not sites.is_undoable(node, self._dtype(node.input[0])):
                return None
            chain.append(node)
            name = node.input[0]
        return chain if name in self.stored and self.users.get(name) == 1 else None

    def _dtype(self, name: str) -> np.dtype[Any]:
        """The type of a stored tensor, or of one computed from stored ones alone; no value is read for it."""
        if name in self.types:
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.types[name]))
        node = self.nodes[name]
        if node.op_type == "Cast":
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node_attributes(node)["to"]))
        if node.op_type == "QuantizeLinear":
            return sites.grid_type(node, self._dtype)
        return self._dtype(node.input[1 if node.op_type == "DequantizeLinear" else 0])

    def _undone(self, chain: Sequence[onnx.NodeProto], array: Array, read: Read) -> Array:
        """What the nodes of a chain make `array` of, or what is nearest to it. `read`: stored tensors by name."""
        for node in chain:
            dtype = self._dtype(node.input[0])
            if node.op_type == "DequantizeLinear":
                scale, zero = sites.grid(node, read, array.shape)
                bounds = self._limits(chain[-1].input[0], dtype)
                array = grids.quantized(array, scale, zero, bounds).astype(dtype)
            elif node.op_type == "QuantizeLinear":
                scale, zero = sites.grid(node, read, array.shape)
                array = ((array.astype(np.int32) - zero) * scale).astype(dtype)
            else:
                array = sites.undone(node, array, dtype)
        return array

    def _widen(self, name: str, chain: Sequence[onnx.NodeProto], array: Array) -> None:
        """Give the weight `name` a grid that `array` does not outgrow, where it can have another."""
        scales = self._widened(name, chain, array)
        if len(scales) > 1:
            reader = self.readers[name]
            bias = self.constant(reader.input[2])
            self.values.update(scales)
            self.put(reader, 2, bias)
        self.values.update(scales)

    def _widened(self, name: str, chain: Sequence[onnx.NodeProto], array: Array) -> dict[str, Array]:
        """Larger scales by name for the quantized weight `name`, and for the bias whose scale follows them; {} where
        the grid is wide enough, or is that of other tensors too."""
        reader, last = self.readers[name], chain[-1] if chain else None
        if last is None or not sites.is_dequantized(last) or not self._is_own(last.input[1]):
            return {}
        operand = list(reader.input).index(name)
        if operand != 1 and not (operand == 2 and reader.op_type in _CELLS):
            return {}
        for node in chain[:-1]:
            array = sites.undone(node, array, self._dtype(node.input[0]))
        scale, zero = sites.grid(last, self.get, array.shape)
        found = grids.widened(array, scale, zero, self._limits(last.input[0], self._dtype(last.input[0])))
        if not (found > scale).any():
            return {}
        stored = self.get(last.input[1])
        scales = {last.input[1]: found.reshape(stored.shape)}
        bias = reader.input[2] if reader.op_type in _BIASED and len(reader.input) > 2 else ""
        if bias in self.nodes and sites.is_dequantized(self.nodes[bias]):
            follower = self._chain(bias)
            if follower is None:
                return {}
            own = follower[-1].input[1]
            old = self.get(own)
            if len(follower) > 1 or not self._is_own(own) or found.size not in (1, old.size):
                return {}
            scales[own] = (old * (found / scale).reshape(-1 if found.size > 1 else ())).astype(old.dtype)
        return scales

    def _limits(self, name: str, dtype: np.dtype[Any]) -> tuple[int, int]:
        """The integers that a stored tensor may hold, by those that it held before the cut; all of `dtype` where it is
        quantized by the model itself."""
        if self._dtype(name).kind == "f":
            return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if name not in self._bounds:
            self._bounds[name] = grids.limits((self.uncut or self.read)(name))
        return self._bounds[name]

    def _is_own(self, name: str) -> bool:
        """Whether `name` is stored, and read once."""
        return name in self.stored and self.users.get(name) == 1

    def has_grid(self, name: str) -> bool:
        """Whether the tensor `name` can be written to, and only numbers of the grid of its quantization."""
        return any(node.op_type == "DequantizeLinear" for node in self._chain(name) or ())

    def rounded(self, site: Site, weight: Array, matrix: Float, scale: Float) -> Float | None:
        """`matrix` as it would be after `write`: on the grid of its quantization; None where it has none."""
        if not self.has_grid(site.weight):
            return None
        array = sites.from_matrix(site, matrix / np.where(np.abs(scale) > 1e-12, scale, 1)[:, :, None], weight)
        return sites.to_matrix(site, self.nearest(site.weight, array)) * scale[:, :, None]

    def nearest(self, name: str, array: Array) -> Array:
        """What of `array` the tensor `name` can hold: values on the grid of its quantization, if it has one."""
        if not self.has_grid(name):
            return array
        chain = self._chain(name) or []
        scales = self._widened(name, chain, array)

        def read(stored: str) -> Array:
            return scales[stored] if stored in scales else self.get(stored)

        array = self._undone(chain, array, read)
        for node in reversed(chain):
            array = sites.applied(node, read, array)
        return array

    def effective(self, site: Site, node: onnx.NodeProto, weight: Array) -> tuple[Float, Float, Float]:
        """W (groups, out, d), b (groups, out) and the scale (groups, out) of a following BatchNormalization."""
        matrix = sites.to_matrix(site, weight)
        shape = matrix.shape[:2]
        bias = np.zeros(shape)
        scale = np.ones(shape)
        if site.op != "MatMul" and len(node.input) > 2 and node.input[2]:
            bias = (
                np.broadcast_to(np.asarray(self.constant(node.input[2]), np.float64).reshape(-1), (bias.size,))
                .reshape(shape)
                .copy()
            )
        if site.op == "MatMul" and site.bias_node is not None:
            follower = self.nodes[site.out]
            bias = (
                np.broadcast_to(self.constant(follower.input[site.bias]).astype(np.float64).reshape(-1), (bias.size,))
                .reshape(shape)
                .copy()
            )
        if site.norm is not None:
            follower = self.nodes[site.out]
            gamma, beta, mean, variance = (
                self.constant(n).astype(np.float64).reshape(shape) for n in follower.input[1:5]
            )
            epsilon = next((a.f for a in follower.attribute if a.name == "epsilon"), 1e-5)
            scale = gamma / np.sqrt(variance + epsilon)
            bias = (bias - mean) * scale + beta
            matrix = matrix * scale[:, :, None]
        return matrix, bias, scale

    def write(self, site: Site, node: onnx.NodeProto, weight: Array, matrix: Float, bias: Float, scale: Float) -> None:
        """The inverse of `effective`: store W (groups, out, d) and b (groups, out)."""
        usable = np.abs(scale) > 1e-12
        matrix = matrix / np.where(usable, scale, 1)[:, :, None]
        if not usable.all():
            old = sites.to_matrix(site, weight)
            matrix = np.where(usable[:, :, None], matrix, old)
        self.put(node, 1, sites.from_matrix(site, matrix, weight))
        if site.bias is None:
            return
        if site.norm is not None:
            follower = self.nodes[site.out]
            _, offset, _ = self.effective(site, node, self.constant(node.input[1]))
            beta = self.constant(follower.input[2])
            self.put(follower, 2, (beta.reshape(-1) + (bias - offset).reshape(-1)).astype(beta.dtype))
            return
        holder = self.nodes[site.out] if site.op == "MatMul" else node
        has_bias = site.bias < len(holder.input) and holder.input[site.bias]
        shape = self.constant(holder.input[site.bias]).shape if has_bias else (bias.size,)
        shape = shape if int(np.prod(shape)) == bias.size else (bias.size,)
        self.put(holder, site.bias, bias.reshape(shape).astype(weight.dtype))


def weights_of(
    proto: onnx.ModelProto, read: Callable[[str], Array | None], edits: Mapping[str, Callable[[Array], Array]]
) -> Weights:
    """The weights of a model that was just cut: stored arrays with the edits of the cut."""
    base = reader(proto, read, {})
    return Weights(proto, lambda name: edits[name](base(name)) if name in edits else base(name), uncut=base)
