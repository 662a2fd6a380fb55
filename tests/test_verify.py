"""Exactness and quality against values computed by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from oracle import model

from onnxprune import api, runtime, verify
from onnxprune.closeness import SQNR_CAP_DB, quality_of
from onnxprune.config import Config
from onnxprune.errors import VerificationError
from onnxprune.records import Exactness
from onnxprune.verify import difference_of, exactness_of

NAN, INF = np.nan, np.inf


def _array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# ---- Exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "result", "difference"),
    [
        (_array(1, 2, 3), _array(1, 2, 3), 0),
        (_array(1, -4), _array(1.5, -4.25), 0.5),
        (_array(0, 0), _array(0, 0), 0),
        (_array(), _array(), 0),
        (_array(1, 2), _array(1, 2, 3), math.inf),
        (_array(1, 2), _array(1, 2).reshape(1, 2), math.inf),
        (_array(1, NAN), _array(1, NAN), 0),
        (_array(1, NAN), _array(1, 2), math.inf),
        (_array(1, 2), _array(1, NAN), math.inf),
        (_array(1, INF), _array(1.25, INF), 0.25),
        (_array(1, 3), _array(1, INF), math.inf),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 4]), 0),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.25),
        (np.array([True, False]), np.array([True, True]), 0.5),
        (np.array(["a", "b"]), np.array(["a", "b"]), 0),
        (np.array([], np.int64), np.array([], np.int64), 0),
    ],
)
def test_difference(reference: np.ndarray, result: np.ndarray, difference: float) -> None:
    assert difference_of(reference, result) == difference


@pytest.mark.parametrize("other", [-INF, NAN])
def test_infinities_of_another_kind_differ(other: float) -> None:
    assert difference_of(_array(1, INF), _array(1, other)) == math.inf


def test_exactness_is_the_worst_of_all_runs_over_the_range_of_the_output() -> None:
    expected = [{"y": _array(1, 2)}, {"y": _array(0, -8)}]
    found = [{"y": _array(1, 2.5)}, {"y": _array(0.25, -8)}]
    original = [{"y": _array(1, 5)}, {"y": _array(0, -8)}]
    result = exactness_of(expected, found, original, (), 0.1)
    assert result == Exactness(max_abs=0.5, max_rel=0.0625, passed=True, runs=2, shown=True)
    assert not exactness_of(expected, found, expected, (), 0.1).shown
    assert not exactness_of(expected, found, expected, (), 0.05).passed


def test_exactness_is_that_of_the_worst_output() -> None:
    expected = [{"large": _array(1000), "small": _array(0.001)}]
    found = [{"large": _array(1000), "small": _array(0.002)}]
    result = exactness_of(expected, found, expected, (), 1e-4)
    assert result.max_rel == pytest.approx(1.0)
    assert not result.passed


def test_the_range_is_that_of_the_original_too() -> None:
    """A masked output that is nearly zero does not turn rounding into an error."""
    result = exactness_of([{"y": _array(1e-6)}], [{"y": _array(2e-6)}], [{"y": _array(10)}], (), 1e-4)
    assert result.passed
    assert result.max_rel == pytest.approx(1e-7)


def test_the_range_of_a_bounded_output_is_one() -> None:
    sides = [{"p": _array(1e-5)}], [{"p": _array(2e-5)}]
    assert exactness_of(*sides, sides[0], {"p"}, 1e-4).passed
    assert not exactness_of(*sides, sides[0], (), 1e-4).passed


def test_an_output_that_is_not_finite_is_not_exact() -> None:
    result = exactness_of([{"y": _array(1)}], [{"y": _array(NAN)}], [{"y": _array(1)}], (), 1e-4)
    assert (result.passed, result.max_rel) == (False, math.inf)


def test_outputs_of_zeros() -> None:
    zeros = [{"y": _array(0, 0)}]
    assert exactness_of(zeros, zeros, zeros, (), 1e-4).passed
    assert not exactness_of(zeros, [{"y": _array(0, 1)}], zeros, (), 1e-4).passed


def test_what_is_not_exact_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        VerificationError, match=r"by 3\.00e-02 of the output range \(allowed: 1e-04\); nothing was written"
    ):
        verify.require_exact(Exactness(0.5, 0.03, False, 2), 1e-4)
    verify.require_exact(Exactness(0.0, 0.0, True, 2), 1e-4)


def test_half_precision_is_proved_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "half.onnx"
    m = model("(float16[2,4] x) => (float16[2,3] y) <float16[4,3] w> { y = MatMul(x, w) }")
    onnx.save(m, path)
    assert verify.tolerance_for(path) == verify.TOLERANCE == 1e-4
    feed = {"x": np.ones((2, 4), np.float32)}
    assert verify.all_outputs(str(path), [feed], wide=True)[0]["y"].dtype == np.float32
    monkeypatch.setattr(verify, "LARGEST_WIDENED", 1)
    assert verify.tolerance_for(path) == verify.HALF_TOLERANCE


@pytest.mark.parametrize("reference", ["masked", "original"])
def test_a_size_at_which_the_masked_original_alone_fails_is_not_passed_over(tmp_path: Path, reference: str) -> None:
    """A mask of 12 places where the original takes any number: only at 12 would the two be alike."""
    paths = {name: tmp_path / f"{name}.onnx" for name in ("original", "masked")}
    onnx.save(model("(float[N,T] x) => (float[N,T] y) <float one = {1}> { y = Mul(x, one) }"), paths["original"])
    onnx.save(model("(float[N,T] x) => (float[N,T] y) <float[12] m> { y = Mul(x, m) }"), paths["masked"])
    session = runtime.session(paths[reference])
    sizes = [{"x": [2, 20]}, {"x": [2, 12]}]

    def working() -> int:
        return len(verify._working_feeds(session, str(paths["original"]), sizes, {}, 0, False)[0])

    if reference == "original":
        assert working() == 2
    else:
        with pytest.raises(VerificationError, match="the masked original does not run although the original does"):
            working()


def test_outputs_without_a_number_prove_nothing() -> None:
    with pytest.raises(VerificationError, match="every output of the model is NaN or infinite"):
        exactness_of([{"y": _array(NAN)}], [{"y": _array(NAN)}], [{"y": _array(NAN)}], (), 1e-4)


# ---- Quality ---------------------------------------------------------------------------------------------------------


def test_quality_of_equal_outputs() -> None:
    a = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    found = quality_of([a], [a.copy()])
    assert found.cosine == pytest.approx(1.0)
    assert (found.relative_error, found.sqnr_db, found.top1_agreement) == (0.0, SQNR_CAP_DB, 1.0)


def test_quality_by_hand() -> None:
    found = quality_of([_array(3, 4)], [_array(3, 3)])
    assert found.cosine == pytest.approx(21 / (5 * math.sqrt(18)))
    assert found.relative_error == pytest.approx(0.2)
    assert found.sqnr_db == pytest.approx(-20 * math.log10(0.2))
    assert found.top1_agreement is None


def test_quality_is_over_all_batches_whatever_their_shapes() -> None:
    together = quality_of([_array(3, 4, 1, 2)], [_array(3, 3, 1, 1)])
    apart = quality_of([_array(3, 4), _array(1, 2)], [_array(3, 3), _array(1, 1)])
    assert (apart.cosine, apart.relative_error) == (together.cosine, together.relative_error)
    uneven = quality_of([np.ones((2, 3)), np.ones((1, 5))], [np.ones((2, 3)), np.ones((1, 5))])
    assert uneven.top1_agreement == 1.0


def test_opposite_and_orthogonal_outputs() -> None:
    assert quality_of([_array(1, 2)], [_array(-1, -2)]).cosine == pytest.approx(-1)
    assert quality_of([_array(1, 0)], [_array(0, 1)]).cosine == pytest.approx(0)
    assert quality_of([_array(1, 0)], [_array(0, 1)]).sqnr_db == pytest.approx(-20 * math.log10(math.sqrt(2)))


def test_outputs_of_zeros_have_a_quality() -> None:
    both = quality_of([_array(0, 0)], [_array(0, 0)])
    assert (both.cosine, both.relative_error, both.sqnr_db) == (1.0, 0.0, 120.0)
    one = quality_of([_array(0, 0)], [_array(0, 1)])
    assert (one.cosine, one.relative_error, one.sqnr_db) == (0.0, math.inf, 0.0)


def test_noise_below_the_cap_is_the_cap() -> None:
    assert quality_of([np.array([1.0])], [np.array([1.0 + 1e-9])]).sqnr_db == SQNR_CAP_DB


def test_agreement_is_over_classes() -> None:
    a = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], np.float32)
    b = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]], np.float32)
    assert quality_of([a], [b]).top1_agreement == 0.75


def test_agreement_of_maps_is_over_channels() -> None:
    a = np.zeros((1, 2, 2, 2), np.float32)
    a[0, 0] = 1
    b = a.copy()
    b[0, :, 0, 0] = [0, 1]
    assert quality_of([a], [b]).top1_agreement == 0.75


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 1, 3, 3)])
def test_outputs_without_classes_have_no_agreement(shape: tuple[int, ...]) -> None:
    a = np.ones(shape, np.float32)
    assert quality_of([a], [a]).top1_agreement is None


def test_values_that_are_not_finite_in_the_original_are_left_out() -> None:
    found = quality_of([_array(3, INF, 4)], [_array(3, INF, 3)])
    assert found.relative_error == pytest.approx(0.2)


def test_a_result_that_is_not_finite_is_not_perfect() -> None:
    found = quality_of([_array(3, 4)], [_array(NAN, NAN)])
    assert found.sqnr_db < SQNR_CAP_DB
    assert not found.cosine == 1.0  # noqa: SIM201 - NaN would be an honest answer, too


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_valid_is_refused_with_the_words_of_onnx(tmp_path: Path) -> None:
    original, path = tmp_path / "original.onnx", tmp_path / "m.onnx"
    m = model("(float[2,4] x) => (float[2,3] y) <float[4,3] w> { y = MatMul(x, w) }")
    onnx.save(m, original)
    verify.check_file(original, original)
    m.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(m, path)
    with pytest.raises(VerificationError, match="the pruned model is not valid: "):
        verify.check_file(path, original)
    verify.check_file(path, path)


def test_a_model_pruned_at_given_sizes_runs_at_others(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,T,8] x) => (float[N,T,4] y)
        <int64[1] zero={0}, int64[1] one={1}, int64[2] heads={4,8}, int64[1] width={32}> {
        h = MatMul(x, w)
        s = Shape(x)
        n = Gather(s, zero)
        t = Gather(s, one)
        wide = Concat<axis=0>(n, t, heads)
        flat = Concat<axis=0>(n, t, width)
        a = Reshape(h, wide)
        b = Relu(a)
        c = Reshape(b, flat)
        y = MatMul(c, v)
    }"""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in (("w", (8, 32)), ("v", (32, 4))):
        array = random.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path, output = tmp_path / "m.onnx", tmp_path / "p.onnx"
    onnx.save(proto, path)
    api.prune(path, Config(output=output, input_shapes={"x": (1, 12, 8)}, recover=False, round_to=1))
    session = runtime.session(str(output))
    for shape in ((1, 12, 8), (3, 5, 8)):
        (found,) = session.run(None, {"x": np.ones(shape, np.float32)})
        assert found.shape == (*shape[:2], 4)


def test_quality_of_outputs_whose_length_the_data_tells() -> None:
    """Found boxes, spoken lengths: the longer one is compared with zeros."""
    found = quality_of([np.ones((2, 4), np.float32)], [np.ones((2, 1), np.float32)])
    assert found.cosine == pytest.approx(0.5) and found.relative_error == pytest.approx(np.sqrt(0.75))
    assert found == quality_of([np.ones((2, 4))], [np.pad(np.ones((2, 1)), [(0, 0), (0, 3)])])


LENGTHS = """(float[N,6] x, int64[N] k) => (float[N,3] y)
    <float[6,8] w, float[8,3] v, int64 wanted = {80}, int64[1] one = {1}> {
    a = MatMul(x, w)  b = Relu(a)  h = MatMul(b, v)
    d = Sub(k, wanted)  e = Abs(d)  n = Neg(e)  f = Cast<to=1>(n)  s = Sqrt(f)  t = Unsqueeze(s, one)
    y = Add(h, t)
}"""


def test_where_made_up_inputs_give_no_number_those_of_the_calibration_data_show_it(tmp_path: Path) -> None:
    """Of all values of k but one the result is no number."""
    path = tmp_path / "lengths.onnx"
    onnx.save(model(LENGTHS), path)
    options = Config(ratio=0.5, criterion="l2", recover=False, round_to=1)
    with pytest.raises(VerificationError, match="every output of the model is NaN"):
        api.prune(path, options)
    random = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=random.normal(size=(20, 6)).astype(np.float32), k=np.full(20, 80))
    report = api.prune(path, dataclasses.replace(options, calibration=tmp_path / "rows.npz"))
    assert report.exactness is not None
    assert report.exactness.passed and report.exactness.shown
