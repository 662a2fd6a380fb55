"""What the last layers of a model make of an input as a whole: the features that tell inputs apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import runtime
from onnxprune.modelfile import ModelFile
from onnxprune.records import Feed
from onnxprune.recover.execution import operands

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Rows = Mapping[str, Array]
"""Inputs by name, their items along the first axis; images as uint8 (n, channels, height, width)."""

LAST = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOST_TENSORS = 8


def features_of(graph: onnx.GraphProto) -> dict[str, int]:
    """What the last linear operators of a model read, with the axis of the channels: above every output the nearest."""
    producers = {o: n for n in graph.node for o in n.output if o}
    found: dict[str, int] = {}
    seen: set[str] = set()
    stack = [o.name for o in reversed(graph.output)]
    while stack:
        name = stack.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type not in LAST:
            stack.extend(reversed(node.input))
        elif node.input[0] in producers:
            found.setdefault(node.input[0], 1 if node.op_type in ("Conv", "ConvTranspose") else -1)
    return dict(list(found.items())[:MOST_TENSORS])


def feature(values: Array, axis: int) -> Float:
    """The channels (items, n) of a tensor."""
    values = np.moveaxis(np.asarray(values, np.float64), axis, -1)
    return values.reshape(len(values), -1)


def is_one_per_item(values: Array, axis: int, rows: int) -> bool:
    """Whether a tensor holds one vector of channels for each of the `rows` items."""
    if values.ndim < 2 or len(values) != rows or values.dtype.kind != "f":
        return False
    return values.size == rows * values.shape[axis] and bool(np.isfinite(values).all())


def session(file: ModelFile, names: Iterable[str]) -> Any:
    """A session of as much of the model as gives the tensors `names`, in this order."""
    wanted = list(dict.fromkeys(names))
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    producers = {o: k for k, n in enumerate(proto.graph.node) for o in n.output if o}
    needed: set[int] = set()
    stack = list(wanted)
    while stack:
        index = producers.get(stack.pop())
        if index is not None and index not in needed:
            needed.add(index)
            stack.extend(operands(proto.graph.node[index]))
    nodes = [n for k, n in enumerate(file.proto.graph.node) if k in needed]
    del proto.graph.node[:], proto.graph.output[:]
    proto.graph.node.extend(nodes)
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted)
    return runtime.session(proto.SerializeToString(), folder=str(file.base_dir))


class Describer:
    """Runs the model up to the features of its last layers. `as_input`: what the model takes for rows of images."""

    def __init__(self, file: ModelFile, names: Mapping[str, int], rows: int, as_input: Callable[[Rows], Feed]) -> None:
        self.session, self.names, self.rows, self.as_input = session(file, names), names, rows, as_input
        self.taken = {i.name for i in self.session.get_inputs()}
        self.scales: list[float] = []

    @classmethod
    def of(cls, file: ModelFile, sample: Rows, as_input: Callable[[Rows], Feed]) -> Describer | None:
        """For batches like `sample`; None where no layer gives one vector of features for every row of it."""
        names, rows = features_of(file.proto.graph), max(len(array) for array in sample.values())
        if not names:
            return None
        values = cls(file, names, rows, as_input).run(sample)
        found = zip(names.items(), values, strict=True)
        usable = {name: axis for (name, axis), array in found if is_one_per_item(array, axis, rows)}
        return cls(file, usable, rows, as_input) if usable else None

    def run(self, rows: Rows) -> list[Array]:
        """The tensors for one batch."""
        feed = {name: array for name, array in self.as_input(rows).items() if name in self.taken}
        found = runtime.run(self.session, feed)
        return [found[name] for name in self.names]

    def describe(self, rows: Rows) -> Float:
        """Features (items, d), those of every layer of a total variance of 1 on the rows described first."""
        parts: list[list[Float]] = [[] for _ in self.names]
        count = max(len(array) for array in rows.values())
        for start in range(0, count, self.rows):
            chosen = np.minimum(np.arange(start, start + self.rows), count - 1)
            values = self.run({name: array[chosen] for name, array in rows.items()})
            for part, value, axis in zip(parts, values, self.names.values(), strict=True):
                part.append(feature(value, axis)[: count - start])
        layers = [np.concatenate(part) for part in parts]
        self.scales = self.scales or [1 / math.sqrt(max(float(x.var(0).sum()), 1e-30)) for x in layers]
        return np.concatenate([x * scale for x, scale in zip(layers, self.scales, strict=True)], axis=1)
