"""Labels of images: by a table of names, or by the folders that they lie in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxprune
from onnxprune import Config, labelling
from onnxprune.errors import UsageError

pillow = pytest.importorskip("PIL.Image", reason="needs Pillow (the extra `images`)")

CLASSES = ("dark", "light", "mid")
LEVELS = {"dark": 10, "light": 240, "mid": 120}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images of every class in a folder each, a hidden folder, and a model of their brightness."""
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(12):
            image = pillow.new("RGB", (4, 4), (LEVELS[name] + k % 5,) * 3)
            image.save(tmp_path / "photos" / name / f"{name}{k}.png")
    (tmp_path / "photos" / ".cache").mkdir()
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N,3,4,4] x) => (float[N,3] y) {
        h = Conv(x, w, b) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v, c)
    }""")
    arrays = {"w": np.full((8, 3, 1, 1), 1 / 3), "b": np.zeros(8), "c": np.array([0.1, -0.5, 0.0])}
    arrays["v"] = np.repeat([[-1.0, 1.0, 0.0]], 8, axis=0) / 8
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "photos"


def images(photos: Path) -> list[Path]:
    return sorted(photos.glob("*/*.png"))


def table(photos: Path, between: str = ",", heading: str = "", parts: int = 1) -> Path:
    """A table of all images, named by the last `parts` of their paths."""
    lines = [f"{'/'.join(f.parts[-parts:])}{between}{CLASSES.index(f.parent.name)}" for f in images(photos)]
    path = photos.parent / "labels.csv"
    path.write_text("\n".join([*([heading] if heading else []), *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    ("between", "heading", "parts"),
    [(",", "", 1), (",", "file,label", 2), (";", "", 1), ("\t", "name\tclass", 1), (" ", "", 2), (", ", "", 1)],
)
def test_a_table_names_the_class_of_every_image(photos: Path, between: str, heading: str, parts: int) -> None:
    expected = [CLASSES.index(f.parent.name) for f in images(photos)]
    found = labelling.classes(table(photos, between, heading, parts), images(photos))
    assert found.dtype == np.int64 and found.tolist() == expected


def test_the_folders_are_the_classes_in_the_order_of_their_names(photos: Path) -> None:
    found = labelling.classes(photos, images(photos)[::-1])
    assert found.tolist() == [2] * 12 + [1] * 12 + [0] * 12
    elsewhere = [Path("/other/light/a.png"), Path("/mid/dark/b/c.png")]
    assert labelling.classes(photos, elsewhere).tolist() == [1, 0]


@pytest.mark.parametrize("by_folder", [False, True])
@pytest.mark.parametrize("option", ["calibration", "evaluation"])
def test_labels_stay_with_their_images(photos: Path, by_folder: bool, option: str) -> None:
    """The model is always right; the order of the rows is left to chance."""
    labels = photos if by_folder else table(photos)
    data = {"calibration": photos, option: photos}
    config = Config(ratio=0.5, round_to=1, metric="accuracy", labels=labels, **data)
    report = onnxprune.prune(photos.parent / "m.onnx", config)
    assert report.metric is not None and report.metric.original.value == 1.0
    assert report.metric.labels == report.metric.rows and (option == "calibration" or report.metric.rows == 36)


def test_what_does_not_fit_is_said(photos: Path) -> None:
    files = images(photos)
    path = photos.parent / "t.csv"

    def fails(text: str, *words: str, place: Path = path, given: list[Path] | None = None) -> None:
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            labelling.classes(place, files if given is None else given)
        assert all(word in str(caught.value) for word in ("--labels", *words))

    fails("dark0.png,0\n", "35 images of 36", "dark1.png")
    fails("dark0.png,0\ndark1.png,cat\n", "line 2", "'dark1.png,cat'")
    fails("dark0.png,0\ndark0.png,1\n", "dark0.png has the class 0, and in line 2 1")
    other = photos / "mid" / "dark0.png"
    fails("dark0.png,0\n", "may be", given=[photos / "dark" / "dark0.png", other])
    fails("", "lies in none of them", place=photos / "dark", given=files[:1])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a table of text"):
        labelling.classes(path, files)


@pytest.mark.parametrize(
    ("rows", "labels", "words"), [("x.npz", "t.csv", "is for images"), ("photos", "l.npy", "have names in place of")]
)
def test_every_kind_of_labels_has_its_kind_of_inputs(photos: Path, rows: str, labels: str, words: str) -> None:
    folder = photos.parent
    np.savez(folder / "x.npz", x=np.zeros((40, 3, 4, 4), np.float32))
    np.save(folder / "l.npy", np.zeros(36, np.int64))
    (folder / "t.csv").write_text("a.png,0\n")
    config = Config(calibration=folder / rows, metric="accuracy", labels=folder / labels)
    with pytest.raises(UsageError, match=words):
        onnxprune.prune(folder / "m.onnx", config)
