"""Exact, symbolic cost: MACs and parameters as sums of products of group sizes. No re-tracing for any width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.records import Analysis, Refusal


def product(factors: Iterable[Dim], kept: Mapping[Dim, int]) -> int:
    """The product of the sizes of `factors` when each atom in `kept` has that many indices left."""
    return math.prod(dims.size(d, kept) for d in factors)


def macs(analysis: Analysis, kept: Mapping[Dim, int] | None = None) -> int:
    """Multiply-accumulates of one run at the representative input sizes."""
    return sum(product(w.dims, kept or {}) for w in analysis.work)


def parameters(analysis: Analysis, names: Iterable[str], kept: Mapping[Dim, int] | None = None) -> int:
    """Elements of the named weights."""
    return sum(product(analysis.weights[n], kept or {}) for n in names)


def macs_shares(analysis: Analysis) -> dict[Dim, float]:
    """For each atom, the share of all MACs done in nodes that shrink with it."""
    total = macs(analysis)
    shares: dict[Dim, float] = {}
    for w in analysis.work:
        amount = product(w.dims, {}) / total if total else 0.0
        for a in {a for d in w.dims for a in dims.atoms(d)}:
            shares[a] = shares.get(a, 0.0) + amount
    return shares


def refusal_shares(analysis: Analysis) -> dict[Refusal, float]:
    """For each refusal, the share of all MACs done in nodes that have one of the groups it freezes."""
    return _frozen_shares(analysis, [w.dims for w in analysis.work])


def refusal_parameter_shares(analysis: Analysis, names: Iterable[str]) -> dict[Refusal, float]:
    """For each refusal, the share of the elements of the named weights that lie in one of the groups it freezes."""
    return _frozen_shares(analysis, [analysis.weights[n] for n in names])


def _frozen_shares(analysis: Analysis, products: Sequence[tuple[Dim, ...]]) -> dict[Refusal, float]:
    reasons = {g.dim: g.refusal for g in analysis.groups if g.refusal is not None}
    total = sum(product(factors, {}) for factors in products)
    shares = dict.fromkeys(reasons.values(), 0.0)
    for factors in products:
        amount = product(factors, {}) / total if total else 0.0
        for reason in {reasons[a] for d in factors for a in dims.atoms(d) if a in reasons}:
            shares[reason] += amount
    return shares


def reachable_macs(analysis: Analysis, free: Set[Dim], kept: Mapping[Dim, int] | None = None) -> int:
    """Multiply-accumulates of the nodes that shrink with an atom in `free`."""
    return sum(product(w.dims, kept or {}) for w in analysis.work if _holds(w.dims, free))


def reachable_parameters(analysis: Analysis, names: Iterable[str], free: Set[Dim]) -> int:
    """Elements of those of the named weights that shrink with an atom in `free`."""
    return parameters(analysis, [n for n in names if _holds(analysis.weights[n], free)])


def _holds(factors: Iterable[Dim], wanted: Set[Dim]) -> bool:
    return any(a in wanted for d in factors for a in dims.atoms(d))
