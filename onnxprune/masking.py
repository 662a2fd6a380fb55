"""The original model with the removed channels masked: what the pruned model must equal before recovery.

Wherever an operator sums over a dimension, the removed part of one operand is replaced by zero, so no removed channel
reaches a sum. Where an operator averages over it, the operator sees the kept part alone (gathered before,
put back in place after), because an average over fewer channels is what the pruned model computes. So does an operator
that compares; places it tells on the kept part are turned into places on the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnxprune import dims
from onnxprune.bodies import numbered_graphs
from onnxprune.dims import Dim
from onnxprune.records import Analysis, Contraction

WHERE_SINCE = 9
BoolArray = npt.NDArray[np.bool_]
Keep = Mapping[Dim, BoolArray]


def masked_model(
    proto: onnx.ModelProto, analysis: Analysis, keep: Keep, element_types: Mapping[str, int]
) -> onnx.ModelProto:
    """A copy of the skeleton `proto` that masks every index `keep` (bool by atom) drops."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    writer = _Writer(result, analysis, keep, element_types)
    for graph, numbered in numbered_graphs(result):
        nodes = [n for index, node in numbered for n in writer.rewrite(index, node)]
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]
    return result


class _Writer:
    def __init__(
        self, result: onnx.ModelProto, analysis: Analysis, keep: Keep, element_types: Mapping[str, int]
    ) -> None:
        self.opset = max((o.version for o in result.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.graph, self.analysis, self.keep, self.types = result.graph, analysis, keep, element_types
        self.made: dict[tuple[str, bytes], str] = {}
        self.contractions: dict[int, list[Contraction]] = {}
        for c in analysis.contractions:
            self.contractions.setdefault(c.node, []).append(c)

    def rewrite(self, index: int, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node with what masks or gathers its operands and results."""
        found = self.contractions.get(index, [])
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if any(c.gather and self._touched(c.dims) for c in found):
            return self._gathered(index, copy)
        before: list[onnx.NodeProto] = []
        for c in found:
            source = node.input[c.operand]
            for axis, d in zip(c.axes, c.dims, strict=True):
                mask = dims.mask(d, self.keep)
                if not mask.all():
                    before.append(self._mask_node(copy, c.operand, source, axis, mask))
        return [*before, copy]

    def _touched(self, found: Sequence[Dim]) -> bool:
        return any(not dims.mask(d, self.keep).all() for d in found)

    def _mask_node(self, node: onnx.NodeProto, operand: int, tensor: str, axis: int, mask: BoolArray) -> onnx.NodeProto:
        """Zero where `mask` is False along one axis of an operand that holds `tensor`, even where that is NaN."""
        name = node.input[operand]
        node.input[operand] = f"{name}__masked_{next(o for o in node.output if o)}_{operand}"
        shape = [-1] + [1] * (len(self.analysis.tensors[tensor]) - 1 - axis)
        dtype = helper.tensor_dtype_to_np_dtype(self.types[tensor])
        if self.opset < WHERE_SINCE:
            factor = self._constant(mask.astype(dtype).reshape(shape))
            return helper.make_node("Mul", [name, factor], [node.input[operand]])
        condition, zero = self._constant(mask.reshape(shape)), self._constant(np.zeros((), dtype))
        return helper.make_node("Where", [condition, name, zero], [node.input[operand]])

    def _constant(self, value: npt.NDArray[np.generic]) -> str:
        key = (f"{value.dtype}{value.shape}", value.tobytes())
        if key not in self.made:
            self.made[key] = f"__onnxprune_constant_{len(self.made)}"
            self.graph.initializer.append(numpy_helper.from_array(value, self.made[key]))
        return self.made[key]

    def _gathered(self, index: int, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The operator on the kept part: gather every operand, restate its sizes, spread the results back."""
        before: list[onnx.NodeProto] = []
        after: list[onnx.NodeProto] = []
        for operand, name in enumerate(node.input):
            for axis, mask in self._masks(name):
                small = f"{node.input[operand]}__kept_{index}_{operand}_{axis}"
                parts = self._parts(name, axis, mask)
                count = len(parts) if len(parts) < len(mask) else None
                before += self._gather(node.input[operand], small, axis, np.flatnonzero(parts), count)
                node.input[operand] = small
        for output, name in enumerate(node.output):
            for axis, mask in reversed(self._masks(name)):
                small = f"{name}__kept_{index}_{axis}"
                parts = self._parts(name, axis, mask)
                count = int(parts.sum()) if len(parts) < len(mask) else None
                place = np.where(parts, np.cumsum(parts) - 1, 0)
                after[:0] = self._gather(small, node.output[output], axis, place, count)
                node.output[output] = small
            places = self.analysis.places.get(name)
            if places is not None and self._touched([places]):
                kept = self._constant(np.flatnonzero(dims.mask(places, self.keep)))
                small = f"{name}__place_{index}"
                after.insert(0, helper.make_node("Gather", [kept, small], [node.output[output]]))
                node.output[output] = small
        for use in self.analysis.uses:
            if use.node == index and isinstance(use.where, str) and use.dims[0] is not None:
                size = int(dims.mask(use.dims[0], self.keep).sum())
                next(a for a in node.attribute if a.name == use.where).i = size
        return [*before, node, *after]

    def _gather(
        self, source: str, result: str, axis: int, indices: npt.NDArray[np.int64], parts: int | None
    ) -> list[onnx.NodeProto]:
        """What gathers along an axis, or where it is the last one and is made of so many `parts`, along these."""
        if parts is None:
            return [helper.make_node("Gather", [source, self._constant(indices)], [result], axis=axis)]
        apart = self._constant(np.array([*[0] * axis, parts, -1]))
        together = self._constant(np.array([*[0] * axis, -1]))
        return [
            helper.make_node("Reshape", [source, apart], [f"{result}__apart"]),
            helper.make_node("Gather", [f"{result}__apart", self._constant(indices)], [f"{result}__taken"], axis=axis),
            helper.make_node("Reshape", [f"{result}__taken", together], [result]),
        ]

    def _parts(self, name: str, axis: int, mask: BoolArray) -> BoolArray:
        """The mask of the leading factors of the last axis, where those behind them are whole: these may be sizes of
        the input, of which there are as many as there are; else `mask`."""
        found = self.analysis.tensors[name]
        factors = dims.prod_factors(found[axis])
        whole = 0
        while whole < len(factors) and dims.mask(factors[-1 - whole], self.keep).all():
            whole += 1
        if axis != len(found) - 1 or not 0 < whole < len(factors):
            return mask
        return mask[:: math.prod(d.size for d in factors[len(factors) - whole :])]

    def _masks(self, name: str) -> list[tuple[int, BoolArray]]:
        found = [(axis, dims.mask(d, self.keep)) for axis, d in enumerate(self.analysis.tensors.get(name, ()))]
        return [(axis, mask) for axis, mask in found if not mask.all()]
