"""From the bytes of a file to the protobuf, telling apart the kinds of file that are mistaken for a model."""

from __future__ import annotations

import mmap
import stat
from pathlib import Path
from typing import NoReturn

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnxprune.errors import ModelError
from onnxprune.modelfile.payloads import LFS_HEAD
from onnxprune.ordering import put_in_order
from onnxprune.wire import without_weights

MAX_PROTO_BYTES = 2**31 - 1


def parse(path: Path, *, lean: bool = False) -> ModelProto:
    """Read and parse the protobuf, telling apart the kinds of file that are mistaken for a model."""
    data = (_read_lean(path) if lean else None) or _read_file(path)
    if data.startswith(LFS_HEAD):
        raise ModelError(f"{path}: this is a git-lfs pointer, not the model. Run `git lfs pull` in its repository.")
    if path.suffix.lower() == ".ort" or data[4:8] == b"ORTM":
        raise ModelError(f"{path}: this is an ONNX Runtime .ort file. Give the .onnx file it was converted from.")
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        _raise_unreadable(path, data, error)
    if not proto.graph.node and not proto.opset_import and _is_text(data):
        _raise_unreadable(path, data, None)
    if not proto.HasField("graph"):
        raise ModelError(f"{path}: the file holds no graph: it is no ONNX model, or was cut short. Export it again.")
    if not proto.graph.node:
        raise ModelError(f"{path}: the graph has no nodes: there is nothing to prune. Export the model again.")
    for graph in (proto.graph, *proto.functions):
        put_in_order(graph)
    return proto


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{path}: this is a folder. Give the path of the .onnx file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: not a regular file. Save the model to a file first.")
        if status.st_size == 0:
            raise ModelError(f"{path}: the file is empty (0 bytes). Download or export it again.")
        if status.st_size > MAX_PROTO_BYTES:
            raise ModelError(
                f"{path}: {status.st_size} bytes, and a protobuf file holds at most {MAX_PROTO_BYTES}. "
                "Export the model with external data."
            )
        with path.open("rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file. Check the path.") from error
    except PermissionError as error:
        raise ModelError(f"{path}: no permission to read it. Change its mode, for example `chmod u+r`.") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _read_lean(path: Path) -> bytes | None:
    """The file without its large initializers; None where it is not one to leave them in, or `_read_file` is to say
    what is wrong with it."""
    try:
        status = path.stat()
        if path.is_symlink() or not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return None
        if not 0 < status.st_size <= MAX_PROTO_BYTES:
            return None
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            return without_weights(data, path.name)
    except (OSError, ValueError):
        return None


def _is_text(data: bytes) -> bool:
    try:
        head = data[:1024].decode("utf-8", "strict" if len(data) <= 1024 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n" for character in head)


def _raise_unreadable(path: Path, data: bytes, error: Exception | None) -> NoReturn:
    if _is_text(data):
        start = data[:40].decode("utf-8", "ignore").splitlines()[0]
        raise ModelError(f"{path}: this is text, not an ONNX protobuf: it begins with {start!r}. Give an .onnx file.")
    needed = _bytes_announced(data)
    if needed is None:
        problem = "this is not an ONNX model: its bytes are not those of the protobuf. Give an .onnx file."
    elif needed > len(data):
        problem = f"the file is truncated: it needs {needed} bytes or more and has {len(data)}. Copy it again."
    else:
        problem = "the file is damaged: its protobuf cannot be decoded. Download or export it again."
    raise ModelError(f"{path}: {problem}") from error


def _bytes_announced(data: bytes) -> int | None:
    """The length the top-level fields of a ModelProto add up to; None where they are not those of a ModelProto."""
    fields = ModelProto.DESCRIPTOR.fields_by_number
    position = 0
    try:
        while position < len(data):
            tag, position = _varint(data, position)
            if tag >> 3 not in fields or tag & 7 not in (0, 2):
                return None
            value, position = _varint(data, position)
            position += value if tag & 7 == 2 else 0
    except IndexError:
        return len(data) + 1
    return position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[position] & 0x7F) << shift
        position += 1
        if data[position - 1] < 0x80:
            break
    return value, position


def check_versions(path: Path, proto: ModelProto) -> None:
    """Raise ModelError for versions of the format or of operators that the installed onnx does not know."""
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{path}: IR version {proto.ir_version}, and the installed onnx {onnx.__version__} knows up to "
            f"{onnx.IR_VERSION}. Upgrade onnx (`pip install -U onnx`) or export with an older IR version."
        )
    if not proto.opset_import:
        raise ModelError(f"{path}: the model has no opset_import, so its operators are undefined. Export it again.")
    newest = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": onnx.defs.onnx_ml_opset_version()}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if entry.version > newest.get(domain, entry.version):
            raise ModelError(
                f"{path}: opset {entry.version} of domain '{domain or 'ai.onnx'}', and the installed onnx "
                f"{onnx.__version__} knows up to {newest[domain]}. Upgrade onnx or export with an older opset."
            )
