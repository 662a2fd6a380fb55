"""How many indices stay: the ratio, and the widths a runtime is fast at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import TOLERANCE, graph, model, prune, prune_and_compare

from onnxprune import allocate
from onnxprune.allocate import round_count
from onnxprune.processor import LEAST_MULTIPLE, PRODUCT_MULTIPLE
from onnxprune.records import FastWidths


@pytest.mark.parametrize(
    ("wanted", "size", "step", "kept"),
    [
        (32, 64, 16, 32),
        (33, 64, 16, 48),
        (1, 64, 16, 16),
        (63, 64, 16, 64),
        (5, 10, 16, 10),
        (1, 8, 16, 8),
        (70, 72, 16, 72),
        (60, 70, 16, 64),
        (65, 70, 16, 64),
        (3, 10, 1, 3),
        (3, 10, 3, 3),
        (4, 10, 3, 6),
        (10, 10, 3, 10),
    ],
)
def test_rounding(wanted: int, size: int, step: int, kept: int) -> None:
    assert round_count(wanted, size, step) == kept


@given(st.integers(1, 600), st.floats(0.01, 0.99), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_rounding_stays_on_the_fast_path(size: int, ratio: float, step: int) -> None:
    wanted = max(1, round(size * (1 - ratio)))
    kept = round_count(wanted, size, step)
    assert 1 <= kept <= size
    assert kept % step == 0 or kept == size, "a width that shrinks is whole steps"
    assert kept >= min(step, size), "never below one step, unless the group was smaller"
    if step % LEAST_MULTIPLE == 0 and size % LEAST_MULTIPLE == 0:
        assert kept % LEAST_MULTIPLE == 0, "a fast width never becomes a slow one"


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([1, 4, 8, 16]))
def test_rounding_goes_up_within_the_step(wanted: int, size: int, step: int) -> None:
    wanted = min(wanted, size)
    kept = round_count(wanted, size, step)
    assert kept >= wanted or (size % LEAST_MULTIPLE and kept == size // step * step)
    assert kept < wanted + step or kept == size


def _widths(block: int) -> FastWidths:
    return FastWidths(block, block, block, block, PRODUCT_MULTIPLE)


def test_every_kind_of_layer_has_its_own_step() -> None:
    m = model("""(float[2,3,4,4] x) => (float[2,5] y)
        <float[64,3,3,3] a, float[64,1,3,3] d, float[64,64,1,1] b, float[128,32,3,3] g, float[2048,40] c,
        float[40,5] e> {
        h = Conv<pads=[1,1,1,1]>(x, a)
        i = Conv<pads=[1,1,1,1], group=64>(h, d)
        k = Conv(i, b)
        l = Conv<pads=[1,1,1,1], group=2>(k, g)
        f = Flatten(l)
        z = MatMul(f, c)
        y = MatMul(z, e)
    }""")
    found, _ = graph(m)
    primes = FastWidths(convolution=5, pointwise=7, depthwise=11, grouped=13, product=17)
    groups = {g.id: g for g in found.groups if g.refusal is None}
    steps = {name: allocate.fast_step(found, g, primes) for name, g in groups.items()}
    assert steps["a:0"] == 5 * 11 * 7 * 13, "made by a convolution, read by a depthwise and then a pointwise one"
    assert steps["b:0#2"] == 5 * 7 * 13, "made by a pointwise convolution, read by a grouped one, in each group"
    assert steps["c:1"] == 17


def test_convolutions_keep_whole_blocks_and_matrix_products_whole_vectors() -> None:
    m = model("""(float[2,3,4,4] x) => (float[2,5] y)
        <float[64,3,1,1] a, float[64,64,1,1] b, float[1024,40] c, float[40,5] d> {
        h = Conv(x, a)
        k = Conv(h, b)
        f = Flatten(k)
        g = MatMul(f, c)
        y = MatMul(g, d)
    }""")
    found, _ = graph(m)
    steps = {g.id: allocate.fast_step(found, g, _widths(16)) for g in found.groups if g.refusal is None}
    assert steps == {"a:0": 16, "b:0": 16, "c:1": PRODUCT_MULTIPLE}
    steps = {g.id: allocate.fast_step(found, g, _widths(8)) for g in found.groups if g.refusal is None}
    assert steps == {"a:0": 8, "b:0": 8, "c:1": PRODUCT_MULTIPLE}


@pytest.mark.parametrize(("axes", "first", "second"), [(1, 17, 17), (2, 5, 5), (3, 4, 4)])
def test_only_convolutions_over_two_axes_have_blocks(axes: int, first: int, second: int) -> None:
    sizes, kernel = ",4" * axes, ",3" * axes
    m = model(f"""(float[2,3{sizes}] x) => (float y) <float[64,3{kernel}] a, float[32,64{kernel}] b,
        float[5,32{kernel}] c> {{
        h = Conv<auto_pad="SAME_UPPER">(x, a)
        k = Conv<auto_pad="SAME_UPPER">(h, b)
        y = Conv<auto_pad="SAME_UPPER">(k, c)
    }}""")
    found, _ = graph(m)
    primes = FastWidths(convolution=5, pointwise=7, depthwise=11, grouped=13, product=17)
    steps = {g.id: allocate.fast_step(found, g, primes) for g in found.groups if g.refusal is None}
    assert steps == {"a:0": first, "b:0": second}


def test_a_factor_needs_fewer_indices_the_more_elements_each_spans() -> None:
    """A head of width 4 fills half a vector, so heads go in pairs; each index of the inner factor is one element."""
    m = model("""(float[2,6,4] x) => (float[2,6,3] y) <float[4,48] w, int64[4] t = {2,6,12,4}, float[12,4] s,
        int64[3] flat = {2,6,48}, float[48,3] v> {
        h = MatMul(x, w)
        r = Reshape(h, t)
        k = Mul(r, s)
        f = Reshape(k, flat)
        y = MatMul(f, v)
    }""")
    found, _ = graph(m)
    assert [(g.size, allocate.fast_step(found, g, _widths(16))) for g in found.groups[:2]] == [(12, 2), (4, 8)]


def test_uniform_counts_are_the_share_that_stays() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,40] w, float[40,12] u, float[12,3] v> {
        h = MatMul(x, w)
        k = MatMul(h, u)
        y = MatMul(k, v)
    }""")
    found, _ = graph(m)
    groups = [g for g in found.groups if g.refusal is None]
    exact = allocate.uniform(found, groups, ratio=0.3, round_to=1, widths=_widths(16))
    assert exact.counts == {"w:1": 28, "u:1": 8}
    fast = allocate.uniform(found, groups, ratio=0.3, round_to=None, widths=_widths(16))
    assert fast.counts == {"w:1": 32, "u:1": 8}
    nearly_all = allocate.uniform(found, groups, ratio=0.999, round_to=1, widths=_widths(16))
    assert nearly_all.counts == {"w:1": 1, "u:1": 1}
    tens = allocate.uniform(found, groups, ratio=0.3, round_to=10, widths=_widths(16))
    assert tens.counts == {"w:1": 30, "u:1": 10}


HEADS = """(float[2,6,4] x) => (float[2,6,3] y) <float[4,12] w, int64[4] t = {2,6,3,4}, float[3,4] s,
    int64[3] flat = {2,6,12}, float[12,3] v> {
    h = MatMul(x, w)
    r = Reshape(h, t)
    k = Mul(r, s)
    f = Reshape(k, flat)
    y = MatMul(f, v)
}"""


def test_of_two_factors_the_outermost_is_cut() -> None:
    found, _ = graph(model(HEADS))
    groups = [g for g in found.groups if g.refusal is None]
    assert [g.size for g in groups] == [3, 4]
    assert [g.size for g in allocate.choose_factors(found, groups)] == [3]


def test_an_inner_factor_is_cut_where_the_outer_one_is_not_asked_for() -> None:
    found, _ = graph(model(HEADS))
    inner = [g for g in found.groups if g.size == 4]
    assert allocate.choose_factors(found, inner) == inner


def test_groups_that_do_not_multiply_are_all_kept() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] a, float[4,6] b, float[14,3] v> {
        h = MatMul(x, a)
        k = MatMul(x, b)
        c = Concat<axis=1>(h, k)
        y = MatMul(c, v)
    }""")
    found, _ = graph(m)
    groups = [g for g in found.groups if g.refusal is None]
    assert allocate.choose_factors(found, groups) == groups


def test_a_channel_shuffle_leaves_one_of_two_factors() -> None:
    """(2, 4) becomes (4, 2): each factor is the inner one somewhere."""
    m = model("""(float[N,3,6,6] x) => (float[N,5,6,6] y) <float[8,3,1,1] w, float[5,8,1,1] v,
        int64[5] apart = {0,2,4,6,6}, int64[4] together = {0,8,6,6}> {
        h = Conv(x, w)
        a = Reshape(h, apart)
        b = Transpose<perm=[0,2,1,3,4]>(a)
        c = Reshape(b, together)
        y = Conv(c, v)
    }""")
    found, _ = graph(m)
    groups = [g for g in found.groups if g.refusal is None]
    assert len(groups) == 2
    assert len(allocate.choose_factors(found, groups)) == 1
    assert len(allocate.choose_factors(found, groups, factors="inner")) == 1
    assert allocate.choose_factors(found, groups, heads=False) == []


def test_branches_that_a_softmax_weighs_give_way_to_their_channels() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y)
        <float[4,16] w, float[4,16] gate, int64[3] shape = {-1,2,8}, int64[1] one = {1}, float[8,3] v> {
        h = MatMul(x, w)
        branches = Reshape(h, shape)
        g = MatMul(x, gate)
        weighed = Reshape(g, shape)
        s = Softmax<axis=1>(weighed)
        p = Mul(branches, s)
        o = ReduceSum<keepdims=0>(p, one)
        y = MatMul(o, v)
    }""")
    found, _ = graph(m)
    groups = [g for g in found.groups if g.refusal is None]
    assert [(g.size, g.parts) for g in groups] == [(2, True), (8, False)]
    assert [g.size for g in allocate.choose_factors(found, groups)] == [8]
    assert [g.size for g in allocate.choose_factors(found, groups, factors="all")] == [8]
    assert [g.size for g in allocate.choose_factors(found, groups[:1])] == [2]
    prune_and_compare(m)


ATTENTION = """(float[N,5,8] x) => (float[N,5,3] y) <float[8,12] q, float[8,12] k, float[8,24] v, float[12] b,
    int64[4] apart = {0,5,3,4}, int64[4] wide = {0,5,3,8}, int64[3] flat = {0,5,24}, float[24,8] o,
    float[8,16] f, float[16,3] g, float[8,8] e> {
    h = MatMul(x, e)
    q0 = MatMul(h, q)
    q1 = Add(q0, b)
    q2 = Reshape(q1, apart)
    q3 = Transpose<perm=[0,2,1,3]>(q2)
    k0 = MatMul(h, k)
    k2 = Reshape(k0, apart)
    k3 = Transpose<perm=[0,2,3,1]>(k2)
    v0 = MatMul(h, v)
    v2 = Reshape(v0, wide)
    v3 = Transpose<perm=[0,2,1,3]>(v2)
    s = MatMul(q3, k3)
    p = Softmax<axis=-1>(s)
    z = MatMul(p, v3)
    z1 = Transpose<perm=[0,2,1,3]>(z)
    z2 = Reshape(z1, flat)
    a = MatMul(z2, o)
    r = Add(h, a)
    u = MatMul(r, f)
    t = Relu(u)
    y = MatMul(t, g)
}"""


@pytest.mark.parametrize(
    ("heads", "factors", "sizes", "weights"),
    [
        (True, "outer", [3, 8, 16], {"q": 8, "k": 8, "v": 16}),
        (True, "inner", [4, 8, 8, 16], {"q": 6, "k": 6, "v": 12}),
        (True, "all", [3, 4, 8, 8, 16], {"q": 4, "k": 4, "v": 8}),
        (False, "inner", [4, 8, 8, 16], {"q": 6, "k": 6, "v": 12}),
        (False, "outer", [8, 16], {"q": 12, "k": 12, "v": 24}),
        (False, "all", [8, 16], {"q": 12, "k": 12, "v": 24}),
    ],
)
def test_heads_or_their_width_or_both_are_cut_exactly(
    heads: bool, factors: allocate.Factors, sizes: list[int], weights: dict[str, int]
) -> None:
    """Three heads of 4 for queries and keys, of 8 for values; half of what is chosen goes, at random places."""
    m = model(ATTENTION)
    found, _ = graph(m)
    groups = [g for g in found.groups if g.refusal is None]
    chosen = allocate.choose_factors(found, groups, heads=heads, factors=factors)
    assert sorted(g.size for g in chosen) == sizes
    generator = np.random.default_rng(0)
    kept = {g.id: np.sort(generator.permutation(g.size)[: round(g.size * 0.5)]) for g in chosen}
    result = prune(m, kept)
    assert max(result.differences.values()) <= TOLERANCE
    assert {name: result.weights[name][1] for name in weights} == weights


def test_a_head_whose_width_is_fixed_stays_without_heads() -> None:
    m = model("""(float[N,T,4] x) => (float[N,T,4] y)
        <float[4,12] q, float[4,12] k, float[4,12] u, float[12,4] o> {
        a = MatMul(x, q)
        c = MatMul(x, k)
        d = MatMul(x, u)
        z = com.microsoft.MultiHeadAttention<num_heads=3>(a, c, d)
        y = MatMul(z, o)
    }""")
    found, _ = graph(m)
    groups = [g for g in found.groups if g.refusal is None]
    assert [g.size for g in allocate.choose_factors(found, groups, factors="inner")] == [3]
    assert allocate.choose_factors(found, groups, heads=False) == []


def test_channels_that_are_flattened_are_no_heads() -> None:
    m = model("""(float[N,3,4,4] x) => (float[N,5] y) <float[8,3,1,1] w, float[128,5] v> {
        h = Conv(x, w)
        f = Flatten(h)
        y = MatMul(f, v)
    }""")
    found, _ = graph(m)
    groups = [g for g in found.groups if g.refusal is None]
    assert allocate.choose_factors(found, groups, heads=False) == groups
