"""Importance against plain numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from onnx import numpy_helper
from oracle import graph, model, stored

from onnxprune import criteria, dims
from onnxprune.criteria import registry
from onnxprune.errors import ModelError, UsageError
from onnxprune.records import Allocation
from onnxprune.score import group_rows, score
from onnxprune.select import select

Array = npt.NDArray[np.floating]
CONVOLUTION = """(float[N,3,H,W] x) => (float[N,5,H,W] y) <float[8,3,3,3] w, float[8] b, float[5,8,1,1] v> {
    h = Conv<pads=[1,1,1,1]>(x, w, b)
    y = Conv(h, v)
}"""
NORMS: dict[str, Callable[[Array], Array]] = {
    "l1": lambda rows: np.abs(rows).sum(1),
    "l2": lambda rows: np.linalg.norm(rows, axis=1),
    "linf": lambda rows: np.abs(rows).max(1),
}


def _scores(text: str, criterion: str, seed: int = 0, **weights: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Scores by group, and the weights by name."""
    m = model(text, **weights)
    found, _ = graph(m)
    arrays = {n: numpy_helper.to_array(t) for n, t in stored(m).items()}
    groups = [g for g in found.groups if g.refusal is None]
    return dict(score(found, groups, arrays.__getitem__, criterion=criterion, seed=seed)), arrays


@pytest.mark.parametrize("criterion", sorted(NORMS))
def test_producer_and_consumer_vote_with_their_shares(criterion: str) -> None:
    found, arrays = _scores(CONVOLUTION, criterion)
    norm = NORMS[criterion]
    produced = norm(arrays["w"].reshape(8, -1).astype(np.float64))
    consumed = norm(arrays["v"][:, :, 0, 0].T.astype(np.float64))
    expected = produced / produced.mean() + consumed / consumed.mean()
    np.testing.assert_allclose(found["w:0"], expected, rtol=1e-12)
    assert found["w:0"].dtype == np.float64


def test_biases_do_not_vote() -> None:
    plain, _ = _scores(CONVOLUTION, "l1")
    huge, _ = _scores(CONVOLUTION, "l1", b=np.arange(8) * 1e6)
    np.testing.assert_array_equal(plain["w:0"], huge["w:0"])


def test_the_scale_of_a_weight_does_not_matter() -> None:
    plain, arrays = _scores(CONVOLUTION, "l2")
    scaled, _ = _scores(CONVOLUTION, "l2", w=arrays["w"] * 1024, v=arrays["v"])
    np.testing.assert_allclose(plain["w:0"], scaled["w:0"], rtol=1e-6)


def test_a_weight_of_zeros_votes_for_none() -> None:
    found, arrays = _scores(CONVOLUTION, "l1", w=np.zeros((8, 3, 3, 3)))
    consumed = np.abs(arrays["v"][:, :, 0, 0].T.astype(np.float64)).sum(1)
    np.testing.assert_allclose(found["w:0"], consumed / consumed.mean(), rtol=1e-12)


def test_random_scores_depend_on_seed_and_group_alone() -> None:
    text = """(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,8] u, float[8,3] v> {
        h = MatMul(x, w)
        k = MatMul(h, u)
        y = MatMul(k, v)
    }"""
    first, _ = _scores(text, "random")
    again, _ = _scores(text, "random")
    other, _ = _scores(text, "random", seed=1)
    np.testing.assert_array_equal(first["w:1"], again["w:1"])
    assert not np.array_equal(first["w:1"], other["w:1"])
    assert not np.array_equal(first["w:1"], first["u:1"])


def test_everything_of_an_index_is_one_row() -> None:
    """A channel that is flattened spans 4 rows of the next weight; a head spans its width."""
    weight = np.arange(24.0).reshape(12, 2)
    outer, inner = dims.atom(3), dims.atom(4)
    rows = group_rows(weight, 0, dims.prod([outer, inner]), outer)
    np.testing.assert_array_equal(rows, weight.reshape(3, 8))
    rows = group_rows(weight, 0, dims.prod([outer, inner]), inner)
    np.testing.assert_array_equal(rows, weight.reshape(3, 4, 2).transpose(1, 0, 2).reshape(4, 6))


def test_rows_of_a_part_of_an_axis() -> None:
    weight = np.arange(10.0).reshape(2, 5)
    first, second = dims.atom(2), dims.atom(3)
    rows = group_rows(weight, 1, dims.cat([first, second]), second)
    np.testing.assert_array_equal(rows, weight[:, 2:].T)
    twice = group_rows(np.arange(6.0), 0, dims.cat([second, second]), second)
    np.testing.assert_array_equal(twice, [[0, 3], [1, 4], [2, 5]])


def test_a_weight_made_by_a_node_does_not_vote() -> None:
    m = model(CONVOLUTION)
    found, _ = graph(m)
    groups = [g for g in found.groups if g.refusal is None]
    v = numpy_helper.to_array(stored(m)["v"])
    result = score(found, groups, lambda name: v if name == "v" else None, criterion="l1", seed=0)
    consumed = np.abs(v[:, :, 0, 0].T.astype(np.float64)).sum(1)
    np.testing.assert_allclose(result["w:0"], consumed / consumed.mean(), rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    w = np.ones((8, 3, 3, 3))
    w[2, 1] = value
    with pytest.raises(ModelError, match="weight 'w' holds NaN or infinity"):
        _scores(CONVOLUTION, "l2", w=w)


def test_infinities_that_every_index_shares_are_a_mask() -> None:
    w = np.random.default_rng(0).standard_normal((8, 3, 3, 3))
    hidden, plain = w.copy(), w.copy()
    hidden[:, 1, 2, 0], plain[:, 1, 2, 0] = -np.inf, 0
    found, wanted = (_scores(CONVOLUTION, "l2", w=w)[0]["w:0"] for w in (hidden, plain))
    np.testing.assert_array_equal(found, wanted)


# ---- Criteria --------------------------------------------------------------------------------------------------------


def test_criteria_are_found_by_name() -> None:
    assert {"l1", "l2", "linf", "random"} <= set(criteria.names())
    with pytest.raises(UsageError, match=r"unknown criterion 'l7'; known: .*l1, l2, linf"):
        criteria.find("l7")


def test_a_criterion_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match="a criterion 'l1' exists already"):
        registry.criterion("l1")(lambda rows, generator: rows[:, 0])


# ---- Selection -------------------------------------------------------------------------------------------------------


def test_the_highest_scores_stay_in_order() -> None:
    plan = select({"a": np.array([3.0, 1.0, 2.0, 5.0])}, Allocation({"a": 2}))
    assert plan.kept["a"].tolist() == [0, 3]


def test_of_equal_scores_the_lower_index_stays() -> None:
    plan = select({"a": np.array([1.0, 2.0, 1.0, 1.0])}, Allocation({"a": 3}))
    assert plan.kept["a"].tolist() == [0, 1, 2]


def test_groups_that_keep_all_are_not_in_the_plan() -> None:
    assert select({"a": np.ones(4)}, Allocation({"a": 4})).kept == {}
