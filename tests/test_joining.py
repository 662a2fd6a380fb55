"""Few real images, joined by variations bred from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import api, gathering, worker
from onnxprune.config import Config
from onnxprune.errors import WorkerError
from onnxprune.holdout import Holdout
from onnxprune.records import Feed
from onnxprune.synthetic import breeding, images, join, joining

NET = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,h,w] x) => (float[n,5] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(c)
    d = Conv<pads=[1,1,1,1]>(r, w2, b2)
    s = Relu(d)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = Gemm(f, w3)
}
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (8, 5)}
    proto = parser.parse_model(NET)
    values = {n: (0.3 * random.normal(size=s)).astype(np.float32) for n, s in shapes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in values.items())
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def batch(count: int = 4, height: int = 12, width: int = 16, seed: int = 0) -> Feed:
    found = images.mixture(np.random.default_rng(seed), count, (3, height, width))
    return {"x": (found / 127.5 - 1).astype(np.float32)}


def joined(net: Path, feeds: list[Feed], items: int, values: float = 1e6, seed: int = 0) -> list[Feed]:
    return list(join(str(net), feeds, items=items, values=values, seed=seed).feeds)


def test_variations_are_as_many_as_wanted_and_like_the_images(net: Path) -> None:
    feeds = [batch(), batch(width=20, seed=1), batch(seed=2)]
    found = joined(net, feeds, 40)
    assert [f["x"].shape for f in found] == 2 * [f["x"].shape for f in feeds]
    assert all(f["x"].dtype == np.float32 for f in found)
    low, high = (extreme([extreme(f["x"]) for f in feeds]) for extreme in (np.min, np.max))
    assert all(f["x"].min() >= low - 1e-6 and f["x"].max() <= high + 1e-6 for f in found)
    assert len({f["x"].tobytes() for f in [*feeds, *found]}) == 9
    again = joined(net, feeds, 40)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(found, again, strict=True))
    assert not np.array_equal(found[0]["x"], joined(net, feeds, 40, seed=1)[0]["x"])


@pytest.mark.parametrize("items", [0, 8, 15])
def test_enough_images_stay_alone(net: Path, items: int) -> None:
    assert joined(net, [batch(), batch()], items) == []


def test_what_is_no_image_is_not_varied(net: Path) -> None:
    assert joined(net, [{"ids": np.zeros((4, 7), np.int64)}], 100) == []
    assert joined(net, [{"x": np.float32(1).reshape(())}], 100) == []
    assert joined(net, [{**batch(), "size": np.ones((4, 2), np.float32)}], 100) == []


def test_what_is_bred_moves_the_features_further_than_chance(net: Path) -> None:
    feeds = [batch(16)]
    plain, bred = (np.concatenate([f["x"] for f in joined(net, feeds, 80, values)]) for values in (0, 1e7))

    def spread(x: np.ndarray) -> float:
        proto = onnx.load(net)
        from onnx.reference import ReferenceEvaluator

        (y,) = ReferenceEvaluator(proto).run(None, {"x": x})
        return float(np.var(y, axis=0).sum())

    assert plain.shape == bred.shape == (64, 3, 12, 16)
    assert spread(bred) > 1.2 * spread(plain)


def test_where_places_are_told_apart_copies_are_changed_at_random_and_not_chosen_by(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[n,3,h,w] x) => (float[n,2,h,w] y) { c = Conv(x, v) r = Relu(c) y = Conv(r, w) }
    """
    proto = parser.parse_model(text)
    shapes = {"v": (4, 3, 1, 1), "w": (2, 4, 1, 1)}
    values = {n: np.random.default_rng(0).normal(size=s).astype(np.float32) for n, s in shapes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in values.items())
    path = tmp_path / "a.onnx"
    onnx.save(proto, path)
    found = join(str(path), [batch(8)], items=1000, values=1e6, seed=0)
    assert not found.bred and len(found.feeds) == 39
    data = path.with_name("few.npz")
    np.savez(data, **batch(32))
    report = api.prune(path, Config(output=path.with_name("b.onnx"), calibration=data, round_to=1))
    assert report.inputs is not None and "changed copies of them)" in report.inputs.words


def test_a_detector_with_one_cell_among_its_maps_is_no_classifier(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[n,3,h,w] x) => (float[n,2,h,w] y, float[n,2,1,1] z) {
        r = Relu(x)
        y = Conv(r, w)
        p = GlobalAveragePool(r)
        z = Conv(p, w)
    }
    """
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w"))
    onnx.save(proto, tmp_path / "a.onnx")
    assert not join(str(tmp_path / "a.onnx"), [batch()], items=100, values=1e6, seed=0).bred


def test_large_images_get_fewer_copies_rather_than_none(net: Path) -> None:
    size = batch()["x"].size
    assert len(joined(net, [batch()], 100, values=2 * 3 * size)) == 3


def test_batches_that_are_held_out_whole_are_not_mixed_with_others(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "varied", lambda random, image, other: other)
    numbers = np.arange(40, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 16, 16), np.float32)
    feeds = [{"x": numbers[k : k + 8]} for k in range(0, 40, 8)]
    holdout = Holdout.of(feeds)
    assert [holdout.is_held(b) for b in range(5)] == [False] * 4 + [True]
    for number, feed in enumerate(joined(net, feeds, 400)):
        levels = np.rint(feed["x"][:, 0, 0, 0])
        assert ((levels >= 32) == (number % 5 == 4)).all()


@pytest.mark.parametrize("values", [0, 1e6])
def test_variations_of_what_is_held_out_hold_nothing_else(
    net: Path, monkeypatch: pytest.MonkeyPatch, values: float
) -> None:
    def other(random: np.random.Generator, image: np.ndarray, another: np.ndarray) -> np.ndarray:
        return another if random.random() < 0.5 else image

    def pieces_of_any(feed: Feed, random: np.random.Generator) -> Feed:
        return {"x": feed["x"][random.integers(len(feed["x"]), size=len(feed["x"]))]}

    monkeypatch.setattr(images, "varied", other)
    monkeypatch.setattr(joining, "augment", pieces_of_any)
    numbers = np.arange(24, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 16, 16), np.float32)
    feeds = [{"x": numbers[:13]}, {"x": numbers[13:]}]
    holdout = Holdout.of(feeds)
    held = {int(v) for b in range(2) for v in feeds[b]["x"][holdout.items(b), 0, 0, 0]}
    assert held == {4, 9, 14, 19}
    found = joined(net, feeds, 240, values)
    assert len(found) == 18
    for number, feed in enumerate(found):
        sides = holdout.items(number % 2)
        assert [round(float(v)) in held for v in feed["x"][:, 0, 0, 0]] == sides.tolist()


def test_bytes_and_channels_last_are_varied_too(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (uint8[2,8,8,3] x) => (float[2,2] y) {
        r = Cast<to=1>(x)
        q = ReduceMean<axes=[1,2], keepdims=0>(r)
        y = MatMul(q, w)
    }
    """
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((3, 2), np.float32), "w"))
    onnx.save(proto, tmp_path / "a.onnx")
    pixels = np.moveaxis(images.mixture(np.random.default_rng(0), 6, (3, 8, 8)), 1, 3)
    feeds = [{"x": pixels[k : k + 2]} for k in (0, 2, 4)]
    found = joined(tmp_path / "a.onnx", feeds, 18)
    assert {f["x"].shape for f in found} == {(2, 8, 8, 3)} and all(f["x"].dtype == np.uint8 for f in found)
    assert {f["x"].tobytes() for f in found}.isdisjoint({f["x"].tobytes() for f in feeds})


def test_a_run_on_few_images_says_how_many_were_bred(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = net.with_name("few.npz")
    np.savez(data, **batch(32))
    config = Config(output=net.with_name("a.onnx"), calibration=data, round_to=1, force=True)
    report = api.prune(net, config)
    assert report.inputs is not None and report.inputs.rows == 32
    rows = 32 - report.inputs.held_out
    assert f"(joined by {512 // rows * rows - rows} images bred from them)" in report.inputs.words
    monkeypatch.setattr(gathering, "ENLARGED_WORK", 1)
    alone = api.prune(net, config)
    assert alone.inputs is not None and "joined" not in alone.inputs.words


def test_where_breeding_fails_the_run_goes_on(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = worker.call

    def fail(function: str, arguments: Any, **options: Any) -> Any:
        if function == "onnxprune.synthetic:join":
            raise WorkerError("crashed")
        return call(function, arguments, **options)

    monkeypatch.setattr(worker, "call", fail)
    data = net.with_name("few.npz")
    np.savez(data, **batch(32))
    report = api.prune(net, Config(output=net.with_name("a.onnx"), calibration=data, round_to=1))
    assert report.inputs is not None and "joined" not in report.inputs.words


def test_how_many_rounds_there_is_time_for() -> None:
    assert breeding.affordable(1000, 1999) == -1
    assert breeding.affordable(1000, 2000) == 0
    assert breeding.affordable(1000, 6000) == 2
    assert breeding.affordable(1000, 1e9) == breeding.ROUNDS
