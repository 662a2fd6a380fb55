"""Quantized operators in terms of floating point, which the recovery can solve.

    QLinearConv, QLinearMatMul, QGemm            y = Quantize(f(Dequantize(x), Dequantize(w), Dequantize(b)))
    ConvInteger, MatMulInteger, then scaled      y = f(Dequantize(x), Dequantize(w)), a convolution's bias taken in
    MatMulIntegerToFloat, DynamicQuantizeMatMul  y = Dequantize(x) Dequantize(w) + b
    DynamicQuantizeLSTM                          y = LSTM(x, Dequantize(w)^T, Dequantize(r)^T)

The stored tensors are the same, by name and on their grid, so that what is solved here holds in the model itself. What
reads a weight that others read too, has scales, zero points or a bias of another form, or has its channels last, stays
as it is and is not solved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnxprune.bodies import operands
from onnxprune.shapes import node_attributes, stored_tensors

Array = npt.NDArray[Any]
Nodes = list[onnx.NodeProto]

GRIDS = tuple(getattr(onnx.TensorProto, n) for n in ("INT8", "UINT8", "INT16", "UINT16", "INT32"))
"""Types of quantized weights that can be solved for."""
CONTRIB = "com.microsoft"
PER_AXIS = 13
"""The operator set from which on DequantizeLinear has scales along an axis; ONNX Runtime's own has them in all."""


@dataclass(frozen=True)
class Dequantized:
    """`proto`: the model in other terms. `arrays`: stored tensors that it alone has, by name. `places`: where the model
    takes those of them that are biases, zero so far: (output of the node, operand) -> name."""

    proto: onnx.ModelProto
    arrays: Mapping[str, Array]
    places: Mapping[tuple[str, int], str]


def dequantized(proto: onnx.ModelProto, read: Callable[[str], Array | None]) -> Dequantized | None:
    """The model with its quantized operators spelled out; None where it has none that can be. `read`: stored tensors by
    name."""
    if not any(n.op_type in _FORMS for n in proto.graph.node):
        return None
    found = _Rewriter(proto, read)
    for node in proto.graph.node:
        if node.op_type in _FORMS:
            _FORMS[node.op_type](found, node)
    return found.result() if found.instead else None


class _Rewriter:
    """Collects what goes in place of which nodes."""

    def __init__(self, proto: onnx.ModelProto, read: Callable[[str], Array | None]) -> None:
        self.proto, self.read = proto, read
        self.stored = stored_tensors(proto)
        self.made = {o: n for n in proto.graph.node for o in n.output if o}
        self.readers: dict[str, Nodes] = {}
        for node in proto.graph.node:
            for name in operands(node):
                self.readers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in proto.graph.output}
        opsets = {o.domain: o.version for o in proto.opset_import}
        self.has_axes = opsets.get("", opsets.get("ai.onnx", 1)) >= PER_AXIS
        self.instead: dict[str, Nodes] = {}
        self.gone: set[str] = set()
        self.arrays: dict[str, Array] = {}
        self.places: dict[tuple[str, int], str] = {}

    def is_weight(self, name: str, rank: int | None = None) -> bool:
        """Whether `name` is a quantized tensor that one operator alone reads."""
        tensor = self.stored.get(name)
        if tensor is None or tensor.data_type not in GRIDS or rank not in (None, len(tensor.dims)):
            return False
        return len(self.readers[name]) == 1 and name not in self.outputs

    def is_bias(self, name: str, count: int) -> bool:
        """Whether `name` is a stored vector of so many that one operator alone reads."""
        tensor = self.stored.get(name)
        if tensor is None or list(tensor.dims) != [count]:
            return False
        return len(self.readers[name]) == 1 and name not in self.outputs

    def fits(self, scale: str, zero: str, count: int) -> bool:
        """Whether `scale` is stored, one number for all or one for each of `count`, and the zero point, if there is
        one, alike."""
        tensor, other = self.stored.get(scale), self.stored.get(zero)
        if tensor is None or len(tensor.dims) > 1 or self.count(scale) not in (1, count):
            return False
        return not zero or (other is not None and len(other.dims) <= 1 and self.count(zero) == self.count(scale))

    def count(self, name: str) -> int:
        """How many numbers a stored tensor holds; 1 of any other, which are scales that the data tells."""
        if name in self.arrays:
            return self.arrays[name].size
        return math.prod(self.stored[name].dims) if name in self.stored else 1

    def size(self, name: str, axis: int) -> int:
        """The size of an axis of a stored tensor."""
        return int(self.stored[name].dims[axis])

    def only_reader(self, name: str, op: str) -> onnx.NodeProto | None:
        """The node of the operator `op` that alone reads `name`."""
        found = self.readers.get(name, [])
        return found[0] if len(found) == 1 and found[0].op_type == op and name not in self.outputs else None

    def decode(self, result: str, names: Sequence[str], axis: int) -> onnx.NodeProto:
        """A DequantizeLinear of (tensor, scale, zero point), with the scale along `axis` if it is a vector."""
        given = list(names) if names[-1] else list(names[:-1])
        if self.count(names[1]) == 1:
            return helper.make_node("DequantizeLinear", given, [result])
        return helper.make_node("DequantizeLinear", given, [result], axis=axis, domain="" if self.has_axes else CONTRIB)

    def bias(self, node: onnx.NodeProto, operand: int, scales: Sequence[str], count: int) -> Nodes | None:
        """What dequantizes the integer bias of a node, zeros where it has none; None for one of another form."""
        result = node.output[0]
        name = node.input[operand] if operand < len(node.input) else ""
        if name and not self.is_bias(name, count):
            return None
        values = [self.read(n) for n in scales]
        if any(v is None for v in values):
            return None
        scale = f"{result} bias scale"
        self.arrays[scale] = np.asarray(
            math.prod(np.asarray(v, np.float32).reshape(-1) for v in values if v is not None)
        )
        if self.arrays[scale].size == 1:
            self.arrays[scale] = self.arrays[scale].reshape(())
        if not name:
            name = self.places[result, operand] = f"{result} bias"
            self.arrays[name] = np.zeros(count, np.int32)
        return [self.decode(f"{result} b", (name, scale, ""), 0)]

    def put(self, last: onnx.NodeProto, nodes: Sequence[onnx.NodeProto], gone: Sequence[onnx.NodeProto] = ()) -> None:
        """`nodes` go in place of `last`, and those `gone` go."""
        self.instead[last.output[0]] = list(nodes)
        self.gone.update(n.output[0] for n in gone)

    def result(self) -> Dequantized:
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        del proto.graph.node[:]
        for node in self.proto.graph.node:
            first = next((o for o in node.output if o), "")
            if first not in self.gone:
                proto.graph.node.extend(self.instead.get(first, [node]))
        proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in self.arrays.items())
        if not any(o.domain == CONTRIB for o in proto.opset_import):
            proto.opset_import.add(domain=CONTRIB, version=1)
        return Dequantized(proto, self.arrays, self.places)


def _float(node: onnx.NodeProto, op: str, names: Sequence[str], result: str) -> onnx.NodeProto:
    """The operator `op` with the name and the attributes of `node`."""
    made = helper.make_node(op, list(names), [result], name=node.name)
    known = {a.name for a in onnx.defs.get_schema(op).attributes.values()}
    made.attribute.extend(a for a in node.attribute if a.name in known)
    return made


def _operand(node: onnx.NodeProto, number: int) -> str:
    return str(node.input[number]) if number < len(node.input) else ""


# ---- Results that are quantized again --------------------------------------------------------------------------------


def _qlinear_conv(found: _Rewriter, node: onnx.NodeProto) -> None:
    """x, its scale and zero point, w, its scales and zero points, the scale and zero point of y, bias."""
    weight = node.input[3]
    if node_attributes(node).get("channels_last", 0) or not found.is_weight(weight):
        return
    _requantized(found, node, "Conv", 0, (6, 7, 8))


def _qlinear_matmul(found: _Rewriter, node: onnx.NodeProto) -> None:
    """As QLinearConv, without a bias."""
    if found.is_weight(node.input[3], 2):
        _requantized(found, node, "MatMul", 1, (6, 7, None))


def _qgemm(found: _Rewriter, node: onnx.NodeProto) -> None:
    """As QLinearConv, the bias before the scale and zero point of y, without which y is floating point."""
    attributes = node_attributes(node)
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1 or not found.is_weight(node.input[3], 2):
        return
    _requantized(found, node, "Gemm", 0 if attributes.get("transB", 0) else 1, (7, 8, 6))


def _requantized(
    found: _Rewriter, node: onnx.NodeProto, op: str, axis: int, others: tuple[int, int, int | None]
) -> None:
    """`axis`: that of the outputs in the weight. `others`: operands that are scale and zero point of the result, and
    the bias (None: none)."""
    (x, x_scale, x_zero, w, w_scale, w_zero), y = node.input[:6], node.output[0]
    scale, zero, bias = others
    count = found.size(w, axis)
    if not found.fits(x_scale, x_zero, 1) or not found.fits(w_scale, w_zero, count):
        return
    biases = found.bias(node, bias, (x_scale, w_scale), count) if bias is not None else []
    if biases is None:
        return
    nodes = [
        found.decode(f"{y} x", (x, x_scale, x_zero), 0),
        found.decode(f"{y} w", (w, w_scale, w_zero), axis),
        *biases,
    ]
    is_quantized = bool(_operand(node, scale))
    result = f"{y} unquantized" if is_quantized else y
    nodes.append(_float(node, op, [n.output[0] for n in nodes], result))
    if is_quantized:
        names = [result, node.input[scale], *filter(None, [_operand(node, zero)])]
        nodes.append(helper.make_node("QuantizeLinear", names, [y]))
    found.put(node, nodes)


# ---- Results that are floating point ---------------------------------------------------------------------------------


def _integer(found: _Rewriter, node: onnx.NodeProto) -> None:
    """x, w and their zero points; a Cast, a Mul by both scales and, of a convolution, the Add of a bias may follow."""
    (x, w), is_conv = node.input[:2], node.op_type == "ConvInteger"
    cast = found.only_reader(node.output[0], "Cast")
    last = found.only_reader(cast.output[0], "Mul") if cast is not None else None
    if cast is None or last is None or not found.is_weight(w, None if is_conv else 2):
        return
    axis = 0 if is_conv else 1
    product = next((n for n in last.input if n != cast.output[0]), "")
    scales, zero = _scales(found, x, product), _operand(node, 3)
    if scales is None or not found.fits(scales[1], zero, 1 if is_conv else found.size(w, axis)):
        return
    gone, names = [node, cast], list[str]()
    if len(found.readers[product]) == 1 and product not in found.outputs:
        gone.append(found.made[product])
    if is_conv:
        add = found.only_reader(last.output[0], "Add")
        shaped = _shaped_bias(found, add, last.output[0], found.size(w, 0)) if add is not None else None
        if add is not None and shaped is not None:
            gone, names, last = [*gone, last, shaped], [shaped.input[0]], add
    y = last.output[0]
    nodes = [
        found.decode(f"{y} x", (x, scales[0], _operand(node, 2)), 0),
        found.decode(f"{y} w", (w, scales[1], zero), axis),
    ]
    op = "Conv" if is_conv else "MatMul"
    found.put(last, [*nodes, _float(node, op, [*(n.output[0] for n in nodes), *names], y)], gone)


def _shaped_bias(found: _Rewriter, add: onnx.NodeProto, product: str, count: int) -> onnx.NodeProto | None:
    """The Reshape of a stored vector to one number per channel that an Add takes beside a convolution's result."""
    name = next((n for n in add.input if n != product), "")
    node = found.made.get(name)
    if node is None or node.op_type != "Reshape" or not found.is_bias(node.input[0], count):
        return None
    shape = found.stored.get(node.input[1])
    sizes = [] if shape is None else [int(n) for n in numpy_helper.to_array(shape)]
    channels = len(sizes) > 2 and sizes[0] == 1 and sizes[1] in (-1, count) and all(n == 1 for n in sizes[2:])
    return node if channels and len(found.readers[name]) == 1 and name not in found.outputs else None


def _scales(found: _Rewriter, x: str, product: str) -> tuple[str, str] | None:
    """The scales of input and weight that `product` is made of."""
    source, made = found.made.get(x), found.made.get(product)
    if source is None or source.op_type != "DynamicQuantizeLinear" or made is None or made.op_type != "Mul":
        return None
    of_weight = [n for n in made.input if n != source.output[1]]
    return (source.output[1], of_weight[0]) if len(of_weight) == 1 else None


def _to_float(found: _Rewriter, node: onnx.NodeProto) -> None:
    """x, w, their scales and zero points, bias."""
    x, w, x_scale, w_scale = node.input[:4]
    _product(found, node, (x, x_scale, _operand(node, 4)), (w, w_scale, _operand(node, 5)), _operand(node, 6), [])


def _dynamic(found: _Rewriter, node: onnx.NodeProto) -> None:
    """x, which is quantized here, w, its scales and zero points, bias."""
    x, w, w_scale = node.input[:3]
    names = [f"{node.output[0]} {part}" for part in ("quantized", "scale", "zero")]
    first = helper.make_node("DynamicQuantizeLinear", [x], names)
    _product(found, node, (names[0], names[1], names[2]), (w, w_scale, _operand(node, 3)), _operand(node, 4), [first])


def _product(
    found: _Rewriter,
    node: onnx.NodeProto,
    x: tuple[str, str, str],
    w: tuple[str, str, str],
    bias: str,
    before: Sequence[onnx.NodeProto],
) -> None:
    """Tensor, scale and zero point of both operands; `before`: what makes those of x."""
    y = node.output[0]
    if not found.is_weight(w[0], 2):
        return
    count = found.size(w[0], 1)
    if not found.fits(w[1], w[2], count) or (bias and not found.is_bias(bias, count)):
        return
    result = f"{y} unbiased" if bias else y
    nodes = [*before, found.decode(f"{y} x", x, 0), found.decode(f"{y} w", w, 1)]
    nodes.append(_float(node, "MatMul", [n.output[0] for n in nodes[-2:]], result))
    if bias:
        nodes.append(helper.make_node("Add", [result, bias], [y]))
    found.put(node, nodes)


def _lstm(found: _Rewriter, node: onnx.NodeProto) -> None:
    """The operands of LSTM, with W and R turned round, then the scale and zero point of W and of R."""
    if len(node.input) < 12 or not all(found.is_weight(n, 3) for n in node.input[1:3]):
        return
    (w, r), (w_scale, w_zero, r_scale, r_zero) = node.input[1:3], node.input[8:12]
    if not found.fits(w_scale, w_zero, found.size(w, 0)) or not found.fits(r_scale, r_zero, found.size(r, 0)):
        return
    first = next(o for o in node.output if o)
    nodes, names = list[onnx.NodeProto](), list[str]()
    for part, grid in (("w", (w, w_scale, w_zero)), ("r", (r, r_scale, r_zero))):
        nodes.append(found.decode(f"{first} {part}", grid, 0))
        names.append(f"{first} {part} turned")
        nodes.append(helper.make_node("Transpose", [f"{first} {part}"], names[-1:], perm=[0, 2, 1]))
    cell = _float(node, "LSTM", [node.input[0], *names, *node.input[3:8]], first)
    del cell.output[:]
    cell.output.extend(node.output)
    found.instead[first] = [*nodes, cell]


_FORMS: Mapping[str, Callable[[_Rewriter, onnx.NodeProto], None]] = {
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QGemm": _qgemm,
    "ConvInteger": _integer,
    "MatMulInteger": _integer,
    "MatMulIntegerToFloat": _to_float,
    "DynamicQuantizeMatMul": _dynamic,
    "DynamicQuantizeLSTM": _lstm,
}
