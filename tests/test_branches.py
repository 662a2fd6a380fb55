"""Both branches of an If are proved, whatever the inputs take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracle import graph, model, prune, random_plan, replace_weight, run, stored

from onnxprune import verify
from onnxprune.branches import has_branches, take_branch
from onnxprune.masking import masked_model
from onnxprune.records import Exactness

RARE = """(float[2,4] x) => (float[2,3] y) <float[4,8] w, float[8,8] u, float[8,8] t, float[8,3] v,
    float huge = {1e6}> {
    h = MatMul(x, w)
    m = ReduceMax<keepdims=0>(x)
    c = Greater(m, huge)
    e = If (c) <
        then_branch = f () => (float[2,8] p) { p = MatMul(h, u) },
        else_branch = g () => (float[2,8] q) { q = MatMul(h, t) }>
    y = MatMul(e, v)
}"""
"""Ordinary inputs always take the else branch."""


def test_all_conditions_are_replaced_in_bodies_too() -> None:
    m = model("""(float[N,4] x, bool c) => (float[N,4] y) {
        y = If (c) <then_branch = f () => (float[N,4] p) {
            p = If (c) <
                then_branch = g () => (float[N,4] a) { a = Neg(x) },
                else_branch = k () => (float[N,4] b) { b = Identity(x) }>
        }, else_branch = j () => (float[N,4] q) { q = Add(x, x) }>
    }""")
    x = np.ones((1, 4), np.float32)
    for then, factor in ((True, -1), (False, 2)):
        forced = onnx.ModelProto.FromString(m.SerializeToString())
        take_branch(forced, then)
        for condition in (True, False):
            assert np.array_equal(run(forced, {"x": x, "c": np.asarray(condition)})["y"], factor * x)
    assert has_branches(m)
    assert not has_branches(model("(float[N,4] x) => (float[N,4] y) { y = Neg(x) }"))


def _prove(folder: Path, damaged: str | None) -> Exactness:
    """The proof of a random pruning of RARE, after a weight of the pruned model was changed."""
    original = model(RARE)
    found, sizes = graph(original)
    done = prune(original, random_plan(found, ratio=0.5, seed=0))
    keep = {g.dim: np.isin(np.arange(g.size), done.kept[g.id]) for g in found.groups if g.id in done.kept}
    if damaged is not None:
        tensor = stored(done.pruned)[damaged]
        replace_weight(tensor, numpy_helper.to_array(tensor) + 1)
    files = {"original": original, "pruned": done.pruned}
    files["masked"] = masked_model(original, found, keep, sizes.element_types)
    for name, proto in files.items():
        onnx.save(proto, folder / f"{name}.onnx")
    paths = {name: str(folder / f"{name}.onnx") for name in files}
    shapes = [{"x": (2, 4)}]
    proof = verify.prove(**paths, folder=str(folder), sizes=shapes, bounds={}, feeds=[], seed=0, tolerance=1e-4)
    return proof.exactness


@pytest.mark.parametrize("damaged", [None, "t", "u"])
def test_a_fault_in_a_branch_that_no_input_takes_is_found(tmp_path: Path, damaged: str | None) -> None:
    assert _prove(tmp_path, damaged).passed == (damaged is None)
