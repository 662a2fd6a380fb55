"""Linear operators with a stored weight, each seen as y = W x + b over columns of inputs.

    Conv            x: patches (im2col), one column per output position, (group, in/group * taps)
    ConvTranspose   the same on the input with zeros between its elements and the kernel turned round
    Gemm, MatMul    x: rows of the operand; the weight is a matrix

A BatchNormalization that alone reads the result is taken into W and b: what is solved is what it gives out, and the
stored scale is divided out again when the new weight is written. So a folded and an unfolded export are solved alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.bodies import operands
from onnxprune.folding import EVALUATORS
from onnxprune.recover import grids
from onnxprune.shapes import node_attributes

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Site:
    """One linear operator. `node` indexes the graph; `out` is the tensor matched: the node's result, or that of the
    BatchNormalization behind it (`norm`, else None). `bias` is the operand number of the bias, None where there is none
    and none can be added; `bias_node` the node that has it. `total` / `other`: where `out` is only read by an Add, its
    result and its other operand."""

    node: int
    op: str
    x: str
    weight: str
    out: str
    attributes: Mapping[str, Any]
    norm: int | None
    bias_node: int | None
    bias: int | None
    total: str | None
    other: str | None

    @property
    def axis(self) -> int:
        """The channel axis of input and output."""
        return 1 if self.op in ("Conv", "ConvTranspose") else -1

    @property
    def groups(self) -> int:
        """The groups of a convolution, else 1."""
        return int(self.attributes.get("group", 1))


_CONSTANT_OPS = ("Identity", "Transpose", "Cast")
_LINEAR = ("QuantizeLinear", "DequantizeLinear")
_REARRANGING = ("Concat", "Reshape", "Slice", "Squeeze", "Unsqueeze")
"""What puts weights into another order or together: exporters do so with the gates of recurrent cells."""


def constants(proto: onnx.ModelProto, names: set[str]) -> set[str]:
    """`names` and every tensor made from them by Identity, Transpose, Cast, QuantizeLinear or DequantizeLinear alone,
    or put together from such tensors that are not quantized."""
    found, quantized = set(names), set[str]()
    numbers = {t.name for t in proto.graph.initializer} | {n.output[0] for n in proto.graph.node if not n.input}
    for node in proto.graph.node:
        given = [n for n in node.input if n]
        if is_constant_op(node) and found.issuperset(given):
            found.add(node.output[0])
            if node.op_type in _LINEAR or given[0] in quantized:
                quantized.add(node.output[0])
        elif node.op_type in _REARRANGING and node.domain in ("", "ai.onnx"):
            data = given if node.op_type == "Concat" else given[:1]
            if found.issuperset(data) and not quantized.intersection(data) and numbers.issuperset(given[len(data) :]):
                found.add(node.output[0])
    return found


def is_constant_op(node: onnx.NodeProto) -> bool:
    """Whether a node makes a constant of a constant in a way known here: one that `applied` has."""
    has_blocks = node.op_type in _LINEAR and node_attributes(node).get("block_size", 0)
    return node.op_type in _CONSTANT_OPS or (node.op_type in _LINEAR and not has_blocks)


def is_dequantized(node: onnx.NodeProto) -> bool:
    """Whether a node is a DequantizeLinear with one scale for all or one per index of an axis."""
    return node.op_type == "DequantizeLinear" and is_constant_op(node)


def grid(node: onnx.NodeProto, read: Callable[[str], Array], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear, shaped to go with a tensor of `shape`."""
    scale = read(node.input[1])
    zero = read(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(scale.shape, np.int32)
    if scale.size > 1:
        axis = node_attributes(node).get("axis", 1) % len(shape)
        wide = [n if k == axis else 1 for k, n in enumerate(shape)]
        return scale.reshape(wide), zero.astype(np.int32).reshape(wide)
    return scale.reshape(()), zero.astype(np.int32).reshape(())


def value(proto: onnx.ModelProto, read: Callable[[str], Array], name: str) -> Array:
    """The value of a tensor in `constants`."""
    producers = {n.output[0]: n for n in proto.graph.node if is_constant_op(n) or n.op_type in _REARRANGING}
    if name not in producers:
        return read(name)
    node = producers[name]
    if node.op_type in _REARRANGING:
        inputs = [value(proto, read, n) if n else None for n in node.input]
        return np.asarray(EVALUATORS[node.op_type](inputs, node_attributes(node)))
    return applied(node, read, value(proto, read, node.input[0]))


def applied(node: onnx.NodeProto, read: Callable[[str], Array], array: Array) -> Array:
    """What such a node makes of the first operand `array`."""
    attributes = node_attributes(node)
    if node.op_type == "DequantizeLinear":
        scale, zero = grid(node, read, array.shape)
        return ((array.astype(np.int32) - zero) * scale).astype(scale.dtype)
    if node.op_type == "QuantizeLinear":
        scale, zero = grid(node, read, array.shape)
        kind = grid_type(node, lambda name: read(name).dtype)
        bounds = int(np.iinfo(kind).min), int(np.iinfo(kind).max)
        return grids.quantized(array, scale, zero, bounds).astype(kind)
    if node.op_type == "Transpose":
        return array.transpose(attributes.get("perm"))
    if node.op_type == "Cast":
        return array.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
    return array


def grid_type(node: onnx.NodeProto, dtype: Callable[[str], np.dtype[Any]]) -> np.dtype[Any]:
    """The type of the integers that a QuantizeLinear gives: that of its zero point. `dtype`: by name."""
    if len(node.input) > 2 and node.input[2]:
        return dtype(node.input[2])
    element = node_attributes(node).get("output_dtype", 0) or onnx.TensorProto.UINT8
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))


def is_undoable(node: onnx.NodeProto, dtype: np.dtype[Any]) -> bool:
    """Whether such a node, whose first operand is of type `dtype`, can give any values, but for rounding."""
    return node.op_type != "Cast" or dtype.kind == "f" or dtype.name == "bfloat16"


def undone(node: onnx.NodeProto, array: Array, dtype: np.dtype[Any]) -> Array:
    """The first operand, of type `dtype`, of which such a node makes `array`, or what is nearest to it; of one that has
    no scale."""
    if node.op_type == "Transpose":
        turned = node_attributes(node).get("perm", list(reversed(range(array.ndim))))
        return array.transpose(np.argsort(turned))
    if node.op_type == "Cast" and dtype == np.float16:
        largest = np.finfo(np.float16).max
        return np.clip(array, -largest, largest).astype(dtype)
    return array.astype(dtype)


def find(
    proto: onnx.ModelProto, stored: set[str], floats: Callable[[str], bool], shape: Callable[[str], tuple[int, ...]]
) -> Iterator[Site]:
    """The linear operators of the main graph in graph order. `stored`: names of the weights; `floats`: whether a
    tensor holds floating point numbers; `shape`: of a weight, and of what a node gives."""
    known = constants(proto, stored)
    users: dict[str, list[int]] = {}
    for index, node in enumerate(proto.graph.node):
        for name in operands(node):
            users.setdefault(name, []).append(index)
    outputs = {o.name for o in proto.graph.output}
    made = {n.output[0]: n for n in proto.graph.node if n.output[:1] and n.output[0] in known - stored}
    finder = _Finder(proto, known, users, outputs, made, {o: n for n in proto.graph.node for o in n.output}, shape)
    for index, node in enumerate(proto.graph.node):
        if node.domain in ("", "ai.onnx") and finder.is_site(node) and floats(node.input[1]):
            yield finder.site(index, node)


@dataclass(frozen=True)
class _Finder:
    proto: onnx.ModelProto
    known: set[str]
    users: Mapping[str, list[int]]
    outputs: set[str]
    made: Mapping[str, onnx.NodeProto]
    producers: Mapping[str, onnx.NodeProto]
    shape: Callable[[str], tuple[int, ...]]

    def is_site(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.input[1] not in self.known:
            return False
        if node.input[0] in self.known:
            return False
        if node.op_type in ("Gemm", "MatMul") and len(self._constant_shape(node.input[1])) != 2:
            return False
        if len(node.input) > 2 and node.input[2] and not self._is_bias(node.input[2], node):
            return False
        attributes = node_attributes(node)
        if node.op_type == "Gemm":
            return not attributes.get("transA", 0) and attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1
        return True

    def _is_bias(self, name: str, node: onnx.NodeProto) -> bool:
        """Whether `name` adds one stored number per output of a linear operator (or one to all), and no axis."""
        if name not in self.known:
            return False
        found, outputs = self._constant_shape(name), self._outputs(node)
        alike = math.prod(found) == 1 or (found[-1] == outputs == math.prod(found))
        return alike and len(found) <= len(self.shape(node.output[0]))

    def _outputs(self, node: onnx.NodeProto) -> int:
        shape, attributes = self._constant_shape(node.input[1]), node_attributes(node)
        if node.op_type == "ConvTranspose":
            return shape[1] * int(attributes.get("group", 1))
        return shape[0] if node.op_type == "Conv" or attributes.get("transB", 0) else shape[-1]

    def _constant_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in `known`."""
        node = self.made.get(name)
        if node is None or node.op_type in _REARRANGING:
            return self.shape(name)
        source = self._constant_shape(node.input[0])
        if node.op_type != "Transpose":
            return source
        return tuple(source[k] for k in node_attributes(node).get("perm", reversed(range(len(source)))))

    def site(self, index: int, node: onnx.NodeProto) -> Site:
        out = node.output[0]
        norm: int | None = None
        has_place = node.op_type != "MatMul" and (len(node.input) > 2 or not self._is_scaled_by_data(node.input[0]))
        bias_node, bias = (index, 2) if has_place else (None, None)
        follower = self._only_user(out)
        if follower is not None and node.op_type != "MatMul" and self._is_norm(self.proto.graph.node[follower], out):
            norm, out = follower, self.proto.graph.node[follower].output[0]
            bias_node, bias = follower, 2
        if follower is not None and node.op_type == "MatMul":
            operand = self._bias_operand(self.proto.graph.node[follower], node)
            if operand is not None:
                bias_node, bias, out = follower, operand, self.proto.graph.node[follower].output[0]
        total, other = self._sum(out)
        return Site(
            index,
            node.op_type,
            node.input[0],
            node.input[1],
            out,
            node_attributes(node),
            norm,
            bias_node,
            bias,
            total,
            other,
        )

    def _is_scaled_by_data(self, name: str) -> bool:
        """Whether a tensor lies on a grid that only the data tells: what reads it cannot be given a bias of its own."""
        node = self.producers.get(name)
        return node is not None and is_dequantized(node) and node.input[1] not in self.known

    def _only_user(self, name: str) -> int | None:
        found = self.users.get(name, [])
        return found[0] if len(found) == 1 and name not in self.outputs else None

    def _is_norm(self, node: onnx.NodeProto, name: str) -> bool:
        return (
            node.op_type == "BatchNormalization"
            and node.input[0] == name
            and all(n in self.known for n in node.input[1:5])
            and not node_attributes(node).get("training_mode", 0)
        )

    def _bias_operand(self, node: onnx.NodeProto, product: onnx.NodeProto) -> int | None:
        if node.op_type != "Add":
            return None
        operand = 1 - list(node.input).index(product.output[0])
        return operand if self._is_bias(node.input[operand], product) else None

    def _sum(self, out: str) -> tuple[str | None, str | None]:
        follower = self._only_user(out)
        node = self.proto.graph.node[follower] if follower is not None else None
        if node is None or node.op_type != "Add":
            return None, None
        other = node.input[1 - list(node.input).index(out)]
        return (None, None) if other in self.known or other == out else (node.output[0], other)


# ---- Parameters as matrices ------------------------------------------------------------------------------------------


def to_matrix(site: Site, weight: Array) -> Float:
    """W as float64 (groups, out per group, in per group * taps)."""
    g = site.groups
    w = np.asarray(weight, np.float64)
    if site.op == "Conv":
        return w.reshape(g, w.shape[0] // g, -1)
    if site.op == "ConvTranspose":
        turned = np.flip(w, tuple(range(2, w.ndim))).reshape(g, w.shape[0] // g, *w.shape[1:])
        return np.swapaxes(turned, 1, 2).reshape(g, w.shape[1], -1)
    return (w if site.op == "Gemm" and site.attributes.get("transB", 0) else w.T)[None]


def from_matrix(site: Site, matrix: Float, like: Array) -> Array:
    """The inverse of `to_matrix`: an array of the shape and type of `like`."""
    g, shape = site.groups, like.shape
    if site.op == "Conv":
        return matrix.reshape(shape).astype(like.dtype)
    if site.op == "ConvTranspose":
        split = matrix.reshape(g, shape[1], shape[0] // g, *shape[2:])
        return np.flip(np.swapaxes(split, 1, 2).reshape(shape), tuple(range(2, like.ndim))).astype(like.dtype)
    flat: Float = matrix[0] if site.op == "Gemm" and site.attributes.get("transB", 0) else matrix[0].T
    return flat.astype(like.dtype)


# ---- Inputs as columns -----------------------------------------------------------------------------------------------


def columns(site: Site, x: Array, kernel: tuple[int, ...], positions: npt.NDArray[np.int64] | None) -> Array:
    """Inputs float32 (groups, in per group * taps, items, positions).

    `positions`: the sampled ones, flat indices over the spatial axes (or rows per item), None for all.
    """
    x = np.asarray(x, np.float32)
    if site.axis == -1:
        return _rows(x, positions)[None]
    padded, strides, dilations = _padded(site, x, kernel)
    space, rank = padded.shape[2:], len(kernel)
    read = _patches(np.arange(math.prod(space)).reshape(1, 1, *space), kernel, strides, dilations)[0, 0]
    chosen = np.arange(math.prod(read.shape[:rank])) if positions is None else positions
    taps = read[np.unravel_index(chosen, read.shape[:rank])].reshape(len(chosen), -1).T
    flat = padded.reshape(*padded.shape[:2], -1)
    result = np.empty((flat.shape[1], len(taps), len(flat), len(chosen)), np.float32)
    for tap, places in enumerate(taps):
        result[:, tap] = np.moveaxis(np.take(flat, places, axis=2), 1, 0)
    return result.reshape(site.groups, -1, *result.shape[2:])


def _rows(x: Array, positions: npt.NDArray[np.int64] | None) -> Array:
    """(features, items, positions) of an array whose last axis holds the features."""
    items = x.shape[0] if x.ndim > 1 else 1
    rows = x.reshape(items, -1, x.shape[-1])
    rows = rows if positions is None else rows[:, positions]
    return np.ascontiguousarray(np.moveaxis(rows, 2, 0))


def targets(site: Site, y: Array, positions: npt.NDArray[np.int64] | None) -> Array:
    """Outputs float32 (groups, out per group, items, positions)."""
    y = np.asarray(y, np.float32)
    if site.axis == -1:
        return _rows(y, positions)[None]
    flat = y.reshape(*y.shape[:2], -1)
    flat = flat if positions is None else flat[:, :, positions]
    return np.ascontiguousarray(np.moveaxis(flat, 1, 0)).reshape(site.groups, -1, flat.shape[0], flat.shape[2])


def by_channel(site: Site, x: Array, inputs: npt.NDArray[np.int64]) -> Array:
    """(1, channels, n) of a batch: every position is one column. `inputs` int (channels, taps)."""
    x = np.asarray(x, np.float32)
    if site.axis == 1:
        return np.moveaxis(x, 1, 0).reshape(1, x.shape[1], -1)
    rows = x.reshape(-1, x.shape[-1])[:, inputs]
    return np.moveaxis(rows, 1, 0).reshape(1, len(inputs), -1)


def result_shape(site: Site, x_shape: tuple[int, ...], kernel: tuple[int, ...], outputs: int) -> tuple[int, ...]:
    """The shape of what an operator with so many `outputs` gives for inputs of `x_shape`."""
    if site.axis == -1:
        return (*x_shape[:-1], outputs)
    padded, strides, dilations = _padded(site, np.broadcast_to(np.float32(0), (1, 1, *x_shape[2:])), kernel)
    return (x_shape[0], outputs, *_patches(padded, kernel, strides, dilations).shape[2 : 2 + len(kernel)])


def input_count(site: Site, shape: tuple[int, ...]) -> int:
    """Inputs of each output, of a weight of `shape`: in per group * taps."""
    if site.op == "ConvTranspose":
        return shape[0] // site.groups * math.prod(shape[2:])
    if site.op == "Conv" or site.attributes.get("transB", 0):
        return math.prod(shape[1:])
    return shape[0]


def position_count(site: Site, y_shape: tuple[int, ...]) -> int:
    """Output positions of one item."""
    return math.prod(y_shape[2:]) if site.axis == 1 else math.prod(y_shape[1:-1])


def spatial(site: Site, name: str, rank: int) -> list[int]:
    """An attribute with one number per spatial axis (strides, dilations), 1 where it is absent."""
    return list(site.attributes.get(name, [1] * rank))


def _padded(site: Site, x: Array, kernel: tuple[int, ...]) -> tuple[Array, list[int], list[int]]:
    """What the windows of a convolution move over, their strides and dilations."""
    dilations = spatial(site, "dilations", len(kernel))
    if site.op == "ConvTranspose":
        return _spread(site, x, kernel), [1] * len(kernel), dilations
    strides = spatial(site, "strides", len(kernel))
    around = padding(site, x.shape[2:], kernel, strides, dilations)
    return np.pad(x, [(0, 0), (0, 0), *around]), strides, dilations


def _patches(x: Array, kernel: tuple[int, ...], strides: list[int], dilations: list[int]) -> Array:
    """What each output position of a convolution reads: a view (items, channels, *positions, *kernel)."""
    rank = len(kernel)
    extents = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, extents, tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in strides)
    inner = tuple(slice(None, None, d) for d in dilations)
    return view[(slice(None), slice(None), *steps, *inner)]


def padding(
    site: Site, size: tuple[int, ...], kernel: tuple[int, ...], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """(before, after) on every spatial axis, `auto_pad` worked out for inputs of `size`."""
    rank, mode = len(kernel), site.attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        result = []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            both = max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
            result.append((both // 2, both - both // 2) if mode == "SAME_UPPER" else (both - both // 2, both // 2))
        return result
    return _explicit_pads(site, rank)


def _cropping(
    site: Site, size: tuple[int, ...], kernel: tuple[int, ...], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """The pads of a transposed convolution: what is cut off (before, after) on every spatial axis. `output_shape` and
    `auto_pad` are worked out for inputs of `size`: SAME gives size * stride, where there is so much."""
    rank, mode = len(kernel), site.attributes.get("auto_pad", "NOTSET")
    wanted = list(site.attributes.get("output_shape", []))[-rank:]
    if not wanted and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(size, strides, strict=True)]
    if not wanted:
        return _explicit_pads(site, rank)
    extra, result = site.attributes.get("output_padding", [0] * rank), []
    for a in range(rank):
        whole = (size[a] - 1) * strides[a] + dilations[a] * (kernel[a] - 1) + 1 + extra[a]
        both = max(whole - wanted[a], 0)
        first = both // 2 if mode == "SAME_UPPER" else both - both // 2
        result.append((first, both - first))
    return result


def _explicit_pads(site: Site, rank: int) -> list[tuple[int, int]]:
    """The attribute `pads` as (before, after) on every spatial axis, none where it is absent or VALID."""
    is_valid = site.attributes.get("auto_pad", "NOTSET") == "VALID"
    pads = [0] * (2 * rank) if is_valid else list(site.attributes.get("pads", [0] * (2 * rank)))
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _spread(site: Site, x: Array, kernel: tuple[int, ...]) -> Array:
    """The input of a transposed convolution as that of a plain one: zeros between, kernel - 1 - pad around."""
    rank = len(kernel)
    strides, dilations = spatial(site, "strides", rank), spatial(site, "dilations", rank)
    extra = list(site.attributes.get("output_padding", [0] * rank))
    pads = _cropping(site, x.shape[2:], kernel, strides, dilations)
    wide = np.zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), x.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    around = []
    for a in range(rank):
        reach = dilations[a] * (kernel[a] - 1)
        around.append((reach - pads[a][0], reach - pads[a][1] + extra[a]))
    crop = tuple(slice(max(-low, 0), n - max(-high, 0)) for (low, high), n in zip(around, wide.shape[2:], strict=True))
    return np.pad(
        wide[(slice(None), slice(None), *crop)], [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in around)]
    )
