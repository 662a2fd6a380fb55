"""What sums over a group: linear maps of one tensor each, of linear operators and of the gates of recurrent cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.dims import Dim
from onnxprune.records import Analysis
from onnxprune.recover import recurrent
from onnxprune.recover.layers import Weights
from onnxprune.recover.sites import Site

Array = npt.NDArray[np.float32]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """A linear operator, of a grouped convolution the group number `part`; `name`: of its node's first result, `axis`:
    the dimension of its inputs."""

    site: Site
    name: str
    axis: Dim
    part: int = 0

    @property
    def whole(self) -> str:
        """The same for all parts of an operator, whose errors add up."""
        return self.name

    @property
    def key(self) -> str:
        return f"{self.name} {self.part}"

    @property
    def has_bias(self) -> bool:
        return self.site.bias is not None

    def linear(self, weights: Weights) -> tuple[Float, Float]:
        """Weight (o, d) and bias (o,), that of a normalisation behind taken in."""
        node = weights.nodes[self.name]
        matrix, bias, _ = weights.effective(self.site, node, weights.constant(node.input[1]))
        return matrix[self.part], bias[self.part]

    def write(self, weights: Weights, matrix: Float, bias: Float) -> None:
        """The inverse of `linear`."""
        node = weights.nodes[self.name]
        weight = weights.constant(node.input[1])
        matrices, biases, scale = weights.effective(self.site, node, weight)
        matrices, biases = matrices.copy(), biases.copy()
        matrices[self.part], biases[self.part] = matrix, bias
        weights.write(self.site, node, weight, matrices, biases, scale)


@dataclass(frozen=True)
class Gates:
    """The gates of one direction of a recurrent cell, as they read the input (`operand` 1, W) or the state before (2,
    R)."""

    cell: recurrent.Cell
    operand: int
    direction: int
    axis: Dim

    @property
    def whole(self) -> str:
        """The same for both directions, whose errors add up."""
        return f"{self.cell.out} {self.operand}"

    @property
    def key(self) -> str:
        return f"{self.whole} {self.direction}"

    has_bias = True

    def linear(self, weights: Weights) -> tuple[Float, Float]:
        """Weight (gates h, d) and the bias that goes with it, (gates h,)."""
        matrix, bias = self._stored(weights)
        return matrix[self.direction].astype(np.float64), bias[self.direction, self._half(matrix)].astype(np.float64)

    def write(self, weights: Weights, matrix: Float, bias: Float) -> None:
        """The inverse of `linear`."""
        node = weights.nodes[self.cell.out]
        matrices, biases = (a.copy() for a in self._stored(weights))
        matrices[self.direction], biases[self.direction, self._half(matrices)] = matrix, bias
        weights.put(node, self.operand, matrices)
        weights.put(node, 3, biases)

    def inputs(self, steps: recurrent.Steps, chosen: npt.NDArray[np.bool_]) -> Array:
        """What is read in the `chosen` (items, t): (1, d, n)."""
        source = steps.x if self.operand == 1 else steps.before
        return np.asarray(source[self.direction][:, chosen], np.float32)[None]

    def _stored(self, weights: Weights) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """W or R (d, gates h, inputs), and B (d, 2 gates h)."""
        node = weights.nodes[self.cell.out]
        matrix = weights.constant(node.input[self.operand])
        name = node.input[3] if len(node.input) > 3 else ""
        empty = np.zeros((matrix.shape[0], 2 * matrix.shape[1]), matrix.dtype)
        return matrix, weights.constant(name) if name else empty

    def _half(self, matrix: npt.NDArray[np.float32]) -> slice:
        """The part of B that goes with the operand."""
        return slice(0, matrix.shape[1]) if self.operand == 1 else slice(matrix.shape[1], None)


Reader = Linear | Gates


def gates(cell: recurrent.Cell, names: list[str], directions: int, analysis: Analysis) -> Iterator[Gates]:
    """The readers of a cell with the operands `names`, as far as their inputs are known to the analysis."""
    for operand in (1, 2):
        found = analysis.tensors.get(names[operand], ())
        if len(found) == 3:
            yield from (Gates(cell, operand, direction, found[2]) for direction in range(directions))
