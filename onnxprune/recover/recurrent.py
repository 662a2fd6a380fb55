"""Recurrent cells with stored weights, their gates refitted as linear operators of the input and the state before.

    a_t = W x_t + R h_{t-1} + Wb + Rb                   LSTM, RNN, the update and reset gates of a GRU
    a_t = W x_t + Wb,  c_t = R h_{t-1} + Rb             the hidden gate of a GRU that resets c (linear_before_reset)
    a_t = W x_t + Wb                                    the hidden gate of a GRU that resets h: R is left as it is

Rows are steps of items, x and h those of the pruned model with its weights of the moment, targets a and c those of the
original. New weights give other states, so it is done again with them; what stays is what errs least in the states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.recover import sites
from onnxprune.recover.execution import Walk
from onnxprune.recover.layers import Weights
from onnxprune.recover.moments import Moments
from onnxprune.recover.solve import Equations, Solution, solve
from onnxprune.shapes import node_attributes, stored_tensors

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
Read = Callable[[str], Array]
Rounded = Callable[[str, Array], Array]
ROUNDS = 3
"""Times that a cell is solved."""


@dataclass(frozen=True)
class Cell:
    """One recurrent operator. `node` indexes the graph; `out` is its first result; `state`: the name of R."""

    node: int
    out: str
    state: str


@dataclass(frozen=True)
class Part:
    """Gates (first, end) that one linear map of the input, of the state before, or of both serves."""

    first: int
    end: int
    of_input: bool
    of_state: bool


@dataclass(frozen=True)
class Parameters:
    """W (d, gates h, i), R (d, gates h, h) and B (d, 2 gates h) of d directions, float64."""

    w: Float
    r: Float
    b: Float

    def linear(self, part: Part, rows: Index) -> tuple[Float, Float]:
        """Weight (d, rows, inputs) and bias (d, rows) of a part."""
        half = self.b.shape[1] // 2
        weights = [m[:, rows] for m, used in ((self.w, part.of_input), (self.r, part.of_state)) if used]
        biases = [b[:, rows] for b, used in ((self.b[:, :half], part.of_input), (self.b[:, half:], part.of_state))
                  if used]  # fmt: skip
        return np.concatenate(weights, axis=2), np.sum(biases, axis=0)

    def changed(self, part: Part, rows: Index, weight: Float, bias: Float) -> Parameters:
        """With another weight and bias for a part: the inverse of `linear`."""
        w, r, b = self.w.copy(), self.r.copy(), self.b.copy()
        half, width = b.shape[1] // 2, w.shape[2] if part.of_input else 0
        if part.of_input:
            w[:, rows] = weight[:, :, :width]
        if part.of_state:
            r[:, rows] = weight[:, :, width:]
        if part.of_input and part.of_state:
            bias = bias - b[:, half + rows]
        b[:, rows if part.of_input else half + rows] = bias
        return Parameters(w, r, b)


@dataclass(frozen=True)
class Steps:
    """What a cell sees and gives in one batch: x (d, i, items, t), the states `before` and `after` each step (d, h,
    items, t), and which (items, t) lie within the length of the item."""

    x: Array
    before: Array
    after: Array
    valid: npt.NDArray[np.bool_]


class Side:
    """A cell in the original or in the pruned model; `value` gives stored weights as they are now."""

    def __init__(self, walk: Walk, node: onnx.NodeProto, value: Read, rounded: Rounded = lambda _, a: a) -> None:
        """`rounded`: what a tensor, by name, can hold of new values."""
        self.walk, self.node, self.rounded = walk, node, rounded
        proto = walk.proto
        known = sites.constants(proto, set(stored_tensors(proto)) - set(walk.feeds[0]))
        self.fixed = {n: sites.value(proto, value, n) for n in node.input if n in known}
        walk.compute([n for n in node.input if n and n not in known])

    def parameters(self) -> Parameters:
        """W, R and B as they are now."""
        w, r = (self.fixed[n].astype(np.float64) for n in self.node.input[1:3])
        name = self.node.input[3] if len(self.node.input) > 3 else ""
        return Parameters(w, r, self.fixed[name].astype(np.float64) if name else np.zeros((len(w), 2 * w.shape[1])))

    def steps(self, parameters: Parameters) -> Iterator[Steps]:
        """By batch, with these weights."""
        session = runtime.session(self._model(parameters).SerializeToString(), threads=self.walk.threads)
        taken = [i.name for i in session.get_inputs()]
        backward = {"forward": [False], "reverse": [True]}.get(
            node_attributes(self.node).get("direction", "forward"), [False, True]
        )
        for batch in range(self.walk.batches):
            feed = {n: np.asarray(self.walk.get(n, batch), order="C") for n in taken}
            (y,) = session.run(["y"], feed)
            x = self._operand(0, batch)
            count, items = x.shape[:2]
            lengths = self._operand(4, batch)
            start = self._operand(5, batch)
            lengths = np.full(items, count) if lengths is None else lengths
            before = _before(y, np.zeros_like(y[0]) if start is None else start, lengths, backward)
            yield Steps(
                np.broadcast_to(np.moveaxis(x, 0, 2).swapaxes(0, 1), (len(backward), x.shape[2], items, count)),
                before.transpose(1, 3, 2, 0),
                y.transpose(1, 3, 2, 0),
                np.arange(count) < lengths[:, None],
            )

    def _operand(self, number: int, batch: int) -> Any:
        name = self.node.input[number] if number < len(self.node.input) else ""
        if not name:
            return None
        return self.fixed[name] if name in self.fixed else self.walk.get(name, batch)

    def _model(self, parameters: Parameters) -> onnx.ModelProto:
        """The cell alone, with the sequence of its states as the result `y`."""
        model = onnx.ModelProto(ir_version=self.walk.proto.ir_version)
        model.opset_import.extend(self.walk.proto.opset_import)
        model.graph.name = "cell"
        node = model.graph.node.add()
        node.CopyFrom(self.node)
        node.input.extend([""] * (4 - len(node.input)))
        kind = self.fixed[self.node.input[1]].dtype
        arrays = {n: a for n, a in self.fixed.items() if n not in self.node.input[1:4] and n in node.input}
        for operand, array in enumerate((parameters.w, parameters.r, parameters.b), 1):
            name, node.input[operand] = node.input[operand], f"parameter {operand}"
            arrays[node.input[operand]] = self.rounded(name, array.astype(kind))
        del node.output[:]
        node.output.append("y")
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a, order="C"), n) for n, a in arrays.items())
        for name in sorted({n for n in node.input if n} - set(arrays)):
            element = onnx.helper.np_dtype_to_tensor_dtype(self.walk.get(name, 0).dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, element, None))
        model.graph.output.append(onnx.ValueInfoProto(name="y"))
        return model


def _before(y: Array, start: Array, lengths: Index, backward: Sequence[bool]) -> Array:
    """The states before each step, as `y` (t, d, items, h) those after it; `start` (d, items, h)."""
    result = np.empty_like(y)
    items = np.arange(y.shape[2])
    for d, back in enumerate(backward):
        if back:
            result[:-1, d], result[-1, d] = y[1:, d], start[d]
            result[np.maximum(lengths, 1) - 1, d, items] = start[d]
        else:
            result[1:, d], result[0, d] = y[:-1, d], start[d]
    return result


def cells(proto: onnx.ModelProto, stored: set[str]) -> Iterator[Cell]:
    """The recurrent operators of the main graph whose weights are stored, in graph order."""
    known = sites.constants(proto, stored)
    for index, node in enumerate(proto.graph.node):
        if node.op_type not in GATES or node.domain not in ("", "ai.onnx") or node.input[0] in known:
            continue
        if node_attributes(node).get("layout", 0) == 0 and all(n in known for n in node.input[1:4] if n):
            yield Cell(index, next(o for o in node.output if o), node.input[2])


def parts(node: onnx.NodeProto) -> list[Part]:
    """The linear maps of a cell."""
    if node.op_type != "GRU":
        return [Part(0, GATES[node.op_type], True, True)]
    found = [Part(0, 2, True, True), Part(2, 3, True, False)]
    return [*found, Part(2, 3, False, True)] if node_attributes(node).get("linear_before_reset", 0) else found


def refit(
    teacher: Side, student: Side, kept: Index | None, most: int, random: np.random.Generator
) -> tuple[Parameters, Solution]:
    """The weights that err least in the states of held-out steps, and both errors; those of the cut where none errs
    less. `kept`: hidden units of the original that are left, None for all. `most`: steps to look at, about."""
    found = parts(teacher.node)
    current = best = student.parameters()
    look = _Look(teacher, student, current, found, kept)
    before = least = look.run(most, random)
    ridge: float | None = None
    for _ in range(ROUNDS):
        current, whole, latest = look.solved()
        look = _Look(teacher, student, current, found, kept)
        error = look.run(most, random)
        if error < least:
            best, least, ridge = whole, error, latest
    return best, Solution(best.w, best.b, ridge, before, least)


class _Look:
    """One pass over all batches: the error of the states, and the moments of every part."""

    def __init__(
        self, teacher: Side, student: Side, now: Parameters, found: Sequence[Part], kept: Index | None
    ) -> None:
        self.teacher, self.student, self.now, self.found = teacher, student, now, found
        self.original = teacher.parameters()
        self.kept = np.arange(self.original.r.shape[2]) if kept is None else kept
        self.moments: list[tuple[Moments, Moments]] = []

    def rows(self, part: Part, width: int, units: Index) -> Index:
        """Rows of W of the gates of a part."""
        return (np.arange(part.first, part.end)[:, None] * width + units).reshape(-1)

    def run(self, most: int, random: np.random.Generator) -> float:
        """Gather; the error of the states on held-out steps as a share of their variance."""
        totals = np.zeros((4, len(self.kept)))
        batches, holdout = self.teacher.walk.batches, self.teacher.walk.holdout
        pairs = zip(self.teacher.steps(self.original), self.student.steps(self.now), strict=True)
        for batch, (original, pruned) in enumerate(pairs):
            items, count = original.valid.shape
            held = holdout.mask(batch, items, count)
            y = original.after[:, self.kept][:, :, held & original.valid].astype(np.float64)
            missed = y - pruned.after[:, :, held & original.valid]
            totals += [np.full(len(self.kept), y[:, 0].size), y.sum((0, 2)), (y * y).sum((0, 2)),
                       (missed * missed).sum((0, 2))]  # fmt: skip
            taken = random.random(held.shape) * held.size * batches < most
            self._add(original, pruned, held, taken & original.valid)
        number, mean, square, error = totals
        variance = float(np.sum(square - mean * mean / np.maximum(number, 1)))
        return float(error.sum()) / max(variance, 1e-30)

    def _add(self, original: Steps, pruned: Steps, held: npt.NDArray[np.bool_], taken: npt.NDArray[np.bool_]) -> None:
        is_first = not self.moments
        for number, part in enumerate(self.found):
            weight, bias = self.original.linear(part, self.rows(part, self.original.r.shape[2], self.kept))
            sides = [
                (_inputs(pruned, part, chosen), weight @ _inputs(original, part, chosen) + bias[:, :, None])
                for chosen in (taken & ~held, taken & held)
            ]
            if is_first:
                x, y = (np.concatenate(a, axis=2) for a in zip(*sides, strict=True))
                many = max(x.shape[2], 1)
                centre = x.sum(2, dtype=np.float64) / many, y.sum(2, dtype=np.float64) / many
                self.moments.append((Moments.about(*centre), Moments.about(*centre)))
            for moments, (x, y) in zip(self.moments[number], sides, strict=True):
                moments.add(x, y.astype(np.float32))

    def solved(self) -> tuple[Parameters, Parameters, float | None]:
        """New weights without the held-out steps, to measure on those; with them; the largest ridge of a part."""
        measured = result = self.now
        ridges = []
        units = np.arange(len(self.kept))
        for part, (train, held) in zip(self.found, self.moments, strict=True):
            rows = self.rows(part, len(units), units)
            prior, bias = self.now.linear(part, rows)
            solution = solve(train, held, prior, bias)
            result = result.changed(part, rows, solution.weight, solution.bias)
            if solution.ridge is not None:
                ridges.append(solution.ridge)
                equations = Equations.of(train, None)
                weight = equations.fit(prior, solution.ridge) if solution.ridge else prior
                measured = measured.changed(part, rows, weight, equations.intercept(weight))
        return measured, result, max(ridges, default=None)


def _inputs(steps: Steps, part: Part, chosen: npt.NDArray[np.bool_]) -> Array:
    """(d, inputs, n) float32 of the chosen (items, t)."""
    arrays = [a for a, used in ((steps.x, part.of_input), (steps.before, part.of_state)) if used]
    return np.concatenate([np.asarray(a[:, :, chosen], np.float32) for a in arrays], axis=1)


def store(weights: Weights, node: onnx.NodeProto, found: Parameters) -> None:
    """Give W, R and B of a cell new values."""
    kind = weights.constant(node.input[1]).dtype
    for operand, array in enumerate((found.w, found.r, found.b), 1):
        weights.put(node, operand, array.astype(kind))
