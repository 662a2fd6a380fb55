"""The laws of the algebra of dimensions, on random trees."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune import dims
from onnxprune.dims import Dim

SEEDS = st.integers(0, 2**32 - 1)
SIZES = (4, 6, 8, 12, 24)


def _atom(base: list[Dim], size: int) -> Dim:
    base.append(dims.atom(size))
    return base[-1]


def _tree(draw: random.Random, size: int, base: list[Dim], depth: int = 0) -> Dim:
    """A random dimension of `size`; its atoms are appended to `base`."""
    kind = draw.random()
    divisors = [k for k in range(2, size) if size % k == 0]
    if depth >= 2 or size < 2 or kind < 0.3:
        return _atom(base, size)
    if kind > 0.65 and divisors:
        outer = draw.choice(divisors)
        return dims.prod([_tree(draw, outer, base, depth + 1), _tree(draw, size // outer, base, depth + 1)])
    cut = draw.randint(1, size - 1)
    return dims.cat([_tree(draw, cut, base, depth + 1), _tree(draw, size - cut, base, depth + 1)])


class Case:
    """Trees built from a seed, the pairs among them to unify and the atom to freeze: the same for the same seed."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.base: list[Dim] = []
        size = draw.choice(SIZES)
        self.trees = [_tree(draw, size, self.base) for _ in range(draw.randint(2, 4))]
        if draw.random() < 0.3:
            self.trees.append(dims.cat([self.trees[0], self.trees[-1]]))
            self.trees.append(_tree(draw, 2 * size, self.base))
        equal = [(i, j) for i, a in enumerate(self.trees) for j, b in enumerate(self.trees[:i]) if a.size == b.size]
        self.pairs = draw.sample(equal, min(len(equal), draw.randint(1, 3)))
        self.frozen = [draw.randrange(len(self.base))] if draw.random() < 0.3 else []

    def steps(self) -> list[Callable[[], None]]:
        """The changes of this case, each to be made once."""
        freezing = [lambda k=k: dims.freeze(self.base[k], "asked") for k in self.frozen]
        return [*freezing, *(lambda a=a, b=b: dims.unify(self.trees[a], self.trees[b]) for a, b in self.pairs)]

    def run(self, order: Sequence[int] | None = None, flip: bool = False) -> Case:
        """Make the changes, in another order or with the sides swapped."""
        if flip:
            self.pairs = [(b, a) for a, b in self.pairs]
        steps = self.steps()
        for k in order if order is not None else range(len(steps)):
            steps[k]()
        return self

    def observed(self) -> list[int]:
        """What a user can see: for every index of every tree -1 where it is frozen, else the number of its class; the
        indices of a class go together."""
        numbers: dict[object, int] = {}
        labels = [label for tree in [*self.base, *self.trees] for label in _labels(tree)]
        return [numbers.setdefault(label, len(numbers)) if label else -1 for label in labels]

    def keep(self, seed: int) -> dict[Dim, np.ndarray]:
        """A random mask for every atom that may shrink."""
        draw = np.random.default_rng(seed)
        free = {a: None for t in [*self.trees, *self.base] for a in dims.atoms(t) if a.frozen is None and a.size > 1}
        return {a: draw.random(a.size) < 0.6 for a in free}


def _labels(d: Dim) -> list[frozenset[tuple[int, int]]]:
    """For each index the atoms' indices it goes with; empty where it never goes. An atom of one index stays."""
    d = dims.resolve(d)
    if d.kind == "atom":
        free = d.frozen is None and d.size > 1
        return [frozenset([(id(d), k)] if free else []) for k in range(d.size)]
    if d.kind == "cat":
        return [label for part in dims.cat_parts(d) for label in _labels(part)]
    labels = [frozenset[tuple[int, int]]()]
    for part in dims.prod_factors(d):
        labels = [label | x for label in labels for x in _labels(part)]
    return labels


# ---- Laws ------------------------------------------------------------------------------------------------------------


@given(SEEDS)
def test_sizes_are_preserved(seed: int) -> None:
    case = Case(seed)
    before = [t.size for t in case.trees]
    case.run()
    for tree, size in zip(case.trees, before, strict=True):
        assert dims.resolve(tree).size == size
        assert dims.mask(tree, {}).shape == (size,)
        assert dims.size(tree, {}) == size
        parts = dims.cat_parts(tree)
        assert sum(p.size for p in parts) == size
        assert int(np.prod([f.size for f in dims.prod_factors(tree)])) == size


@given(SEEDS, SEEDS)
def test_unified_dimensions_have_equal_masks(seed: int, other: int) -> None:
    case = Case(seed).run()
    keep = case.keep(other)
    for a, b in case.pairs:
        np.testing.assert_array_equal(dims.mask(case.trees[a], keep), dims.mask(case.trees[b], keep))


@given(SEEDS)
def test_unify_is_symmetric(seed: int) -> None:
    assert Case(seed).run().observed() == Case(seed).run(flip=True).observed()


@given(SEEDS, st.randoms(use_true_random=False))
def test_unify_does_not_depend_on_the_order(seed: int, shuffle: random.Random) -> None:
    order = list(range(len(Case(seed).steps())))
    shuffle.shuffle(order)
    assert Case(seed).run().observed() == Case(seed).run(order).observed()


@given(SEEDS)
def test_unify_is_idempotent(seed: int) -> None:
    case = Case(seed).run()
    before = case.observed()
    for step in case.steps():
        step()
    assert case.observed() == before


@given(SEEDS, SEEDS)
def test_a_frozen_atom_never_shrinks(seed: int, other: int) -> None:
    case = Case(seed)
    for k in case.frozen:
        dims.freeze(case.base[k], "asked")
    case.run()
    keep = case.keep(other)
    for k in case.frozen:
        assert all(a.frozen is not None for a in dims.atoms(case.base[k]))
        assert dims.mask(case.base[k], keep).all()


@given(SEEDS, SEEDS)
def test_indices_tell_the_same_as_masks(seed: int, other: int) -> None:
    case = Case(seed).run()
    keep = case.keep(other)
    for tree in case.trees:
        for a, kept in keep.items():
            if any(x is a for x in dims.atoms(tree)) and not _squared(tree, a):
                index = dims.indices(tree, a)
                expected = np.where(index < 0, True, kept[index])
                np.testing.assert_array_equal(dims.mask(tree, {a: kept}), expected)


def _squared(d: Dim, a: Dim) -> bool:
    """Whether an atom multiplies itself somewhere: one index of the axis then belongs to two of the atom."""
    d = dims.resolve(d)
    if d.kind == "prod" and sum(any(x is a for x in dims.atoms(f)) for f in dims.prod_factors(d)) > 1:
        return True
    return any(_squared(p, a) for p in d.parts)


@given(SEEDS, SEEDS)
def test_sizes_are_the_sums_of_masks(seed: int, other: int) -> None:
    case = Case(seed).run()
    keep = case.keep(other)
    counts = {a: int(m.sum()) for a, m in keep.items()}
    for tree in case.trees:
        assert dims.size(tree, counts) == dims.mask(tree, keep).sum()


@given(SEEDS, SEEDS)
def test_split_refines_in_place(seed: int, other: int) -> None:
    case = Case(seed).run()
    tree = case.trees[0]
    cut = random.Random(other).randint(1, tree.size - 1)
    first, second = dims.split(tree, [cut, tree.size - cut])
    keep = case.keep(other)
    joined = np.concatenate([dims.mask(first, keep), dims.mask(second, keep)])
    np.testing.assert_array_equal(dims.mask(tree, keep), joined)
    for a, b in case.pairs:
        np.testing.assert_array_equal(dims.mask(case.trees[a], keep), dims.mask(case.trees[b], keep))


@given(SEEDS, SEEDS)
def test_factor_refines_in_place(seed: int, other: int) -> None:
    case = Case(seed).run()
    tree = case.trees[-1]
    outer = random.Random(other).choice([k for k in range(1, tree.size + 1) if tree.size % k == 0])
    first, second = dims.factor(tree, [outer, tree.size // outer])
    keep = case.keep(other)
    grid = np.logical_and.outer(dims.mask(first, keep), dims.mask(second, keep))
    np.testing.assert_array_equal(dims.mask(tree, keep), grid.reshape(-1))


# ---- Single facts ----------------------------------------------------------------------------------------------------


def test_masks_of_cat_and_prod() -> None:
    a, b = dims.atom(2), dims.atom(3)
    keep = {a: np.array([True, False]), b: np.array([False, True, True])}
    assert dims.mask(dims.cat([a, b]), keep).tolist() == [True, False, False, True, True]
    assert dims.mask(dims.prod([a, b]), keep).tolist() == [False, True, True, False, False, False]
    assert dims.indices(dims.prod([a, b]), b).tolist() == [0, 1, 2, 0, 1, 2]
    assert dims.indices(dims.cat([a, b]), b).tolist() == [-1, -1, 0, 1, 2]


def test_an_atom_that_occurs_twice_goes_in_both_places() -> None:
    a = dims.atom(3)
    twice = dims.cat([a, a])
    other = dims.atom(6)
    dims.unify(other, twice)
    keep = {dims.resolve(a): np.array([True, False, True])}
    assert dims.mask(other, keep).tolist() == [True, False, True] * 2
    assert dims.indices(other, a).tolist() == [0, 1, 2] * 2
    assert dims.size(other, {dims.resolve(a): 2}) == 4


def test_halves_that_meet_become_one() -> None:
    whole = dims.atom(8)
    first, second = dims.split(whole, [4, 4])
    dims.unify(first, second)
    assert len({id(a) for a in dims.atoms(whole)}) == 1


def test_a_dimension_shifted_against_itself_holds_together() -> None:
    """x[0:4] added to x[1:5]: all five indices are one class, which only sizes of 1 can express."""
    whole = dims.atom(5)
    head, _ = dims.split(whole, [4, 1])
    _, tail = dims.split(whole, [1, 4])
    dims.unify(head, tail)
    assert [a.size for a in dims.atoms(whole)] == [1] * 5
    assert len({id(a) for a in dims.atoms(whole)}) == 1


def test_products_without_common_factors_freeze_both_with_the_reason() -> None:
    a, b = dims.prod([dims.atom(2), dims.atom(3)]), dims.prod([dims.atom(3), dims.atom(2)])
    dims.unify(a, b, "two by three")
    assert {x.frozen for d in (a, b) for x in dims.atoms(d)} == {"two by three"}


def test_different_sizes_freeze_both() -> None:
    a, b = dims.atom(2), dims.atom(3)
    dims.unify(a, b, "never equal")
    assert (dims.resolve(a).frozen, dims.resolve(b).frozen) == ("never equal", "never equal")


def test_the_first_reason_is_kept() -> None:
    a, b = dims.atom(2), dims.atom(2)
    dims.freeze(a, "first")
    dims.freeze(a, "second")
    dims.unify(a, b)
    assert dims.resolve(b).frozen == "first"


def test_a_frozen_part_leaves_the_other_free() -> None:
    whole = dims.atom(6)
    first, second = dims.split(whole, [2, 4])
    dims.freeze(second, "input")
    assert [a.frozen for a in dims.atoms(whole)] == [None, "input"]
    assert dims.resolve(first).frozen is None


def test_a_product_is_cut_inside_its_inner_factor() -> None:
    outer, inner = dims.atom(3), dims.atom(4)
    whole = dims.prod([outer, inner])
    first, second = dims.split(whole, [5, 7])
    assert [a.size for a in dims.atoms(outer)] == [1, 1, 1]
    assert [a.size for a in dims.atoms(inner)] == [1, 3]
    keep = {a: np.array([True, False, True]) for a in dims.atoms(inner) if a.size == 3}
    expected = [True, True, False, True] * 3
    assert dims.mask(whole, keep).tolist() == expected
    assert [*dims.mask(first, keep), *dims.mask(second, keep)] == expected


def test_parts_that_add_nothing_are_dropped() -> None:
    a = dims.atom(3)
    assert dims.cat([dims.atom(0), a]) is a
    assert dims.prod([dims.atom(1), a, dims.atom(1)]) is a
    assert dims.cat([]).size == 0
    assert dims.prod([]).size == 1


def test_what_does_not_add_up_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"sizes \[2, 3\] do not add up to 6"):
        dims.split(dims.atom(6), [2, 3])
    with pytest.raises(ValueError, match=r"do not add up"):
        dims.split(dims.atom(6), [7, -1])
    with pytest.raises(ValueError, match=r"sizes \[4, 2\] do not multiply to 6"):
        dims.factor(dims.atom(6), [4, 2])


def test_it_prints_as_a_formula() -> None:
    frozen = dims.atom(3, frozen="because")
    text = repr(dims.cat([dims.prod([dims.atom(2), dims.atom(4)]), frozen]))
    assert [text.count(c) for c in "()*+!"] == [2, 2, 1, 1, 1]


# ---- Scale -----------------------------------------------------------------------------------------------------------


def test_thousands_of_successive_splits() -> None:
    """A long DenseNet or an unrolled recurrence; nesting must not use the stack of Python."""
    count = 5000
    whole = dims.atom(2 * count)
    rest, parts = whole, []
    for k in range(count - 1):
        part, rest = dims.split(rest, [2, 2 * (count - 1 - k)])
        parts.append(part)
    keep = {dims.resolve(parts[7]): np.array([True, False])}
    assert np.flatnonzero(~dims.mask(whole, keep)).tolist() == [15]
    assert dims.size(whole, {dims.resolve(parts[7]): 1}) == 2 * count - 1
    assert len(dims.cat_parts(whole)) == count
    dims.freeze(whole, "all")
    assert all(a.frozen for a in dims.atoms(whole))
    assert dims.indices(whole, parts[7])[[13, 14, 15, 16]].tolist() == [-1, 0, 1, -1]


def test_thousands_of_dimensions_unified_one_by_one() -> None:
    chain = [dims.atom(4) for _ in range(5000)]
    for a, b in itertools.pairwise(chain):
        dims.unify(a, b)
    assert len({id(dims.resolve(d)) for d in chain}) == 1


def test_thousands_of_concatenations() -> None:
    whole = dims.atom(2)
    for _ in range(1000):
        whole = dims.cat([whole, dims.atom(2)])
    assert dims.mask(whole, {}).size == 2002
    dims.unify(whole, dims.atom(2002))


def test_same_compares_what_dimensions_are_made_of() -> None:
    a, b, c = (dims.atom(n) for n in (2, 3, 6))
    assert dims.same(dims.prod([a, b]), dims.prod([a, b])) and dims.same(dims.cat([a, b]), dims.cat([a, b]))
    assert not dims.same(dims.prod([a, b]), dims.prod([b, a]))
    assert not dims.same(dims.prod([a, b]), c) and not dims.same(c, dims.atom(6))
    dims.unify(c, dims.prod([a, b]))
    assert dims.same(c, dims.prod([a, b]))
