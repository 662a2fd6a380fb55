"""One door to all kinds of calibration data."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.calibration import arrays, functions, images, places
from onnxprune.calibration.batching import BATCH, common_rows, fixed_rows
from onnxprune.calibration.checks import Entry, entries, fitting, rows_of
from onnxprune.errors import UsageError
from onnxprune.preparation import Preparation
from onnxprune.records import Feed, IndexArray
from onnxprune.shapes import Shape

_Feed = tuple[Feed, list[Path]]
"""A feed, and of images the file of every row."""
OPTION = "--calibration"
"""What errors name, where no other option is given."""


@dataclass(frozen=True)
class Loaded:
    """Checked feeds, at most as many rows as asked for; `words`: what they are and how they were made.

    `extras`: the array called `extra` beside each feed, None where there is none. `numbers`: the rows of each feed as
    the source counts them, None where it does not; `total`: how many it has, None where that is not known. `files`: the
    image of every row, by feed, None where these are not images.
    """

    feeds: list[Feed]
    words: str
    extras: list[npt.NDArray[np.generic] | None]
    numbers: list[IndexArray] | None
    total: int | None
    files: list[list[Path]] | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return self.total is not None and self.total == sum(map(common_rows, self.feeds))


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
    spread: bool = True,
    option: str = OPTION,
) -> Loaded:
    """Inputs of the model `proto` from `place`: a .npz or .npy file, a folder of them or of images, or a function.

    No more is read or decoded than `limit` rows, nor more than fit into `memory_bytes` (free axes of a function's
    arrays count as 1): of files with more, rows evenly spaced over all of them, or with `spread` False the first.
    `given`: sizes of free axes. `extra`: the name of an array that is read too, where it lies beside the inputs
    (labels). `option`: the one that `place` was given with.
    Raises UsageError for what cannot be read or does not fit the model, saying what and where.
    """
    inputs = entries(proto, given or {})
    fixed = fixed_rows(proto)
    limit = _fitting_rows(limit, fixed, memory_bytes, sum(map(_row_bytes, inputs)))
    beside = None if any(e.name == extra for e in inputs) else extra
    asked = _Asked(inputs, limit, memory_bytes, preparation or Preparation(), fixed, seed, beside, spread)
    feeds, extras, pictures = [], [], list[list[Path]]()
    with _named(option):
        found, words, sources = _open(place, asked)
        for number, (feed, files) in enumerate(found):
            where = str(sources.chosen[number].source.file) if sources is not None else f"{place} (feed {number + 1})"
            feeds.append(fitting(feed, proto, where))
            extras.append(feed.get(beside) if beside else None)
            pictures.append(files)
        if not feeds:
            raise UsageError(f"--calibration {place}: there are no inputs in it")
    if sources is not None:
        return Loaded(feeds, words, extras, [s.numbers for s in sources.chosen], sources.total)
    total = None if rows_of(feeds) >= limit else sum(map(common_rows, feeds))
    if _has_images(place):
        return Loaded(feeds, words, extras, None, total, pictures)
    return Loaded(feeds, words, extras, _counted(feeds), total)


@contextlib.contextmanager
def _named(option: str) -> Iterator[None]:
    """Errors that begin with the usual option name this one."""
    try:
        yield
    except UsageError as error:
        text = str(error)
        if option == OPTION or not text.startswith(OPTION):
            raise
        raise UsageError(option + text.removeprefix(OPTION)) from error


def _counted(feeds: Sequence[Feed]) -> list[IndexArray]:
    ends = np.cumsum([common_rows(feed) for feed in feeds])
    return [np.arange(end - common_rows(feed), end) for feed, end in zip(feeds, ends, strict=True)]


class _Asked(NamedTuple):
    """What is wanted of a source."""

    inputs: Sequence[Entry]
    limit: int
    memory_bytes: int
    preparation: Preparation
    fixed: int | None
    seed: int
    extra: str | None
    spread: bool

    @property
    def names(self) -> list[str]:
        return [e.name for e in self.inputs]


class _Sources(NamedTuple):
    """Files of arrays: what is read of them, and the rows that they have."""

    chosen: Sequence[arrays.Chosen]
    total: int


def _has_images(place: Path) -> bool:
    files = places.files_in(place, places.IMAGES) if place.is_dir() else iter([place])
    return any(file.suffix.lower() in places.IMAGES for file in files)


def _fitting_rows(limit: int, fixed: int | None, memory_bytes: int, row_bytes: int) -> int:
    """Rows up to `limit` that fit into the memory, at least one batch."""
    return min(limit, max(fixed or 1, memory_bytes // max(1, row_bytes)))


def _row_bytes(entry: Entry) -> int:
    """Of an input as the model takes it, free axes counted as 1."""
    return math.prod(n or 1 for n in entry.axes[1:]) * entry.dtype.itemsize


def _open(place: Path, asked: _Asked) -> tuple[Iterable[_Feed], str, _Sources | None]:
    function = places.function_of(place)
    if function is not None:
        _no_preparation(place, asked.preparation)
        made = functions.read(*function, asked.names, asked.limit, asked.extra)
        return ((feed, []) for feed in made), f"the function {place}", None
    if not place.exists():
        raise UsageError(f"--calibration: {place} does not exist")
    if place.is_dir():
        return _open_folder(place, asked)
    if place.suffix.lower() in places.IMAGES:
        return *_open_images([place], str(place), asked), None
    return _open_arrays([place], str(place), place, asked)


def _open_arrays(
    files: Sequence[Path], label: str, place: Path, asked: _Asked
) -> tuple[Iterable[_Feed], str, _Sources | None]:
    _no_preparation(place, asked.preparation)
    unit = asked.fixed or 1
    every = arrays.heads(files, asked.names, asked.extra)
    row_bytes = max(e.row_bytes for e in every)
    limit = _fitting_rows(asked.limit, asked.fixed, asked.memory_bytes, row_bytes)
    found = arrays.chosen(every, limit, unit=unit, spread=asked.spread)
    made = arrays.read(found, asked.names, asked.extra)
    return ((feed, []) for feed in made), label, _Sources(found, sum(e.size for e in every))


def _open_folder(folder: Path, asked: _Asked) -> tuple[Iterable[_Feed], str, _Sources | None]:
    files = list(places.files_in(folder, places.ARRAYS))
    pictures = list(places.files_in(folder, places.IMAGES))
    if files and pictures:
        raise UsageError(
            f"--calibration: the folder {folder} holds arrays ({files[0].name}) and images ({pictures[0].name}); "
            "give a folder of one kind"
        )
    if pictures:
        return *_open_images(pictures, str(folder), asked), None
    if not files:
        raise UsageError(f"--calibration: the folder {folder} holds no .npz, .npy or image files")
    return _open_arrays(files, f"{len(files)} files in {folder}", folder, asked)


def _open_images(files: Sequence[Path], label: str, asked: _Asked) -> tuple[Iterable[_Feed], str]:
    wanted = asked.preparation
    form = images.form_of(asked.inputs, wanted)
    limit = _fitting_rows(asked.limit, asked.fixed, asked.memory_bytes, form.row_bytes)
    chosen = images.chosen(files, limit, asked.seed)
    feeds = images.read(chosen, form, wanted, asked.fixed or BATCH)
    first = next(feeds, None)
    if first is None:
        raise UsageError(f"--calibration {label}: none of its {len(chosen)} images can be decoded")
    count = f"{len(chosen)} of {len(files)}" if len(chosen) < len(files) else str(len(files))
    label = f"{count} image{'s' * (len(files) != 1)} in {label}"
    return itertools.chain([first], feeds), f"{label} ({images.words(form, wanted)})"


def _no_preparation(place: Path, wanted: Preparation) -> None:
    if wanted != Preparation():
        raise UsageError(
            f"--mean, --std, --scale, --layout, --resize and --color are for images; {place} holds arrays as the model "
            "takes them"
        )
