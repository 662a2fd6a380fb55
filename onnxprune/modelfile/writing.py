"""Writing a model whole or not at all: from an edited copy of the skeleton, so that whatever nobody edited leaves as it
came."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from google.protobuf.message import EncodeError
from onnx import ModelProto, TensorProto

from onnxprune.errors import OutputError
from onnxprune.folder import unfinished
from onnxprune.modelfile.datafile import Array, DataFile, Payload, array_payload, clear_payload, file_chunks, sync
from onnxprune.modelfile.model import ModelFile, external_files
from onnxprune.modelfile.parsing import MAX_PROTO_BYTES
from onnxprune.modelfile.payloads import check_tensor, is_left, payload_bytes, region
from onnxprune.modelfile.weights import Place, Weight, all_tensors, is_external, type_name

Edit = Callable[[Array], Array]

# The skeleton's own bytes are known only roughly while a file is being put together.
MAX_INLINE_BYTES = MAX_PROTO_BYTES - 2**24
# onnx.save keeps tensors below this size inline too: shape inference reads shape operands only there.
MIN_EXTERNAL_BYTES = 1024


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


class _Writer:
    """One run of `write` into the temporary folder; `target` is the path of the model there."""

    def __init__(self, model: ModelFile, edits: Mapping[str, Edit], target: Path, external: bool | None) -> None:
        self.model = model
        self.edits = edits
        self.target = target
        self.external = external
        self.inline_bytes = model.path.stat().st_size
        self.data = DataFile(_data_path(target))

    def run(self, proto: ModelProto) -> list[str]:
        """Write data, then model; the names of the files in this order."""
        output = ModelProto()
        output.CopyFrom(proto)
        originals = self._originals(output)
        try:
            for weight in all_tensors(output):
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
        found: dict[str, list[Weight]] = {name: [] for name in self.edits}
        for weight in all_tensors(output):
            if weight.name in found and weight.place != "other":
                found[weight.name].append(weight)
        before = {(w.place, w.name): w.tensor for w in all_tensors(self.model.proto) if w.name in found}
        originals = {}
        for name, weights in found.items():
            chosen = [w for w in weights if w.place == "main"] or weights
            if len(chosen) != 1:
                raise ValueError(f"an edit names the weight '{name}', and {len(chosen)} weights have that name")
            place = chosen[0].place
            originals[place, name] = before.get((place, name), chosen[0].tensor)
        return originals

    def _place(self, weight: Weight, original: TensorProto | None) -> None:
        """Give one tensor its payload, inline or in the data file; `original` is given where it is edited."""
        tensor = weight.tensor
        left = is_left(self.model.path, tensor)
        was_external = is_external(tensor) and not left
        inline = 0 if was_external else payload_bytes(tensor, type_name(tensor))
        if original is not None:
            array = self._edit(weight.name, original)
            tensor.dims[:] = array.shape
            if array.dtype == object:
                clear_payload(tensor)
                tensor.string_data.extend(text.encode() for text in array.ravel())
                return
            payload = array_payload(array)
        elif was_external or left:
            size = check_tensor(self.model.path, weight)
            file, offset = region(self.model.path, weight, size)
            payload = Payload(size, file_chunks(file, offset, size), (file, offset))
        elif self.external and _is_movable(weight):
            payload = array_payload(self.model.read(tensor))
        else:
            return
        self.inline_bytes -= inline
        if payload.size and self._goes_outside(weight, was_external, payload.size):
            self.data.add(tensor, payload)
            return
        clear_payload(tensor)
        tensor.raw_data = b"".join(payload.chunks)
        self.inline_bytes += payload.size

    def _goes_outside(self, weight: Weight, was_external: bool, size: int) -> bool:
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
        for weight in all_tensors(output):
            if not is_external(weight.tensor) and _is_movable(weight):
                self.data.add(weight.tensor, array_payload(self.model.read(weight.tensor)))

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
            sync(file)


def _is_movable(weight: Weight) -> bool:
    kind = type_name(weight.tensor)
    return weight.place != "other" and kind != "STRING" and payload_bytes(weight.tensor, kind) >= MIN_EXTERNAL_BYTES


def _update_inputs(output: ModelProto, edits: Mapping[str, Edit]) -> None:
    """Older models declare their initializers as graph inputs too: the declared shape follows the new one."""
    shapes = {tensor.name: tensor.dims for tensor in output.graph.initializer if tensor.name in edits}
    for value in (*output.graph.input, *output.graph.value_info):
        if value.name in shapes and value.type.tensor_type.HasField("shape"):
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add(dim_value=size)
