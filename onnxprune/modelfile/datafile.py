"""The bytes of tensors as ONNX stores them, and the external data file that takes them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy.typing as npt
import onnx
from onnx import TensorProto

from onnxprune.errors import ModelError

Array = npt.NDArray[Any]

CHUNK_BYTES = 2**20
_PACKED_DTYPES = {"uint4", "int4", "float4_e2m1fn", "uint2", "int2", "float6_e2m3fn", "float6_e3m2fn"}
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


class Payload(NamedTuple):
    """The bytes of a tensor, in chunks; `source` (file, offset) where they are copied from external data unchanged."""

    size: int
    chunks: Iterable[bytes]
    source: tuple[Path, int] | None = None


class DataFile:
    """The external data file while it is written: takes one payload after the other and points the tensors at it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._copied: dict[tuple[tuple[Path, int], int], int] = {}

    def add(self, tensor: TensorProto, payload: Payload) -> None:
        """Tensors copied from one place (tied weights) share one place here too."""
        key = (payload.source, payload.size) if payload.source else None
        offset = self._copied.get(key) if key else None
        if offset is None:
            offset = self._append(payload)
            if key:
                self._copied[key] = offset
        clear_payload(tensor)
        tensor.data_location = TensorProto.EXTERNAL
        for name, value in (("location", self.path.name), ("offset", str(offset)), ("length", str(payload.size))):
            tensor.external_data.add(key=name, value=value)

    def _append(self, payload: Payload) -> int:
        if self._file is None:
            self._file = self.path.open("xb")
        # Runtimes map large tensors by page; small ones are read faster where their elements are aligned.
        self._file.write(bytes(-self._file.tell() % (4096 if payload.size > 2**20 else 64)))
        offset = self._file.tell()
        for chunk in payload.chunks:
            self._file.write(chunk)
        return offset

    def finish(self) -> list[str]:
        """Flush to the disk; the name of the file, if there is one."""
        if self._file is None:
            return []
        sync(self._file)
        self._file.close()
        return [self.path.name]

    def abandon(self) -> None:
        """Close without a further error: what is still buffered may not fit on a full disk."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def sync(file: BinaryIO) -> None:
    """Flush what was written to the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def clear_payload(tensor: TensorProto) -> None:
    """Take all values out of `tensor`, in whichever field they are; name, type and shape stay."""
    for name in ("raw_data", "external_data", "data_location", *_TYPED_FIELDS):
        tensor.ClearField(name)


def array_payload(array: Array) -> Payload:
    """The bytes ONNX stores for `array`: little-endian, row-major, sub-byte types packed."""
    if array.dtype.name in _PACKED_DTYPES:
        packed = onnx.numpy_helper.from_array(array).raw_data
        return Payload(len(packed), [packed])
    return Payload(array.nbytes, _array_chunks(array.byteswap() if sys.byteorder == "big" else array))


def _array_chunks(array: Array) -> Iterator[bytes]:
    """Never copies more than a chunk, so that a slice of a memory map stays on the disk."""
    if array.nbytes <= CHUNK_BYTES:
        yield array.tobytes()
        return
    rows = CHUNK_BYTES * len(array) // array.nbytes
    if not rows:
        for row in array:
            yield from _array_chunks(row)
        return
    for start in range(0, len(array), rows):
        yield array[start : start + rows].tobytes()


def file_chunks(file: Path, offset: int, size: int) -> Iterator[bytes]:
    """`size` bytes of `file` from `offset` on; ModelError where they are not there any more."""
    with file.open("rb") as stream:
        stream.seek(offset)
        while size:
            chunk = stream.read(min(size, CHUNK_BYTES))
            if not chunk:
                raise ModelError(f"{file}: the file became shorter while it was copied. Run again.")
            size -= len(chunk)
            yield chunk
