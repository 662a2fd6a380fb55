"""Fused attention and the operators that fused transformer graphs are made of.

heads are the outer factor of a projection: (h d). The width d of a head fixes the default scale 1/sqrt(d), so it
stays; whole heads go. With grouped queries (kv r d): each key-value head serves r query heads, and what goes of them is
the same of every key-value head. A cache has the key-value heads as its second axis; where it is an input or a result
of the model, they are part of the interface and stay, while query heads may still go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.rules.norm import state_layer_normalization
from onnxprune.rules.registry import FIXED_FACTOR, Operator, rule

CONTRIB = "com.microsoft"


def _heads(op: Operator, projection: Dim, heads: Dim) -> None:
    """State that `projection` is (heads, width) with a fixed width."""
    found, width = op.factor(projection, [heads.size, projection.size // heads.size])
    op.unify(found, heads)
    op.freeze(width, f"{op.kind} derives its scale from the width of a head")


def _grouped_heads(op: Operator, heads: int, groups: int) -> tuple[Dim, Dim]:
    """Tie q: b t (kv r d), k: b s (kv d), v: b s (kv e). Returns (kv, all query heads)."""
    kv = dims.atom(groups)
    (b, t, q), (b_k, s, k), (b_v, s_v, v) = op.dims(0), op.dims(1), op.dims(2)
    op.freeze(t, f"{op.kind} knows the place of a query")
    found, repeats, width = op.factor(q, [groups, heads // groups, q.size // heads])
    op.unify(found, kv)
    op.freeze(width, f"{op.kind} derives its scale from the width of a head")
    for projection in (k, v):
        _heads(op, projection, kv)
    _same_keys(op, (b, b_k, b_v), (s, s_v))
    return kv, dims.prod([kv, repeats])


def _same_keys(op: Operator, batches: Sequence[Dim], keys: Sequence[Dim]) -> None:
    for d in batches[1:]:
        op.unify(batches[0], d)
    op.unify(keys[0], keys[1])
    op.freeze(keys[0], f"{op.kind} compares along the keys")


def _mask(op: Operator, operand: int, heads: Dim) -> None:
    """A mask or bias stays, except that its third axis from the right, if it has one, is the heads."""
    for back, d in enumerate(reversed(op.inputs[operand] or () if op.has(operand) else ()), start=1):
        if back == 3 and d.size == heads.size != 1:
            op.unify(d, heads)
        else:
            op.freeze(d, f"the mask of {op.kind}")


def _caches(op: Operator, operands: Sequence[int], outputs: Sequence[int], batch: Dim, heads: Dim) -> None:
    """Past and present keys and values: b heads p d, or 2 b heads p d of both."""
    past = [op.inputs[i] for i in operands if op.has(i)]
    for cache in (*past, *(op.outputs[i] for i in outputs if i < len(op.outputs))):
        if cache:
            *both, b, h, places, width = cache
            op.unify(b, batch)
            op.unify(h, heads)
            for d in (*both, places, width):
                op.freeze(d, f"the cache of {op.kind}")


def _scalars(op: Operator, operands: Iterable[int]) -> None:
    """Lengths and tables that have no axis of heads."""
    for operand in operands:
        for d in op.inputs[operand] or () if op.has(operand) else ():
            op.freeze(d, f"an operand of {op.kind}")


def _attention_macs(op: Operator, out: Sequence[Dim], keys: Dim, width: Dim) -> None:
    """Scores and weighted sum: queries x keys x projection, twice."""
    op.macs(*out[:-1], keys, width)
    op.macs(*out[:-1], keys, out[-1])


@rule("Attention", domain=CONTRIB)
def packed_attention(op: Operator) -> None:
    """x: b t e, w: e (3 parts), bias: (3 parts), past: 2 b h p d -> b t v, present; each part is (h d)."""
    b, t, e = op.dims(0)
    op.unify(op.dims(1)[0], e)
    op.freeze(t, "Attention compares along the keys")
    total = op.dims(1)[1].size
    sizes = op.attribute("qkv_hidden_sizes") or [total // 3] * 3
    heads = dims.atom(op.attribute("num_heads"))
    parts = op.split(op.dims(1)[1], sizes)
    for part in parts:
        _heads(op, part, heads)
    if op.has(2):
        op.unify(op.dims(2)[0], dims.cat(parts))
    _mask(op, 3, heads)
    _mask(op, 5, heads)
    _caches(op, [4], [1], b, heads)
    _scalars(op, [6])
    op.outputs[0] = (b, t, parts[2])
    op.contract(0, [2])
    op.role(1, 0, "contracted")
    op.role(1, 1, "produced")
    op.sizes("num_heads", [heads])
    if "qkv_hidden_sizes" in op.attributes:
        op.sizes("qkv_hidden_sizes", parts)
    op.macs(b, t, e, op.dims(1)[1])
    _attention_macs(op, op.outputs[0], t, parts[0])


@rule("QAttention", domain=CONTRIB)
def quantized_attention(op: Operator) -> None:
    """x: b t e, w: e (3 h d), bias: (3 h d), their scales and zero points -> b t (h d)."""
    if op.has(8) or len(op.outputs) > 1:
        raise ValueError("QAttention with a cache")
    (b, t, e), (rows, total) = op.dims(0), op.dims(1)
    op.unify(rows, e)
    op.freeze(t, "QAttention compares along the keys")
    heads = dims.atom(op.attribute("num_heads"))
    three, found, width = op.factor(total, [3, heads.size, total.size // (3 * heads.size)])
    op.freeze(three, FIXED_FACTOR)
    op.unify(found, heads)
    op.freeze(width, "QAttention derives its scale from the width of a head")
    for operand in (2, 4, 7):
        for d in op.dims(operand) if op.has(operand) else ():
            if d.size > 1:
                op.unify(d, total)
    _mask(op, 5, heads)
    op.outputs[0] = (b, t, dims.prod([heads, width]))
    op.contract(0, [2], quantized=True)
    op.role(1, 0, "contracted")
    op.role(1, 1, "produced")
    op.sizes("num_heads", [heads])
    op.macs(b, t, e, total)
    _attention_macs(op, op.outputs[0], t, op.outputs[0][2])


@rule("MultiHeadAttention", domain=CONTRIB)
def multi_head_attention(op: Operator) -> None:
    """q: b t (h d), k: b s (h d), v: b s (h e), bias: the three end to end, past: b h p d -> b t (h e), present."""
    plain = op.has(1) and op.has(2) and len(op.dims(0)) == len(op.dims(1)) == len(op.dims(2)) == 3
    if not plain or len(op.outputs) > 3 or op.has(9):
        raise ValueError("MultiHeadAttention with packed operands or beams")
    count = op.attribute("num_heads")
    heads, _ = _grouped_heads(op, count, count)
    (b, t, q), (_, s, k), (_, _, v) = op.dims(0), op.dims(1), op.dims(2)
    if op.has(3):
        op.unify(op.dims(3)[0], dims.cat([q, k, v]))
    for d in op.dims(4) if op.has(4) else ():
        op.freeze(d, "the mask of MultiHeadAttention")
    _mask(op, 5, heads)
    _caches(op, [6, 7], [1, 2], b, heads)
    _scalars(op, [8])
    op.outputs[0] = (b, t, v)
    op.sizes("num_heads", [heads])
    _attention_macs(op, op.outputs[0], s, q)


@rule("GroupQueryAttention", domain=CONTRIB)
def group_query_attention(op: Operator) -> None:
    """q: b t (kv r d), k, v: b s (kv d), caches: b kv p d -> b t (kv r d), caches."""
    if not (op.has(1) and op.has(2)) or len(op.outputs) > 3 or any(op.has(i) for i in range(11, len(op.inputs))):
        raise ValueError("GroupQueryAttention with packed operands, sinks or quantized caches")
    kv, heads = _grouped_heads(op, op.attribute("num_heads"), op.attribute("kv_num_heads"))
    _caches(op, [3, 4], [1, 2], op.dims(0)[0], kv)
    _scalars(op, range(5, 10))
    _mask(op, 10, heads)
    q = op.dims(0)[2]
    op.outputs[0] = (*op.dims(0)[:2], q)
    op.sizes("kv_num_heads", [kv])
    op.sizes("num_heads", [heads])
    _attention_macs(op, op.outputs[0], op.dims(1)[1], q)


@rule("Attention", since=23)
def attention(op: Operator) -> None:
    """q: b t (kv r d) or b (kv r) t d; k, v alike with kv heads; the mask ends in heads, t, s; caches: b kv p d."""
    if len(op.outputs) > 3:
        raise ValueError("Attention whose scores are a result")
    _scalars(op, [6])
    if len(op.dims(0)) == 4:
        _attention_by_head(op)
        return
    kv, heads = _grouped_heads(op, op.attribute("q_num_heads"), op.attribute("kv_num_heads"))
    v = op.dims(2)[2]
    value_width = op.factor(v, [kv.size, v.size // kv.size])[1]
    _mask(op, 3, heads)
    _caches(op, [4, 5], [1, 2], op.dims(0)[0], kv)
    op.outputs[0] = (*op.dims(0)[:2], dims.prod([heads, value_width]))
    op.sizes("kv_num_heads", [kv])
    op.sizes("q_num_heads", [heads])
    _attention_macs(op, op.outputs[0], op.dims(1)[1], op.dims(0)[2])


def _attention_by_head(op: Operator) -> None:
    """q: b (kv r) t d, k: b kv s d, v: b kv s e -> b (kv r) t e; the keys s stay, and d where it gives the scale."""
    (b, heads, t, d), (b_k, kv, s, d_k), (b_v, kv_v, s_v, e) = op.dims(0), op.dims(1), op.dims(2)
    op.unify(op.factor(heads, [kv.size, heads.size // kv.size])[0], kv)
    op.unify(kv, kv_v)
    op.freeze(t, "Attention knows the place of a query")
    op.unify(d, d_k)
    if op.attribute("scale", 0.0):
        op.contract(0, [3], weighted=False)
    else:
        op.freeze(d, "Attention derives its scale from the width of a head")
    _same_keys(op, (b, b_k, b_v), (s, s_v))
    _mask(op, 3, heads)
    _caches(op, [4, 5], [1, 2], b, kv)
    op.outputs[0] = (b, heads, t, e)
    op.macs(b, heads, t, s, d)
    op.macs(b, heads, t, s, e)


@rule("LinearAttention", since=27)
@rule("LinearAttention", domain=CONTRIB)
def linear_attention(op: Operator) -> None:
    """q: b t (kv r d), k: b t (kv d), v: b t (kv e), state: b kv d e, decay: b t (kv d) or kv, rate: b t kv or 1."""
    if op.attribute("state_window", 0) or op.attribute("q_num_heads") < op.attribute("kv_num_heads"):
        raise ValueError("LinearAttention with a window of states, or with fewer heads of queries than of keys")
    kv, heads = _grouped_heads(op, op.attribute("q_num_heads"), op.attribute("kv_num_heads"))
    (b, t, _), k, v = op.dims(0), op.dims(1)[2], op.dims(2)[2]
    key_width, value_width = (op.factor(d, [kv.size, d.size // kv.size])[1] for d in (k, v))
    op.unify(t, op.dims(1)[1])
    states = [d for d in (op.inputs[3] if op.has(3) else None, *op.outputs[1:]) if d]
    for state in states:
        op.unify_all(state, (b, kv, key_width, value_width))
    if op.has(4):
        op.unify(op.dims(4)[2], kv if op.dims(4)[2].size == kv.size else k)
    if op.has(5) and op.dims(5)[2].size > 1:
        op.unify(op.dims(5)[2], kv)
    op.outputs[0] = (b, t, dims.prod([heads, value_width]))
    op.sizes("kv_num_heads", [kv])
    op.sizes("q_num_heads", [heads])
    op.macs(b, t, kv, key_width, value_width)
    op.macs(b, t, heads, key_width, value_width)


@rule("LinearAttentionGate", domain=CONTRIB)
def linear_attention_gate(op: Operator) -> None:
    """a: b t h, its bias and scale: h, rate: b t h -> decay, rate."""
    op.broadcast([0, 1, 2])
    if op.has(3):
        op.unify(op.dims(3)[2], op.dims(0)[2])
        op.broadcast([3], 1)


@rule("MRotaryEmbedding", domain=CONTRIB)
@rule("RotaryEmbedding", domain=CONTRIB)
@rule("RotaryEmbedding", since=23)
def rotary_embedding(op: Operator) -> None:
    """x: b t (h d) or b h t d; rotates pairs within d."""
    x = op.dims(0)
    heads = op.attribute("num_heads", 0)
    op.freeze(x[1 if len(x) == 3 else 2], "RotaryEmbedding turns by the place in the sequence")
    if len(x) == 3 and heads:
        found, width = op.factor(x[2], [heads, x[2].size // heads])
        op.freeze(width, "RotaryEmbedding turns pairs within a head")
        op.sizes("num_heads", [found])
    else:
        op.freeze(x[-1], "RotaryEmbedding turns pairs within a head")
    for operand in range(1, len(op.inputs)):
        for d in op.inputs[operand] or ():
            op.freeze(d, "an operand of RotaryEmbedding")
    op.broadcast([0])


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=CONTRIB)
def skip_layer_normalization(op: Operator) -> None:
    """LayerNormalization of the sum of operands 0, 1 and a bias; the last result is the sum itself."""
    state_layer_normalization(op, -1)
    if len(op.outputs) > 3:
        op.outputs[3] = op.outputs[0]


@rule("EmbedLayerNormalization", "QEmbedLayerNormalization", domain=CONTRIB)
def embed_layer_normalization(op: Operator) -> None:
    """ids, segments: b t; tables: v e, p e, s e; scale, shift: e -> b t e; mask index: b; sum: b t e."""
    b, t = op.dims(0)
    e = op.dims(2)[1]
    for table in (2, 3, 4):
        if op.has(table):
            op.freeze(op.dims(table)[0], "the rows of an embedding")
            op.unify(op.dims(table)[1], e)
            op.role(table, 1, "produced")
            op.contract(table, [1], average=True)
    for vector in (5, 6):
        op.unify(op.dims(vector)[0], e)
    op.outputs[0] = (b, t, e)
    if len(op.outputs) > 2:
        op.outputs[2] = (b, t, e)


@rule("BiasGelu", "FastGelu", "QuickGelu", "Gelu", "BiasAdd", "GatedAdd", "ScaledSiLU", domain=CONTRIB)
def activation(op: Operator) -> None:
    op.broadcast([i for i in range(len(op.inputs)) if op.has(i)])
