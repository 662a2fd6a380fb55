"""One door to all kinds of calibration data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.calibration import arrays, functions, images, places
from onnxprune.calibration.batching import BATCH, fixed_rows
from onnxprune.calibration.checks import Entry, entries, fitting, rows_of
from onnxprune.errors import UsageError
from onnxprune.preparation import Preparation
from onnxprune.records import Feed
from onnxprune.shapes import Shape


@dataclass(frozen=True)
class Loaded:
    """Checked feeds, at most as many rows as asked for; `words`: what they are and how they were made.

    `extras`: the array called `extra` beside each feed, None where there is none. `ordered`: the rows come in the order
    of the source. `whole`: nothing was left out.
    """

    feeds: list[Feed]
    words: str
    extras: list[npt.NDArray[np.generic] | None]
    ordered: bool
    whole: bool


def load(
    place: Path,
    proto: onnx.ModelProto,
    *,
    limit: int,
    memory_bytes: int = 1 << 30,
    preparation: Preparation | None = None,
    given: Mapping[str, Shape] | None = None,
    seed: int = 0,
    extra: str | None = None,
) -> Loaded:
    """Inputs of the model `proto` from `place`: a .npz or .npy file, a folder of them or of images, or a function.

    No more is read or decoded than `limit` rows, nor more than fit into `memory_bytes`. `given`: sizes of free axes.
    `extra`: the name of an array that is read too, where it lies beside the inputs (labels).
    Raises UsageError for what cannot be read or does not fit the model, saying what and where.
    """
    wanted = preparation or Preparation()
    inputs = entries(proto, given or {})
    limit = min(limit, max(fixed_rows(proto) or 1, memory_bytes // max(1, sum(map(_row_bytes, inputs)))))
    beside = None if any(e.name == extra for e in inputs) else extra
    found, words = _open(place, inputs, limit, wanted, fixed_rows(proto), seed, beside)
    feeds, extras = [], []
    for number, feed in enumerate(found, 1):
        feeds.append(fitting(feed, proto, number))
        extras.append(feed.get(beside) if beside else None)
    if not feeds:
        raise UsageError(f"--calibration {place}: there are no inputs in it")
    return Loaded(feeds, words, extras, not _has_images(place), rows_of(feeds) < limit)


def _has_images(place: Path) -> bool:
    files = places.files_in(place, places.IMAGES) if place.is_dir() else iter([place])
    return any(file.suffix.lower() in places.IMAGES for file in files)


def _row_bytes(entry: Entry) -> int:
    return math.prod(n or 1 for n in entry.axes[1:]) * entry.dtype.itemsize


def _open(
    place: Path,
    inputs: Sequence[Entry],
    limit: int,
    wanted: Preparation,
    fixed: int | None,
    seed: int,
    extra: str | None,
) -> tuple[Iterable[Feed], str]:
    names = [e.name for e in inputs]
    function = places.function_of(place)
    if function is not None:
        _no_preparation(place, wanted)
        return functions.read(*function, names, limit, extra), f"the function {place}"
    if not place.exists():
        raise UsageError(f"--calibration: {place} does not exist")
    if place.is_dir():
        return _open_folder(place, inputs, limit, wanted, fixed, seed, extra)
    if place.suffix.lower() in places.IMAGES:
        return _open_images([place], str(place), inputs, limit, wanted, fixed, seed)
    _no_preparation(place, wanted)
    return arrays.read([place], names, limit, extra), str(place)


def _open_folder(
    folder: Path,
    inputs: Sequence[Entry],
    limit: int,
    wanted: Preparation,
    fixed: int | None,
    seed: int,
    extra: str | None,
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
    return arrays.read(files, [e.name for e in inputs], limit, extra), f"{len(files)} files in {folder}"


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
