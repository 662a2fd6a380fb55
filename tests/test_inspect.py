"""What `inspect` says of a model, against what pruning does."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from oracle import model

from onnxprune import Config, inspect, prune
from onnxprune.report import console, coupling

ATTENTION = """(float[N,6,8] x) => (float[N,6,5] y) <float[8,8] e, float[8,12] q, float[8,12] k, float[8,12] v,
    float[12,8] o, float[8,16] f, float[16,8] g, float[8] scale, float[8] shift, float[8,5] h,
    int64[4] apart = {0,6,3,4}, int64[3] flat = {0,6,12}> {
    x0 = MatMul(x, e)
    q0 = MatMul(x0, q)
    q1 = Reshape(q0, apart)
    q2 = Transpose<perm=[0,2,1,3]>(q1)
    k0 = MatMul(x0, k)
    k1 = Reshape(k0, apart)
    k2 = Transpose<perm=[0,2,3,1]>(k1)
    v0 = MatMul(x0, v)
    v1 = Reshape(v0, apart)
    v2 = Transpose<perm=[0,2,1,3]>(v1)
    s = MatMul(q2, k2)
    p = Softmax<axis=-1>(s)
    z = MatMul(p, v2)
    z1 = Transpose<perm=[0,2,1,3]>(z)
    z2 = Reshape(z1, flat)
    a = MatMul(z2, o)
    r = Add(x0, a)
    n = LayerNormalization(r, scale, shift)
    f0 = MatMul(n, f)
    f1 = Relu(f0)
    g0 = MatMul(f1, g)
    t = Add(r, g0)
    y = MatMul(t, h)
}"""
FROZEN = """(float[N,8] x) => (float[N,5] y) <float[8,16] w, float[16,12] u, float[12,5] v> {
    h = MatMul(x, w)
    c = Softmax(h)
    k = MatMul(c, u)
    y = MatMul(k, v)
}"""


def saved(folder: Path, text: str) -> Path:
    path = folder / "net.onnx"
    onnx.save(model(text), path)
    return path


@pytest.mark.parametrize("text", [ATTENTION, FROZEN])
def test_half_of_every_group_is_what_pruning_removes(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path, text)
    reach = inspect(path).reach
    done = prune(path, Config(ratio=0.5, round_to=1, recover=False, dry_run=True))
    assert reach is not None and done.after is not None
    assert reach.parameters_at_half == pytest.approx(1 - done.after.parameters / done.before.parameters)
    assert reach.macs_at_half == pytest.approx(1 - done.after.macs / done.before.macs)
    assert 0 < reach.parameters_at_half < reach.parameters <= 1
    assert 0 < reach.macs_at_half < reach.macs <= 1


def test_what_lies_behind_a_refusal_is_out_of_reach(tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, FROZEN))
    assert found.reach is not None
    assert found.reach.parameters == pytest.approx((16 * 12 + 12 * 5) / (8 * 16 + 16 * 12 + 12 * 5))
    softmax = next(entry for entry in found.refusals if entry.refusal.op == "Softmax")
    assert softmax.groups == 1
    assert softmax.parameters_share == pytest.approx((8 * 16 + 16 * 12) / (8 * 16 + 16 * 12 + 12 * 5))


def test_groups_are_told_in_words(tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, ATTENTION))
    told = [entry.words for entry in found.groups]
    for words in (
        "8 features of MatMul(x0), MatMul(a) and 1 more",
        "3 heads of 4 of MatMul(q0), MatMul(k0) and 1 more",
        "4 features in each of 3 heads of MatMul(q0), MatMul(k0)",
        "16 features of MatMul(f0)",
    ):
        assert words in told
    text = console.inspect_text(found)
    assert "8 features of MatMul(x0), MatMul(a)" in text
    assert "(renormalised)" in text
    assert "3 producers: MatMul(x0), MatMul(a)," in text


def test_the_drawing_joins_every_group(tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, ATTENTION))
    text = coupling.dot(found)
    for k in range(len(found.groups)):
        assert f"-> g{k};" in text


def test_a_model_without_groups_can_be_inspected(tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, "(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"))
    assert found.reach is not None and found.reach.parameters == found.reach.macs_at_half == 0
    assert "0 prunable groups, 0 frozen" in console.inspect_text(found)
    assert coupling.mermaid(found).startswith("flowchart LR")
