"""Mixtures of experts: each expert is one index of a dimension, and falls as a whole.

Two proofs for each form: masks in the graph (`prune_and_compare`) and, independent of them, the original with the bias
of the gate at -1e30 for the removed experts, so that it never chooses them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracle import Pruned, differences, feeds, graph, groups, model, prunable, prune, reasons, replace_weight, stored

from onnxprune import allocate, choosing, cost, plan, processor, recovery, wording
from onnxprune.errors import UsageError

EXPERTS = 6
GATE = "<float[6,6] wg, float[6] bg, float[6,6,10] up, float[6,10] bu, float[6,10,5] down, float[5,3] v"

SOFT = (
    "(float[N,6] x) => (float[N,3] y) "
    + GATE
    + """, int64[2] ax = {-1, -2}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] last = {-1}> {
    g0 = MatMul(x, wg)
    g1 = Add(g0, bg)
    g = Softmax<axis=-1>(g1)
    gt = Transpose<perm=[1, 0]>(g)
    gu = Unsqueeze(gt, last)
    bb = Unsqueeze(bu, one)
    h0 = MatMul(x, up)
    h1 = Add(h0, bb)
    h = Relu(h1)
    o = MatMul(h, down)
    w = Mul(o, gu)
    m = ReduceSum<keepdims=0>(w, zero)
    y = MatMul(m, v)
}"""
)

LOOSE_SOFTMAX = SOFT.replace(
    "g = Softmax<axis=-1>(g1)",
    """top = ReduceMax<axes=[-1], keepdims=1>(g1)
    low = Sub(g1, top)
    e = Exp(low)
    s = ReduceSum<keepdims=1>(e, last)
    g = Div(e, s)""",
)

CHOSEN = (
    "(float[N,6] x) => (float[N,3] y) "
    + GATE
    + """, int64[1] k = {2}, int64[1] one = {1}, int64[1] last = {-1}, int64[1] two = {2}> {
    g0 = MatMul(x, wg)
    g1 = Add(g0, bg)
    g2 = Softmax<axis=-1>(g1)
    g, i = TopK<axis=-1>(g2, k)
    s = ReduceSum<keepdims=1>(g, last)
    r = Div(g, s)
    ru = Unsqueeze(r, last)
    i1 = Cast<to=6>(i)
    wu = Gather<axis=0>(up, i1)
    bb = Gather<axis=0>(bu, i)
    wd = Gather<axis=0>(down, i)
    xu = Unsqueeze(x, one)
    xv = Unsqueeze(xu, one)
    h0 = MatMul(xv, wu)
    h1 = Squeeze(h0, two)
    h2 = Add(h1, bb)
    h3 = Relu(h2)
    h = Unsqueeze(h3, two)
    o0 = MatMul(h, wd)
    o = Squeeze(o0, two)
    w = Mul(o, ru)
    m = ReduceSum<keepdims=0>(w, one)
    y = MatMul(m, v)
}"""
)

DENSE_TAIL = """
    gt = Transpose<perm=[1, 0]>(g)
    gu = Unsqueeze(gt, last)
    bb = Unsqueeze(bu, one)
    h0 = MatMul(x, up)
    h1 = Add(h0, bb)
    h = Relu(h1)
    o = MatMul(h, down)
    w = Mul(o, gu)
    m = ReduceSum<keepdims=0>(w, zero)
    y = MatMul(m, v)
}"""
DENSE_HEAD = (
    "(float[N,6] x) => (float[N,3] y) "
    + GATE
    + """, int64[1] k = {2}, int64 depth = {6}, float[2] onoff = {0, 1}, int64[1] zero = {0}, int64[1] one = {1},
    int64[1] last = {-1}> {
    g0 = MatMul(x, wg)
    g1 = Add(g0, bg)
"""
)
SCATTERED = (
    DENSE_HEAD
    + """    t, i = TopK<axis=-1>(g1, k)
    p = Softmax<axis=-1>(t)
    shape = Shape(g1)
    none = ConstantOfShape(shape)
    g = ScatterElements<axis=1>(none, i, p)"""
    + DENSE_TAIL
)
ONE_HOT = (
    DENSE_HEAD
    + """    i = ArgMax<axis=-1, keepdims=0>(g1)
    hot = OneHot(i, depth, onoff)
    p = Softmax<axis=-1>(g1)
    g = Mul(hot, p)"""
    + DENSE_TAIL
)
READ_BACK = (
    DENSE_HEAD
    + """    t, i = TopK<axis=-1>(g1, k)
    q = Softmax<axis=-1>(g1)
    p = GatherElements<axis=1>(q, i)
    shape = Shape(g1)
    none = ConstantOfShape(shape)
    g = ScatterElements<axis=1>(none, i, p)"""
    + DENSE_TAIL
)
COUNTED = (
    DENSE_HEAD
    + """    p0 = Softmax<axis=-1>(g1)
    p, i = TopK<axis=-1>(p0, k)
    pu = Unsqueeze(p, last)
    iu = Unsqueeze(i, last)
    hit = Equal(iu, all)
    hot = Cast<to=1>(hit)
    each = Mul(hot, pu)
    g = ReduceSum<keepdims=0>(each, one)"""
    + DENSE_TAIL
).replace("> {", ", int64[6] all = {0, 1, 2, 3, 4, 5}> {", 1)
FORMS = {
    "counted": COUNTED,
    "soft": SOFT,
    "loose softmax": LOOSE_SOFTMAX,
    "chosen": CHOSEN,
    "scattered": SCATTERED,
    "one hot": ONE_HOT,
    "read back": READ_BACK,
}
EXPERT_WEIGHTS = {"wg": 1, "bg": 0, "up": 0, "bu": 0, "down": 0}


def build(text: str) -> onnx.ModelProto:
    return model(text, opset=17 if "axes=[-1], keepdims" in text else 18)


def experts_of(proto: onnx.ModelProto) -> str:
    """The id of the group that the gate produces."""
    return next(g.id for g in groups(proto).values() if any((o.tensor, o.axis) == ("wg", 1) for o in g.occurrences))


def never_chosen(proto: onnx.ModelProto, kept: np.ndarray) -> onnx.ModelProto:
    """The original whose gate gives the removed experts no chance."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    tensor = stored(result)["bg"]
    bias = numpy_helper.to_array(tensor).copy()
    bias[np.setdiff1d(np.arange(len(bias)), kept)] = -1e30
    replace_weight(tensor, bias)
    return result


def prune_experts(text: str, kept: list[int]) -> tuple[onnx.ModelProto, Pruned]:
    proto = build(text)
    return proto, prune(proto, {experts_of(proto): np.asarray(kept)})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [[1, 2, 5], [0, 3], [4, 5]])
def test_experts_fall_as_a_whole(form: str, kept: list[int]) -> None:
    proto, result = prune_experts(FORMS[form], kept)
    assert result.differences["masked"] < 1e-5
    independent = differences({"gate": never_chosen(proto, np.asarray(kept))}, result.pruned, feeds(proto))
    assert independent["gate"] < 1e-5
    assert differences({"original": proto}, result.pruned, feeds(proto))["original"] > 1e-2
    for name, axis in EXPERT_WEIGHTS.items():
        before = stored(proto)[name].dims
        assert result.weights[name] == tuple(len(kept) if k == axis else n for k, n in enumerate(before)), name
    assert result.weights["v"] == (5, 3)


@pytest.mark.parametrize("form", FORMS)
def test_the_proofs_see_the_wrong_expert_removed(form: str) -> None:
    proto, result = prune_experts(FORMS[form], [1, 2, 5])
    wrong = {"gate": never_chosen(proto, np.asarray([1, 2, 4]))}
    assert differences(wrong, result.pruned, feeds(proto))["gate"] > 1e-3


@pytest.mark.parametrize(("form", "least"), [("soft", 1), ("chosen", 2), ("scattered", 2), ("one hot", 1)])
def test_as_many_experts_stay_as_the_gate_chooses(form: str, least: int) -> None:
    proto = build(FORMS[form])
    group = groups(proto)[experts_of(proto)]
    assert (group.size, group.least, group.parts, group.renormalised) == (EXPERTS, least, True, True)


STACKED = """(float[N,6] x) => (float[N,3] y)
    <float[6,3] wg, float[3] bg, float[6,10] u0, float[6,10] u1, float[6,10] u2,
    float[10,5] d0, float[10,5] d1, float[10,5] d2, float[5,3] v, int64[1] one = {1}, int64[1] last = {-1}> {
    g0 = MatMul(x, wg)
    g1 = Add(g0, bg)
    g = Softmax<axis=-1>(g1)
    h0 = MatMul(x, u0)
    h1 = MatMul(x, u1)
    h2 = MatMul(x, u2)
    r0 = Relu(h0)
    r1 = Relu(h1)
    r2 = Relu(h2)
    o0 = MatMul(r0, d0)
    o1 = MatMul(r1, d1)
    o2 = MatMul(r2, d2)
    a0 = Unsqueeze(o0, one)
    a1 = Unsqueeze(o1, one)
    a2 = Unsqueeze(o2, one)
    s = Concat<axis=1>(a0, a1, a2)
    gu = Unsqueeze(g, last)
    w = Mul(s, gu)
    m = ReduceSum<keepdims=0>(w, one)
    y = MatMul(m, v)
}"""


@pytest.mark.parametrize("kept", [[0, 2], [1]])
def test_experts_written_out_fall_with_their_nodes_and_weights(kept: list[int]) -> None:
    proto = build(STACKED)
    name = experts_of(proto)
    result = prune(proto, {name: np.asarray(kept)})
    assert result.differences["masked"] < 1e-5
    silent = {"gate": never_chosen(proto, np.asarray(kept))}
    assert differences(silent, result.pruned, feeds(proto))["gate"] < 1e-5
    left = {f"{letter}{k}" for letter in "ud" for k in kept}
    assert {n for n in result.weights if n[0] in "ud"} == left
    assert result.weights["wg"] == (6, len(kept))
    assert list(result.node("Concat").input) == [f"a{k}" for k in kept]
    assert len(result.pruned.graph.node) == len(proto.graph.node) - 4 * (3 - len(kept))
    found = graph(proto)[0]
    counts = {g.dim: len(kept) for g in found.groups if g.id == name}
    after = graph(result.pruned)[0]
    assert cost.macs(found, counts) == cost.macs(after)
    assert cost.parameters(found, found.weights, counts) == cost.parameters(after, after.weights)


@pytest.mark.parametrize(
    "change",
    [
        ("w = Mul(s, gu)", "w = Identity(s)"),
        ("s = Concat<axis=1>(a0, a1, a2)", "s = Concat<axis=1>(a0, a1, a1)"),
        ("y = MatMul(m, v)", "n = Add(m, o1)\ny = MatMul(n, v)"),
    ],
    ids=["not chosen among", "one twice", "read elsewhere"],
)
def test_what_is_stacked_stays_where_it_is_no_part_that_is_chosen(change: tuple[str, str]) -> None:
    proto = build(STACKED.replace(*change))
    assert experts_of(proto) not in prunable(proto)
    assert all(s.owned for s in graph(proto)[0].stacks)


def test_all_experts_stay_where_the_gate_chooses_all() -> None:
    proto = build(CHOSEN.replace("k = {2}", "k = {6}"))
    assert reasons(proto)[experts_of(proto)] == "TopK: TopK over this axis"


def test_a_computed_number_of_choices_keeps_all_experts() -> None:
    proto = build(CHOSEN.replace("int64[1] k = {2}, ", "").replace("(float[N,6] x)", "(float[N,6] x, int64[1] k)"))
    assert experts_of(proto) not in prunable(proto)


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        ("z = Mul(i, two)", "Mul: it computes with the numbers of the indices"),
        ("z = Concat<axis=0>(i, i)", "Concat: it computes with the numbers of the indices"),
        ("z = Identity(i)", "graph output: the interface keeps its shape"),
        ("j = Cast<to=1>(i)\n z0 = Neg(j)\n z = Cast<to=7>(z0)", "Neg: it computes with the numbers of the indices"),
        ("z = test.Route(i)", "Route: it computes with the numbers of the indices"),
        ("z = Gather<axis=0>(names, i)", None),
        ("e = Equal(i, two)\nz = Cast<to=7>(e)", "Equal: it computes with the numbers of the indices"),
    ],
)
def test_the_numbers_of_the_experts_may_only_pick(use: str, reason: str | None) -> None:
    chosen = "g, i = TopK<axis=-1>(g2, k)\n"
    text = CHOSEN.replace("(float[N,3] y)", "(float[N,3] y, int64[N,2] z)").replace("> {", ", int64[6] names> {", 1)
    proto = build(text.replace(chosen, chosen + use + "\n"))
    assert reasons(proto).get(experts_of(proto)) == reason


def test_experts_are_named_so() -> None:
    proto = build(CHOSEN)
    found = graph(proto)[0]
    group = next(g for g in found.groups if g.parts)
    assert wording.words(found, group, wording.ties(group, wording.readers(proto, found))).startswith("6 experts ")


def test_classes_are_no_experts() -> None:
    """What the gate alone produces owns no matrix: bins of a distribution, rows of a table."""
    bins = """(float[N,6] x) => (float[N,1] y) <float[6,16] w, float[16,1] places> {
        h = MatMul(x, w)
        p = Softmax<axis=-1>(h)
        y = MatMul(p, places)
    }"""
    assert reasons(model(bins))["w:1"] == "Softmax: Softmax compares along this axis"


def test_a_plan_must_keep_what_the_gate_chooses(tmp_path: Path) -> None:
    found = groups(build(CHOSEN))
    name = next(g.id for g in found.values() if g.parts)
    path = tmp_path / "plan.json"
    plan.save({"schema": 1, "groups": [{"id": name, "size": EXPERTS, "kept": [3]}]}, path)
    with pytest.raises(UsageError, match="keeps 1 indices, but the model chooses 2 of them"):
        plan.load(path, found)


def test_experts_are_neither_rounded_nor_cut_below_the_choice() -> None:
    found = graph(build(CHOSEN))[0]
    group = next(g for g in found.groups if g.parts)
    fast = processor.table("cpu")
    assert allocate.fast_step(found, group, fast) == 1
    counts = [
        allocate.uniform(found, [group], ratio=r, round_to=None, widths=fast).counts[group.id] for r in (0.3, 0.5, 0.9)
    ]
    assert counts == [4, 3, 2]


def test_the_damage_of_experts_is_measured_down_to_the_choice(tmp_path: Path) -> None:
    proto = build(CHOSEN)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    name = experts_of(proto)
    source = recovery.Source(str(tmp_path / "m.onnx"), {}, list(feeds(proto)), 0, 1, 1 << 30)
    wanted = choosing.Wanted([name], "sensitivity", ("macs", 0.95), 0.5, {name: 1}, "obs")
    curve = choosing.prepare(source, wanted).measured[name]
    assert (curve.removed, curve.refitted) == ([0, 1, 2, 3, 4], False)
    assert 0 < curve.damage[1] <= curve.damage[-1]
    kept = choosing.choose(source, wanted).kept[name]
    assert 2 <= len(kept) < EXPERTS
