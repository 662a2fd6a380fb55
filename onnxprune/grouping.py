"""From the atoms of an analysis to its groups: the role of every atom on every axis of every weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.parts import Roles
from onnxprune.records import Comparison, Contraction, Group, Occurrence, Refusal, Role
from onnxprune.rules.registry import FIXED_FACTOR

Stated = Sequence[tuple[str, int, Dim, Role]]
"""(tensor, axis, its dimension, role), as operators state them."""
Sources = Mapping[str, frozenset[str]]
"""The weights that a tensor is computed from."""
RANK: tuple[Role, ...] = ("contracted", "produced", "carried")
"""Of several roles on one axis the first counts."""


def roles_by_weight(stated: Stated, sources: Sources) -> Roles:
    """The role of each atom on each axis of each weight; of two roles on one axis "contracted" counts."""
    return {
        key: "contracted" if "contracted" in roles else roles[-1] for key, roles in _in_order(stated, sources).items()
    }


def _all_roles(stated: Stated, sources: Sources) -> dict[tuple[str, int | None, Dim], frozenset[Role]]:
    """Every role of each atom on each axis of each weight."""
    shared: dict[tuple[Role, ...], frozenset[Role]] = {}
    return {key: shared.setdefault(r, frozenset(r)) for key, r in _in_order(stated, sources).items()}


def _in_order(stated: Stated, sources: Sources) -> dict[tuple[str, int | None, Dim], tuple[Role, ...]]:
    """The roles of each atom on each axis of each weight, as they were stated.

    A role stated of a constant computed from weights counts for all axes (None) of the weights behind it.
    """
    roles: dict[tuple[str, int | None, Dim], tuple[Role, ...]] = {}
    for name, axis, d, role in stated:
        for a in dims.atoms(d):
            for weight in sources.get(name, ()):
                key = (weight, axis if weight == name else None, a)
                before = roles.get(key, ())
                if role not in before[-1:]:
                    roles[key] = (*before, role)
    return roles


def groups(
    weights: Mapping[str, Sequence[Dim]],
    stated: Stated,
    sources: Sources,
    contractions: Sequence[Contraction],
    comparisons: Sequence[Comparison],
    users: Mapping[str, Sequence[str]],
) -> Iterator[Group]:
    """Every atom that something produces, with its places in the weights. `users`: the nodes that need a weight."""
    averaged = {a for c in contractions if c.average for d in c.dims for a in dims.atoms(d)}
    compared = {a: c.least for c in sorted(comparisons, key=lambda c: c.least) for a in dims.atoms(c.dim)}
    used: dict[str, int] = {}
    for a, occurrences in _occurrences(weights, stated, sources).items():
        producer = next((o for o in occurrences if o.role == "produced"), None)
        if producer is None or (isinstance(a.frozen, Refusal) and a.frozen.reason == FIXED_FACTOR):
            continue
        base = f"{producer.tensor}:{producer.axis}"
        used[base] = used.get(base, 0) + 1
        yield Group(
            id=base if used[base] == 1 else f"{base}#{used[base]}",
            size=a.size,
            dim=a,
            occurrences=tuple(occurrences),
            nodes=tuple(dict.fromkeys(n for o in occurrences for n in users.get(o.tensor, ()))),
            refusal=a.frozen if isinstance(a.frozen, Refusal) else None,
            renormalised=a in averaged,
            least=compared.get(a, 1) if a.frozen is None else 1,
            parts=a in compared and a.frozen is None,
        )


def _occurrences(
    weights: Mapping[str, Sequence[Dim]], stated: Stated, sources: Sources
) -> Mapping[Dim, Sequence[Occurrence]]:
    """The places of each atom. An axis of a tied weight that one operator produces and another sums over comes twice:
    as contracted among all others, and as produced after them."""
    stated_roles = _all_roles(stated, sources)
    nothing: frozenset[Role] = frozenset()
    found: dict[Dim, list[Occurrence]] = {}
    tied: list[tuple[Dim, Occurrence]] = []
    for weight, axes in weights.items():
        for axis, d in enumerate(axes):
            for a in (a for a in dict.fromkeys(dims.atoms(d)) if a.size > 1):
                roles = stated_roles.get((weight, axis, a), nothing) | stated_roles.get((weight, None, a), nothing)
                role = next((r for r in RANK if r in roles), RANK[-1])
                found.setdefault(a, []).append(Occurrence(weight, axis, role))
                if len(roles) > 1 and {"contracted", "produced"} <= roles:
                    tied.append((a, Occurrence(weight, axis, "produced")))
    for a, occurrence in tied:
        found[a].append(occurrence)
    return found
