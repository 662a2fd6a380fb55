"""Matrix products."""

from __future__ import annotations

import pytest
from oracle import groups, model, places, prunable, prune_and_compare, reasons


@pytest.mark.parametrize("bias", ["8", "1,8", "1", "1,1"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_couples_rows_or_columns(transposed: int, bias: str) -> None:
    weight = "8,4" if transposed else "4,8"
    m = model(f"""(float[N,4] x) => (float[N,3] y) <float[{weight}] w, float[{bias}] b, float[8,3] v, float[3] c> {{
        h = Gemm<transB={transposed}, alpha=0.5, beta=2.0>(x, w, b)
        r = Tanh(h)
        y = Gemm(r, v, c)
    }}""")
    axis = 0 if transposed else 1
    assert prunable(m) == {f"w:{axis}": 8}
    coupled = {("w", axis): "produced", ("v", 0): "contracted"}
    if "8" in bias:
        coupled["b", bias.count(",")] = "carried"
    assert places(groups(m)[f"w:{axis}"]) == coupled
    prune_and_compare(m)


def test_gemm_without_bias_and_with_a_transposed_left_operand() -> None:
    """The hidden layer lies on the first axis: [8, N]."""
    m = model("""(float[4,N] x) => (float[N,3] y) <float[8,4] w, float[8,3] v> {
        h = Gemm(w, x)
        r = Relu(h)
        y = Gemm<transA=1>(r, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    assert places(groups(m)["w:0"]) == {("w", 0): "produced", ("v", 0): "contracted"}
    prune_and_compare(m)


def test_gemm_bias_of_two_axes_is_carried() -> None:
    m = model("""(float[2,4] x) => (float[2,3] y) <float[4,8] w, float[2,8] b, float[8,3] v> {
        h = Gemm(x, w, b)
        y = Gemm(h, v)
    }""")
    assert places(groups(m)["w:1"])["b", 1] == "carried"
    assert prune_and_compare(m).weights["b"] == (2, 4)


@pytest.mark.parametrize("lead", ["N", "N,T", "N,2,T"])
def test_matmul_by_a_matrix(lead: str) -> None:
    m = model(f"""(float[{lead},4] x) => (float[{lead},3] y) <float[4,8] w, float[8] b, float[8,3] v> {{
        h = MatMul(x, w)
        a = Add(h, b)
        y = MatMul(a, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    assert places(groups(m)["w:1"]) == {("w", 1): "produced", ("b", 0): "carried", ("v", 0): "contracted"}
    prune_and_compare(m)


def test_matmul_with_the_weight_on_the_left() -> None:
    m = model("""(float[N,4,T] x) => (float[N,3,T] y) <float[8,4] w, float[3,8] v> {
        h = MatMul(w, x)
        r = Relu(h)
        y = MatMul(v, r)
    }""")
    assert prunable(m) == {"w:0": 8}
    assert places(groups(m)["w:0"]) == {("w", 0): "produced", ("v", 1): "contracted"}
    prune_and_compare(m)


def test_matmul_by_a_vector_on_the_right() -> None:
    m = model("""(float[N,4] x) => (float[N] y) <float[4,8] w, float[8] v> {
        h = MatMul(x, w)
        y = MatMul(h, v)
    }""")
    assert places(groups(m)["w:1"]) == {("w", 1): "produced", ("v", 0): "contracted"}
    prune_and_compare(m)


def test_matmul_by_a_vector_on_the_left() -> None:
    m = model("""(float[4,N] x) => (float[N] y) <float[8,4] w, float[8] v> {
        h = MatMul(w, x)
        y = MatMul(v, h)
    }""")
    assert places(groups(m)["w:0"]) == {("w", 0): "produced", ("v", 0): "contracted"}
    prune_and_compare(m)


def test_matmul_by_a_stack_of_matrices() -> None:
    """One matrix for each of 5 experts; the experts stay, for the input has that axis."""
    m = model("""(float[5,N,4] x) => (float[5,N,3] y) <float[5,4,8] w, float[5,1,8] b, float[5,8,3] v> {
        h = MatMul(x, w)
        a = Add(h, b)
        y = MatMul(a, v)
    }""")
    assert prunable(m) == {"w:2": 8}
    assert prune_and_compare(m).weights == {"w": (5, 4, 4), "b": (5, 1, 4), "v": (5, 4, 3)}


def test_the_batch_axis_of_stacked_weights_is_prunable_where_something_else_sums_over_it() -> None:
    m = model("""(float[N,1,6,4] x) => (float[N,6,3] y) <float[5,4,8] w, float[5,8,3] v, int64[1] a = {1}> {
        h = MatMul(x, w)
        k = MatMul(h, v)
        y = ReduceSum<keepdims=0>(k, a)
    }""")
    assert prunable(m)["w:2"] == 8
    prune_and_compare(m)


def test_the_product_of_two_activations_sums_over_a_dimension_of_both() -> None:
    """Single-head attention scores: the width of queries and keys is one dimension, contracted by no stored weight."""
    m = model("""(float[N,6,4] x) => (float[N,6,6] y) <float[4,8] q, float[4,8] k> {
        a = MatMul(x, q)
        b = MatMul(x, k)
        t = Transpose<perm=[0,2,1]>(b)
        y = MatMul(a, t)
    }""")
    assert prunable(m) == {"q:1": 8}
    assert places(groups(m)["q:1"]) == {("q", 1): "produced", ("k", 1): "produced"}
    assert set(prune_and_compare(m).differences) == {"masked"}


def test_a_square_weight_with_one_dimension_on_both_axes() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,8] u, float[8,3] v> {
        h = MatMul(x, w)
        k = MatMul(h, u)
        s = Add(h, k)
        y = MatMul(s, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    assert prune_and_compare(m).weights["u"] == (4, 4)


@pytest.mark.parametrize(("equation", "order"), [("nti,ih->nth", "4,8"), ("nti,hi->nth", "8,4")])
def test_einsum_as_a_linear_layer(equation: str, order: str) -> None:
    m = model(f"""(float[N,T,4] x) => (float[N,T,3] y) <float[{order}] w, float[8] b, float[8,3] v> {{
        h = Einsum<equation="{equation}">(x, w)
        a = Add(h, b)
        y = MatMul(a, v)
    }}""")
    axis = order.split(",").index("8")
    assert prunable(m) == {f"w:{axis}": 8}
    prune_and_compare(m)


def test_einsum_sums_over_a_letter_of_one_operand_alone() -> None:
    m = model("""(float[N,4] x) => (float[N] y) <float[4,8] w> {
        h = MatMul(x, w)
        y = Einsum<equation="nh->n">(h)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_attention_by_einsum() -> None:
    m = model("""(float[N,T,4] x) => (float[N,T,5] y) <float[4,3,4] q, float[4,3,4] k, float[4,3,2] u, float[3,2,5] o> {
        a = Einsum<equation="nti,ihd->nhtd">(x, q)
        b = Einsum<equation="nti,ihd->nhtd">(x, k)
        c = Einsum<equation="nti,ihe->nhte">(x, u)
        s = Einsum<equation="nhtd,nhsd->nhts">(a, b)
        p = Softmax(s)
        z = Einsum<equation="nhts,nhse->nthe">(p, c)
        y = Einsum<equation="nthe,heo->nto">(z, o)
    }""")
    assert prunable(m) == {"q:1": 3, "q:2": 4, "u:2": 2}
    prune_and_compare(m)


@pytest.mark.parametrize("equation", ["...i,ih->...h", "ai,ib", "...ai, ih -> ...ah", "...i,ih"])
def test_einsum_with_an_ellipsis_or_an_implicit_result(equation: str) -> None:
    m = model(f"""(float[2,4] x) => (float[2,3] y) <float[4,6] w, float[6,8] u, float[8,3] v> {{
        h = MatMul(x, w)
        k = Einsum<equation="{equation.replace("ih", "ib") if "->" not in equation else equation}">(h, u)
        y = MatMul(k, v)
    }}""")
    assert prunable(m) == {"w:1": 6, "u:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize("equation", ["...ij->...i", "i...j->...i"])
def test_einsum_that_sums_behind_an_ellipsis(equation: str) -> None:
    order = "0,1,2,3" if equation.startswith("...") else "2,0,1,3"
    m = model(f"""(float[2,5,6,4] x) => (float[2,5,6] y) <float[4,8] w, float[8,9] u> {{
        h = MatMul(x, w)
        t = Transpose<perm=[{order}]>(h)
        y = Einsum<equation="{equation}">(t)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize("equation", ["...ii->...i", "...i->i"])
def test_einsum_in_forms_that_are_not_covered(equation: str) -> None:
    m = model(f"""(float[2,4,4] x) => (float[A,B] z, float[C] y) <float[4,4] w> {{
        h = MatMul(x, w)
        y = Einsum<equation="{equation}">(h)
        z = ReduceSum<keepdims=0>(y)
    }}""")
    told = "an Einsum that takes a diagonal, or sums over the axes of an ellipsis"
    assert reasons(m)["w:1"] == f"Einsum: {told}"


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(
    "call",
    [
        "com.microsoft.FusedMatMul<transB={}, alpha=0.5>(x, w)",
        "com.microsoft.TransposeMatMul<transB={}>(x, w)",
        'com.microsoft.FusedGemm<transB={}, activation="Relu">(x, w, b)',
    ],
)
def test_fused_products(call: str, transposed: int) -> None:
    order = "8,4" if transposed else "4,8"
    m = model(f"""(float[N,4] x) => (float[N,3] y) <float[{order}] w, float[8] b, float[8,3] v> {{
        h = {call.format(transposed)}
        y = com.microsoft.FusedMatMul(h, v)
    }}""")
    assert list(prunable(m).values()) == [8]
    prune_and_compare(m)


def test_products_of_short_integers() -> None:
    m = model("""(int16[N,4] x) => (int32[N,3] y) <int16[4,8] w, int16[8,3] v> {
        h = com.microsoft.MatMulInteger16(x, w)
        k = Cast<to=5>(h)
        y = com.microsoft.MatMulInteger16(k, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)
