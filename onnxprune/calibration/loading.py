"""One door to all kinds of calibration data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxprune.calibration import arrays, functions, images, places
from onnxprune.calibration.batching import BATCH, fixed_rows
from onnxprune.calibration.checks import Entry, entries, fitting
from onnxprune.errors import UsageError
from onnxprune.preparation import Preparation
from onnxprune.records import Feed
from onnxprune.shapes import Shape


@dataclass(frozen=True)
class Loaded:
    """Checked feeds, at most as many rows as asked for; `words`: what they are and how they were made."""

    feeds: list[Feed]
    words: str


def load(
    place: Path,
    proto: onnx.ModelProto,
    *,
    limit: int,
    memory_bytes: int = 1 << 30,
    preparation: Preparation | None = None,
    given: Mapping[str, Shape] | None = None,
    seed: int = 0,
) -> Loaded:
    """Inputs of the model `proto` from `place`: a .npz or .npy file, a folder of them or of images, or a function.

    No more is read or decoded than `limit` rows, nor more than fit into `memory_bytes`. `given`: sizes of free axes.
    Raises UsageError for what cannot be read or does not fit the model, saying what and where.
    """
    wanted = preparation or Preparation()
    inputs = entries(proto, given or {})
    limit = min(limit, max(fixed_rows(proto) or 1, memory_bytes // max(1, sum(map(_row_bytes, inputs)))))
    found, words = _open(place, inputs, limit, wanted, fixed_rows(proto), seed)
    feeds = [fitting(feed, proto, number) for number, feed in enumerate(found, 1)]
    if not feeds:
        raise UsageError(f"--calibration {place}: there are no inputs in it")
    return Loaded(feeds, words)


def _row_bytes(entry: Entry) -> int:
    return math.prod(n or 1 for n in entry.axes[1:]) * entry.dtype.itemsize


def _open(
    place: Path, inputs: Sequence[Entry], limit: int, wanted: Preparation, fixed: int | None, seed: int
) -> tuple[Iterable[Feed], str]:
    names = [e.name for e in inputs]
    function = places.function_of(place)
    if function is not None:
        _no_preparation(place, wanted)
        return functions.read(*function, names, limit), f"the function {place}"
    if not place.exists():
        raise UsageError(f"--calibration: {place} does not exist")
    if place.is_dir():
        return _open_folder(place, inputs, limit, wanted, fixed, seed)
    if place.suffix.lower() in places.IMAGES:
        return _open_images([place], str(place), inputs, limit, wanted, fixed, seed)
    _no_preparation(place, wanted)
    return arrays.read([place], names, limit), str(place)


def _open_folder(
    folder: Path, inputs: Sequence[Entry], limit: int, wanted: Preparation, fixed: int | None, seed: int
) -> tuple[Iterable[Feed], str]:
    files = list(places.files_in(folder, places.ARRAYS))
    pictures = list(places.files_in(folder, places.IMAGES))
    if files and pictures:
        raise UsageError(
            f"--calibration: the folder {folder} holds arrays ({files[0].name}) and images ({pictures[0].name}); "
            "give a folder of one kind"
        )
    if pictures:
        return _open_images(pictures, str(folder), inputs, limit, wanted, fixed, seed)
    if not files:
        raise UsageError(f"--calibration: the folder {folder} holds no .npz, .npy or image files")
    _no_preparation(folder, wanted)
    return arrays.read(files, [e.name for e in inputs], limit), f"{len(files)} files in {folder}"


def _open_images(
    files: Sequence[Path],
    label: str,
    inputs: Sequence[Entry],
    limit: int,
    wanted: Preparation,
    fixed: int | None,
    seed: int,
) -> tuple[Iterable[Feed], str]:
    form = images.form_of(inputs, wanted)
    chosen = images.chosen(files, limit, seed)
    feeds = images.read(chosen, form, wanted, fixed or BATCH)
    first = next(feeds, None)
    if first is None:
        raise UsageError(f"--calibration {label}: none of its {len(chosen)} images can be decoded")
    count = f"{len(chosen)} of {len(files)}" if len(chosen) < len(files) else str(len(files))
    return itertools.chain([first], feeds), f"{count} images in {label} ({images.words(form, wanted)})"


def _no_preparation(place: Path, wanted: Preparation) -> None:
    if wanted != Preparation():
        raise UsageError(
            f"--mean, --std, --scale, --layout, --resize and --color are for images; {place} holds arrays as the model "
            "takes them"
        )
