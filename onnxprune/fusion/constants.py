"""The stored tensors of a model while it is fused: read as they will be written, and edited."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxprune.bodies import defined_names, operands
from onnxprune.shapes import stored_tensors

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
MOST_CHANNELS = 1 << 16
"""Longer tensors are not taken for one number per channel."""
LAYING_OUT = ("Reshape", "Unsqueeze", "Squeeze", "Identity")
"""Operators that only give a stored tensor other axes."""
Edit = Callable[[Array], Array]


def readers(graph: onnx.GraphProto) -> dict[str, int]:
    """How often every tensor is read, or given out by the graph."""
    counts = Counter(n for node in graph.node for n in operands(node))
    counts.update(o.name for o in graph.output)
    return dict(counts)


class Constants:
    """Stored tensors of the main graph by name, float32 alone: nothing else is fused.

    `edits`: what is done to each stored array before it is written, those of the fusion added to the ones given.
    `added`: new tensors by name. `readers`: how often every tensor is read.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        read: Callable[[str], Array | None],
        edits: Mapping[str, Edit],
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self._read = read
        self.edits = dict(edits)
        self.added: dict[str, Array] = {}
        self._filled: dict[tuple[float, int], str] = {}
        given = {i.name for i in proto.graph.input}
        tensors = stored_tensors(proto)
        self._own = tensors
        self._known = set(tensors) - given
        floats = {n: t for n, t in tensors.items() if t.data_type == onnx.TensorProto.FLOAT and n not in given}
        self._shapes = {n: tuple(t.dims) for n, t in floats.items()}
        self._laid_out: dict[str, str] = {}
        for node in proto.graph.node:
            if node.op_type in LAYING_OUT and self._known.issuperset(node.input):
                self._known.update(node.output)
                self._lay_out(node.output[0], node.input[0], shapes.get(node.output[0], (0, 0)))
        self.readers = readers(proto.graph)
        self._names = set(defined_names(proto.graph)) | set(self.readers)

    def _lay_out(self, name: str, source: str, shape: Sequence[int]) -> None:
        if source in self._shapes and sum(size != 1 for size in shape) <= 1:
            self._laid_out[name], self._shapes[name] = source, tuple(shape)

    def is_stored(self, name: str) -> bool:
        """Whether it is a stored float32 tensor that nobody can override, or a vector of such with other axes."""
        return name in self._shapes or name in self.added

    def holds(self, name: str) -> bool:
        """Whether it is a stored tensor of any type, or such with other axes."""
        return name in self._known

    def is_own(self, name: str) -> bool:
        """Whether it is stored, and one operator alone reads it."""
        is_whole = self.is_stored(name) and name not in self._laid_out
        return is_whole and (name in self.added or self.readers.get(name) == 1)

    def is_short(self, name: str) -> bool:
        """Whether it is stored, and no longer than a number for each channel may be."""
        return name in self.added or (name in self._shapes and math.prod(self._shapes[name]) <= MOST_CHANNELS)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that the model stores, before the cut."""
        return self._shapes[name]

    def get(self, name: str) -> Array:
        """A stored tensor as it will be written."""
        if name in self.added:
            return self.added[name]
        if name in self._laid_out:
            return self.get(self._laid_out[name]).reshape([1 if size == 1 else -1 for size in self._shapes[name]])
        array = self._read(name)
        if array is None:
            array = numpy_helper.to_array(self._own[name])
        return self.edits[name](array) if name in self.edits else array

    def size(self, name: str) -> int:
        """How many numbers a stored tensor comes to as it will be written; 0 of any other."""
        return int(self.get(name).size) if self.is_stored(name) and name not in self._laid_out else 0

    def edit(self, name: str, change: Edit) -> None:
        """Change what is written in place of a stored tensor; the shape and the dtype stay."""
        if name in self.added:
            self.added[name] = change(self.added[name])
            return
        before = self.edits.get(name)
        self.edits[name] = change if before is None else lambda array: change(before(array))

    def add(self, name: str, array: Array) -> str:
        """Store a new tensor under a name like this one, which is returned."""
        name = self.fresh(name)
        self.added[name] = np.ascontiguousarray(array, np.float32)
        return name

    def filled(self, value: float, count: int) -> str:
        """The name of a stored vector of so many of one value, the same for all that ask for it."""
        if (value, count) not in self._filled:
            self._filled[value, count] = self.add(f"{value:g}_{count}_times", np.full(count, value))
        return self._filled[value, count]

    def fresh(self, name: str) -> str:
        """A name like this one that no tensor has."""
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name
