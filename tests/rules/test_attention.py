"""Fused attention and the operators fused transformer graphs are made of."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import groups, model, prunable, prune_and_compare, reasons

_PROJECTED = """(float[N,T,4] x) => (float[N,T,4] y)
    <float[4,12] q, float[4,{kv}] k, float[4,{kv}] u, float[36] b, float[12,4] o, float none> {{
    a = MatMul(x, q)
    c = MatMul(x, k)
    d = MatMul(x, u)
    z = {call}
    y = MatMul(z, o)
}}"""


@pytest.mark.parametrize("bias", ["", ", b"])
def test_multi_head_attention_loses_whole_heads(bias: str) -> None:
    call = f"com.microsoft.MultiHeadAttention<num_heads=3>(a, c, d{bias})"
    m = model(_PROJECTED.format(kv=12, call=call))
    assert prunable(m) == {"q:1": 3}
    result = prune_and_compare(m)
    assert result.attribute("MultiHeadAttention", "num_heads") == 2
    assert result.weights["q"] == (4, 8)
    assert result.weights["b"] == ((24,) if bias else (36,))


@pytest.mark.parametrize("mask", ["", ", , mask"])
def test_packed_attention_loses_heads_of_all_three_parts(mask: str) -> None:
    m = model("""(float[N,T,4] x) => (float[N,T,4] y) <float[4,6] e, float[6,36] w, float[36] b, float[12,4] o> {
        h = MatMul(x, e)
        z = com.microsoft.Attention<num_heads=3>(h, w, b)
        y = MatMul(z, o)
    }""")
    assert prunable(m) == {"e:1": 6, "w:1": 3}
    result = prune_and_compare(m)
    assert result.weights["w"] == (3, 24)
    assert result.attribute("Attention", "num_heads") == 2


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 3)])
def test_attention_of_onnx_with_packed_heads(heads: int, kv_heads: int) -> None:
    call = f"Attention<q_num_heads={heads}, kv_num_heads={kv_heads}>(a, c, d)"
    m = model(_PROJECTED.format(kv=12 * kv_heads // heads, call=call), opset=23, ir=11)
    assert prunable(m) == {"q:1": 3} | ({"q:1#2": 2} if heads > kv_heads else {})
    result = prune_and_compare(m)
    assert result.attribute("Attention", "q_num_heads") == 2 * heads // 3


@pytest.mark.parametrize("scale", ["", "<scale=0.5>"])
def test_attention_of_onnx_by_head(scale: str) -> None:
    """With a scale of its own, queries and keys lose features too."""
    m = model(
        """(float[N,6,4] x) => (float[N,6,4] y)
        <float[4,12] q, float[4,12] k, float[4,12] u, float[12,4] o, int64[4] apart = {0,6,3,4},
        int64[3] flat = {0,6,12}> {
        a = MatMul(x, q)
        b = MatMul(x, k)
        c = MatMul(x, u)
        a4 = Reshape(a, apart)
        b4 = Reshape(b, apart)
        c4 = Reshape(c, apart)
        at = Transpose<perm=[0,2,1,3]>(a4)
        bt = Transpose<perm=[0,2,1,3]>(b4)
        ct = Transpose<perm=[0,2,1,3]>(c4)
        z = Attention{scale}(at, bt, ct)
        zt = Transpose<perm=[0,2,1,3]>(z)
        f = Reshape(zt, flat)
        y = MatMul(f, o)
    }""".replace("{scale}", scale),
        opset=23,
        ir=11,
    )
    assert 3 in prunable(m).values()
    assert any("scale" in r for r in reasons(m).values()) == (not scale)
    assert list(prunable(m).values()).count(4) == (2 if scale else 1)
    prune_and_compare(m)


def test_group_query_attention_drops_a_key_value_head_with_its_queries() -> None:
    m = model("""(float[2,6,4] x) => (float[2,6,4] y)
        <float[4,64] q, float[4,32] k, float[4,32] u, float[64,4] o, int32[2] last = {5,5}, int32 total = {6}> {
        a = MatMul(x, q)
        c = MatMul(x, k)
        d = MatMul(x, u)
        z = com.microsoft.GroupQueryAttention<num_heads=8, kv_num_heads=4>(a, c, d, , , last, total)
        y = MatMul(z, o)
    }""")
    assert prunable(m) == {"q:1": 4, "q:1#2": 2}
    result = prune_and_compare(m)
    assert result.attribute("GroupQueryAttention", "num_heads") == 4
    assert result.attribute("GroupQueryAttention", "kv_num_heads") == 2


def test_rotary_embedding_keeps_the_width_of_a_head() -> None:
    m = model("""(float[2,6,4] x) => (float[2,6,4] y)
        <float[4,12] q, float[12,4] o, int64[2,6] i = {0,1,2,3,4,5,0,1,2,3,4,5}, float[8,2] c, float[8,2] s> {
        a = MatMul(x, q)
        r = com.microsoft.RotaryEmbedding<num_heads=3, rotary_embedding_dim=4>(a, i, c, s)
        y = MatMul(r, o)
    }""")
    assert prunable(m) == {"q:1": 3}
    assert reasons(m)["q:1#2"] == "RotaryEmbedding: RotaryEmbedding turns pairs within a head"
    prune_and_compare(m)


def test_rotary_embedding_of_onnx() -> None:
    m = model(
        """(float[2,6,4] x) => (float[2,6,4] y)
        <float[4,12] q, float[12,4] o, int64[2,6] i = {0,1,2,3,4,5,0,1,2,3,4,5}, float[8,2] c, float[8,2] s> {
        a = MatMul(x, q)
        r = RotaryEmbedding<num_heads=3>(a, c, s, i)
        y = MatMul(r, o)
    }""",
        opset=23,
        ir=11,
    )
    assert prunable(m) == {"q:1": 3}
    prune_and_compare(m)


@pytest.mark.parametrize(
    "call",
    [
        "com.microsoft.SkipLayerNormalization(h, k, g, s, b)",
        "com.microsoft.SkipSimplifiedLayerNormalization(h, k, g, b)",
    ],
)
def test_skip_layer_normalization_couples_the_branches(call: str) -> None:
    m = model(f"""(float[2,6,4] x) => (float[2,6,3] y)
        <float[4,8] w, float[4,8] u, float[8] g, float[8] s, float[8] b, float[8,3] v> {{
        h = MatMul(x, w)
        k = MatMul(x, u)
        n = {call}
        y = MatMul(n, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    assert groups(m)["w:1"].renormalised
    result = prune_and_compare(m)
    assert result.weights["g"] == (4,)
    assert result.weights["b"] == (4,)


def test_the_sum_skip_layer_normalization_passes_on() -> None:
    m = model("""(float[2,6,4] x) => (float[2,6,3] y)
        <float[4,8] w, float[4,8] u, float[8] g, float[8] s, float[8,3] v> {
        h = MatMul(x, w)
        k = MatMul(x, u)
        n, a, b, sum = com.microsoft.SkipLayerNormalization(h, k, g, s)
        t = Add(n, sum)
        y = MatMul(t, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_embed_layer_normalization() -> None:
    m = model("""(int32[N,6] ids, int32[N,6] segments) => (float[N,6,3] y)
        <float[9,8] tokens, float[6,8] positions, float[4,8] kinds, float[8] g, float[8] b, float[8,3] v> {
        h, i = com.microsoft.EmbedLayerNormalization(ids, segments, tokens, positions, kinds, g, b)
        y = MatMul(h, v)
    }""")
    assert list(prunable(m).values()) == [8]
    result = prune_and_compare(m)
    assert result.weights["positions"] == (6, 4)


@pytest.mark.parametrize(
    "call",
    [
        "com.microsoft.BiasGelu(h, b)",
        "com.microsoft.FastGelu(h, b)",
        "com.microsoft.FastGelu(h)",
        "com.microsoft.QuickGelu(h)",
        "com.microsoft.Gelu(h)",
        "com.microsoft.BiasAdd(h, b, h)",
    ],
)
def test_fused_activations_are_element_wise(call: str) -> None:
    m = model(f"""(float[2,6,4] x) => (float[2,6,3] y) <float[4,8] w, float[8] b, float[8,3] v, float[2,6,8] g> {{
        h = MatMul(x, w)
        g = {call}
        y = MatMul(g, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    if "BiasAdd" not in call:
        prune_and_compare(m)


def test_an_activation_that_halves_its_operand_is_left_alone() -> None:
    m = model("""(float[2,6,4] x) => (float[2,6,3] y) <float[4,8] w, float[8] b, float[2,6,4] g, float[4,3] v> {
        h = MatMul(x, w)
        g = com.microsoft.BiasSplitGelu(h, b)
        y = MatMul(g, v)
    }""")
    assert prunable(m) == {}
    assert "w:1" in reasons(m)


@pytest.mark.parametrize("columns", [False, True])
def test_quantized_attention(columns: bool) -> None:
    scale = "36" if columns else "1"
    m = model(
        f"""(float[N,6,4] x) => (float[N,6,4] y) <float[4,6] e, uint8[6,36] w, float[36] b, float[12,4] o,
        float[{scale}] ws, uint8[{scale}] wz> {{
        h = MatMul(x, e)
        q, s, z = DynamicQuantizeLinear(h)
        a = com.microsoft.QAttention<num_heads=3>(q, w, b, s, ws, , z, wz)
        y = MatMul(a, o)
    }}""",
        ws=np.full(int(scale), 0.01),
        wz=np.full(int(scale), 50),
    )
    assert prunable(m) == {"e:1": 6, "w:1": 3}
    result = prune_and_compare(m)
    assert result.weights["w"] == (3, 24)
    assert result.attribute("QAttention", "num_heads") == 2


@pytest.mark.parametrize(("heads", "decay"), [(3, "3"), (6, "12")])
def test_linear_attention_loses_whole_heads(heads: int, decay: str) -> None:
    m = model(f"""(float[N,T,4] x) => (float[N,T,4] y, float[N,3,4,5] state)
        <float[4,{4 * heads}] q, float[4,12] k, float[4,15] u, float[4,{decay}] g, float[4,3] r,
        float[{5 * heads},4] o, float[3] gb, float[3] gs> {{
        a = MatMul(x, q)
        b = MatMul(x, k)
        c = MatMul(x, u)
        d = MatMul(x, g)
        e = Sigmoid(d)
        l = Neg(e)
        f = MatMul(x, r)
        i = Sigmoid(f)
        z, state = com.microsoft.LinearAttention<q_num_heads={heads}, kv_num_heads=3>(a, b, c, , l, i)
        y = MatMul(z, o)
    }}""")
    assert "graph output" in reasons(m)["q:1"]
    m.graph.output.pop()
    assert prunable(m) == {"q:1": 3} | ({"q:1#2": 2} if heads > 3 else {})
    prune_and_compare(m, factors=True)
    result = prune_and_compare(m)
    assert result.attribute("LinearAttention", "q_num_heads") == 2 * heads // 3
    assert result.weights["r"] == (4, 2)


def test_the_gates_of_linear_attention() -> None:
    m = model("""(float[N,T,4] x) => (float[N,T,4] y, float[N,T,4] z)
        <float[4,6] q, float[4,6] k, float[6] b, float[6] s, float[6,4] o> {
        a = MatMul(x, q)
        c = MatMul(x, k)
        d, r = com.microsoft.LinearAttentionGate(a, b, s, c)
        y = MatMul(d, o)
        z = MatMul(r, o)
    }""")
    assert prunable(m) == {"q:1": 6}
    prune_and_compare(m)


def test_rotary_embedding_of_images_and_text() -> None:
    m = model("""(float[2,6,4] x, int64[3,2,6] i) => (float[2,6,4] y)
        <float[4,24] q, float[24,4] o, float[8,4] c, float[8,4] s> {
        a = MatMul(x, q)
        r = com.microsoft.MRotaryEmbedding<num_heads=3, mrope_section=[2,1,1], rotary_embedding_dim=8>(a, i, c, s)
        y = MatMul(r, o)
    }""")
    assert prunable(m) == {"q:1": 3}
    prune_and_compare(m)


def test_quantized_embeddings() -> None:
    m = model(
        """(int32[N,6] ids, int32[N,6] segments) => (float[N,6,3] y)
        <uint8[9,8] tokens, uint8[6,8] positions, uint8[4,8] kinds, uint8[8] g, uint8[8] b, float[8,3] v,
        float s, uint8 z = {50}> {
        h, i = com.microsoft.QEmbedLayerNormalization(ids, segments, tokens, positions, kinds, g, b, ,
            s, s, s, s, s, z, z, z, z, z)
        y = MatMul(h, v)
    }""",
        s=np.asarray(0.03),
    )
    assert list(prunable(m).values()) == [8]
    result = prune_and_compare(m)
    assert result.weights["positions"] == (6, 4)


@pytest.mark.parametrize("call", ["com.microsoft.GatedAdd(h, k, r)", "com.microsoft.ScaledSiLU<alpha=1.5>(h)"])
def test_gates_are_element_wise(call: str) -> None:
    m = model(f"""(float[2,6,4] x) => (float[2,6,3] y) <float[4,8] w, float[4,8] u, float[4,1] t, float[8,3] v> {{
        h = MatMul(x, w)
        k = MatMul(x, u)
        r = MatMul(x, t)
        g = {call}
        s = Add(g, k)
        y = MatMul(s, v)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_linear_attention_of_onnx() -> None:
    """Newer than the runtime, so analysed only."""
    call = 'LinearAttention<q_num_heads=3, kv_num_heads=3, update_rule="linear">(a, c, d)'
    text = _PROJECTED.format(kv=12, call=call).replace("z =", "z, s =")
    assert prunable(model(text, opset=27, ir=10)) == {"q:1": 3}


_GROUPED = """(float[1,6,4] x{inputs}) => (float[1,6,4] y{outputs})
    <float[4,5] e, float[5,64] q, float[5,32] k, float[5,32] u, float[64,4] o,
    int32[1] last = {{8}}, int32 total = {{9}}, int64[4] none = {{1,4,3,8}}> {{
    h = MatMul(x, e)
    a = MatMul(h, q)
    c = MatMul(h, k)
    d = MatMul(h, u)
    {past}
    z, pk, pv = {call}
    y = MatMul(z, o)
}}"""
_GQA = "com.microsoft.GroupQueryAttention<num_heads=8, kv_num_heads=4>(a, c, d, p, r, last, total)"
_STANDARD = "Attention<q_num_heads=8, kv_num_heads=4>(a, c, d, , p, r)"
_MADE = "p = ConstantOfShape(none)\n r = ConstantOfShape(none)"
_GIVEN = {"inputs": ", float[1,4,3,8] p, float[1,4,3,8] r", "outputs": ", float[1,4,9,8] pk, float[1,4,9,8] pv"}


@pytest.mark.parametrize(("call", "opset"), [(_GQA, 17), (_STANDARD, 23)], ids=["GroupQueryAttention", "Attention"])
def test_a_cache_of_the_interface_keeps_the_key_value_heads_alone(call: str, opset: int) -> None:
    m = model(_GROUPED.format(call=call, past="", **_GIVEN), opset=opset, ir=11 if opset > 21 else 8)
    assert prunable(m) == {"e:1": 5, "q:1#2": 2}
    assert reasons(m)["q:1"] == "graph input: the interface keeps its shape"
    result = prune_and_compare(m)
    assert result.weights["q"] == (2, 32)
    assert result.weights["k"] == (2, 32)


@pytest.mark.parametrize(("call", "opset"), [(_GQA, 17), (_STANDARD, 23)], ids=["GroupQueryAttention", "Attention"])
def test_a_cache_inside_the_model_loses_heads(call: str, opset: int) -> None:
    m = model(_GROUPED.format(call=call, past=_MADE, inputs="", outputs=""), opset=opset, ir=11 if opset > 21 else 8)
    assert prunable(m) == {"e:1": 5, "q:1": 4, "q:1#2": 2}
    result = prune_and_compare(m)
    assert result.weights["k"] == (2, 16)
    assert result.weights["q"] == (2, 32)


_ALIKE = """(float[2,6,4] x{inputs}) => (float[2,6,4] y{outputs})
    <float[4,5] e, float[5,12] q, float[5,12] k, float[5,12] u, float[12,4] o, int64[4] none = {{2,3,7,4}}> {{
    h = MatMul(x, e)
    a = MatMul(h, q)
    c = MatMul(h, k)
    d = MatMul(h, u)
    {past}
    z, pk, pv = com.microsoft.MultiHeadAttention<num_heads=3>(a, c, d, , , , p, r)
    y = MatMul(z, o)
}}"""


def test_multi_head_attention_with_a_cache() -> None:
    ends = {"inputs": ", float[2,3,7,4] p, float[2,3,7,4] r", "outputs": ", float[2,3,13,4] pk, float[2,3,13,4] pv"}
    kept = model(_ALIKE.format(past="", **ends))
    assert prunable(kept) == {"e:1": 5}
    prune_and_compare(kept)
    m = model(_ALIKE.format(past=_MADE, inputs="", outputs=""))
    assert prunable(m) == {"e:1": 5, "q:1": 3}
    assert prune_and_compare(m).attribute("MultiHeadAttention", "num_heads") == 2


def test_packed_attention_with_a_cache() -> None:
    text = """(float[2,6,4] x, float[2,2,3,5,4] p) => (float[2,6,4] y, float[2,2,3,11,4] pr)
        <float[4,6] e, float[6,36] w, float[36] b, float[12,4] o, int64[5] none = {2,2,3,5,4}> {
        h = MatMul(x, e)
        z, pr = com.microsoft.Attention<num_heads=3>(h, w, b, , p)
        y = MatMul(z, o)
    }"""
    assert prunable(model(text)) == {"e:1": 6}
    prune_and_compare(model(text))
    inside = text.replace(", float[2,2,3,5,4] p", "").replace(", float[2,2,3,11,4] pr", "")
    m = model(inside.replace("z, pr =", "p = ConstantOfShape(none)\n z, pr ="))
    assert prunable(m) == {"e:1": 6, "w:1": 3}
    prune_and_compare(m)
