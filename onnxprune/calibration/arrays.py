"""Arrays from .npz and .npy files: only those the model takes, and of those only the rows that are used."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from onnxprune.errors import UsageError
from onnxprune.records import Feed

Array = npt.NDArray[Any]
_FAULTS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class _Head(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read(files: Sequence[Path], names: Sequence[str], limit: int, extra: str | None = None) -> Iterator[Feed]:
    """The arrays called `names`, and `extra` if it is there, of one file after the other, until they hold `limit` rows.

    A .npy file holds the one input of a model with one. Arrays with a common first axis are cut at the limit. Raises
    UsageError for a file that cannot be read, a missing name (with those there are), and object arrays.
    """
    rows = 0
    for file in files:
        if rows >= limit:
            return
        feed = (
            _single(file, names, limit - rows)
            if file.suffix.lower() == ".npy"
            else _named(file, names, limit - rows, extra)
        )
        yield feed
        rows += max((len(a) for a in feed.values() if a.ndim), default=1)


def _single(file: Path, names: Sequence[str], limit: int) -> Feed:
    if len(names) != 1:
        raise UsageError(
            f"{file}: a single array, and the model has {len(names)} inputs ({', '.join(names)}); "
            "save a .npz with one array per input name (numpy.savez)"
        )
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except _FAULTS as error:
        raise UsageError(f"{file}: not a .npy file that can be read ({error})") from error
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{file}: not a single array; a .npz file must be named .npz")
    return {names[0]: np.array(array[:limit] if array.ndim else array)}


def _named(file: Path, names: Sequence[str], limit: int, extra: str | None) -> Feed:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {n.removesuffix(".npy"): n for n in archive.namelist()}
            missing = [n for n in names if n not in members]
            if missing:
                raise UsageError(f"{file}: input {missing[0]!r} has no array; the file has {sorted(members)}")
            names = [*names, *(n for n in [extra] if n in members)]
            with_head = {n: _open(archive, members[n], _head) for n in names}
            return {n: _open(archive, members[n], _rows_of(_common_rows(with_head, limit))) for n in names}
    except (zipfile.BadZipFile, OSError) as error:
        raise UsageError(f"{file}: not a .npz file with one array per input name ({error})") from error
    except _FAULTS as error:
        raise UsageError(f"{file}: its arrays cannot be read ({error})") from error


def _open(archive: zipfile.ZipFile, member: str, use: Callable[[IO[bytes]], Any]) -> Any:
    with archive.open(member) as stream:
        return use(stream)


def _common_rows(heads: Mapping[str, _Head], limit: int) -> int | None:
    """Rows to read, None for whole arrays: where they have no common first axis, or no more rows than that."""
    counts = {h.shape[0] if h.shape else -1 for h in heads.values()}
    return limit if len(counts) == 1 and counts.pop() > limit else None


def _head(stream: IO[bytes]) -> _Head:
    version = npy.read_magic(stream)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return _Head(shape, dtype)


def _rows_of(rows: int | None) -> Callable[[IO[bytes]], Array]:
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
            return np.array(np.frombuffer(data, dtype).reshape(shape, order="F")[:rows], order="C")
        size = rows * math.prod(shape[1:])
        return np.frombuffer(stream.read(size * dtype.itemsize), dtype, size).reshape(rows, *shape[1:])

    return use
