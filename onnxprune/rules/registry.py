"""The table of operator rules and what a rule sees of its node.

A rule is `def rule(op: Operator) -> None`: it states which dimensions of its operands and results are the same, which
operands it sums over, which sizes outside the weights follow the dimensions, and its multiply-accumulates. It never
scores, chooses, or looks at the rest of the graph.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.records import Comparison, Contraction, Pick, Refusal, Role, SizeUse, Work
from onnxprune.signature import Signature, Term, parse

Dims = tuple[Dim, ...]
Rule = Callable[["Operator"], None]

FIXED_FACTOR = "a factor fixed by the operator"
"""Reason of a factor that is no channel at all (the gates of an LSTM)."""


LISTED = 4
"""Parts of an axis that a reason spells out."""


class SizeMismatchError(ValueError):
    """Two axes that an operator makes equal have different sizes: the model is wrong."""


_RULES: dict[tuple[str, str], list[tuple[int, Rule]]] = {}


def rule(*names: str, domain: str = "", since: int = 1) -> Callable[[Rule], Rule]:
    """Register the decorated function for operators `names` of `domain` from opset `since` on.

    Registering the same operator and opset twice raises ValueError. Returns the function unchanged.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            versions = _RULES.setdefault((domain, name), [])
            if any(version == since for version, _ in versions):
                raise ValueError(f"a rule for {domain or 'ai.onnx'}::{name} from opset {since} exists already")
            bisect.insort(versions, (since, function), key=lambda entry: entry[0])
        return function

    return register


def find(domain: str, name: str, opset: int) -> Rule | None:
    """The newest rule for the operator that the opset covers, or None."""
    domain = "" if domain == "ai.onnx" else domain
    covered = [function for since, function in _RULES.get((domain, name), ()) if since <= opset]
    return covered[-1] if covered else None


def supported() -> list[tuple[str, str, int, Rule]]:
    """Every registered (domain, operator, first opset, rule), sorted."""
    return sorted(
        ((domain, name, since, function) for (domain, name), all_ in _RULES.items() for since, function in all_),
        key=lambda entry: entry[:3],
    )


class Operator:
    """One node as its rule sees it.

    `inputs`: the dimensions of each operand, None where it is absent. `outputs`: fresh dimensions of the known result
    shapes; a rule assigns or unifies them. `values`: small known operands as arrays, else None. `constant`: which
    operands are weights or computed from weights alone. `attributes`: as Python values. `places`: of each operand the
    dimension that its elements are places on, None for most. `moving`: which elements of `values` follow the size of
    the input; `stretching` and `stretched`: which axes of the operands and of the results do. None: none of them.
    """

    def __init__(
        self,
        *,
        index: int,
        name: str,
        kind: str,
        opset: int,
        attributes: Mapping[str, Any],
        inputs: Sequence[Dims | None],
        outputs: Sequence[Dims],
        values: Sequence[npt.NDArray[Any] | None],
        constant: Sequence[bool],
        moving: Sequence[npt.NDArray[np.bool_] | None],
    ) -> None:
        self.index, self.name, self.kind, self.opset = index, name, kind, opset
        self.attributes = attributes
        self.inputs, self.outputs = list(inputs), list(outputs)
        self.values, self.constant, self.moving = list(values), list(constant), list(moving)
        self.stretching: list[npt.NDArray[np.bool_] | None] = [None] * len(self.inputs)
        self.stretched: list[npt.NDArray[np.bool_] | None] = [None] * len(self.outputs)
        self.contractions: list[Contraction] = []
        self.roles: list[tuple[int, int, Role]] = []
        self.uses: list[SizeUse] = []
        self.picks: list[Pick] = []
        self.work: list[Work] = []
        self.comparisons: list[Comparison] = []
        self.stack: Dim | None = None
        self.places: list[Dim | None] = [None] * len(self.inputs)
        self.understood: set[int] = set()
        self.placed: dict[int, Dim] = {}

    def has(self, operand: int) -> bool:
        """Whether the optional operand is there."""
        return operand < len(self.inputs) and self.inputs[operand] is not None

    def dims(self, operand: int) -> Dims:
        """Dimensions of an operand that must be there."""
        found = self.inputs[operand]
        if found is None:
            raise ValueError(f"operand {operand} is missing")
        return found

    def fixed(self, operand: int) -> npt.NDArray[Any] | None:
        """The value of an operand, if it is known and the same at every input size."""
        if operand >= len(self.values) or self.values[operand] is None:
            return None
        moving = self.moving[operand]
        return None if moving is not None and moving.any() else self.values[operand]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default`."""
        return self.attributes.get(name, default)

    def refusal(self, reason: str) -> Refusal:
        """`reason`, said by this node."""
        return Refusal(self.name, self.kind, reason)

    def freeze(self, dimension: Dim, reason: str) -> None:
        """No index of `dimension` may go."""
        dims.freeze(dimension, self.refusal(reason))

    def freeze_all(self, reason: str) -> None:
        """Freeze every operand and every result: the way out of a form the rule does not cover."""
        for group in (*self.inputs, *self.outputs):
            for dimension in group or ():
                self.freeze(dimension, reason)

    def unify(self, a: Dim, b: Dim) -> None:
        """The two dimensions are the same. Raises SizeMismatchError where their sizes differ."""
        if a.size != b.size:
            raise SizeMismatchError(f"{a.size} and {b.size} indices on axes that must be equal")
        dims.unify(a, b, self.refusal(f"axes made up as {_written(a)} and {_written(b)} cannot be made equal"))

    def unify_all(self, a: Sequence[Dim], b: Sequence[Dim]) -> None:
        """The two runs of axes are the same, axis by axis."""
        for x, y in zip(a, b, strict=True):
            self.unify(x, y)

    def keep_stretching(self, operand: int, axis: int) -> None:
        """Where this axis follows the input, it is cut at other places of its parts at every size: they stay."""
        found = self.stretching[operand]
        if found is not None and found[axis]:
            self.freeze(self.dims(operand)[axis], "an axis that follows the input is cut")

    def split(self, dimension: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Cut into consecutive parts."""
        return dims.split(
            dimension,
            sizes,
            self.refusal(f"an axis made up as {_written(dimension)} cannot be cut into {_joined(sizes, ' + ')}"),
        )

    def factor(self, dimension: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Write as a row-major product, outermost first."""
        return dims.factor(
            dimension,
            sizes,
            self.refusal(f"an axis made up as {_written(dimension)} cannot be taken as {_joined(sizes, ' x ')}"),
        )

    def contract(
        self,
        operand: int,
        axes: Sequence[int],
        *,
        average: bool = False,
        quantized: bool = False,
        weighted: bool = True,
    ) -> None:
        """The operator sums (`average`: averages or normalises) over these axes of an operand.

        `quantized`: zero is not the number 0 there, so masking must gather. `weighted`: a weight takes part.
        """
        axes = tuple(a % len(self.dims(operand)) for a in axes)
        found = tuple(self.dims(operand)[a] for a in axes)
        self.contractions.append(Contraction(self.index, operand, axes, found, average, average or quantized, weighted))

    def compare(self, operand: int, axes: Sequence[int], reason: str, *, least: int = 1) -> None:
        """The operator chooses among the indices along these axes, or weighs them against each other; `least` of them
        must stay. Its results depend on the order of the indices only as far as they are places (`state_places`).
        """
        self.contract(operand, axes, average=True)
        found = [self.dims(operand)[a] for a in axes]
        self.comparisons += [Comparison(d, self.refusal(reason), least) for d in found if d.size > 1]

    def state_stack(self, dimension: Dim) -> None:
        """Every operand is one index of `dimension`, which may go where operators choose among them."""
        self.stack = dimension

    def state_places(self, output: int, dimension: Dim) -> None:
        """The elements of a result are places on `dimension`."""
        self.placed[output] = dimension

    def follows(self, operand: int, dimension: Dim) -> bool:
        """Whether the elements of an operand are places on a dimension of this size: then it is this one."""
        found = self.places[operand]
        if found is None or found.size != dimension.size:
            return False
        self.unify(found, dimension)
        self.understood.add(operand)
        return True

    def role(self, operand: int, axis: int, role: Role) -> None:
        """The role of one axis of an operand; counts where the operand is a weight."""
        self.roles.append((operand, axis, role))

    def sizes(self, where: str | int, found: Sequence[Dim | None]) -> None:
        """Attribute (str) or operand (int) `where` states these sizes, element by element; None is left alone."""
        self.uses.append(SizeUse(self.index, where, tuple(found)))

    def pick(self, operand: int, source: Dim, result: Dim) -> None:
        """The constant operand lists indices of `source`; what they pick is `result`."""
        self.picks.append(Pick(self.index, operand, source, result))

    def macs(self, *factors: Dim) -> None:
        """The node does product(sizes of `factors`) multiply-accumulates."""
        self.work.append(Work(self.index, factors))

    def broadcast(self, operands: Sequence[int], output: int = 0) -> None:
        """Element-wise: align to the right; an axis of size 1 stretches, all others are the same dimension."""
        result = list(self.outputs[output])
        for back in range(1, len(result) + 1):
            axes = [self.dims(i)[-back] for i in operands if back <= len(self.dims(i))]
            _require_fitting(axes, result[-back])
            full = [d for d in axes if d.size == result[-back].size != 1]
            for d in full[1:]:
                self.unify(full[0], d)
            if full:
                result[-back] = full[0]
        self.outputs[output] = tuple(result)

    def apply(self, text: str, *, quantized: bool = False, **sizes: int | str) -> dict[str, Dim]:
        """State the whole operator in the notation of `signature`; `sizes` gives letters known from attributes.

        A size, or the name of an attribute (1 where it is absent), which then follows the letter. `quantized` as in
        `contract`. Returns the dimension of every letter.
        """
        signature = parse(text)
        known = {letter: self.attribute(n, 1) if isinstance(n, str) else n for letter, n in sizes.items()}
        letters = {letter: dims.atom(size) for letter, size in known.items()}
        for letter, name in sizes.items():
            if isinstance(name, str) and known[letter] > 1:
                self.sizes(name, [letters[letter]])
        runs: list[Dims] = []
        for operand, terms in enumerate(signature.inputs):
            if self.has(operand):
                runs.append(_match(self, self.dims(operand), terms, letters))
                self._state_roles(signature, operand)
            elif not signature.optional[operand]:
                raise ValueError(f"operand {operand} is missing")
        self._state_contraction(signature, quantized)
        for output, terms in zip(range(len(self.outputs)), signature.outputs, strict=False):
            _match_output(self, output, terms, letters, runs)
        return letters

    def _state_roles(self, signature: Signature, operand: int) -> None:
        if not signature.multiplied(operand):
            return
        for axis, term in enumerate(self._axis_terms(signature, operand)):
            if term[0] in ("*", "_"):
                continue
            contracted = any(letter in signature.contracted for letter in term)
            self.role(operand, axis, "contracted" if contracted else "produced")

    def _axis_terms(self, signature: Signature, operand: int) -> list[Term]:
        """The term of every axis of an operand, runs written out."""
        terms = signature.inputs[operand]
        run = len(self.dims(operand)) - len(terms) + 1
        return [t for term in terms for t in [term] * (run if term[0] in ("*", "...") else 1)]

    def _state_contraction(self, signature: Signature, quantized: bool) -> None:
        """Masking one operand of a product masks the product; activations are preferred to weights."""
        candidates = [i for i in range(len(signature.inputs)) if self.has(i) and signature.multiplied(i)]
        weighted = any(self.constant[i] for i in candidates)
        masked: set[str] = set()
        for operand in sorted(candidates, key=lambda i: self.constant[i]):
            terms = self._axis_terms(signature, operand)
            axes = [k for k, term in enumerate(terms) if (set(term) & signature.contracted) - masked]
            if axes:
                self.contract(operand, axes, quantized=quantized, weighted=weighted)
            masked |= {letter for term in terms for letter in term}


def _written(d: Dim) -> str:
    """How an axis is made up: "136", parts end to end "24 + 112", or factors "12 x 23"."""
    d = dims.resolve(d)
    if d.kind == "atom":
        return str(d.size)
    parts = dims.cat_parts(d) if d.kind == "cat" else dims.prod_factors(d)
    return _joined([p.size for p in parts], " + " if d.kind == "cat" else " x ")


def _joined(sizes: Sequence[int], sign: str) -> str:
    shown = [str(s) for s in sizes[:LISTED]]
    return sign.join([*shown, "..."] if len(sizes) > LISTED else shown)


def _match(op: Operator, found: Dims, terms: Sequence[Term], letters: dict[str, Dim]) -> Dims:
    """Unify the axes of one operand with the terms of its signature; returns the axes of its `...` run."""
    run = len(found) - len(terms) + 1
    if run < 0 or (run != 1 and not any(term[0] in ("*", "...") for term in terms)):
        raise ValueError(f"an operand of {len(found)} axes where {len(terms)} are expected")
    position = 0
    passing: Dims = ()
    for term in terms:
        if term[0] == "...":
            passing = found[position : position + run]
        elif term[0] in ("*", "_"):
            for d in found[position : position + (run if term[0] == "*" else 1)]:
                op.freeze(d, f"{op.kind} works along this axis")
        else:
            _match_axis(op, found[position], term, letters)
        position += run if term[0] in ("*", "...") else 1
    return passing


def _match_axis(op: Operator, axis: Dim, term: Term, letters: dict[str, Dim]) -> None:
    known = {x: letters[x].size if x in letters else int(x) for x in term if x in letters or x.isdigit()}
    unknown = [x for x in term if x not in known]
    if len(unknown) > 1:
        raise ValueError(f"the sizes of {unknown} are not known")
    rest = math.prod(known.values())
    sizes = [known.get(x, axis.size // max(rest, 1)) for x in term]
    if math.prod(sizes) != axis.size:
        raise SizeMismatchError(f"an axis of {axis.size} where {' x '.join(map(str, sizes))} is needed")
    for x, d in zip(term, _factors(op, axis, sizes), strict=True):
        if x.isdigit():
            op.freeze(d, FIXED_FACTOR)
        elif x in letters:
            op.unify(letters[x], d)
        else:
            letters[x] = d


def _factors(op: Operator, axis: Dim, sizes: Sequence[int]) -> list[Dim]:
    """The factors of an axis; where all but one are of size 1, that one is the axis itself."""
    if sum(s != 1 for s in sizes) == 1:
        return [axis if s != 1 else dims.atom(1) for s in sizes]
    return op.factor(axis, sizes) if len(sizes) > 1 else [axis]


def _match_output(
    op: Operator, output: int, terms: Sequence[Term], letters: Mapping[str, Dim], runs: Sequence[Dims]
) -> None:
    fresh = op.outputs[output]
    run = len(fresh) - len(terms) + 1
    result: list[Dim] = []
    for term in terms:
        if term[0] == "...":
            result.extend(_broadcast_run(op, fresh[len(result) : len(result) + run], runs))
        elif term[0] in ("*", "_"):
            for d in fresh[len(result) : len(result) + (run if term[0] == "*" else 1)]:
                op.freeze(d, f"{op.kind} works along this axis")
                result.append(d)
        else:
            result.append(dims.prod([letters[x] for x in term]))
    op.outputs[output] = tuple(result)


def _require_fitting(axes: Sequence[Dim], result: Dim) -> None:
    for d in axes:
        if d.size not in (1, result.size):
            raise SizeMismatchError(f"{d.size} indices broadcast to {result.size}")


def _broadcast_run(op: Operator, fresh: Dims, runs: Sequence[Dims]) -> list[Dim]:
    result = list(fresh)
    for back in range(1, len(fresh) + 1):
        _require_fitting([r[-back] for r in runs if back <= len(r)], fresh[-back])
        full = [r[-back] for r in runs if back <= len(r) and r[-back].size == fresh[-back].size != 1]
        for d in full[1:]:
            op.unify(full[0], d)
        if full:
            result[-back] = full[0]
    return result
