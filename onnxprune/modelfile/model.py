"""The opened model: the protobuf without the external data, whose tensors are read one at a time."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto, TensorProto

from onnxprune.canonical import canonicalise
from onnxprune.errors import ModelError
from onnxprune.modelfile.datafile import CHUNK_BYTES, Array
from onnxprune.modelfile.parsing import check_versions, parse
from onnxprune.modelfile.payloads import PACKED_BITS, check_tensor, external_path, region
from onnxprune.modelfile.scopes import check_graph, check_nodes
from onnxprune.modelfile.weights import Weight, all_tensors, external_entries, is_external, type_name
from onnxprune.naming import make_names_unique
from onnxprune.states import drop_zero_states

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

MAX_TOTAL_BYTES = 256 * 2**30


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

        `unique_names`: tensors of bodies that share a name with another tensor get names of their own, recurrent cells
        are given no states of zeros, and the rest is as of `canonical`. `lean`: as in `skeleton`.
        """
        path = Path(path)
        proto = parse(path, lean=lean)
        check_versions(path, proto)
        claimed = sum(check_tensor(path, weight) for weight in all_tensors(proto))
        files = external_files(path, proto)
        total = sum(file.stat().st_size for file in (path, *files))
        if max(claimed, total) > MAX_TOTAL_BYTES:
            raise ModelError(
                f"{path}: the files hold {total} bytes and the tensors claim {claimed}; the limit is "
                f"{MAX_TOTAL_BYTES}. Split the model."
            )
        check_graph(path, proto.graph, ())
        for function in proto.functions:
            check_nodes(path, function.node, [set(function.input)], function.output)
        inlined = bool(proto.functions)
        if inlined:
            proto = onnx.inliner.inline_local_functions(proto)
        if unique_names:
            make_names_unique(proto)
            drop_zero_states(proto)
            canonicalise(proto)
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
        found = sorted(all_tensors(self.proto), key=lambda weight: weight.place == "main")
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
        size = check_tensor(self.path, Weight(tensor.name, tensor, "other"))
        if not is_external(tensor):
            try:
                return onnx.numpy_helper.to_array(tensor)
            except UnicodeDecodeError as error:
                raise ModelError(f"{self.path}: tensor '{tensor.name}' holds a string that is not UTF-8.") from error
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        if size == 0:
            return np.empty(shape, dtype)
        file, offset = region(self.path, Weight(tensor.name, tensor, "other"), size)
        packed = np.memmap(file, np.uint8, "r", offset, (size,))
        if type_name(tensor) in PACKED_BITS:
            whole = TensorProto(data_type=tensor.data_type, dims=shape, raw_data=packed.tobytes())
            return onnx.numpy_helper.to_array(whole)
        return packed.view(dtype.newbyteorder("<") if sys.byteorder == "big" else dtype).reshape(shape)


def skeleton(path: Path, *, lean: bool = False) -> ModelProto:
    """The model in a file this program wrote, external data not loaded and nothing checked.

    `lean`: large initializers stay in the file too, as external data whose file is the model itself. They are as they
    were in what `write` makes of it. (Nothing stays behind in a linked file, which onnx refuses for external data.)
    """
    return parse(path, lean=lean)


def external_files(path: Path, proto: ModelProto) -> tuple[Path, ...]:
    """The distinct external data files of the model at `path`, in order of first use, each checked to be safe."""
    found = {}
    for weight in all_tensors(proto):
        if is_external(weight.tensor):
            location = external_entries(weight.tensor).get("location", "")
            if location not in found and location != path.name:
                found[location] = external_path(path, weight.name, location)
    return tuple(dict.fromkeys(found.values()))
