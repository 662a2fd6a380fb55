"""Exact, symbolic cost: MACs and parameters as sums of products of group sizes. No re-tracing for any width.

What only one operand of a stack needs (an expert written out) counts by the share of operands left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from fractions import Fraction

import onnx

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.modelfile import bits_of
from onnxprune.records import Analysis, Refusal, Stack

Term = tuple[tuple[Dim, ...], int | Fraction]
"""A part of a total: a product of dimensions, and how much each unit of it counts."""


_INDICES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)


def parameter_names(types: Mapping[str, int]) -> list[str]:
    """Those of the stored tensors, given with their element types, that count as parameters: no indices or strings."""
    return [name for name, element in types.items() if element not in _INDICES]


def bytes_of_one(element: int) -> int | Fraction:
    """Bytes that an element of a type of TensorProto takes in a file; of strings none is counted."""
    if element == onnx.TensorProto.STRING:
        return 0
    bits = bits_of(element)
    return Fraction(bits, 8) if bits % 8 else bits // 8


def product(factors: Iterable[Dim], kept: Mapping[Dim, int]) -> int:
    """The product of the sizes of `factors` when each atom in `kept` has that many indices left."""
    return math.prod(dims.size(d, kept) for d in factors)


def work_terms(analysis: Analysis) -> list[Term]:
    """The multiply-accumulates of every node."""
    owners = {index: s for s in analysis.stacks for o in s.owned for index in o.nodes}
    return [_owned(w.dims, owners.get(w.node)) for w in analysis.work]


def weight_terms(analysis: Analysis, names: Iterable[str]) -> list[Term]:
    """The elements of every named weight."""
    owners = {name: s for s in analysis.stacks for o in s.owned for name in o.tensors}
    return [_owned(analysis.weights[n], owners.get(n)) for n in names]


def _owned(found: tuple[Dim, ...], stack: Stack | None) -> Term:
    return (found, 1) if stack is None else ((*found, stack.dim), Fraction(1, stack.dim.size))


def total(terms: Iterable[Term], kept: Mapping[Dim, int]) -> int:
    """The sum of the terms when each atom in `kept` has that many indices left."""
    return int(sum(product(factors, kept) * unit for factors, unit in terms))


def macs(analysis: Analysis, kept: Mapping[Dim, int] | None = None) -> int:
    """Multiply-accumulates of one run at the representative input sizes."""
    return total(work_terms(analysis), kept or {})


def parameters(analysis: Analysis, names: Iterable[str], kept: Mapping[Dim, int] | None = None) -> int:
    """Elements of the named weights."""
    return total(weight_terms(analysis, names), kept or {})


def macs_shares(analysis: Analysis) -> dict[Dim, float]:
    """For each atom, the share of all MACs done in nodes that shrink with it."""
    whole = macs(analysis)
    shares: dict[Dim, float] = {}
    for factors, unit in work_terms(analysis):
        amount = float(product(factors, {}) * unit / whole) if whole else 0.0
        for a in {a for d in factors for a in dims.atoms(d)}:
            shares[a] = shares.get(a, 0.0) + amount
    return shares


def refusal_shares(analysis: Analysis) -> dict[Refusal, float]:
    """For each refusal, the share of all MACs done in nodes that have one of the groups it freezes."""
    return _frozen_shares(analysis, work_terms(analysis))


def refusal_parameter_shares(analysis: Analysis, names: Iterable[str]) -> dict[Refusal, float]:
    """For each refusal, the share of the elements of the named weights that lie in one of the groups it freezes."""
    return _frozen_shares(analysis, weight_terms(analysis, names))


def _frozen_shares(analysis: Analysis, terms: Sequence[Term]) -> dict[Refusal, float]:
    reasons = {g.dim: g.refusal for g in analysis.groups if g.refusal is not None}
    whole = total(terms, {})
    shares = dict.fromkeys(reasons.values(), 0.0)
    for factors, unit in terms:
        amount = float(product(factors, {}) * unit / whole) if whole else 0.0
        for reason in {reasons[a] for d in factors for a in dims.atoms(d) if a in reasons}:
            shares[reason] += amount
    return shares


def reachable_macs(analysis: Analysis, free: Set[Dim], kept: Mapping[Dim, int] | None = None) -> int:
    """Multiply-accumulates of the nodes that shrink with an atom in `free`."""
    return total([t for t in work_terms(analysis) if _holds(t[0], free)], kept or {})


def reachable_parameters(analysis: Analysis, names: Iterable[str], free: Set[Dim]) -> int:
    """Elements of those of the named weights that shrink with an atom in `free`."""
    return total([t for t in weight_terms(analysis, names) if _holds(t[0], free)], {})


def _holds(factors: Iterable[Dim], wanted: Set[Dim]) -> bool:
    return any(a in wanted for d in factors for a in dims.atoms(d))
