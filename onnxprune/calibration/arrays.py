"""Arrays from .npz and .npy files: only those the model takes, and of those only the rows that are used."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from onnxprune.calibration import checks
from onnxprune.errors import UsageError
from onnxprune.records import Feed, IndexArray

Array = npt.NDArray[Any]
T = TypeVar("T")
_FAULTS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class _Head(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Counted(NamedTuple):
    """A file: its rows, `size` where its arrays have a common first axis, else 1; `longest`: the largest first axis;
    `first`: the rows of the files before it; `row_bytes`: of all its arrays that are read."""

    file: Path
    size: int
    longest: int
    is_common: bool
    first: int
    row_bytes: int


class Chosen(NamedTuple):
    """Row numbers to read of a file, None for the whole of it."""

    source: Counted
    rows: IndexArray | None

    @property
    def numbers(self) -> IndexArray:
        """The rows to read, counted over all files."""
        return self.source.first + (np.arange(self.source.size) if self.rows is None else self.rows)


def heads(files: Sequence[Path], names: Sequence[str], extra: str | None = None) -> list[Counted]:
    """The rows of files. Raises UsageError for one that cannot be read or misses a name (with those there are)."""
    found: list[Counted] = []
    first = 0
    for file in files:
        own = _heads(file, names, extra)
        count = _common_rows(own)
        longest = max((h.shape[0] for h in own.values() if h.shape), default=1)
        row_bytes = -(-sum(math.prod(h.shape) * h.dtype.itemsize for h in own.values()) // max(longest, 1))
        found.append(Counted(file, 1 if count is None else count, longest, count is not None, first, row_bytes))
        first += found[-1].size
    return found


def chosen(files: Sequence[Counted], limit: int, *, unit: int, spread: bool) -> list[Chosen]:
    """What to read: all files, or of more than `limit` rows as many blocks of `unit` neighbouring rows as make up the
    limit, evenly spaced over all files, or with `spread` False the first. Files without a common first axis are one
    block of as many rows as the longest."""
    rows = sum(f.longest for f in files)
    blocks = np.array([f.size // unit if f.is_common else 1 for f in files])
    every = int(blocks.sum())
    if rows <= limit or not every:
        return [Chosen(f, None) for f in files]
    take = min(every, max(1, limit // unit if all(f.is_common for f in files) else limit * every // rows))
    places = np.linspace(0, every - 1, take).round().astype(np.int64) if spread else np.arange(take)
    ends = np.cumsum(blocks)
    owner = np.searchsorted(ends, places, "right")
    found = []
    for number in np.unique(owner):
        local = places[owner == number] - (ends[number] - blocks[number])
        picked = (local[:, None] * unit + np.arange(unit)).reshape(-1)
        found.append(Chosen(files[number], picked if files[number].is_common else None))
    return found


def read(sources: Sequence[Chosen], names: Sequence[str], extra: str | None = None) -> Iterator[Feed]:
    """The arrays called `names`, and `extra` if it is there, one file after the other.

    A .npy file holds the one input of a model with one. Raises UsageError for what cannot be read, and object arrays.
    """
    for source in sources:
        single = source.source.file.suffix.lower() == ".npy"
        yield _single(source, names) if single else _named(source, names, extra)


def why(error: Exception) -> str:
    """What is wrong with a file, in words; numpy's advice is for programs that may run what the file holds."""
    text = str(error)
    return "it is damaged, no file of numpy.save, or holds Python objects" if "pickle" in text else text


def _mapped(file: Path, names: Sequence[str]) -> Array:
    if len(names) != 1:
        raise UsageError(
            f"{file}: a single array, and the model has {len(names)} inputs ({', '.join(names)}); "
            "save a .npz with one array per input name (numpy.savez)"
        )
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except _FAULTS as error:
        raise UsageError(f"{file}: not a .npy file that can be read ({why(error)})") from error
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{file}: not a single array; a .npz file must be named .npz")
    return array


def _single(source: Chosen, names: Sequence[str]) -> Feed:
    array = _mapped(source.source.file, names)
    return {names[0]: np.array(array if source.rows is None else array[source.rows])}


def _heads(file: Path, names: Sequence[str], extra: str | None) -> dict[str, _Head]:
    if file.suffix.lower() == ".npy":
        array = _mapped(file, names)
        return {names[0]: _Head(array.shape, array.dtype)}
    return _members(file, names, extra, _head)


def _named(source: Chosen, names: Sequence[str], extra: str | None) -> Feed:
    return _members(source.source.file, names, extra, _rows_of(source.rows))


def _members(file: Path, names: Sequence[str], extra: str | None, use: Callable[[IO[bytes]], T]) -> dict[str, T]:
    """What `use` makes of every member that is wanted, by name."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {n.removesuffix(".npy"): n for n in archive.namelist()}
            missing = [n for n in names if n not in members]
            if missing:
                raise UsageError(f"{file}: input {missing[0]!r} has no array; the file has {checks.listed(members)}")
            return {n: _open(archive, members[n], use) for n in [*names, *(n for n in [extra] if n in members)]}
    except (zipfile.BadZipFile, OSError) as error:
        raise UsageError(
            f"{file}: not a .npz file with one array per input name ({error}); inputs are .npz, .npy or image files, "
            "folders of them, or a function as module:function or file.py:function"
        ) from error
    except _FAULTS as error:
        raise UsageError(f"{file}: its arrays cannot be read ({why(error)})") from error


def _open(archive: zipfile.ZipFile, member: str, use: Callable[[IO[bytes]], Any]) -> Any:
    with archive.open(member) as stream:
        return use(stream)


def _common_rows(heads: Mapping[str, _Head]) -> int | None:
    """The size of the common first axis, None where there is none."""
    counts = {h.shape[0] if h.shape else -1 for h in heads.values()}
    count = counts.pop() if len(counts) == 1 else -1
    return None if count < 0 else count


def _head(stream: IO[bytes]) -> _Head:
    version = npy.read_magic(stream)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return _Head(shape, dtype)


def _rows_of(rows: IndexArray | None) -> Callable[[IO[bytes]], Array]:
    """Reads the rows with these ascending numbers, None for all; no more than a run of them is held besides."""

    def use(stream: IO[bytes]) -> Array:
        if rows is None:
            whole: Array = npy.read_array(stream, allow_pickle=False)
            return whole
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if fortran:
            # Its rows are spread over the whole file.
            data = stream.read(math.prod(shape) * dtype.itemsize)
            return np.array(np.frombuffer(data, dtype).reshape(shape, order="F")[rows], order="C")
        size = math.prod(shape[1:])
        result, place, done = np.empty((len(rows), *shape[1:]), dtype), 0, 0
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            _skip(stream, (int(run[0]) - place) * size * dtype.itemsize)
            data = stream.read(len(run) * size * dtype.itemsize)
            result[done : done + len(run)] = np.frombuffer(data, dtype, len(run) * size).reshape(-1, *shape[1:])
            place, done = int(run[-1]) + 1, done + len(run)
        return result

    return use


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        part = stream.read(min(count, 1 << 20))
        if not part:
            raise EOFError("the file ends too early")
        count -= len(part)
