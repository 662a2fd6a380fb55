"""Opening and writing ONNX files; no other module reads or writes .onnx.

A model is opened as a *skeleton*: the protobuf without the external data, whose tensors are then read one at a time.
It is written from an edited copy of the skeleton, so whatever nobody edited leaves as it came. Files are untrusted:
sizes are compared in Python integers, and external data is looked for in the folder of the model only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import mmap
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.errors import ModelError, OutputError
from onnxprune.folder import unfinished
from onnxprune.naming import make_names_unique
from onnxprune.ordering import put_in_order
from onnxprune.wire import without_weights

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Array = npt.NDArray[Any]
Edit = Callable[[Array], Array]
Place = Literal["main", "nested", "other"]

MAX_PROTO_BYTES = 2**31 - 1
MAX_TOTAL_BYTES = 256 * 2**30
CHUNK_BYTES = 2**20
# The skeleton's own bytes are known only roughly while a file is being put together.
MAX_INLINE_BYTES = MAX_PROTO_BYTES - 2**24
# onnx.save keeps tensors below this size inline too: shape inference reads shape operands only there.
MIN_EXTERNAL_BYTES = 1024

_LFS_HEAD = b"version https://git-lfs.github.com/spec"
_PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
_PACKED_DTYPES = {"uint4", "int4", "float4_e2m1fn", "uint2", "int2", "float6_e2m3fn", "float6_e3m2fn"}
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


# ---------------------------------------------------------------------------------------------- the opened model


@dataclass(eq=False)
class ModelFile:
    """An opened model. The file is never changed, and `proto` (external data not loaded) should not be either.

    `base_dir` is the folder external data is relative to; `bytes` the size of the file and its external data files;
    `inlined`: `proto` is the model with its local functions written out.
    """

    path: Path
    base_dir: Path
    proto: ModelProto
    bytes: int
    has_external_data: bool
    inlined: bool = False
    _graph: gs.Graph | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: str | Path, *, unique_names: bool = False, lean: bool = False) -> ModelFile:
        """Open and check the model at `path`; every fault is a ModelError that says what to do.

        `unique_names`: tensors of bodies that share a name with another tensor get names of their own. `lean`: as in
        `skeleton`.
        """
        path = Path(path)
        proto = _parse(path, lean=lean)
        _check_versions(path, proto)
        claimed = sum(_check_tensor(path, weight) for weight in _all_tensors(proto))
        files = external_files(path, proto)
        total = sum(file.stat().st_size for file in (path, *files))
        if max(claimed, total) > MAX_TOTAL_BYTES:
            raise ModelError(
                f"{path}: the files hold {total} bytes and the tensors claim {claimed}; the limit is "
                f"{MAX_TOTAL_BYTES}. Split the model."
            )
        _check_graph(path, proto.graph, ())
        for function in proto.functions:
            _check_nodes(path, function.node, [set(function.input)], function.output)
        inlined = bool(proto.functions)
        if inlined:
            proto = onnx.inliner.inline_local_functions(proto)
        if unique_names:
            make_names_unique(proto)
        return cls(path, path.parent, proto, total, bool(files), inlined)

    def sha256(self) -> str:
        """SHA-256 of the .onnx file itself, in hexadecimal; external data does not count."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    @property
    def graph(self) -> gs.Graph:
        """The onnx-graphsurgeon view, made on first use; its constants wrap the tensors of `proto`."""
        if self._graph is None:
            import onnx_graphsurgeon as gs
            from onnx_graphsurgeon.logger import G_LOGGER

            # It logs to stdout, where only results belong.
            G_LOGGER.severity = G_LOGGER.CRITICAL
            try:
                self._graph = gs.import_onnx(self.proto)
            except Exception as error:  # it raises whatever an odd model makes it stumble over
                raise ModelError(f"{self.path}: onnx-graphsurgeon cannot represent this graph: {error}") from error
        return self._graph

    def tensors(self) -> dict[str, TensorProto]:
        """Every weight: initializers by name, `value` of Constant nodes by the node's output.

        Those of subgraphs come first, so that a name that occurs in several places means the one of the main graph.
        """
        found = sorted(_all_tensors(self.proto), key=lambda weight: weight.place == "main")
        return {name: tensor for name, tensor, place in found if place != "other"}

    def reader(self) -> Callable[[str], Array | None]:
        """A function that reads one of `tensors` by name; None for what is none of them."""
        tensors = self.tensors()
        return lambda name: self.read(tensors[name]) if name in tensors else None

    def read(self, tensor: TensorProto) -> Array:
        """`tensor` as an array (ml_dtypes for bfloat16, float8 and sub-byte types; strings as objects).

        External data is a read-only memory map of just this tensor, except that sub-byte types are unpacked.
        Raises ModelError where the data is not there or not of the size the dimensions say.
        """
        size = _check_tensor(self.path, _Weight(tensor.name, tensor, "other"))
        if not _is_external(tensor):
            try:
                return onnx.numpy_helper.to_array(tensor)
            except UnicodeDecodeError as error:
                raise ModelError(f"{self.path}: tensor '{tensor.name}' holds a string that is not UTF-8.") from error
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        if size == 0:
            return np.empty(shape, dtype)
        file, offset = _region(self.path, _Weight(tensor.name, tensor, "other"), size)
        packed = np.memmap(file, np.uint8, "r", offset, (size,))
        if _type_name(tensor) in _PACKED_BITS:
            whole = TensorProto(data_type=tensor.data_type, dims=shape, raw_data=packed.tobytes())
            return onnx.numpy_helper.to_array(whole)
        return packed.view(dtype.newbyteorder("<") if sys.byteorder == "big" else dtype).reshape(shape)


def skeleton(path: Path, *, lean: bool = False) -> ModelProto:
    """The model in a file this program wrote, external data not loaded and nothing checked.

    `lean`: large initializers stay in the file too, as external data whose file is the model itself. They are as they
    were in what `write` makes of it. (Nothing stays behind in a linked file, which onnx refuses for external data.)
    """
    return _parse(path, lean=lean)


def external_files(path: Path, proto: ModelProto) -> tuple[Path, ...]:
    """The distinct external data files of the model at `path`, in order of first use, each checked to be safe."""
    found = {}
    for weight in _all_tensors(proto):
        if _is_external(weight.tensor):
            location = _external_entries(weight.tensor).get("location", "")
            if location not in found and location != path.name:
                found[location] = _external_path(path, weight.name, location)
    return tuple(dict.fromkeys(found.values()))


# ------------------------------------------------------------------------------------- the tensors of a model


class _Weight(NamedTuple):
    """A tensor where it lies: "main" and "nested" are weights of the main graph and of subgraphs; "other" the rest."""

    name: str
    tensor: TensorProto
    place: Place


def _all_tensors(proto: ModelProto) -> Iterator[_Weight]:
    yield from _graph_tensors(proto.graph, "main")
    for function in proto.functions:
        yield from _node_tensors(function.node, "other")
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute, f"{function.name}.{attribute.name}", "other", "other")
    for training in proto.training_info:
        yield from _graph_tensors(training.initialization, "other")
        yield from _graph_tensors(training.algorithm, "other")


def _graph_tensors(graph: GraphProto, place: Place) -> Iterator[_Weight]:
    for tensor in graph.initializer:
        yield _Weight(tensor.name, tensor, place)
    for sparse in graph.sparse_initializer:
        yield _Weight(sparse.values.name, sparse.values, "other")
        yield _Weight(f"{sparse.values.name}.indices", sparse.indices, "other")
    yield from _node_tensors(graph.node, place)


def _node_tensors(nodes: Iterable[NodeProto], place: Place) -> Iterator[_Weight]:
    inner: Place = "other" if place == "other" else "nested"
    for node in nodes:
        constant = _is_constant(node)
        for attribute in node.attribute:
            is_weight = constant and attribute.name == "value"
            name = node.output[0] if is_weight else f"{node.name or node.op_type}.{attribute.name}"
            yield from _attribute_tensors(attribute, name, place if is_weight else "other", inner)


def _attribute_tensors(attribute: AttributeProto, name: str, place: Place, inner: Place) -> Iterator[_Weight]:
    if attribute.HasField("t"):
        yield _Weight(name, attribute.t, place)
    for tensor in attribute.tensors:
        yield _Weight(name, tensor, "other")
    single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for sparse in (*single, *attribute.sparse_tensors):
        yield _Weight(name, sparse.values, "other")
        yield _Weight(f"{name}.indices", sparse.indices, "other")
    for graph in _subgraphs(attribute):
        yield from _graph_tensors(graph, inner)


def _subgraphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _is_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx") and bool(node.output)


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _is_left(path: Path, tensor: TensorProto) -> bool:
    """Whether a tensor was left in the model file at `path` itself."""
    return _is_external(tensor) and _external_entries(tensor).get("location") == path.name


def _external_entries(tensor: TensorProto) -> dict[str, str]:
    # protobuf hands out text that is not UTF-8 as bytes
    return {str(entry.key): str(entry.value) for entry in tensor.external_data}


def _type_name(tensor: TensorProto) -> str:
    return TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else ""


# ------------------------------------------------------------------------------------------ checks of the file


def _parse(path: Path, *, lean: bool = False) -> ModelProto:
    """Read and parse the protobuf, telling apart the kinds of file that are mistaken for a model."""
    data = (_read_lean(path) if lean else None) or _read_file(path)
    if data.startswith(_LFS_HEAD):
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


def _check_versions(path: Path, proto: ModelProto) -> None:
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


# --------------------------------------------------------------------------------------- checks of one tensor


def _check_tensor(path: Path, weight: _Weight) -> int:
    """Compare the payload with the dimensions; return the payload's size in bytes (0 for strings)."""
    name, tensor, _ = weight
    shape = list(tensor.dims)
    kind = _type_name(tensor)
    if any(size < 0 for size in shape):
        raise ModelError(f"{path}: tensor '{name}' has a negative dimension in its shape {shape}. Export it again.")
    if kind in ("", "UNDEFINED"):
        raise ModelError(f"{path}: tensor '{name}' has the unknown data type {tensor.data_type}. Upgrade onnx.")
    if tensor.HasField("segment"):
        raise ModelError(f"{path}: tensor '{name}' is stored in segments, which onnx cannot read. Export it again.")
    size = _payload_bytes(tensor, kind)
    if _is_external(tensor):
        if kind == "STRING":
            raise ModelError(f"{path}: tensor '{name}' holds strings as external data, which ONNX forbids.")
        _region(path, weight, size)
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


def _payload_bytes(tensor: TensorProto, kind: str) -> int:
    """Python integers: a crafted shape overflows 64 bits."""
    if kind == "STRING":
        return 0
    return -(-_elements(tensor) * bits_of(tensor.data_type) // 8)


def bits_of(element: int) -> int:
    """Bits that one element of a type of TensorProto, strings aside, takes in a file."""
    kind = TensorProto.DataType.Name(element)
    return _PACKED_BITS.get(kind) or 8 * int(onnx.helper.tensor_dtype_to_np_dtype(element).itemsize)


def _entries(tensor: TensorProto, kind: str) -> int:
    """How many entries the typed field has: complex numbers take two, 4- and 2-bit types share one."""
    shared = {4: 2, 2: 4}.get(_PACKED_BITS.get(kind, 0), 1)
    return -(-_elements(tensor) * (2 if kind.startswith("COMPLEX") else 1) // shared)


def _elements(tensor: TensorProto) -> int:
    return math.prod(int(size) for size in tensor.dims)


def _region(path: Path, weight: _Weight, size: int) -> tuple[Path, int]:
    """File and offset of an external tensor of `size` bytes, after checking that they are really there."""
    name, tensor, _ = weight
    entries = _external_entries(tensor)
    file = path if _is_left(path, tensor) else _external_path(path, name, entries.get("location", ""))
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
            if stream.read(len(_LFS_HEAD)) == _LFS_HEAD:
                raise ModelError(f"{file}: this is a git-lfs pointer, not the weights. Run `git lfs pull`.")
        raise ModelError(
            f"{path}: tensor '{name}' ends at byte {offset + size} of '{file.name}', which has {available} bytes. "
            "The data file is truncated or belongs to another model: copy it again."
        )
    return file, offset


def _external_path(path: Path, name: str, location: str) -> Path:
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


# ------------------------------------------------------------------------------------------ checks of the graph


def _check_graph(path: Path, graph: GraphProto, outer: Sequence[set[str]]) -> None:
    """Every name is defined once, and before it is read. Linear: `outer` holds the scopes, never copies of them."""
    weights: set[str] = set()
    for name in (*(t.name for t in graph.initializer), *(s.values.name for s in graph.sparse_initializer)):
        if name in weights:
            raise ModelError(f"{path}: two initializers are named '{name}'. Rename one of them or export again.")
        weights.add(name)
    inputs: set[str] = set()
    for value in graph.input:
        if value.name in inputs:
            raise ModelError(f"{path}: two graph inputs are named '{value.name}'. Rename one of them or export again.")
        inputs.add(value.name)
    _check_nodes(path, graph.node, [*outer, weights | inputs], [value.name for value in graph.output])


def _check_nodes(path: Path, nodes: Sequence[NodeProto], scopes: Sequence[set[str]], outputs: Iterable[str]) -> None:
    own = scopes[-1]
    for index, node in enumerate(nodes):
        for name in node.input:
            if name and not any(name in scope for scope in scopes):
                _raise_undefined(path, nodes, index, name)
        for attribute in node.attribute:
            for graph in _subgraphs(attribute):
                _check_graph(path, graph, scopes)
        for name in filter(None, node.output):
            if name in own:
                raise ModelError(
                    f"{path}: {_describe(node, index)} defines tensor '{name}' again. Export the model again."
                )
            own.add(name)
    for name in outputs:
        if not any(name in scope for scope in scopes):
            raise ModelError(f"{path}: graph output '{name}' is defined by nothing. Export the model again.")


def _raise_undefined(path: Path, nodes: Sequence[NodeProto], index: int, name: str) -> NoReturn:
    reader = _describe(nodes[index], index)
    for later in range(index, len(nodes)):
        if name in nodes[later].output:
            raise ModelError(
                f"{path}: the graph has a cycle: {reader} reads tensor '{name}', and "
                f"{_describe(nodes[later], later)}, which defines it, needs what follows. Export the model again."
            )
    raise ModelError(
        f"{path}: {reader} reads tensor '{name}', which no input, initializer or earlier node defines. Export it again."
    )


def _describe(node: NodeProto, index: int) -> str:
    return f"node '{node.name or f'#{index}'}' ({node.op_type})"


# -------------------------------------------------------------------------------------------------- writing


def preflight(model: ModelFile, path: str | Path, force: bool = False) -> None:
    """Refuse an output that cannot or must not be written, before any work starts. Raises OutputError."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: this is a folder. Give the name of a file in it.")
    data = _data_path(path)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist. Create it first.")
    for target in (path, data):
        for source in (model.path, *external_files(model.path, model.proto)):
            if target.exists() and target.samefile(source):
                raise OutputError(
                    f"{target}: this belongs to the input model, which is never changed. Choose another name."
                )
    for target in (path, data) if model.has_external_data else (path,):
        _refuse_existing(target, force)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write to the folder {path.parent}. Choose another folder.")


def write(
    model: ModelFile,
    proto: ModelProto,
    edits: Mapping[str, Edit],
    path: Path,
    *,
    external: bool | None = None,
    check: Callable[[Path], None] | None = None,
    force: bool = False,
) -> int:
    """Write `proto`, an edited copy of `model.proto`, to `path`; return the bytes written, external data included.

    `edits` maps weights (by the names of `ModelFile.tensors`, or the initializers and Constant nodes of subgraphs)
    to functions from the original array to the new one, of the same dtype and any shape. A weight that `model` does
    not have is read from `proto`. `proto` itself is left as it is.

    `external` None stores tensors as the input does; True moves initializers of 1 KiB and more to
    `<name>.onnx.data`; False moves everything inline, as far as 2 GiB go. `check` is called with the finished model
    in a temporary folder beside `path`; where it raises, or anything else fails, nothing is left behind.

    Raises OutputError where `path` must not or cannot be written, ModelError where a tensor cannot be read.
    """
    path = Path(path)
    preflight(model, path, force)
    if external:
        _refuse_existing(_data_path(path), force)
    with contextlib.ExitStack() as stack:
        with _output_errors(path):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=unfinished(), dir=path.parent)))
            names = _Writer(model, edits, folder / path.name, external).run(proto)
        if check is not None:
            check(folder / path.name)
        with _output_errors(path):
            return _publish(folder, path.parent, names, force)


def publish(files: Mapping[str, bytes], path: Path, *, force: bool = False) -> None:
    """Put the finished files of a model, by name, beside each other, the model itself to `path`: all or nothing.

    Raises OutputError where they must not or cannot be written.
    """
    with _output_errors(path), tempfile.TemporaryDirectory(prefix=unfinished(), dir=path.parent) as folder:
        names = sorted(files, key=lambda name: name == path.name)
        for name in names:
            with (Path(folder) / name).open("wb") as file:
                file.write(files[name])
                file.flush()
                os.fsync(file.fileno())
        _publish(Path(folder), path.parent, names, force)


def _data_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _refuse_existing(target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if target.exists() and not target.is_file():
        raise OutputError(f"{target}: not a regular file, so it cannot be replaced. Choose another name.")
    if not force:
        raise OutputError(f"{target}: the file exists. Choose another name, or replace it with --force.")


@contextlib.contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{path}: no space left on the disk. Free some, or choose another folder.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(
                f"{path}: no permission to write to the folder {path.parent}. Choose another one."
            ) from error
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}. Choose another path.") from error


def _publish(folder: Path, target: Path, names: Sequence[str], force: bool) -> int:
    """Move the finished files into place, the model last: it never stands there without its data."""
    size = 0
    for name in names:
        _refuse_existing(target / name, force)
        size += (folder / name).stat().st_size
    fresh = [target / name for name in names if not (target / name).exists()]
    try:
        for name in names:
            os.replace(folder / name, target / name)
    except BaseException:
        for file in fresh:
            file.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return size


class _Payload(NamedTuple):
    """The bytes of a tensor, in chunks; `source` (file, offset) where they are copied from external data unchanged."""

    size: int
    chunks: Iterable[bytes]
    source: tuple[Path, int] | None = None


class _DataFile:
    """The external data file while it is written: takes one payload after the other and points the tensors at it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._copied: dict[tuple[tuple[Path, int], int], int] = {}

    def add(self, tensor: TensorProto, payload: _Payload) -> None:
        """Tensors copied from one place (tied weights) share one place here too."""
        key = (payload.source, payload.size) if payload.source else None
        offset = self._copied.get(key) if key else None
        if offset is None:
            offset = self._append(payload)
            if key:
                self._copied[key] = offset
        _clear_payload(tensor)
        tensor.data_location = TensorProto.EXTERNAL
        for name, value in (("location", self.path.name), ("offset", str(offset)), ("length", str(payload.size))):
            tensor.external_data.add(key=name, value=value)

    def _append(self, payload: _Payload) -> int:
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
        _sync(self._file)
        self._file.close()
        return [self.path.name]

    def abandon(self) -> None:
        """Close without a further error: what is still buffered may not fit on a full disk."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


class _Writer:
    """One run of `write` into the temporary folder; `target` is the path of the model there."""

    def __init__(self, model: ModelFile, edits: Mapping[str, Edit], target: Path, external: bool | None) -> None:
        self.model = model
        self.edits = edits
        self.target = target
        self.external = external
        self.inline_bytes = model.path.stat().st_size
        self.data = _DataFile(_data_path(target))

    def run(self, proto: ModelProto) -> list[str]:
        """Write data, then model; the names of the files in this order."""
        output = ModelProto()
        output.CopyFrom(proto)
        originals = self._originals(output)
        try:
            for weight in _all_tensors(output):
                self._place(weight, originals.get((weight.place, weight.name)))
            if self.inline_bytes > MAX_INLINE_BYTES:
                self._move_out(output)
            names = self.data.finish()
        finally:
            self.data.abandon()
        _update_inputs(output, self.edits)
        self._save(output)
        return [*names, self.target.name]

    def _originals(self, output: ModelProto) -> dict[tuple[Place, str], TensorProto]:
        """What each edit reads, by where the edited weight lies: in the main graph, or else in a subgraph."""
        found: dict[str, list[_Weight]] = {name: [] for name in self.edits}
        for weight in _all_tensors(output):
            if weight.name in found and weight.place != "other":
                found[weight.name].append(weight)
        before = {(w.place, w.name): w.tensor for w in _all_tensors(self.model.proto) if w.name in found}
        originals = {}
        for name, weights in found.items():
            chosen = [w for w in weights if w.place == "main"] or weights
            if len(chosen) != 1:
                raise ValueError(f"an edit names the weight '{name}', and {len(chosen)} weights have that name")
            place = chosen[0].place
            originals[place, name] = before.get((place, name), chosen[0].tensor)
        return originals

    def _place(self, weight: _Weight, original: TensorProto | None) -> None:
        """Give one tensor its payload, inline or in the data file; `original` is given where it is edited."""
        tensor = weight.tensor
        left = _is_left(self.model.path, tensor)
        was_external = _is_external(tensor) and not left
        inline = 0 if was_external else _payload_bytes(tensor, _type_name(tensor))
        if original is not None:
            array = self._edit(weight.name, original)
            tensor.dims[:] = array.shape
            if array.dtype == object:
                _clear_payload(tensor)
                tensor.string_data.extend(text.encode() for text in array.ravel())
                return
            payload = _array_payload(array)
        elif was_external or left:
            size = _check_tensor(self.model.path, weight)
            file, offset = _region(self.model.path, weight, size)
            payload = _Payload(size, _file_chunks(file, offset, size), (file, offset))
        elif self.external and _is_movable(weight):
            payload = _array_payload(self.model.read(tensor))
        else:
            return
        self.inline_bytes -= inline
        if payload.size and self._goes_outside(weight, was_external, payload.size):
            self.data.add(tensor, payload)
            return
        _clear_payload(tensor)
        tensor.raw_data = b"".join(payload.chunks)
        self.inline_bytes += payload.size

    def _goes_outside(self, weight: _Weight, was_external: bool, size: int) -> bool:
        if self.inline_bytes + size > MAX_INLINE_BYTES:
            self.external = True
        if self.external is None:
            return was_external
        return self.external and (was_external or (weight.place != "other" and size >= MIN_EXTERNAL_BYTES))

    def _edit(self, name: str, original: TensorProto) -> Array:
        before = self.model.read(original)
        after = self.edits[name](before)
        if after.dtype != before.dtype:
            raise ValueError(f"the edit of '{name}' changed its dtype from {before.dtype} to {after.dtype}")
        return after

    def _move_out(self, output: ModelProto) -> None:
        """Beyond what a protobuf can hold: move out the inline weights that were placed before that was known."""
        for weight in _all_tensors(output):
            if not _is_external(weight.tensor) and _is_movable(weight):
                self.data.add(weight.tensor, _array_payload(self.model.read(weight.tensor)))

    def _save(self, output: ModelProto) -> None:
        try:
            blob = output.SerializeToString()
        except (EncodeError, ValueError) as error:
            raise OutputError(f"{self.target.name}: the model does not fit into one protobuf file: {error}.") from error
        if len(blob) > MAX_PROTO_BYTES:
            raise OutputError(
                f"{self.target.name}: {len(blob)} bytes without its external data, and a protobuf file holds at most "
                f"{MAX_PROTO_BYTES}."
            )
        with self.target.open("xb") as file:
            file.write(blob)
            _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _is_movable(weight: _Weight) -> bool:
    kind = _type_name(weight.tensor)
    return weight.place != "other" and kind != "STRING" and _payload_bytes(weight.tensor, kind) >= MIN_EXTERNAL_BYTES


def _clear_payload(tensor: TensorProto) -> None:
    for name in ("raw_data", "external_data", "data_location", *_TYPED_FIELDS):
        tensor.ClearField(name)


def _array_payload(array: Array) -> _Payload:
    """The bytes ONNX stores for `array`: little-endian, row-major, sub-byte types packed."""
    if array.dtype.name in _PACKED_DTYPES:
        packed = onnx.numpy_helper.from_array(array).raw_data
        return _Payload(len(packed), [packed])
    return _Payload(array.nbytes, _array_chunks(array.byteswap() if sys.byteorder == "big" else array))


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


def _file_chunks(file: Path, offset: int, size: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(offset)
        while size:
            chunk = stream.read(min(size, CHUNK_BYTES))
            if not chunk:
                raise ModelError(f"{file}: the file became shorter while it was copied. Run again.")
            size -= len(chunk)
            yield chunk


def _update_inputs(output: ModelProto, edits: Mapping[str, Edit]) -> None:
    """Older models declare their initializers as graph inputs too: the declared shape follows the new one."""
    shapes = {tensor.name: tensor.dims for tensor in output.graph.initializer if tensor.name in edits}
    for value in (*output.graph.input, *output.graph.value_info):
        if value.name in shapes and value.type.tensor_type.HasField("shape"):
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add(dim_value=size)
