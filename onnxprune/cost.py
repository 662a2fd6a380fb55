"""Exact, symbolic cost: MACs and parameters as sums of products of group sizes. No re-tracing for any width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.records import Analysis, Group, Refusal


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
    """For each refusal, the share of all MACs that no group can reduce because of it.

    A node whose MACs hold no prunable group counts for the refusal of the first of its groups.
    """
    groups = {g.dim: g for g in analysis.groups}
    total = macs(analysis)
    shares = {g.refusal: 0.0 for g in analysis.groups if g.refusal is not None}
    for w in analysis.work:
        found = [groups[a] for d in w.dims for a in dims.atoms(d) if a in groups]
        reason = _blocking(found)
        if reason is not None and total:
            shares[reason] += product(w.dims, {}) / total
    return shares


def _blocking(found: Iterable[Group]) -> Refusal | None:
    """The first refusal among groups of one node, None where one of them can be pruned."""
    reasons = [g.refusal for g in found]
    if not reasons or any(r is None for r in reasons):
        return None
    return reasons[0]
