"""Whether the bytes of a tensor are there, as many as its shape and type say, and where. Files are untrusted: sizes
are compared in Python integers, and external data is looked for in the folder of the model only."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.modelfile.weights import Weight, external_entries, is_external, type_name

LFS_HEAD = b"version https://git-lfs.github.com/spec"
PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}


def check_tensor(path: Path, weight: Weight) -> int:
    """Compare the payload with the dimensions; return the payload's size in bytes (0 for strings)."""
    name, tensor, _ = weight
    shape = list(tensor.dims)
    kind = type_name(tensor)
    if any(size < 0 for size in shape):
        raise ModelError(f"{path}: tensor '{name}' has a negative dimension in its shape {shape}. Export it again.")
    if kind in ("", "UNDEFINED"):
        raise ModelError(f"{path}: tensor '{name}' has the unknown data type {tensor.data_type}. Upgrade onnx.")
    if tensor.HasField("segment"):
        raise ModelError(f"{path}: tensor '{name}' is stored in segments, which onnx cannot read. Export it again.")
    size = payload_bytes(tensor, kind)
    if is_external(tensor):
        if kind == "STRING":
            raise ModelError(f"{path}: tensor '{name}' holds strings as external data, which ONNX forbids.")
        region(path, weight, size)
        return size
    if tensor.HasField("raw_data") and kind != "STRING":
        unit, needed, found = "bytes of raw_data", size, len(tensor.raw_data)
    else:
        field_name = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        unit, needed, found = f"entries of {field_name}", _entries(tensor, kind), len(getattr(tensor, field_name))
    if needed != found:
        raise ModelError(
            f"{path}: tensor '{name}' of shape {shape} and type {kind} needs {needed} {unit} and has {found}. "
            "The file is damaged: download or export it again."
        )
    return size


def payload_bytes(tensor: TensorProto, kind: str) -> int:
    """Python integers: a crafted shape overflows 64 bits."""
    if kind == "STRING":
        return 0
    return -(-_elements(tensor) * bits_of(tensor.data_type) // 8)


def bits_of(element: int) -> int:
    """Bits that one element of a type of TensorProto, strings aside, takes in a file."""
    kind = TensorProto.DataType.Name(element)
    return PACKED_BITS.get(kind) or 8 * int(onnx.helper.tensor_dtype_to_np_dtype(element).itemsize)


def _entries(tensor: TensorProto, kind: str) -> int:
    """How many entries the typed field has: complex numbers take two, 4- and 2-bit types share one."""
    shared = {4: 2, 2: 4}.get(PACKED_BITS.get(kind, 0), 1)
    return -(-_elements(tensor) * (2 if kind.startswith("COMPLEX") else 1) // shared)


def _elements(tensor: TensorProto) -> int:
    return math.prod(int(size) for size in tensor.dims)


def region(path: Path, weight: Weight, size: int) -> tuple[Path, int]:
    """File and offset of an external tensor of `size` bytes, after checking that they are really there."""
    name, tensor, _ = weight
    entries = external_entries(tensor)
    file = path if is_left(path, tensor) else external_path(path, name, entries.get("location", ""))
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or size)
    except ValueError as error:
        raise ModelError(f"{path}: tensor '{name}' has an external offset or length that is no number.") from error
    if offset < 0 or length < 0:
        raise ModelError(f"{path}: tensor '{name}' has a negative external offset ({offset}) or length ({length}).")
    if length != size:
        raise ModelError(
            f"{path}: tensor '{name}' of shape {list(tensor.dims)} needs {size} bytes and its external data states "
            f"{length}. The file is damaged: download or export it again."
        )
    available = file.stat().st_size
    if offset + size > available:
        with file.open("rb") as stream:
            if stream.read(len(LFS_HEAD)) == LFS_HEAD:
                raise ModelError(f"{file}: this is a git-lfs pointer, not the weights. Run `git lfs pull`.")
        raise ModelError(
            f"{path}: tensor '{name}' ends at byte {offset + size} of '{file.name}', which has {available} bytes. "
            "The data file is truncated or belongs to another model: copy it again."
        )
    return file, offset


def is_left(path: Path, tensor: TensorProto) -> bool:
    """Whether a tensor was left in the model file at `path` itself."""
    return is_external(tensor) and external_entries(tensor).get("location") == path.name


def external_path(path: Path, name: str, location: str) -> Path:
    """The data file `location` names, refused where it could lead outside the folder of the model."""
    where = f"{path}: the external data of tensor '{name}'"
    windows = PureWindowsPath(location)
    if not location or "\0" in location:
        raise ModelError(f"{where} has no usable file name ({location!r}). Export the model again.")
    if PurePosixPath(location).is_absolute() or windows.drive or windows.root:
        raise ModelError(
            f"{where} has the absolute path '{location}'. Put the file beside the model and export it again."
        )
    if ".." in windows.parts:
        raise ModelError(f"{where} is at '{location}', outside the model's folder. Put it beside the model.")
    copy = f"Make a real copy of the folder, `cp -rL {path.parent} COPY`, and use the model in it."
    file = path.parent
    for part in PurePosixPath(location).parts:
        file /= part
        if file.is_symlink():
            raise ModelError(f"{where}: '{file}' is a symbolic link, which onnx refuses. {copy}")
    try:
        status = file.stat()
    except OSError as error:
        raise ModelError(f"{where} should be in '{file}', which is missing. Copy the data file there.") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{where}: '{file}' is not a regular file. Copy the data file there.")
    if status.st_nlink > 1:
        raise ModelError(f"{where}: '{file}' has {status.st_nlink} hard links, which onnx refuses. {copy}")
    if not os.access(file, os.R_OK):
        raise ModelError(f"{where}: no permission to read '{file}'. Change its mode, for example `chmod u+r`.")
    return file
