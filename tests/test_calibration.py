"""Calibration data: found, read up to a limit, checked against the inputs of the model, cut into batches."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import model

from onnxprune import UsageError, calibration, evaluation
from onnxprune.calibration import functions, images
from onnxprune.preparation import Preparation, parse_numbers, parse_size

MODEL = "(float[N,4] x, int64[N,2] i) => (float[N,3] y) <float[4,3] w> { y = MatMul(x, w) }"
ONE = "(float[N,4] x) => (float[N,3] y) <float[4,3] w> { y = MatMul(x, w) }"
PICTURE = "(float[N,3,6,8] image) => (float[N,2,6,8] y) <float[2,3,1,1] w> { y = Conv(image, w) }"


def _feed(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    feed = {"x": np.ones((3, 4), np.float32), "i": np.zeros((3, 2), np.int64), **changes}
    return {name: array for name, array in feed.items() if array is not None}


def _rows(place: Path, text: str = ONE, limit: int = 100, **options: Any) -> list[np.ndarray]:
    found = calibration.load(place, model(text), limit=limit, **options)
    return [next(iter(feed.values())) for feed in found.feeds]


# ---- Checks ----------------------------------------------------------------------------------------------------------


def test_arrays_of_other_names_are_left_out() -> None:
    assert sorted(calibration.fitting(_feed(labels=np.arange(3)), model(MODEL))) == ["i", "x"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "input 'x' has no array; given are"),
        ({"x": np.ones((3, 4))}, r"input 'x' takes float32, and the array is float64: .* \.astype\('float32'\)$"),
        ({"x": np.ones((3, 5), np.float32)}, r"input 'x' has the axes \(\?, 4\), and the array \(3, 5\)"),
        ({"x": np.ones(4, np.float32)}, r"has the axes \(\?, 4\), and the array \(4,\)"),
        ({"x": np.ones((0, 4), np.float32)}, "without a single element"),
        ({"x": np.full((3, 4), np.nan, np.float32)}, "NaN or infinite values: 12 of 12, the first in row 0"),
        ({"x": np.full((3, 4), "cat")}, "takes float32, and the array is text: numbers are needed$"),
        ({"i": np.zeros((2, 2), np.int64)}, "x has 3 rows, i 2, and the model takes the same number of all"),
    ],
    ids=["missing", "type", "size", "rank", "empty", "nan", "text", "rows"],
)
def test_what_does_not_fit_is_named(changes: dict[str, np.ndarray | None], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        calibration.fitting(_feed(**changes), model(MODEL))


def test_the_feed_is_named_where_there_are_several() -> None:
    with pytest.raises(UsageError, match=r"--calibration b.npz: input 'x' has no array"):
        calibration.fitting(_feed(x=None), model(MODEL), "b.npz")


@pytest.mark.parametrize("index", [10, -11])
def test_indices_outside_of_their_table_are_refused(index: int) -> None:
    calibration.check_indices([_feed(i=np.array([[9, -10]]))], {"i": 10})
    with pytest.raises(UsageError, match=f"indices from .*{index}.*table of 10 rows: 0 to 9 are allowed"):
        calibration.check_indices([_feed(), _feed(i=np.array([[0, index]]))], {"i": 10})


def test_ranges_are_those_of_all_feeds() -> None:
    found = calibration.ranges([_feed(), _feed(x=np.full((1, 4), -3, np.float32))])
    assert (found["x"].low, found["x"].high, found["x"].mean) == (-3.0, 1.0, 0.0)


def test_data_without_variety_is_remarked_on() -> None:
    random = np.random.default_rng(0)
    varied = random.normal(size=(3, 4)).astype(np.float32)
    assert calibration.remarks([_feed(x=varied)]) == []
    assert calibration.remarks([_feed()]) == ["every value of the calibration input 'x' is 1"]
    calibration.check_variety([_feed(x=varied)] * 2, "--calibration a.npz")
    calibration.check_variety([{"x": np.ones((1, 4), np.float32)}], "--calibration a.npz")


def test_rows_that_are_all_the_same_are_refused() -> None:
    same = np.arange(12, dtype=np.float32).reshape(3, 4)[[1, 1, 1]]
    with pytest.raises(UsageError, match="--calibration a.npz: all 6 rows are the same, so nothing can be learned"):
        calibration.check_variety([_feed(x=same)] * 2, "--calibration a.npz")


# ---- Arrays ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_name_order(tmp_path: Path) -> None:
    for k in (2, 1):
        np.savez(tmp_path / f"{k}.npz", x=np.full((1, 4), k, np.float32))
    np.save(tmp_path / "3.npy", np.full((2, 4), 3, np.float32))
    assert [float(x[0, 0]) for x in _rows(tmp_path)] == [1, 2, 3]
    assert [len(x) for x in _rows(tmp_path, limit=3)] == [1, 2]
    assert [float(x[0, 0]) for x in _rows(tmp_path, limit=2)] == [1, 3]
    assert len(_rows(tmp_path, limit=2)) == 2


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_only_the_rows_that_are_used_are_read(tmp_path: Path, save: Any, order: Any) -> None:
    data = np.asarray(np.arange(400, dtype=np.float32).reshape(100, 4), order=order)
    save(tmp_path / "a.npz", x=data, labels=np.array([{}], dtype=object))
    np.save(tmp_path / "a.npy", data)
    for name in ("a.npz", "a.npy"):
        (rows,) = _rows(tmp_path / name, limit=7)
        np.testing.assert_array_equal(rows, data[[0, 16, 33, 50, 66, 82, 99]])
        (rows,) = _rows(tmp_path / name, limit=7, spread=False)
        np.testing.assert_array_equal(rows, data[:7])
    assert not isinstance(rows, np.memmap)


def test_a_truncated_member_costs_nothing_beyond_the_rows_that_are_used(tmp_path: Path) -> None:
    """Reads of the archive stop early: 64 MB of rows, of which a thousandth is asked for."""
    data = np.zeros((1 << 22, 4), np.float32)
    np.savez(tmp_path / "a.npz", x=data)
    import tracemalloc

    tracemalloc.start()
    _rows(tmp_path / "a.npz", limit=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_rows_are_spread_over_all_files_in_blocks_that_the_model_takes(tmp_path: Path) -> None:
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", np.full((10, 4), k, np.float32) + np.arange(10, dtype=np.float32)[:, None] / 10)
    fixed = "g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }"
    found = calibration.load(tmp_path, model(fixed), limit=6)
    assert found.numbers is not None
    assert [own.tolist() for own in found.numbers] == [[0, 1], [14, 15], [28, 29]]
    assert (found.total, found.whole) == (30, False)
    values = np.concatenate([feed["x"][:, 0] for feed in found.feeds])
    np.testing.assert_allclose(values, [0.0, 0.1, 1.4, 1.5, 2.8, 2.9])


def test_rows_are_mixed_with_what_belongs_to_them() -> None:
    """Sorted rows of two files: every batch has some of both halves, blocks stay together, other shapes stay apart."""
    rows = np.arange(200.0)[:, None]
    feeds = [{"x": rows[:120], "l": rows[:120] * 2}, {"x": rows[120:], "l": rows[120:] * 2}]
    (found,) = calibration.mixed(feeds, None, 0)
    assert sorted(found["x"][:, 0]) == list(range(200))
    assert np.array_equal(found["l"], found["x"] * 2)
    for batch in calibration.batches([found], None, 1000):
        assert 0.2 < float(np.mean(batch["x"] < 100)) < 0.8 or len(batch["x"]) < 32
    assert np.array_equal(found["x"], calibration.mixed(feeds, None, 0)[0]["x"])
    assert not np.array_equal(found["x"], calibration.mixed(feeds, None, 1)[0]["x"])
    (pairs,) = calibration.mixed(feeds, 2, 0)
    assert np.array_equal(pairs["x"][1::2], pairs["x"][::2] + 1)
    other = [*feeds, {"x": np.zeros((3, 2))}, {"x": np.zeros((4, 1)), "z": np.zeros((2, 1))}]
    assert sorted(len(feed["x"]) for feed in calibration.mixed(other, None, 0)) == [3, 4, 200]


def test_memory_bounds_the_rows_too(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100, 4), np.float32))
    assert [len(x) for x in _rows(tmp_path / "a.npy", memory_bytes=16 * 10)] == [10]


def test_free_axes_count_in_memory_as_the_files_have_them(tmp_path: Path) -> None:
    text = "(float[N,L] x) => (float[N,L] y) { y = Relu(x) }"
    (tmp_path / "mixed").mkdir()
    np.save(tmp_path / "a.npy", np.zeros((100, 50), np.float32))
    np.savez(tmp_path / "mixed" / "a.npz", x=np.zeros((100, 50), np.float32))
    np.savez(tmp_path / "mixed" / "b.npz", x=np.zeros((100, 10), np.float32))
    for place in ("a.npy", "mixed/a.npz", "mixed"):
        assert sum(len(x) for x in _rows(tmp_path / place, text, memory_bytes=200 * 10)) == 10
    assert [len(x) for x in _rows(tmp_path / "a.npy", text, memory_bytes=100)] == [1]


def test_free_axes_count_in_memory_as_pictures_are_made(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="extra 'images' is not installed")
    for number in range(8):
        pillow.new("RGB", (9, 7)).save(tmp_path / f"{number}.png")
    text = "(float[N,3,H,W] image) => (float[N,3,H,W] y) { y = Relu(image) }"
    options = {"preparation": Preparation(resize=(10, 20)), "memory_bytes": 3 * 10 * 20 * 4 * 5}
    assert sum(len(x) for x in _rows(tmp_path, text, **options)) == 5


def test_arrays_without_a_common_first_axis_stay_whole(tmp_path: Path) -> None:
    text = "(float[N,4] x, float[M,4] z) => (float[N,3] y) <float[4,3] w> { y = MatMul(x, w) }"
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 4), np.float32), z=np.zeros((5, 4), np.float32))
    (feed,) = calibration.load(tmp_path / "a.npz", model(text), limit=3).feeds
    assert (len(feed["x"]), len(feed["z"])) == (9, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.npz", "not a .npz file"),
        ("text.npy", "not a .npy file that can be read"),
        ("objects.npz", "cannot be read.*Python objects"),
        ("cut.npz", "cannot be read|not a .npz"),
        ("other.npz", r"input 'x' has no array; the file has z"),
        ("absent.npz", "does not exist"),
        ("empty", "holds no .npz, .npy or image files"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "text.npy").write_text("hello")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    np.savez(tmp_path / "whole.npz", x=np.zeros((1000, 4), np.float32))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:4000])
    with pytest.raises(UsageError, match=message):
        _rows(tmp_path / name)


@pytest.mark.parametrize("option", ["--calibration", "--evaluation"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.ones((2, 5), np.float32), r"input 'x' has the axes \(\?, 4\), and the array \(2, 5\)"),
        (np.ones((2, 4)), "input 'x' takes float32"),
        (np.full((2, 4), np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_the_option_and_the_file_are_named(tmp_path: Path, option: str, bad: np.ndarray, message: str) -> None:
    for name in ("a", "c"):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((2, 4), np.float32))
    np.savez(tmp_path / "bad.npz", x=bad)
    for place in (tmp_path, tmp_path / "bad.npz"):
        with pytest.raises(UsageError, match=f"^{option} {tmp_path}/bad.npz: .*{message}"):
            _rows(place, option=option)


@pytest.mark.parametrize("kind", ["text", "pickle", "objects"])
def test_advice_of_numpy_is_not_passed_on(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npy"
    if kind == "objects":
        np.save(path, np.array([{}], dtype=object))
    else:
        path.write_bytes(b"hello" if kind == "text" else pickle.dumps({}))
    for read in (lambda: _rows(path), lambda: evaluation.read_labels(path)):
        with pytest.raises(UsageError, match=r"a\.npy: not a \.npy") as caught:
            read()
        assert "pickle" not in str(caught.value)


def test_a_single_array_needs_a_model_with_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(UsageError, match=r"the model has 2 inputs \(x, i\); save a .npz"):
        _rows(tmp_path / "a.npy", MODEL)


def test_options_for_images_are_refused_with_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.float32))
    with pytest.raises(UsageError, match="are for images"):
        _rows(tmp_path / "a.npy", preparation=Preparation(color="bgr"))


# ---- Images ----------------------------------------------------------------------------------------------------------


def _save_image(path: Path, pixels: np.ndarray) -> Path:
    image = pytest.importorskip("PIL.Image", reason="extra 'images' is not installed")
    path.parent.mkdir(exist_ok=True)
    image.fromarray(pixels).save(path)
    return path


def _red(height: int = 6, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), (255, 51, 0), np.uint8)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({}, (1.0, 0.2, 0.0)),
        ({"color": "bgr"}, (0.0, 0.2, 1.0)),
        ({"scale": 1.0}, (255, 51, 0)),
        ({"mean": (0.5,), "std": (0.25,)}, (2.0, -1.2, -2.0)),
        ({"mean": (1.0, 0.2, 0.1), "std": (1.0, 2.0, 0.1)}, (0.0, 0.0, -1.0)),
        ({"scale": 1.0, "mean": (123.0, 51.0, 100.0)}, (132, 0, -100)),
    ],
)
def test_pixels_become_inputs(tmp_path: Path, options: dict[str, Any], values: tuple[float, ...]) -> None:
    _save_image(tmp_path / "a.png", _red())
    (found,) = _rows(tmp_path, PICTURE, preparation=Preparation(**options))
    assert found.dtype == np.float32 and found.shape == (1, 3, 6, 8)
    np.testing.assert_allclose(found[0, :, 2, 3], values, atol=1e-5)


@pytest.mark.parametrize(
    ("axes", "kind", "expected"),
    [
        ("N,6,8,3", "float", (1.0, 0.2, 0.0)),
        ("N,6,8,1", "float", ((0.299 * 255 + 0.587 * 51) / 255,)),
        ("N,6,8,3", "uint8", (255, 51, 0)),
    ],
)
def test_the_form_follows_the_input(tmp_path: Path, axes: str, kind: str, expected: tuple[float, ...]) -> None:
    _save_image(tmp_path / "a.png", _red(30, 40))
    (found,) = _rows(tmp_path, f"({kind}[{axes}] image) => ({kind}[{axes}] y) {{ y = Identity(image) }}")
    assert found.shape == (1, 6, 8, len(expected))
    np.testing.assert_allclose(found[0, 2, 3], expected, atol=0.01 if kind == "float" else 0)


def test_no_more_images_are_decoded_than_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(40):
        _save_image(tmp_path / f"class{k // 10}" / f"{k:03}.png", np.full((6, 8, 3), k, np.uint8))
    decoded: list[Path] = []
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda file, form: decoded.append(file) or decode(file, form))
    found = calibration.load(tmp_path, model(PICTURE), limit=12)
    assert len(decoded) == 12
    assert {file.parent.name for file in decoded} == {"class0", "class1", "class2", "class3"}
    assert found.words.startswith(f"12 of 40 images in {tmp_path} (rgb, 6x8, nchw, pixels / 255")
    again = calibration.load(tmp_path, model(PICTURE), limit=12)
    np.testing.assert_array_equal(found.feeds[0]["image"], again.feeds[0]["image"])


def test_images_come_in_batches_of_the_model(tmp_path: Path) -> None:
    for k in range(7):
        _save_image(tmp_path / f"{k}.png", _red())
    text = PICTURE.replace("N", "3")
    assert [len(x) for x in _rows(tmp_path, text)] == [3, 3, 1]
    feeds = calibration.load(tmp_path, model(text), limit=7).feeds
    assert [len(f["image"]) for f in calibration.batches(feeds, 3, 7)] == [3, 3]


def test_what_is_no_image_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _save_image(tmp_path / "a.png", _red())
    (tmp_path / "b.jpg").write_text("hello")
    assert [len(x) for x in _rows(tmp_path, PICTURE)] == [1]
    assert "b.jpg: left out, this image cannot be decoded" in caplog.text
    (tmp_path / "a.png").unlink()
    with pytest.raises(UsageError, match="none of its 1 images can be decoded"):
        _rows(tmp_path, PICTURE)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (MODEL, {}, "a folder of images feeds one input, and the model has 2"),
        (ONE, {}, r"needs an input of 4 axes.*'x' is float32 \(\?, 4\)"),
        (PICTURE.replace("6,8", "H,W"), {}, "takes images of any size; say which with --resize"),
        (PICTURE, {"resize": (8, 8)}, "--resize 8x8: input 'image' takes 6x8"),
        (PICTURE, {"color": "gray"}, "has 3 channels, and --color gray makes 1"),
        (PICTURE, {"mean": (0.1, 0.2)}, "--mean has 2 numbers, and the input 3 channels"),
        ("(float[N,C,H,W] x) => (float[N,C,H,W] y) { y = Relu(x) }", {}, "give --layout nchw or --layout nhwc"),
        ("(float[N,2,6,8] x) => (float[N,2,6,8] y) { y = Relu(x) }", {"layout": "nchw"}, "has 2 channels"),
    ],
)
def test_images_that_do_not_fit_are_refused(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    _save_image(tmp_path / "a.png", _red())
    with pytest.raises(UsageError, match=message):
        _rows(tmp_path, text, preparation=Preparation(**options))


def test_free_sizes_are_given(tmp_path: Path) -> None:
    _save_image(tmp_path / "a.png", _red())
    free = PICTURE.replace("6,8", "H,W")
    assert _rows(tmp_path, free, preparation=Preparation(resize=(4, 5)))[0].shape == (1, 3, 4, 5)
    assert _rows(tmp_path, free, given={"image": (2, 3, 7, 9)})[0].shape == (1, 3, 7, 9)


def test_arrays_and_images_are_not_mixed(tmp_path: Path) -> None:
    _save_image(tmp_path / "a.png", _red())
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 6, 8), np.float32))
    with pytest.raises(UsageError, match="give a folder of one kind"):
        _rows(tmp_path, PICTURE)


def test_a_missing_pillow_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r'pip install "onnxprune\[images\]"'):
        _rows(tmp_path, PICTURE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (123.7, 116.3, 103.5)}, "pixels times --scale lie between 0 and 1; .* or --scale 1"),
        ({"std": (0.0,)}, "--std must hold positive numbers"),
        ({"scale": -1.0}, "--scale must be a positive number"),
        ({"resize": (0, 3)}, "--resize must be HEIGHTxWIDTH of at least 1"),
        ({"layout": "chw"}, "--layout must be one of"),
        ({"color": "hsv"}, "--color must be one of"),
    ],
)
def test_preparations_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preparation(**options).check()


def test_numbers_and_sizes_are_read_as_written() -> None:
    assert parse_numbers("0.485,1/4") == (0.485, 0.25)
    assert parse_size("224x320") == (224, 320) and parse_size("auto") is None
    for text in ("", "a", "1/0", "1,,2"):
        with pytest.raises(ValueError, match=r".*"):
            parse_numbers(text)


# ---- Functions -------------------------------------------------------------------------------------------------------


def _script(folder: Path, body: str) -> Path:
    file = folder / "feeds_of_test.py"
    file.write_text("import numpy as np\n" + body)
    return file


def test_a_function_yields_feeds_until_there_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _script(
        tmp_path,
        "def make():\n"
        "    for k in range(1000):\n"
        "        print('item', k)\n"
        "        yield {'x': np.full((4, 4), k, np.float32), 'label': k}\n",
    )
    found = _rows(Path(f"{file}:make"), limit=10)
    assert [len(x) for x in found] == [4, 4, 2]
    said = capsys.readouterr()
    assert said.out == "" and said.err.split() == ["item", "0", "item", "1", "item", "2"]


def test_a_function_of_a_module_may_return_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(tmp_path, "def make():\n    return [np.zeros((2, 4), np.float32)] * 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "feeds_of_test", raising=False)
    assert [len(x) for x in _rows(Path("feeds_of_test:make"))] == [2, 2, 2]
    assert str(tmp_path) not in sys.path


def test_a_function_may_import_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_feeds.py").write_text("import numpy as np\nrows = np.zeros((2, 4), np.float32)")
    monkeypatch.delitem(sys.modules, "beside_feeds", raising=False)
    file = _script(tmp_path, "def make():\n    from beside_feeds import rows\n    yield rows\n")
    assert [len(x) for x in _rows(Path(f"{file}:make"))] == [2]
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make():\n    raise KeyError('boom')\n", r"KeyError: 'boom' .*feeds_of_test.py, line 3"),
        ("def make():\n    yield {}\n", "input 'x' has no array"),
        ("def make():\n    yield 'text'\n", "it yields str; the model needs dicts"),
        ("def make():\n    return 3\n", "it returned int; it must return or yield dicts"),
        ("make = 3\n", "'make' is not a function but int"),
        ("def other():\n    pass\n", "has no function 'make'"),
        ("import sys\ndef make():\n    sys.exit(0)\n", r"SystemExit: it calls sys.exit\(0\) \(.*test.py, line 4"),
        ("import sys\nsys.exit()\n", r"SystemExit: it calls sys.exit\(\)"),
        ("def make(rows):\n    yield rows\n", r"TypeError: make\(\) missing 1 required .*'rows'$"),
        ("def make(:\n", r"SyntaxError: .*\(feeds_of_test.py, line 2\)$"),
        ("def make():\n    return []\n", "there are no inputs in it"),
        ("def make():\n    yield np.zeros((2, 5), np.float32)\n", r"has the axes \(\?, 4\)"),
    ],
)
def test_functions_that_fail_say_where(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _rows(Path(f"{_script(tmp_path, body)}:make"))


def test_a_module_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="No module named 'no_such_module'"):
        list(functions.read("no_such_module", "make", ["x"], 1))


def test_places_are_told_apart(tmp_path: Path) -> None:
    file = _script(tmp_path, "")
    assert calibration.exists(Path(f"{file}:make")) and calibration.exists(Path("package.module:make"))
    assert not calibration.exists(tmp_path / "absent.py:make") and not calibration.exists(tmp_path / "absent")


# ---- Batches ---------------------------------------------------------------------------------------------------------


def test_batches_have_the_fixed_size_or_at_most_32_rows() -> None:
    feed = {"x": np.arange(70, dtype=np.float32).reshape(70, 1)}
    many = {"x": np.arange(262, dtype=np.float32).reshape(262, 1)}
    assert [len(f["x"]) for f in calibration.batches([many], None, 1000)] == [32] * 8 + [6]
    assert [len(f["x"]) for f in calibration.batches([feed], None, 1000)] == [8] * 8 + [6]
    assert [len(f["x"]) for f in calibration.batches([{"x": feed["x"][:3]}], None, 1000)] == [1, 1, 1]
    assert [len(f["x"]) for f in calibration.batches([feed], 20, 1000)] == [20, 20, 20]
    assert sum(len(f["x"]) for f in calibration.batches([feed], None, 40)) == 40
    with pytest.raises(UsageError, match="too few rows for the batch of 100"):
        calibration.batches([feed], 100, 1000)
