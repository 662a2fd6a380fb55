"""Divergence of outputs from those of the original."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from onnxprune.recover.divergence import Probe, divergence, probes

RNG = np.random.default_rng


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis, keepdims=True)


def test_probes_go_back_to_before_the_last_activation() -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 12]>
        g (float[2,3,4] x) => (float[2,3,4] p, float[2,3,4] s, float[2,3,4] r) {
            a = Neg(x)
            p = Softmax<axis=2>(a)
            b = Abs(x)
            s = Sigmoid(b)
            r = Relu(x)
        }"""
    )
    assert probes(proto) == [Probe("a", "categorical", 2, flat=True), Probe("b", "binary"), Probe("r", "real")]


def test_the_default_axis_of_softmax_is_that_of_its_opset() -> None:
    text = '<ir_version: 8, opset_import: ["" : %d]> g (float[2,3,4] x) => (float[2,3,4] p) { p = Softmax(x) }'
    found = [probes(parser.parse_model(text % v))[0] for v in (11, 13)]
    assert [(p.axis, p.flat) for p in found] == [(1, True), (-1, False)]


@pytest.mark.parametrize("kind", ["categorical", "binary", "real"])
def test_divergence_is_zero_for_the_same_and_one_for_the_mean(kind: str) -> None:
    x = RNG(0).normal(size=(200, 5)) * 2
    if kind == "categorical":
        constant = np.log(softmax(x, axis=-1).mean(0, keepdims=True))
    elif kind == "binary":
        mean = (1 / (1 + np.exp(-x))).mean()
        constant = np.log(mean / (1 - mean)).reshape(1, 1)
    else:
        constant = x.mean().reshape(1, 1)
    probe = Probe("x", kind)  # type: ignore[arg-type]
    halves = [[x[:100].astype(np.float32)], [x[100:].astype(np.float32)]]
    flat = [[np.broadcast_to(constant, (100, 5)).astype(np.float32)]] * 2
    assert divergence([probe], halves, halves) == pytest.approx(0, abs=1e-9)
    assert divergence([probe], halves, flat) == pytest.approx(1, rel=1e-3)


def test_categorical_divergence_is_the_sum_of_relative_entropies() -> None:
    x, y = RNG(0).normal(size=(2, 30, 4, 7))
    p, q = softmax(x, axis=1), softmax(y, axis=1)
    mean = p.mean((0, 2), keepdims=True)
    wanted = (p * np.log(p / q)).sum() / (p * np.log(p / mean)).sum()
    assert divergence([Probe("x", "categorical", 1)], [[x]], [[y]]) == pytest.approx(wanted, rel=1e-6)


def test_outputs_that_are_no_floats_are_left_out() -> None:
    ids = np.arange(4)
    x = RNG(0).normal(size=(4, 2)).astype(np.float32)
    both = [Probe("i", "real"), Probe("x", "real")]
    assert divergence(both, [[ids, x]], [[ids + 1, x]]) == 0.0
    assert divergence(both[:1], [[ids]], [[ids + 1]]) == 0.0


def test_before_opset_13_a_softmax_is_over_all_axes_from_its_own_on() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 6, 3, 4))
    flat = divergence([Probe("x", "categorical", 1)], [[x.reshape(6, 12)]], [[y.reshape(6, 12)]])
    assert divergence([Probe("x", "categorical", 1, flat=True)], [[x]], [[y]]) == pytest.approx(flat)
    assert divergence([Probe("x", "categorical", 1)], [[x]], [[y]]) != pytest.approx(flat)


def test_argmax_is_along_its_first_axis_by_default() -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[4,3] x) => (int64[3] y) { y = ArgMax(x) }'
    assert probes(parser.parse_model(text)) == [Probe("x", "categorical", 0)]


@pytest.mark.parametrize("kind", ["categorical", "binary", "real"])
def test_masked_numbers_that_stay_masked_cost_nothing(kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((8, 5))
    y = x + 0.1
    y[:, 0] += 1
    probe = Probe("x", kind, 1)  # type: ignore[arg-type]
    without = divergence([probe], [[x]], [[y]])
    masked, changed = (np.concatenate([a, np.full((8, 2), -np.inf)], axis=1) for a in (x, y))
    assert divergence([probe], [[masked]], [[masked]]) == 0
    found = divergence([probe], [[masked]], [[changed]])
    assert 0 < found <= without * (1 + 1e-9)


def test_batches_of_one_number_are_judged_by_what_they_are_together() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 20, 1))
    together = divergence([Probe("x", "real")], [[x]], [[y]])
    alone = divergence([Probe("x", "real")], [[a[None]] for a in x], [[b[None]] for b in y])
    assert alone == pytest.approx(together)
    assert divergence([Probe("x", "real")], [[x[:1]]], [[y[:1]]]) == pytest.approx(float((1 - y[0] / x[0])[0] ** 2))
