"""Element-wise operators, and those that look like them."""

from __future__ import annotations

import pytest
from oracle import groups, model, places, prunable, prune_and_compare, reasons

_MATRICES = """(float[N,4] x) => (float[N,3] y) <float[4,8] w, {weights} float[8,3] v> {{
    h = MatMul(x, w)
    {body}
    y = MatMul(r, v)
}}"""


def _between(body: str, weights: str = "") -> str:
    return _MATRICES.format(body=body, weights=weights)


FLOAT_UNARY = (
    "Abs Atan Ceil Celu Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg Reciprocal Relu",
    "Round Selu Shrink Sigmoid Sign Sin Softplus Softsign Tanh ThresholdedRelu Cosh Sinh Tan Asinh",
)
LIMITED_UNARY = ["Acos", "Asin", "Atanh", "Acosh", "Log", "Sqrt"]
"""Defined on part of the real line: fed with the sigmoid, plus one for Acosh."""


@pytest.mark.parametrize("op", " ".join(FLOAT_UNARY).split())
def test_a_function_of_each_element_passes_every_dimension(op: str) -> None:
    call = "ThresholdedRelu<alpha=0.1>" if op == "ThresholdedRelu" else op
    m = model(_between(f"r = {call}(h)"), opset=20, ir=9)
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize("op", LIMITED_UNARY)
def test_a_function_of_part_of_the_real_line(op: str) -> None:
    shift = "one" if op == "Acosh" else "zero"
    weights = "float zero = {0}, float one = {1},"
    m = model(_between(f"s = Sigmoid(h)\n    t = Add(s, {shift})\n    r = {op}(t)", weights), opset=17)
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize("op", ["Swish"])
def test_functions_onnx_defines_by_others(op: str) -> None:
    m = model(_between(f"r = {op}(h)"), opset=24, ir=11)
    assert prunable(m) == {"w:1": 8}


@pytest.mark.parametrize(
    "body",
    [
        "b = Greater(h, zero)\n r = Cast<to=1>(b)",
        "b = GreaterOrEqual(h, zero)\n r = Cast<to=1>(b)",
        "b = Less(h, zero)\n r = Cast<to=1>(b)",
        "b = LessOrEqual(h, zero)\n r = Cast<to=1>(b)",
        "s = Sign(h)\n b = Equal(s, one)\n n = Not(b)\n r = Cast<to=1>(n)",
        "a = Greater(h, zero)\n b = Less(h, one)\n c = And(a, b)\n r = Cast<to=1>(c)",
        "a = Greater(h, one)\n b = Less(h, zero)\n c = Or(a, b)\n r = Cast<to=1>(c)",
        "a = Greater(h, zero)\n b = Less(h, one)\n c = Xor(a, b)\n r = Cast<to=1>(c)",
        "a = Div(h, zero)\n b = IsInf(a)\n n = IsNaN(a)\n c = Or(b, n)\n r = Cast<to=1>(c)",
        "a = Cast<to=7>(h)\n b = Mod(a, two)\n r = CastLike(b, h)",
        "a = Cast<to=6>(h)\n b = BitwiseNot(a)\n r = Cast<to=1>(b)",
        "a = Cast<to=6>(h)\n b = BitwiseAnd(a, three)\n r = Cast<to=1>(b)",
        "a = Cast<to=6>(h)\n b = BitwiseOr(a, three)\n r = Cast<to=1>(b)",
        "a = Cast<to=6>(h)\n b = BitwiseXor(a, three)\n r = Cast<to=1>(b)",
        'p = Abs(h)\n a = Cast<to=12>(p)\n b = BitShift<direction="LEFT">(a, shift)\n r = Cast<to=1>(b)',
    ],
)
def test_comparisons_logic_and_integers(body: str) -> None:
    weights = "float zero = {0}, float one = {1}, int64 two = {2}, int32 three = {3}, uint32 shift = {1},"
    scale = _MATRICES.format(body=body, weights=weights)
    m = model(scale, opset=18, ir=9)
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Pow"])
@pytest.mark.parametrize("shape", ["8", "1,8", "1", ""])
def test_a_constant_operand_is_carried_where_it_has_the_axis(op: str, shape: str) -> None:
    declared = f"float[{shape}]" if shape else "float"
    base = "Sigmoid" if op == "Pow" else "Identity"
    m = model(_between(f"s = {base}(h)\n r = {op}(s, c)", f"{declared} c,"))
    coupled = {("w", 1): "produced", ("v", 0): "contracted"}
    if "8" in shape:
        coupled["c", shape.count(",")] = "carried"
    assert places(groups(m)["w:1"]) == coupled
    prune_and_compare(m)


def test_a_residual_addition_couples_both_branches() -> None:
    m = model("""(float[N,3,H,W] x) => (float[N,5,H,W] y)
        <float[8,3,1,1] w, float[8,8,3,3] u, float[8] b, float[5,8,1,1] v> {
        h = Conv(x, w)
        r = Relu(h)
        k = Conv<pads=[1,1,1,1]>(r, u, b)
        s = Add(k, h)
        y = Conv(s, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    assert {t for t, _ in places(groups(m)["w:0"])} == {"w", "u", "b", "v"}
    assert prune_and_compare(m).weights["u"] == (4, 4, 3, 3)


def test_a_sum_of_three_branches_and_a_gate() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] a, float[4,8] b, float[4,8] c, float[4,1] g,
        float[8,3] v> {
        p = MatMul(x, a)
        q = MatMul(x, b)
        r = MatMul(x, c)
        s = Sum(p, q, r)
        l = MatMul(x, g)
        gate = Sigmoid(l)
        t = Mul(s, gate)
        y = MatMul(t, v)
    }""")
    assert prunable(m) == {"a:1": 8}
    assert places(groups(m)["a:1"])["c", 1] == "produced"
    prune_and_compare(m)


def test_squeeze_and_excitation_scales_channels_by_a_computed_gate() -> None:
    m = model("""(float[N,3,H,W] x) => (float[N,5,H,W] y)
        <float[8,3,1,1] w, float[2,8,1,1] s, float[8,2,1,1] e, float[5,8,1,1] v> {
        h = Conv(x, w)
        p = GlobalAveragePool(h)
        a = Conv(p, s)
        r = Relu(a)
        b = Conv(r, e)
        g = HardSigmoid(b)
        t = Mul(h, g)
        y = Conv(t, v)
    }""")
    assert prunable(m) == {"w:0": 8, "s:0": 2}
    assert places(groups(m)["w:0"])["e", 0] == "produced"
    prune_and_compare(m)


def test_an_operand_from_the_input_freezes_what_is_added_to_it() -> None:
    m = model("""(float[N,4] x, float[N,8] z) => (float[N,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        s = Add(h, z)
        y = MatMul(s, v)
    }""")
    assert prunable(m) == {}
    assert reasons(m)["w:1"] == "graph input: the interface keeps its shape"


def test_a_frozen_dimension_on_both_axes_of_one_weight_is_reported() -> None:
    m = model("""(float[N,8] x) => (float[N,3] y) <float[8,8] w, float[8,3] v> {
        h = MatMul(x, w)
        s = Add(h, x)
        y = MatMul(s, v)
    }""")
    assert reasons(m)["w:1"] == "graph input: the interface keeps its shape"


@pytest.mark.parametrize("slope", ["8,1,1", "1,1", "1"])
def test_prelu_carries_its_slopes(slope: str) -> None:
    m = model(f"""(float[N,3,H,W] x) => (float[N,5,H,W] y) <float[8,3,1,1] w, float[{slope}] s, float[5,8,1,1] v> {{
        h = Conv(x, w)
        r = PRelu(h, s)
        y = Conv(r, v)
    }}""")
    assert (("s", 0) in places(groups(m)["w:0"])) == ("8" in slope)
    prune_and_compare(m)


def test_where_couples_both_branches_and_a_mask_of_the_same_axis() -> None:
    m = model(_between("k = MatMul(x, u)\n b = Greater(h, t)\n r = Where(b, h, k)", "float[4,8] u, float[8] t,"))
    assert prunable(m) == {"w:1": 8}
    assert places(groups(m)["w:1"])["u", 1] == "produced"
    assert places(groups(m)["w:1"])["t", 0] == "carried"
    prune_and_compare(m)


@pytest.mark.parametrize(
    ("opset", "body"), [(10, "Clip<min=-0.5, max=0.5>(h)"), (17, "Clip(h, low)"), (17, "Clip(h, low, high)")]
)
def test_clip_has_scalar_bounds(opset: int, body: str) -> None:
    bounds = "float low = {-0.5}, float high = {0.25}," if opset > 10 else ""
    m = model(_between(f"r = {body}", bounds), opset=opset)
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize("body", ["r = Dropout(h)", "r, mask = Dropout(h)", "r = Dropout(h, ratio)"])
def test_dropout_is_the_identity(body: str) -> None:
    m = model(_between(body, "float ratio = {0.25},"))
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_freezes_its_own_axis(op: str) -> None:
    m = model(_between(f"r = {op}(h)"))
    assert reasons(m)["w:1"] == f"{op}: {op} compares along this axis"
    other = model(
        """(float[N,6,4] x) => (float[N,6,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        r = OP<axis=1>(h)
        y = MatMul(r, v)
    }""".replace("OP", op)
    )
    assert prunable(other) == {"w:1": 8}
    prune_and_compare(other)


@pytest.mark.parametrize(("opset", "axis", "frozen"), [(11, 1, True), (11, 2, True), (13, 1, False), (13, 2, True)])
def test_softmax_before_opset_13_compares_along_all_axes_from_its_own_on(opset: int, axis: int, frozen: bool) -> None:
    m = model(
        f"""(float[N,6,4] x) => (float[N,6,3] y) <float[4,8] w, float[8,3] v> {{
        h = MatMul(x, w)
        r = Softmax<axis={axis}>(h)
        y = MatMul(r, v)
    }}""",
        opset=opset,
    )
    assert ("w:1" in reasons(m)) == frozen
    if not frozen:
        prune_and_compare(m)


def test_softmax_without_an_axis_means_the_second_before_opset_13_and_the_last_after() -> None:
    text = """(float[N,4,5,5] x) => (float[N,3,5,5] y) <float[8,4,1,1] w, float[3,8,1,1] v> {
        h = Conv(x, w)
        r = Softmax(h)
        y = Conv(r, v)
    }"""
    assert reasons(model(text, opset=11))["w:0"] == "Softmax: Softmax compares along this axis"
    assert prunable(model(text, opset=13)) == {"w:0": 8}
    prune_and_compare(model(text, opset=13))


@pytest.mark.parametrize(("axis", "frozen"), [("1", False), ("2", True), ("-1", True)])
def test_cumsum_freezes_the_axis_it_runs_along(axis: str, frozen: bool) -> None:
    m = model(f"""(float[N,6,4] x) => (float[N,6,3] y) <float[4,8] w, float[8,3] v, int64 k = {{{axis}}}> {{
        h = MatMul(x, w)
        r = CumSum(h, k)
        y = MatMul(r, v)
    }}""")
    if frozen:
        assert reasons(m)["w:1"] == "CumSum: CumSum runs along this axis"
    else:
        assert prunable(m) == {"w:1": 8}
        prune_and_compare(m)


def test_cumulative_products_of_tokens() -> None:
    m = model(
        """(float[N,6,4] x) => (float[N,6,3] y) <float[4,8] w, float[8,3] v, int64 k = {1}> {
        h = MatMul(x, w)
        r = CumProd(h, k)
        y = MatMul(r, v)
    }""",
        opset=26,
        ir=10,
    )
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_bits_of_another_type_and_back() -> None:
    m = model(_between("i = BitCast<to=6>(h)\n r = BitCast<to=1>(i)"), opset=26, ir=10)
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_gates_with_swish() -> None:
    """Newer than the runtime, so analysed only."""
    m = model(_between("r = SwiGLU(h, h)"), opset=28, ir=10)
    assert prunable(m) == {"w:1": 8}


def test_cumsum_along_a_computed_axis_freezes_everything() -> None:
    m = model("""(float[N,6,4] x, int64 k) => (float[N,6,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        r = CumSum(h, k)
        y = MatMul(r, v)
    }""")
    assert reasons(m)["w:1"] == "CumSum: CumSum runs along this axis"


def test_broadcasting_by_an_axis_attribute_is_refused_before_opset_7() -> None:
    m = model(
        """(float[2,3,4,4] x) => (float[2,5,4,4] y) <float[8,3,1,1] w, float[8] b, float[5,8,1,1] v> {
        h = Conv(x, w)
        r = Add<broadcast=1, axis=1>(h, b)
        y = Conv(r, v)
    }""",
        opset=6,
        ir=3,
    )
    assert reasons(m)["w:0"] == "Add: broadcasting by `axis`, as before opset 7"
