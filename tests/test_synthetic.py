"""Inputs made up by kind, the guess of their range, and recovery without data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser

from onnxprune import api, cli, gathering, records, recovery, runtime, synthetic, worker
from onnxprune.config import Config
from onnxprune.errors import ModelError, UsageError, WorkerError
from onnxprune.synthetic import breeding, drawing, features, guesses, images, signals

NET = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,32,32] image) => (float[n,5] y) {
    c1 = Conv<pads=[1,1,1,1]>(image, w1)
    n1 = BatchNormalization(c1, s1, o1, m1, v1)
    r1 = Relu(n1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2)
    n2 = BatchNormalization(c2, s2, o2, m2, v2)
    r2 = Relu(n2)
    c3 = Conv<pads=[1,1,1,1]>(r2, w3)
    n3 = BatchNormalization(c3, s3, o3, m3, v3)
    r3 = Relu(n3)
    p = GlobalAveragePool(r3)
    f = Flatten(p)
    y = Gemm<transB=1>(f, wf, bf)
}
"""
WIDTHS = (3, 16, 16, 16)


def _conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w, optimize=True)


def _weights(scaling: guesses.Scaling) -> dict[str, np.ndarray]:
    """A network whose BatchNormalizations saw dead leaves on `scaling` in training."""
    random = np.random.default_rng(3)
    x = scaling.apply(images.dead_leaves(random, 16, (3, 32, 32)))
    values: dict[str, np.ndarray] = {}
    for k in (1, 2, 3):
        w = random.normal(0, 0.3, (WIDTHS[k], WIDTHS[k - 1], 3, 3))
        x = _conv(x, w)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        scale, shift = random.uniform(0.5, 1, WIDTHS[k]), random.normal(0, 0.2, WIDTHS[k])
        values |= {f"w{k}": w, f"m{k}": mean, f"v{k}": variance, f"s{k}": scale, f"o{k}": shift}
        column = (slice(None), None, None)
        x = np.maximum((x - mean[column]) / np.sqrt(variance[column] + 1e-5) * scale[column] + shift[column], 0)
    values |= {"wf": random.normal(0, 0.5, (5, 16)), "bf": np.zeros(5)}
    return {name: array.astype(np.float32) for name, array in values.items()}


def _folded(values: dict[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    text, found = NET, {"wf": values["wf"], "bf": values["bf"]}
    for k in (1, 2, 3):
        scale = values[f"s{k}"] / np.sqrt(values[f"v{k}"] + 1e-5)
        found[f"w{k}"] = values[f"w{k}"] * scale[:, None, None, None]
        found[f"b{k}"] = values[f"o{k}"] - values[f"m{k}"] * scale
        text = text.replace(f"    n{k} = BatchNormalization(c{k}, s{k}, o{k}, m{k}, v{k})\n", "")
        text = text.replace(f", w{k})", f", w{k}, b{k})").replace(f"Relu(n{k})", f"Relu(c{k})")
    return text, found


def _save(path: Path, text: str, values: dict[str, np.ndarray]) -> Path:
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in values.items())
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return _save(tmp_path / "net.onnx", NET, _weights(guesses.IMAGENET))


def _make(path: Path, rows: int = 32, **options: Any) -> synthetic.Made:
    return synthetic.make(str(path), {}, **{"rows": rows, "bounds": {}, "seed": 0, **options})


# ---- Images and signals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", images.KINDS)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 28, 28), (3, 20, 33), (4, 64, 16)])
def test_images_fill_their_range_and_repeat_with_the_seed(kind: Any, size: tuple[int, int, int]) -> None:
    one, two = (kind(np.random.default_rng(1), 4, size) for _ in range(2))
    assert one.shape == (4, *size) and one.dtype == np.float32
    assert one.min() >= 0 and one.max() <= 1 and np.isfinite(one).all()
    np.testing.assert_array_equal(one, two)
    other = kind(np.random.default_rng(2), 4, size)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("kind", "slope"), [(images.dead_leaves, (-1.8, -0.9)), (images.noise, (-1.7, -0.6))])
def test_the_amplitude_falls_with_the_frequency_as_in_photographs(kind: Any, slope: tuple[float, float]) -> None:
    found = kind(np.random.default_rng(0), 24, (1, 64, 64))[:, 0]
    amplitude = np.abs(np.fft.fft2(found - found.mean((1, 2), keepdims=True))).mean(0)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None, :])
    chosen = (frequency > 0.03) & (frequency < 0.4)
    fit = np.polyfit(np.log(frequency[chosen]), np.log(amplitude[chosen]), 1)[0]
    assert slope[0] < fit < slope[1]
    white = np.random.default_rng(0).random((24, 64, 64))
    flat = np.abs(np.fft.fft2(white - white.mean((1, 2), keepdims=True))).mean(0)
    assert abs(np.polyfit(np.log(frequency[chosen]), np.log(flat[chosen]), 1)[0]) < 0.1


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "kind"),
    [
        ("x", np.float32, (1, 3, 8, 8), "image"),
        ("x", np.float32, (1, 8, 8, 4), "image"),
        ("x", np.uint8, (1, 8, 8, 1), "image"),
        ("x", np.float32, (1, 16, 8, 8), "features"),
        ("x", np.float32, (1, 16000), "audio"),
        ("waveform", np.float32, (1, 64), "audio"),
        ("x", np.float32, (1, 40, 80), "features"),
        ("attention_mask", np.int64, (1, 9), "mask"),
        ("pixel_mask", np.float32, (1, 1, 8, 8), "mask"),
        ("token_type_ids", np.int64, (1, 9), "segment"),
        ("position_ids", np.int64, (1, 9), "position"),
        ("input_lengths", np.int64, (1,), "length"),
        ("input_ids", np.int64, (1, 9), "ids"),
        ("x", np.bool_, (1, 9), "flag"),
        ("x", np.object_, (1,), "text"),
    ],
)
def test_what_an_input_is_goes_by_name_type_and_shape(name: str, dtype: Any, shape: Any, kind: str) -> None:
    assert signals.kind_of(name, np.dtype(dtype), shape) == kind


def test_values_of_signals_stay_where_they_belong() -> None:
    random = np.random.default_rng(0)

    def draw(kind: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return signals.draw(random, kind, shape, np.dtype(dtype), high=5, longest=9)

    ids = draw("ids", (4, 100), np.int64)
    assert set(ids.ravel()) == {0, 1, 2, 3, 4}
    assert draw("position", (2, 7), np.int32).tolist() == [[0, 1, 2, 3, 4, 0, 1]] * 2
    assert draw("length", (3,), np.int64).tolist() == [9, 9, 9]
    assert draw("mask", (2, 2), np.float32).min() == 1 and draw("segment", (2, 2), np.int64).max() == 0
    audio = draw("audio", (3, 16000), np.float32)
    assert audio.dtype == np.float32 and 0.05 < np.abs(audio).max() <= 1
    power = np.square(np.abs(np.fft.rfft(audio)))
    assert (np.sort(power, axis=1)[:, -4000:].sum(1) > 0.9 * power.sum(1)).all()


def test_variations_are_images_too() -> None:
    random = np.random.default_rng(0)
    one, other = images.mixture(random, 2, (3, 20, 33))
    found = [images.varied(np.random.default_rng(k), one, other) for k in range(40)]
    assert all(v.shape == one.shape and v.dtype == np.uint8 for v in found)
    assert sum(not np.array_equal(v, one) for v in found) > 30
    flat = np.full((1, 1, 1), 7, np.uint8)
    assert {int(images.varied(random, flat, flat)[0, 0, 0]) for _ in range(99)} >= {7, 248}
    np.testing.assert_array_equal(one, images.mixture(np.random.default_rng(0), 2, (3, 20, 33))[0])


# ---- Breeding --------------------------------------------------------------------------------------------------------


def test_the_most_distinct_rows_come_first_and_none_twice() -> None:
    random = np.random.default_rng(0)
    features = random.normal(0, 0.01, (50, 4))
    for k, row in enumerate((7, 19, 33)):
        features[row, k] = 3 + k
    features[34] = features[33] * 0.9
    chosen = breeding.distinct(features, 50).tolist()
    assert chosen[:3] == [33, 19, 7]
    assert sorted(chosen) == list(range(50))
    assert breeding.distinct(np.zeros((3, 2)), 2).tolist() == [0, 1]


def test_rows_without_numbers_come_last() -> None:
    features = np.random.default_rng(0).normal(size=(6, 3))
    features[2, 1], features[4, 0] = np.inf, np.nan
    assert set(breeding.distinct(features, 4)) == {0, 1, 3, 5}
    assert set(breeding.distinct(features, 5)) == {0, 1, 2, 3, 5}


def test_features_are_what_the_last_linear_operators_read(net: Path) -> None:
    assert features.features_of(onnx.load(net).graph) == {"f": -1}
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[n,3,8,8] x) => (float[n,2,8,8] a, float[n,8,8,2] b, float[n,3,8,8] c) {
        h = Conv(x, w)
        i = Relu(h)
        j = Conv(i, v)
        a = Sigmoid(j)
        b = Transpose<perm=[0,2,3,1]>(j)
        c = Relu(x)
    }
    """
    assert features.features_of(parser.parse_model(text).graph) == {"i": 1}
    maps = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    assert not features.is_one_per_item(maps, 1, 2) and not features.is_one_per_item(maps[:, :, 0, 0], 1, 4)
    assert features.is_one_per_item(maps[:, :, :1, :1], 1, 2) and features.is_one_per_item(maps[:, :, 0, 0], -1, 2)
    np.testing.assert_array_equal(features.feature(maps[:, :, :1, :1], 1), maps[:, :, 0, 0])


def test_breeding_moves_the_features_apart_and_keeps_the_rows_together(net: Path) -> None:
    plain, bred = (_make(net, rows=32, values=values) for values in (0, 1e6))
    assert bred.guesses[-1] == "images: those that the model tells apart best, bred in 4 rounds"
    assert not any("bred" in guess for guess in plain.guesses)
    assert [f["image"].shape for f in bred.feeds] == [f["image"].shape for f in plain.feeds]

    def variance(made: synthetic.Made) -> float:
        results = [runtime.run(runtime.session(net), f)["y"] for f in made.feeds]
        return float(np.concatenate(results).astype(float).var(0).sum())

    assert variance(bred) > 1.5 * variance(plain)
    again = _make(net, rows=32, values=1e6)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(bred.feeds, again.feeds, strict=True))


def test_other_inputs_stay_those_of_the_item_that_is_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    pixels = np.full((12, 1, 6, 6), np.arange(12, dtype=np.uint8)[:, None, None, None])
    population = {"x": pixels, "size": np.arange(12)}
    monkeypatch.setattr(images, "varied", lambda random, image, other: image)
    seen: list[np.ndarray] = []

    def describe(found: features.Rows) -> np.ndarray:
        seen.append(found["size"])
        return found["x"].reshape(len(found["x"]), -1).astype(float)

    found = breeding.bred(random, population, "x", 6, 2, describe)
    assert [len(s) for s in seen] == [12, 12, 12]
    assert found["x"].shape == (6, 1, 6, 6) and found["size"].shape == (6,)
    np.testing.assert_array_equal(found["x"][:, 0, 3, 3], found["size"])


def test_models_that_take_one_row_see_all_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()

    def kind(number: int) -> Any:
        return lambda random, count, size: seen.add(number) or np.zeros((count, *size), np.float32)

    monkeypatch.setattr(images, "KINDS", tuple(kind(k) for k in range(3)))
    random = np.random.default_rng(0)
    assert all(images.mixture(random, 1, (3, 4, 4)).shape == (1, 3, 4, 4) for _ in range(20))
    assert seen == {0, 1, 2}


def test_pixels_that_a_model_takes_as_bytes_keep_every_level() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    wanted = drawing.Input("x", "image", (1, 1, 16, 16), np.dtype(np.uint8))
    np.testing.assert_array_equal(drawing.scaled({"x": levels}, [wanted], guesses.BYTES)["x"], levels)


BYTES = """g (uint8[n,8,8,3] x) => (float[n,2] y) {
    c = Cast<to=1>(x)
    r = ReduceMean<axes=[1,2], keepdims=0>(c)
    y = MatMul(r, w)
}"""


@pytest.mark.parametrize(
    ("text", "weights", "shape"),
    [
        (
            "g (float[1,3,8,8] x) => (float[1,2,1,1] y) { r = GlobalAveragePool(x) y = Conv(r, w) }",
            (2, 3, 1, 1),
            (1, 3, 8, 8),
        ),
        (
            BYTES,
            (3, 2),
            (16, 8, 8, 3),
        ),
    ],
    ids=["one-row", "nhwc-bytes"],
)
def test_images_of_every_layout_are_bred(tmp_path: Path, text: str, weights: Any, shape: Any) -> None:
    values = {"w": np.random.default_rng(0).normal(size=weights).astype(np.float32)}
    path = _save(tmp_path / "a.onnx", '<ir_version: 8, opset_import: ["" : 17]>' + text, values)
    found = _make(path, values=1e5)
    assert "bred in" in found.guesses[-1]
    assert {f["x"].shape for f in found.feeds} == {shape} and sum(len(f["x"]) for f in found.feeds) == 32


def test_where_no_layer_tells_rows_apart_nothing_is_bred(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4,3,8,8] x) => (float[8,2] y, float[4,5,8,8] z) {
        t = Transpose<perm=[1,0,2,3]>(x)
        r = Reshape(t, s)
        y = Gemm(r, w)
        a = Relu(x)
        z = Conv(a, v)
    }
    """
    values = {"w": np.ones((96, 2), np.float32), "s": np.array([8, 96]), "v": np.ones((5, 3, 1, 1), np.float32)}
    path = _save(tmp_path / "a.onnx", text, values)
    assert not any("bred" in guess for guess in _make(path, values=1e6).guesses)


# ---- Guesses ---------------------------------------------------------------------------------------------------------


def _network(folder: Path, scaling: guesses.Scaling, folded: bool) -> Path:
    values = _weights(scaling)
    return _save(folder / "net.onnx", *(_folded(values) if folded else (NET, values)))


def _judged(path: Path, scaling: guesses.Scaling) -> list[str]:
    drawn = images.dead_leaves(np.random.default_rng(7), 8, (3, 32, 32))
    return synthetic.judge(str(path), [{"image": scaling.apply(drawn)}], probed=True)


@pytest.mark.parametrize("scaling", guesses.scalings(3), ids=lambda s: s.words)
@pytest.mark.parametrize("folded", [False, True], ids=["stored", "folded"])
def test_inputs_in_the_range_of_the_training_data_are_no_matter(
    tmp_path: Path, scaling: guesses.Scaling, folded: bool
) -> None:
    assert _judged(_network(tmp_path, scaling, folded), scaling) == []


@pytest.mark.parametrize(
    ("given", "folded"), [("0 to 255", False), ("0 to 1", False), ("-128 to 127", False), ("0 to 255", True)]
)
def test_inputs_in_another_range_are_remarked_on(tmp_path: Path, given: str, folded: bool) -> None:
    scaling = next(s for s in guesses.scalings(3) if s.words == given)
    (remark,) = _judged(_network(tmp_path, guesses.IMAGENET, folded), scaling)
    why = "the spread of its layers" if folded else "its BatchNormalization statistics"
    assert "'image' lies between" in remark and f"by {why} these are" in remark
    if not folded:
        assert "ImageNet mean and deviation (--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)" in remark


def test_outputs_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    path = _save(
        tmp_path / "root.onnx",
        "<ir_version: 8, opset_import: ['' : 18]> g (float[N,4] x) => (float[N,4] y) { y = Sqrt(x) }".replace("'", '"'),
        {},
    )
    rows = np.array([[1, 2, 3, 4], [-1, -1, -1, -1], [-1, 1, 1, 1]], np.float32)
    assert synthetic.judge(str(path), [{"x": rows[::2]}], probed=True) == []
    with pytest.raises(UsageError, match="the output 'y' of the original model is NaN or infinite on 1 of the 3 rows"):
        synthetic.judge(str(path), [{"x": rows}], probed=True)


@pytest.mark.parametrize(
    ("scaling", "options"),
    [
        (guesses.scalings(1)[0], "--mean 0.5 --std 0.25"),
        (guesses.scalings(1)[1], "--scale 1/255"),
        (guesses.BYTES, "--scale 1"),
        (guesses.scalings(1)[4], "--scale 1 --mean 127.5"),
    ],
)
def test_a_range_says_how_to_get_it(scaling: guesses.Scaling, options: str) -> None:
    assert scaling.options == options


@pytest.mark.parametrize("scaling", guesses.scalings(3), ids=lambda s: s.words)
@pytest.mark.parametrize("folded", [False, True], ids=["norms", "folded"])
def test_the_range_of_the_training_data_is_found(tmp_path: Path, scaling: guesses.Scaling, folded: bool) -> None:
    values = _weights(scaling)
    text, values = _folded(values) if folded else (NET, values)
    found = _make(_save(tmp_path / "net.onnx", text, values))
    (guess,) = [g for g in found.guesses if g.startswith("values of 'image'")]
    why = "the spread of the layers (a guess)" if folded else "the BatchNormalization statistics"
    assert f"by {why}" in guess
    assert guess.startswith(f"values of 'image': {scaling.words}, by")


def test_the_divergence_is_zero_where_the_statistics_agree() -> None:
    x = np.random.default_rng(0).normal(2, 3, (8, 4, 10, 10))
    own = guesses.Probe("t", x.mean((0, 2, 3)), x.var((0, 2, 3)))
    assert guesses.divergence([own], {"t": x}) == pytest.approx(0, abs=1e-9)
    assert guesses.divergence([own], {"t": 2 * x}) > 0.5
    assert guesses.divergence([own], {"t": 1000 * x}) == guesses.WORST
    plain = guesses.Probe("t")
    assert guesses.divergence([plain], {"t": (x - 2) / 3}) == pytest.approx(0, abs=0.02)
    assert guesses.divergence([plain], {"t": x}) == pytest.approx((9 + 4 - 1 - np.log(9)) / 2, rel=0.1)
    assert guesses.divergence([plain], {"t": 255 * x}) == guesses.WORST


def test_nothing_to_go_by_is_said(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[n,1,8,8] x) => (float[n,2,8,8] y) { y = Conv(x, w) }
    """
    path = _save(tmp_path / "a.onnx", text, {"w": np.ones((2, 1, 1, 1), np.float32)})
    assert _make(path).guesses[-1] == "nothing in the model tells the range of 'x': -2 to 2 is assumed"


# ---- Whole models ----------------------------------------------------------------------------------------------------


def test_feeds_are_those_the_model_takes(net: Path) -> None:
    found = _make(net, rows=40)
    assert sum(len(f["image"]) for f in found.feeds) in (32, 48)
    assert all(f["image"].dtype == np.float32 and f["image"].shape[1:] == (3, 32, 32) for f in found.feeds)
    again = _make(net, rows=40)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(found.feeds, again.feeds, strict=True))
    assert not np.array_equal(found.feeds[0]["image"], _make(net, rows=40, seed=1).feeds[0]["image"])


def test_ids_stay_within_their_table(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (int64[n,s] input_ids) => (float[n,s,4] y) { y = Gather(table, input_ids) }
    """
    path = _save(tmp_path / "a.onnx", text, {"table": np.ones((7, 4), np.float32)})
    found = _make(path, bounds={"input_ids": 7})
    values = np.concatenate([f["input_ids"].ravel() for f in found.feeds])
    assert set(values) == set(range(7))


def test_a_model_that_runs_at_no_size_is_said_to(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[n,s] x) => (float[n,s] y) { y = Add(x, w) }
    """
    path = _save(tmp_path / "a.onnx", text, {"w": np.ones((3, 5), np.float32)})
    with pytest.raises(ModelError, match=r"(?s)runs at no input size tried: .*--input-shape"):
        _make(path)


def test_without_data_the_model_is_recovered_and_the_report_says_on_what(net: Path) -> None:
    output = net.with_name("small.onnx")
    report = net.with_name("report.json")
    arguments = [str(net), "-o", str(output), "--round-to", "1", "--json", str(report), "--seed", "1"]
    result = CliRunner().invoke(cli.command, arguments, prog_name="onnxprune")
    assert result.exit_code == 0, result.output
    for words in (
        "Synthetic inputs: made up, no real data",
        "guess: values of 'image': ImageNet mean and deviation",
        "synthetic samples",
        "synthetic inputs only; nothing is known about accuracy",
        "of the MACs are removed on synthetic inputs only; beyond about 30%",
    ):
        assert words in result.stdout
    data = json.loads(report.read_text())
    assert data["inputs"]["kind"] == "synthetic" and data["inputs"]["held_out"] > 0
    assert data["options"]["criterion"] == "obs"
    assert "recover" in data["seconds"]
    plain = api.prune(net, Config(output=net.with_name("plain.onnx"), round_to=1, recover=False))
    assert plain.inputs is None and plain.options["criterion"] == "l2"
    held = images.dead_leaves(np.random.default_rng(9), 64, (3, 32, 32))
    errors = [_error(net, p, guesses.IMAGENET.apply(held)) for p in (output, net.with_name("plain.onnx"))]
    assert errors[0] < 0.5 * errors[1]


def _error(original: Path, pruned: Path, x: np.ndarray) -> float:
    a, b = (runtime.run(runtime.session(p), {"image": x})["y"].astype(float) for p in (original, pruned))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a - a.mean(0)))


def test_few_macs_removed_are_not_warned_about(net: Path) -> None:
    report = api.prune(net, Config(output=net.with_name("small.onnx"), ratio=0.1, round_to=1))
    assert any("synthetic inputs only" in note for note in report.notes)
    assert not any("beyond about" in note for note in report.notes)


def test_a_target_is_reached_without_data(net: Path) -> None:
    report = api.prune(net, Config(output=net.with_name("small.onnx"), target="macs=0.6", round_to=1))
    assert report.after is not None and report.after.macs <= 0.6 * report.before.macs
    assert report.inputs is not None and report.inputs.kind == "synthetic"


def test_large_models_fall_back_to_the_cut(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "LARGEST_MODEL", 1000)
    report = api.prune(net, Config(output=net.with_name("small.onnx"), round_to=1))
    assert report.options["criterion"] == "l2" and report.inputs is None
    assert any("nothing was recovered (a model of" in note for note in report.notes)
    with pytest.raises(UsageError, match="--target needs inputs to measure on, and a model of .*; give --calibration"):
        api.prune(net, Config(output=net.with_name("small.onnx"), target="macs=0.5", round_to=1, force=True))


@pytest.mark.parametrize(
    "stage", ["onnxprune.synthetic:make", "onnxprune.choosing:choose", "onnxprune.recovery:recover"]
)
def test_where_synthetic_inputs_do_not_serve_the_cut_is_written(
    net: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    call = worker.call

    def fail(function: str, arguments: Any, **options: Any) -> Any:
        if function == stage:
            raise WorkerError(f"{function} crashed\nmore lines")
        return call(function, arguments, **options)

    monkeypatch.setattr(worker, "call", fail)
    output = net.with_name("small.onnx")
    report = api.prune(net, Config(output=output, round_to=1))
    assert output.exists() and report.exactness is not None and report.exactness.passed
    assert any(f"{stage} crashed)" in note for note in report.notes)


def test_inputs_are_made_only_where_a_run_needs_them() -> None:
    assert Config().needs_inputs and Config().measure == "obs"
    assert not Config(recover=False).needs_inputs and Config(recover=False).measure == "l2"
    assert Config(recover=False, target="macs=0.5").needs_inputs
    assert Config(recover=False, criterion="variance").needs_inputs
    assert Config(ratio=0, depth=1).needs_inputs


def test_batches_of_synthetic_inputs_are_held_out(net: Path) -> None:
    fitting, held = recovery.split(_make(net, rows=256).feeds)
    assert len(held) >= 1 and not {id(f) for f in held} & {id(f) for f in fitting}
    assert records.Inputs("synthetic", "", 1, 0, {}).guesses == ()


def test_large_models_without_data_go_by_the_quick_criterion(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "REMOVAL_WORK", 1e3)
    report = api.prune(net, Config(output=net.with_name("small.onnx"), round_to=1))
    assert report.options["criterion"] == "wanda" and report.inputs is not None
