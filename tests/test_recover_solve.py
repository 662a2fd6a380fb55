"""Least squares and optimal brain surgeon against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxprune.criteria import activation, obs
from onnxprune.recover import relax as relaxing
from onnxprune.recover.moments import Moments
from onnxprune.recover.relax import Block, Side, loss, relax
from onnxprune.recover.solve import LEAF, Equations, Solution, invert, solve

Array = npt.NDArray[Any]
RNG = np.random.default_rng


def moments_of(x: np.ndarray, y: np.ndarray) -> Moments:
    sums = Moments.about(x[:, :5].mean(1)[None], y[:, :5].mean(1)[None])
    for part in np.array_split(np.arange(x.shape[1]), 3):
        sums.add(x[None][:, :, part].astype(np.float32), y[None][:, :, part].astype(np.float32))
    return sums


def test_moments_equal_numpy_covariances() -> None:
    x, y = RNG(0).normal(3, 2, (4, 500)), RNG(1).normal(-1, 1, (2, 500))
    xx, yx, yy = moments_of(x, y).covariance()
    both = np.cov(np.vstack([x, y]), bias=True)
    np.testing.assert_allclose(xx[0], both[:4, :4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(yx[0], both[4:, :4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(yy[0], np.diag(both)[4:], rtol=1e-5)


def test_moments_uncentred_are_about_zero() -> None:
    x, y = RNG(0).normal(3, 2, (4, 500)), RNG(1).normal(-1, 1, (2, 500))
    xx, yx, yy = moments_of(x, y).covariance(centred=False)
    np.testing.assert_allclose(xx[0], x @ x.T / 500, rtol=1e-5)
    np.testing.assert_allclose(yx[0], y @ x.T / 500, rtol=1e-5)
    np.testing.assert_allclose(yy[0], np.square(y).mean(1), rtol=1e-5)


def test_error_from_moments_equals_the_mean_squared_error() -> None:
    x, y = RNG(0).normal(1, 1, (4, 400)), RNG(1).normal(size=(2, 400))
    w, b = RNG(2).normal(size=(2, 4)), RNG(3).normal(size=2)
    expected = np.square(w @ x + b[:, None] - y).sum(0).mean()
    assert moments_of(x, y).error(w[None], b[None]) == pytest.approx(expected, rel=1e-5)


def test_solve_finds_the_planted_weight_and_bias() -> None:
    w, b = RNG(2).normal(size=(3, 5)), RNG(3).normal(size=3)
    x = RNG(0).normal(2, 1, (5, 2000))
    y = w @ x + b[:, None]
    shift = x[:, :5].mean(1)[None], y[:, :5].mean(1)[None]
    train, held = Moments.about(*shift), Moments.about(*shift)
    for sums, part in ((train, slice(0, 1500)), (held, slice(1500, None))):
        sums.add(x[None, :, part].astype(np.float32), y[None, :, part].astype(np.float32))
    found = solve(train, held, np.zeros((1, 3, 5)), np.zeros((1, 3)))
    np.testing.assert_allclose(found.weight[0], w, atol=1e-3)
    np.testing.assert_allclose(found.bias[0], b, atol=5e-3)
    assert found.after < 1e-6 < found.before


def test_solve_is_never_worse_than_the_plain_cut_on_held_out_columns() -> None:
    """Too few, noisy training columns: a fit would be worse than what was there."""
    random = RNG(5)
    w = random.normal(size=(4, 30))
    x, held = random.normal(size=(30, 8)), random.normal(size=(30, 4000))
    shift = np.zeros((1, 30)), np.zeros((1, 4))
    train, test = Moments.about(*shift), Moments.about(*shift)
    train.add(x[None].astype(np.float32), (w @ x + random.normal(0, 9, (4, 8)))[None].astype(np.float32))
    test.add(held[None].astype(np.float32), (w @ held)[None].astype(np.float32))
    found = solve(train, test, w[None], np.zeros((1, 4)))
    assert found.after <= found.before
    assert found.ridge is None
    np.testing.assert_array_equal(found.weight[0], w)


def test_where_nothing_is_held_out_the_plain_cut_stays_with_its_error() -> None:
    w, x = RNG(2).normal(size=(3, 5)), RNG(0).normal(2, 1, (5, 4))
    train = moments_of(x, w @ x)
    held = Moments.about(train.shift_x, train.shift_y)
    prior, bias = w[None] + 0.1, np.zeros((1, 3))
    found = solve(train, held, prior, bias)
    assert (found.ridge, found.weight is prior, found.bias is bias) == (None, True, True)
    assert found.before == found.after == pytest.approx(train.error(prior, bias) / train.variance.sum())


def test_a_better_prior_is_kept_and_judged_against_the_cut() -> None:
    """Columns too few to fit to: the prior with its bias refitted. A useless one: the cut."""
    w, b = RNG(2).normal(size=(3, 40)), RNG(3).normal(size=3)
    x = RNG(0).normal(size=(40, 12))
    train, held = (moments_of(part, w @ part + b[:, None]) for part in (x[:, :8], x[:, 8:]))
    cut, bias = w[None] + 0.5, np.zeros((1, 3))
    both = train.plus(held).variance.sum()
    found = solve(train, held, cut, bias, prior=w[None])
    assert found.ridge is not None
    assert found.before == pytest.approx(held.error(cut, bias) / both)
    assert found.after < 1e-6
    np.testing.assert_allclose(found.weight, w[None], atol=1e-4)
    near = solve(train, held, w[None], b[None], prior=w[None] + RNG(5).normal(0, 50, (1, 3, 40)))
    assert near.ridge is None
    np.testing.assert_array_equal(near.weight, w[None])


def _noisy(noise: float) -> tuple[Moments, Moments, np.ndarray]:
    """Moments of 5 inputs seen through noise and 3 outputs that follow from them exactly, and the columns of x."""
    random = RNG(8)
    true = random.normal(size=(5, 6000))
    y = random.normal(size=(3, 5)) @ true
    x = true + noise * random.normal(size=true.shape)
    sides = Moments.about(np.zeros((1, 5)), np.zeros((1, 3))), Moments.about(np.zeros((1, 5)), np.zeros((1, 3)))
    for side, part in zip(sides, (slice(0, 4500), slice(4500, None)), strict=True):
        side.add(x[None, :, part].astype(np.float32), y[None, :, part].astype(np.float32))
    return *sides, x


def test_widened_outputs_have_the_spread_of_their_targets() -> None:
    train, held, x = _noisy(0.6)
    start = np.zeros((1, 3, 5)), np.zeros((1, 3))
    wide, plain = (solve(train, held, *start, widened=w) for w in (True, False))
    spread = np.sqrt(train.plus(held).variance[0])
    np.testing.assert_allclose((wide.weight[0] @ x).std(1), spread, rtol=1e-3)
    assert ((plain.weight[0] @ x).std(1) < 0.9 * spread).all()
    assert plain.after < wide.after < wide.before


def test_without_a_bias_of_its_own_the_mean_square_is_given_back() -> None:
    train, held, x = _noisy(0.6)
    bias = np.array([[0.3, -0.2, 0.1]])
    found = solve(train, held, np.zeros((1, 3, 5)), bias, fit_bias=False, widened=True)
    np.testing.assert_array_equal(found.bias, bias)
    both = train.plus(held)
    wanted = both.variance[0] + np.square(both.mean_y[0] - bias[0])
    np.testing.assert_allclose(np.square(found.weight[0] @ x).mean(1), wanted, rtol=1e-3)


@pytest.mark.parametrize("size", [1, 7, LEAF + 1, 2 * LEAF + 301])
def test_invert_in_blocks_equals_the_inverse(size: int) -> None:
    columns = RNG(0).normal(size=(size, size + 50))
    matrix = columns @ columns.T + size * np.eye(size)
    found = matrix.copy()
    invert(found)
    np.testing.assert_allclose(found @ matrix, np.eye(size), atol=1e-9)


def test_equations_are_as_they_were_after_a_fit() -> None:
    train, _, _ = _noisy(0.6)
    equations = Equations.of(train, None)
    before = equations.xx.copy()
    equations.fit(np.zeros((1, 3, 5)), 0.1)
    np.testing.assert_array_equal(equations.xx, before)


@pytest.mark.parametrize("seed", range(20))
def test_widened_outputs_are_better_than_the_cut_with_its_bias_refitted(seed: int) -> None:
    """A mean that fell away makes any fit better than the cut as it is."""
    random = RNG(seed)
    x, y = random.normal(size=(6, 40)), random.normal(size=(3, 40))
    sides = [Moments.about(np.zeros((1, 6)), np.zeros((1, 3))) for _ in range(2)]
    for side, part in zip(sides, (slice(0, 20), slice(20, 40)), strict=True):
        side.add(x[None, :, part].astype(np.float32), y[None, :, part].astype(np.float32))
    train, held = sides
    prior = random.normal(0, 0.1, (1, 3, 6))
    found = solve(train, held, prior, np.full((1, 3), 3.0), widened=True)
    best = Equations.of(train, None).intercept(prior)
    scale = float(train.plus(held).variance.sum())
    assert found.after <= held.error(prior, best) / scale + 1e-12


def test_outputs_are_not_widened_where_that_is_worse_than_the_plain_cut() -> None:
    train, held, _ = _noisy(0.6)
    best = solve(train, held, np.zeros((1, 3, 5)), np.zeros((1, 3)))
    near = best.weight * 0.995
    found = solve(train, held, near, best.bias, widened=True)
    assert found.after <= found.before
    np.testing.assert_allclose(found.weight, best.weight, rtol=1e-2)


RELU = np.float32(0), np.float32(np.inf)
RELU6 = np.float32(0), np.float32(6)


def sides(x: Array, y: Array, flat: tuple[np.float32, np.float32], first: int, *other: Array) -> tuple[Side, Side]:
    """The first columns to fit to and the rest, held out, about the mean of the first ten."""
    centre = x[..., :10].mean(2, dtype=np.float64), y[..., :10].mean(2, dtype=np.float64)
    found = Side(*centre, flat, False), Side(*centre, flat, True)
    for side, chosen in zip(found, (slice(None, first), slice(first, None)), strict=True):
        side.add(*(a[..., chosen] for a in (x, y, *other)))
        side.stream.flush()
    return found


def blocks_of(found: tuple[Side, Side]) -> list[Block]:
    return [block for side in found for block in side.blocks or ()]


def hidden_loss(target: Array, z: Array, low: float, high: float) -> float:
    """The loss by its definition, of what goes into an activation that is flat below `low` and above `high`."""
    error = np.where(
        target <= low, np.maximum(z - low, 0), np.where(target >= high, np.minimum(z - high, 0), z - target)
    )
    return float(np.square(error).sum())


@pytest.mark.parametrize(("flat", "with_other"), [(RELU, False), (RELU6, False), (RELU, True)])
def test_relax_lowers_the_loss_behind_an_activation(
    monkeypatch: pytest.MonkeyPatch, flat: tuple[np.float32, np.float32], with_other: bool
) -> None:
    """Also where inputs and targets are far from zero, and where the other operand of a sum comes before it."""
    random = RNG(6)
    x = (random.normal(size=(1, 6, 3000)) + 3).astype(np.float32)
    full = np.concatenate([x, (x[:, :3] - 3) * (x[:, 3:] - 3)], 1)
    y = (random.normal(size=(1, 4, 9)).astype(np.float32) @ full).astype(np.float32)
    other = [random.normal(size=y.shape).astype(np.float32)] if with_other else []
    monkeypatch.setattr(relaxing, "LEAST_BLOCK", 1)
    monkeypatch.setattr(relaxing, "BLOCK", 4 * 300)
    both = sides(x, y, flat, 2000, *other)
    assert [[b.x.shape[2] for b in side.blocks or ()] for side in both] == [[300] * 6 + [200], [300] * 3 + [100]]
    train, held = (side.moments for side in both)
    prior, none = np.zeros((1, 4, 6)), np.zeros((1, 4))
    start = solve(train, held, prior, none)
    better = relax(blocks_of(both), train, held, (prior, none), start)

    def held_loss(weight: Array, bias: Array) -> float:
        behind = sum((o[..., 2000:] for o in other), np.float32(0))
        z = weight @ x[..., 2000:] + bias[:, :, None]
        return hidden_loss(y[..., 2000:] + behind, z + behind, *map(float, flat))

    for solution in ((start.weight, start.bias), (prior, none)):
        assert loss(blocks_of(both), *solution, train) == pytest.approx(held_loss(*solution), rel=1e-5)
    assert held_loss(better.weight, better.bias) < 0.95 * held_loss(start.weight, start.bias)
    whole = float(held.variance.sum()) * held.count
    assert better.before == pytest.approx(held_loss(prior, none) / whole, rel=1e-5)
    # Reported is the loss of a fit without the held-out columns; what comes back has seen them too.
    assert better.after == pytest.approx(held_loss(better.weight, better.bias) / whole, rel=0.1)
    assert better.after < better.before


def test_relax_leaves_what_is_no_better_than_the_cut() -> None:
    """The cut is exact where the activation lets anything through."""
    random = RNG(7)
    x = random.normal(size=(1, 4, 400)).astype(np.float32)
    weight, bias = random.normal(size=(1, 3, 4)), np.full((1, 3), -0.5)
    y = (weight @ x + bias[:, :, None]).astype(np.float32)
    noisy = (y[..., :100] + random.normal(0, 3, (1, 3, 100))).astype(np.float32)
    both = sides(x, np.concatenate([noisy, y[..., 100:]], 2), RELU, 100)
    train, held = (side.moments for side in both)
    start = Solution(weight, bias, 1e-3, 0.0, 0.0)
    assert relax(blocks_of(both), train, held, (weight, bias), start) is start


def test_apoz_removes_first_what_is_zero_most_often() -> None:
    active = np.array([0.5, 0.5, 0.1, 0.3, 0.9, 0.9])
    c = obs.Consumer(np.ones((2, 6)), np.eye(6), np.arange(6).reshape(3, 2), 1.0, active)
    assert list(activation.path([c], 3, "apoz").order) == [1, 0]


def consumer(size: int = 6, taps: int = 2) -> obs.Consumer:
    random = RNG(1)
    a = random.normal(size=(size * taps, 40))
    gram = a @ a.T / 40
    return obs.Consumer(random.normal(size=(3, size * taps)), gram, np.arange(size * taps).reshape(size, taps), 1.0)


@pytest.mark.parametrize("chunk", [1, 2])
def test_obs_price_of_each_removal_is_the_least_squares_error(chunk: int) -> None:
    c = consumer()
    path = obs.removal_path([c], 6, chunk=chunk)
    gram = c.gram + np.eye(12) * obs.RIDGE * np.trace(c.gram) / 12
    for removed in range(1, 6):
        kept = np.setdiff1d(np.arange(12), c.positions[path.order[:removed]].reshape(-1))
        w = c.weight @ gram[:, kept] @ np.linalg.inv(gram[np.ix_(kept, kept)])
        rest = c.weight.copy()
        rest[:, kept] -= w
        assert path.cost[removed] == pytest.approx(np.trace(rest @ gram @ rest.T), rel=1e-6)


def test_obs_removes_first_what_another_channel_can_replace() -> None:
    c = consumer(taps=1)
    gram = c.gram.copy()
    copied = np.eye(6)
    copied[5] = 0
    copied[5, 4] = 1
    gram = copied @ gram @ copied.T
    path = obs.removal_path([obs.Consumer(c.weight, gram, c.positions, 1.0)], 6)
    assert path.order[0] in (4, 5)
    assert path.cost[1] < 0.01 * path.cost[2]


def test_obs_does_not_remove_both_of_two_copies_between_updates() -> None:
    gram = np.diag([1.0, 1.0, 0.3, 0.4, 0.5, 0.6])
    gram[0, 1] = gram[1, 0] = 0.9999
    path = obs.removal_path([obs.Consumer(np.ones((2, 6)), gram, np.arange(6)[:, None], 1.0)], 6, chunk=2)
    assert set(path.order[:2]) & {0, 1} and not {0, 1} <= set(path.order[:2])


def test_refit_of_a_redundant_input_is_exact() -> None:
    x = RNG(0).normal(size=(3, 100))
    x = np.vstack([x, x[0] + x[1]])
    w = RNG(1).normal(size=(2, 4))
    found = obs.refit(w, x @ x.T / 100, np.arange(3), 1e-9)
    np.testing.assert_allclose(found @ x, w @ x, atol=1e-5)


@pytest.mark.parametrize("name", sorted(activation.CRITERIA))
def test_activation_criteria_remove_the_dead_channel_first(name: str) -> None:
    c = consumer()
    dead = c.gram.copy()
    dead[4:6] = dead[:, 4:6] = 0
    active = (np.diagonal(dead) > 0) * 0.5
    assert activation.path([obs.Consumer(c.weight, dead, c.positions, 1.0, active)], 6, name).order[0] == 2


def test_exchanges_find_what_greedy_removal_misses() -> None:
    random = RNG(3)
    saved = 0
    for _ in range(40):
        a = random.normal(size=(8, 10)) @ random.normal(size=(10, 10))
        c = obs.Consumer(random.normal(size=(2, 8)), a @ a.T / 10, np.arange(8)[:, None], 1.0)
        states = [obs._State.of(c)]
        order: list[int] = []
        for _ in range(4):
            left = np.setdiff1d(np.arange(8), order)
            order.append(int(left[np.argmin(obs._prices(states, left))]))
            states[0].remove(np.array(order[-1:]))
        fresh = obs._State.of(c)
        greedy = float(fresh.remove(np.asarray(order)).sum())
        _, found, cost = obs._exchanged(states, order, greedy)
        again = obs._State.of(c)
        assert cost == pytest.approx(float(again.remove(np.asarray(found)).sum()), rel=1e-6)
        assert cost <= greedy * (1 + 1e-9)
        saved += cost < 0.99 * greedy
    assert saved >= 2


def test_the_gain_of_taking_back_is_what_its_removal_cost() -> None:
    c = consumer()
    state = obs._State.of(c)
    first = float(state.remove(np.array([1, 3])).sum())
    alone = float(obs._State.of(c).remove(np.array([3])).sum())
    assert state.gains(np.array([1, 3]))[0] == pytest.approx(first - alone, rel=1e-6)
