"""What the last layers of a model make of an input as a whole: the features that tell inputs apart."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import runtime
from onnxprune.bodies import above, operands
from onnxprune.dequantized import dequantized
from onnxprune.errors import ModelError
from onnxprune.modelfile import ModelFile
from onnxprune.records import Feed

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Rows = Mapping[str, Array]
"""Inputs by name; images as uint8 (n, channels, height, width)."""

LAST = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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
            stack.extend(reversed(list(operands(node))))
        elif node.input[0] in producers:
            found.setdefault(node.input[0], 1 if node.op_type in ("Conv", "ConvTranspose") else -1)
    return found


def feature(values: Array, axis: int) -> Float:
    """The channels (items, n) of a tensor."""
    values = np.moveaxis(np.asarray(values, np.float64), axis, -1)
    return values.reshape(len(values), -1)


def is_one_per_item(values: Array, axis: int, rows: int) -> bool:
    """Whether a tensor holds one vector of channels for each of the `rows` items."""
    if values.ndim < 2 or len(values) != rows or values.dtype.kind != "f":
        return False
    return bool(values.size == rows * values.shape[axis])


def opened(path: Path) -> ModelFile:
    """The model at `path`, with its quantized operators in terms of floating point, whose layers tell more."""
    file = ModelFile.load(path)
    found = dequantized(file.proto, file.reader())
    return file if found is None else dataclasses.replace(file, proto=found.proto)


def session(file: ModelFile, names: Iterable[str]) -> Any:
    """A session of as much of the model as gives the tensors `names`, in this order."""
    wanted = list(dict.fromkeys(names))
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    nodes = file.proto.graph.node
    producer = {o: k for k, n in enumerate(nodes) for o in n.output if o}
    del proto.graph.node[:], proto.graph.output[:]
    proto.graph.node.extend(nodes[k] for k in above(nodes, wanted, producer))
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
        """For batches like `sample`; None where a last layer gives more or less than one vector for every row of it, or
        the model does not run so far."""
        names, rows = features_of(file.proto.graph), max(len(array) for array in sample.values())
        if not names:
            return None
        try:
            found = cls(file, names, rows, as_input)
            values = found.run(sample)
        except ModelError as error:
            log.info("no features of inputs: %s", error)
            return None
        pairs = zip(values, names.values(), strict=True)
        return found if all(is_one_per_item(array, axis, rows) for array, axis in pairs) else None

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
        self.scales = self.scales or [_scale(x[np.isfinite(x).all(1)]) for x in layers]
        return np.concatenate([x * scale for x, scale in zip(layers, self.scales, strict=True)], axis=1)


def _scale(features: Float) -> float:
    return 1 / math.sqrt(max(float(features.var(0).sum()), 1e-30)) if len(features) else 1.0
