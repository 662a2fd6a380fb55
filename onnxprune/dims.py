"""The algebra of dimensions: which axes must be the same, found by unification. Knows nothing of ONNX.

    Dim = Atom(n)            an independent dimension of n indices
        | Cat(d1, d2, ...)   end to end
        | Prod(d1, d2, ...)  row-major product, outermost first

A `Dim` is a mutable node. Refining one (`unify`, `split`, `factor`) binds it to a finer one through `link`, so every
place that already holds it sees the refinement. `resolve` follows links with path compression: near-constant time;
`unify` costs time linear in the leaves of the finer side. Parts of size 0 (in Cat) and 1 (in Prod) are dropped, so a
proper part is always smaller than its whole and no dimension can contain itself.

Cutting never fails, and two products without common factors (2 x 3 against 3 x 2) are frozen with the given reason
instead of failing, so the result does not depend on the order of the calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Kind = Literal["atom", "cat", "prod"]


class Dim:
    """A dimension of `size` indices. Compare with `resolve(a) is resolve(b)`, never with `==` on structure.

    `frozen` is None, or the reason why no index of this atom may be removed.
    """

    __slots__ = ("frozen", "kind", "link", "parts", "size")

    def __init__(self, size: int, kind: Kind = "atom", parts: tuple[Dim, ...] = ()) -> None:
        self.size = size
        self.kind: Kind = kind
        self.parts = parts
        self.link: Dim | None = None
        self.frozen: object | None = None

    def __repr__(self) -> str:
        d = resolve(self)
        if d.kind == "atom":
            return f"{d.size}{'!' if d.frozen is not None else ''}@{id(d) & 0xFFFF:04x}"
        joined = (" + " if d.kind == "cat" else " * ").join(map(repr, d.parts))
        return f"({joined})"


def atom(size: int, *, frozen: object | None = None) -> Dim:
    """A fresh independent dimension."""
    d = Dim(size)
    d.frozen = frozen
    return d


def cat(parts: Sequence[Dim]) -> Dim:
    """The dimensions end to end; its size is their sum."""
    return _compose("cat", [p for d in parts for p in cat_parts(d)], sum(d.size for d in parts))


def prod(factors: Sequence[Dim]) -> Dim:
    """The row-major product of the dimensions, outermost first; its size is their product."""
    return _compose("prod", [p for d in factors for p in prod_factors(d)], math.prod(d.size for d in factors))


def _compose(kind: Kind, parts: list[Dim], size: int) -> Dim:
    if len(parts) == 1:
        return parts[0]
    return Dim(size, kind, tuple(parts)) if parts and size else Dim(size)


def resolve(d: Dim) -> Dim:
    """The dimension `d` is bound to at last."""
    root = d
    while root.link is not None:
        root = root.link
    while d.link is not None:
        d.link, d = root, d.link
    return root


def same(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are made up of the same atoms in the same way."""
    a, b = resolve(a), resolve(b)
    if a is b or a.kind == "atom" or a.kind != b.kind:
        return a is b
    left, right = (cat_parts(d) if d.kind == "cat" else prod_factors(d) for d in (a, b))
    return len(left) == len(right) and all(map(same, left, right))


def cat_parts(d: Dim) -> list[Dim]:
    """The parts of a Cat, nested ones flattened and empty ones dropped; any other dimension is its own single part."""
    return [p for p in _flatten(d, "cat") if p.size]


def prod_factors(d: Dim) -> list[Dim]:
    """The factors of a Prod, nested ones flattened, those of size 1 dropped; any other dimension is its own factor."""
    return [p for p in _flatten(d, "prod") if p.size != 1]


def _flatten(d: Dim, kind: Kind) -> list[Dim]:
    leaves: list[Dim] = []
    stack = [d]
    while stack:
        p = resolve(stack.pop())
        if p.kind == kind:
            stack.extend(reversed(p.parts))
        else:
            leaves.append(p)
    return leaves


def atoms(d: Dim) -> Iterator[Dim]:
    """The atoms of `d` from first to last (outermost to innermost); an atom that occurs twice comes twice."""
    stack = [d]
    while stack:
        p = resolve(stack.pop())
        if p.kind == "atom":
            yield p
        stack.extend(reversed(p.parts))


def freeze(d: Dim, reason: object) -> None:
    """Forbid removal from every atom of `d`. The first reason given to an atom is kept."""
    for a in atoms(d):
        if a.frozen is None:
            a.frozen = reason


def split(d: Dim, sizes: Sequence[int], reason: object = "cannot be cut there") -> list[Dim]:
    """Cut `d` into consecutive parts of the given sizes. Raises ValueError where the sizes do not add up."""
    if sum(sizes) != d.size or min(sizes, default=0) < 0:
        raise ValueError(f"sizes {list(sizes)} do not add up to {d.size}")
    parts = [atom(s) for s in sizes]
    _unify_cat(d, cat(parts), reason)
    return parts


def factor(d: Dim, sizes: Sequence[int], reason: object = "cannot be factored so") -> list[Dim]:
    """Write `d` as a row-major product of dimensions of the given sizes, outermost first.

    Raises ValueError where the sizes do not multiply to `d.size`.
    """
    if math.prod(sizes) != d.size:
        raise ValueError(f"sizes {list(sizes)} do not multiply to {d.size}")
    factors = [atom(s) for s in sizes]
    _unify(d, prod(factors), reason)
    return factors


def unify(a: Dim, b: Dim, reason: object = "no common refinement") -> None:
    """Make two dimensions equal; what has no common refinement is frozen on both sides with `reason`."""
    if a.size == b.size:
        _unify(a, b, reason)
    else:
        freeze(a, reason)
        freeze(b, reason)


def _unify(a: Dim, b: Dim, reason: object) -> None:
    a, b = resolve(a), resolve(b)
    if a is b or not a.size:
        return
    if a.kind == "atom":
        _bind(a, b)
    elif b.kind == "atom":
        _bind(b, a)
    elif "cat" in (a.kind, b.kind):
        _unify_cat(a, b, reason)
    elif not _unify_prod(a, b, reason):
        freeze(a, reason)
        freeze(b, reason)


def _bind(a: Dim, b: Dim) -> None:
    if a.frozen is not None:
        freeze(b, a.frozen)
    a.link = b


def _unify_cat(a: Dim, b: Dim, reason: object) -> None:
    """Cut both sides at the union of their boundaries, then unify part by part.

    Unifying one pair may refine later parts, so both queues are flattened again as they are consumed.
    """
    left, right = cat_parts(a)[::-1], cat_parts(b)[::-1]
    while left:
        x, y = _pop(left, "cat"), _pop(right, "cat")
        if x.size > y.size:
            x, rest = _cut(x, y.size, reason)
            left.append(rest)
        elif y.size > x.size:
            y, rest = _cut(y, x.size, reason)
            right.append(rest)
        _unify(x, y, reason)


def _cut(d: Dim, at: int, reason: object) -> tuple[Dim, Dim]:
    """Cut `d` in two at index `at`, 0 < at < size.

    A product o x i is cut at q |i| + r by cutting o at q (and at q + 1) and, where r > 0, i at r.
    """
    d = resolve(d)
    if d.kind == "cat":
        first, second = split(d, [at, d.size - at], reason)
        return first, second
    if d.kind == "atom":
        first, second = atom(at, frozen=d.frozen), atom(d.size - at, frozen=d.frozen)
        d.link = Dim(d.size, "cat", (first, second))
        return first, second
    outer, *factors = prod_factors(d)
    inner = prod(factors)
    q, r = divmod(at, inner.size)
    if r == 0:
        head, tail = split(outer, [q, outer.size - q], reason)
        return prod([head, inner]), prod([tail, inner])
    head, _, tail = split(outer, [q, 1, outer.size - q - 1], reason)
    first, second = _cut(inner, r, reason)
    return cat([prod([head, inner]), first]), cat([second, prod([tail, inner])])


def _unify_prod(a: Dim, b: Dim, reason: object) -> bool:
    """Refine both sides to common factors, innermost first. False where they have none."""
    left, right = prod_factors(a), prod_factors(b)
    while left and right:
        x, y = _pop(left, "prod"), _pop(right, "prod")
        if x.size == y.size:
            _unify(x, y, reason)
            continue
        if x.size > y.size:
            x, y, left, right = y, x, right, left
        if x.size == 0 or y.size % x.size:
            return False
        right.append(_factor_inner(y, x, reason))
    return not (left or right)


def _factor_inner(d: Dim, inner: Dim, reason: object) -> Dim:
    """Write `d` as outer x `inner` and return the outer factor."""
    outer = atom(d.size // inner.size)
    _unify(d, prod([outer, inner]), reason)
    return outer


def _pop(queue: list[Dim], kind: Kind) -> Dim:
    """The next leaf: the first part of a Cat (its queue runs backwards), the innermost factor of a Prod."""
    leaves = _flatten(queue.pop(), kind)
    queue.extend(reversed(leaves) if kind == "cat" else leaves)
    return queue.pop()


def mask(d: Dim, keep: Mapping[Dim, BoolArray]) -> BoolArray:
    """Expand per-atom keep masks to the axis: bool (d.size,). Cat concatenates, Prod is the outer AND.

    Atoms absent from `keep` are kept whole.
    """
    d = resolve(d)
    if d.kind == "atom":
        kept = keep.get(d)
        return np.ones(d.size, bool) if kept is None else kept
    if d.kind == "cat":
        return np.concatenate([mask(p, keep) for p in cat_parts(d)])
    result = np.ones(1, bool)
    for p in prod_factors(d):
        result = np.logical_and.outer(result, mask(p, keep)).reshape(-1)
    return result


def indices(d: Dim, wanted: Dim) -> npt.NDArray[np.int64]:
    """For each index of `d` the index of the atom `wanted` it belongs to, or -1: int64 (d.size,)."""
    d, wanted = resolve(d), resolve(wanted)
    if d.kind == "atom":
        return np.arange(d.size) if d is wanted else np.full(d.size, -1)
    if d.kind == "cat":
        return np.concatenate([indices(p, wanted) for p in cat_parts(d)])
    result = np.full(1, -1)
    for p in prod_factors(d):
        own = indices(p, wanted)
        result = np.maximum.outer(result, own).reshape(-1)
    return result


def size(d: Dim, kept: Mapping[Dim, int]) -> int:
    """The size of `d` when each atom in `kept` has that many indices left."""
    d = resolve(d)
    if d.kind == "atom":
        return kept.get(d, d.size)
    if d.kind == "cat":
        return sum(size(p, kept) for p in cat_parts(d))
    return math.prod(size(p, kept) for p in prod_factors(d))
