"""Runs a model piece by piece over all calibration batches, so that every layer is computed once.

A `Walk` keeps the tensors that later nodes still need, for every batch. `compute` runs just the nodes between those
and the tensors asked for, with the weights as they are at that moment: a layer that is solved between two calls
is run with its new weights. One pass over the model therefore costs one forward run, however many layers are solved.

Memory: the tensors on the frontier, for all batches; what exceeds the limit of the shelf goes to a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.bodies import above, bodies, held_tensors, operands
from onnxprune.errors import ModelError
from onnxprune.holdout import Holdout
from onnxprune.records import Feed
from onnxprune.shapes import stored_tensors

Array = npt.NDArray[Any]
Read = Callable[[str], Array]

INLINE_BYTES = 1 << 30
"""Weights that lie in the model of a run, which can hold 2 GiB; what is larger than the room left is given beside."""
SMALL_BYTES = 1 << 20
"""Weights of this size or less always lie in it."""


@dataclass(frozen=True)
class _Filed:
    """An array that lies in a file."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Shelf:
    """Arrays by (owner, tensor, batch): in memory up to `limit` bytes in all, beyond that in temporary files."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._arrays: dict[tuple[object, str, int], Array | _Filed] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def put(self, owner: object, name: str, batch: int, array: Array) -> None:
        if self.used + array.nbytes <= self.limit or array.dtype.hasobject or array.nbytes < 4096:
            self.used += array.nbytes
            self._arrays[owner, name, batch] = array
            return
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="onnxprune-")
        path = Path(self._folder.name) / f"{self._files}.npy"
        self._files += 1
        np.save(path, array)
        self._arrays[owner, name, batch] = _Filed(path, array.dtype, array.shape)

    def get(self, owner: object, name: str, batch: int) -> Array:
        """The array; one that lies in a file is read anew, so that it takes memory only while it is in use."""
        found = self._arrays[owner, name, batch]
        # A file knows no bfloat16; the type is put back.
        return np.load(found.path).view(found.dtype) if isinstance(found, _Filed) else found

    def shape(self, owner: object, name: str, batch: int) -> tuple[int, ...]:
        return self._arrays[owner, name, batch].shape

    def close(self) -> None:
        """Forget everything and remove the folder."""
        self._arrays.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def drop(self, owner: object, name: str, batch: int) -> None:
        array = self._arrays.pop((owner, name, batch), None)
        if isinstance(array, _Filed):
            array.path.unlink(missing_ok=True)
        elif array is not None:
            self.used -= array.nbytes


class Walk:
    """One pass over the skeleton `proto` with the given batches of inputs.

    `read` returns a stored weight by name, as it is now; computed tensors lie on `shelf`. `own`: the
    batches after so many are made from them (`holdout`), none where it is None. `steps_first`: see `holdout`.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        read: Read,
        feeds: Sequence[Feed],
        *,
        shelf: Shelf,
        threads: int = 1,
        own: int | None = None,
        steps_first: bool = False,
    ) -> None:
        self.proto, self.read, self.threads = proto, read, threads
        self.shelf = shelf
        self.batches = len(feeds)
        self.holdout = Holdout.of(feeds[:own], steps_first)
        self.nodes = proto.graph.node
        self.producer = {o: i for i, n in enumerate(self.nodes) for o in n.output if o}
        self.stored = set(stored_tensors(proto))
        self.users: dict[str, set[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in operands(node):
                self.users.setdefault(name, set()).add(i)
        self.done: set[int] = set()
        self.live: set[str] = set()
        self.loose: set[str] = set()
        self.feeds = feeds
        self.live |= set(feeds[0])
        self.stored -= set(feeds[0])

    def compute(self, names: Iterable[str]) -> None:
        """Make the tensors `names` available through `get`."""
        names = list(dict.fromkeys(names))
        wanted = [n for n in names if n not in self.live and n not in self.stored]
        if not wanted:
            return
        chosen = self._segment(wanted)
        session, outputs = self._keeping(chosen, wanted)
        for b, results in enumerate(self._results(session, outputs)):
            for name, array in zip(outputs, results, strict=True):
                self.shelf.put(self, name, b, array)
        self.done |= set(chosen)
        self.live |= set(outputs)
        self._tidy(set(names))

    def get(self, name: str, batch: int) -> Array:
        """A computed tensor for one batch, or a stored weight; of a computed sequence or map its numbers."""
        if name in self.feeds[batch]:
            return self.feeds[batch][name]
        return self.shelf.get(self, name, batch) if name in self.live else self.read(name)

    def shape(self, name: str, batch: int) -> tuple[int, ...]:
        """The shape of a computed tensor for one batch."""
        return self.feeds[batch][name].shape if name in self.feeds[batch] else self.shelf.shape(self, name, batch)

    def results(self, name: str) -> Iterator[Array]:
        """A tensor by batch with the weights as they are now. Nothing of it is kept: a later `compute` runs it anew."""
        session = self._session(self._segment([name]), [name])
        yield from (found for (found,) in self._results(session, [name]))

    def node_of(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node of this model with the first output of `node`, which may be one of a version of the model."""
        index = next((self.producer[o] for o in node.output if o in self.producer), None)
        return node if index is None else self.nodes[index]

    def clear(self) -> None:
        """Forget every computed tensor."""
        self.done |= set(range(len(self.nodes)))
        self._tidy(set())

    def _tidy(self, pinned: set[str]) -> None:
        done = self._settled(self.done)
        for name in sorted(self.live - pinned - set(self.feeds[0])):
            if not self.users.get(name, set()) - done:
                self.live.discard(name)
                for b in range(self.batches):
                    self.shelf.drop(self, name, b)

    def _segment(self, wanted: Sequence[str]) -> list[int]:
        """The nodes still to run for `wanted`, in graph order. A node whose result was dropped runs again."""
        return above(self.nodes, wanted, self.producer, (self.live - self.loose) | self.stored)

    def _settled(self, done: set[int]) -> set[int]:
        """The nodes `done` that need not run again: those whose results are no tensors run again for who reads them."""
        result = set(done)
        for name in sorted(self.loose, key=lambda n: -self.producer[n]):
            if self.users.get(name, set()) - result:
                result.discard(self.producer[name])
        return result

    def _keeping(self, chosen: Sequence[int], wanted: Sequence[str]) -> tuple[Any, list[str]]:
        """A session of the nodes `chosen`, and which of their results it gives: those wanted, and the tensors needed
        later. In the place of sequences and maps, which are no tensors, that is what they are made from."""
        while True:
            done = self._settled(self.done | set(chosen))
            made = (o for i in chosen for o in self.nodes[i].output if o)
            outputs = [o for o in made if o in wanted or (o not in self.loose and self.users.get(o, set()) - done)]
            session = self._session(chosen, outputs)
            loose = {o.name for o in session.get_outputs() if not o.type.startswith("tensor(")}
            if loose <= self.loose:
                return session, outputs
            self.loose |= loose

    def _session(self, chosen: Sequence[int], outputs: Sequence[str]) -> Any:
        inputs = sorted({n for i in chosen for n in operands(self.nodes[i])} & (self.live - self.loose))
        model, beside = self._model(chosen, inputs, outputs)
        return runtime.session(model.SerializeToString(), threads=self.threads, arena=False, weights=beside)

    def _results(self, session: Any, outputs: Sequence[str]) -> Iterator[list[Array]]:
        """Some outputs of a session, by batch."""
        taken = [i.name for i in session.get_inputs()]
        for batch in range(self.batches):
            yield self._outputs(session, outputs, taken, batch)

    def _outputs(self, session: Any, outputs: Sequence[str], taken: Sequence[str], batch: int) -> list[Array]:
        """Some outputs for one batch; ModelError where the runtime fails, which sizes it does not take make it do."""
        found = {n: np.asarray(self.get(n, batch), order="C") for n in taken}
        try:
            return [runtime.as_array(value) for value in session.run(list(outputs), found)]
        except Exception as error:  # the runtime's exceptions share no base class
            sizes = ", ".join(f"{n!r} of {a.shape}" for n, a in self.feeds[batch].items())
            raise ModelError(
                f"the model does not run on the inputs it is to be fitted to, {sizes}: {runtime.words(error)}"
            ) from error

    def _model(
        self, chosen: Sequence[int], inputs: Sequence[str], outputs: Sequence[str]
    ) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The nodes `chosen` as a model, and the weights that it has no room for."""
        model = onnx.ModelProto(ir_version=self.proto.ir_version)
        model.opset_import.extend(self.proto.opset_import)
        model.functions.extend(self.proto.functions)
        model.graph.name = "segment"
        model.graph.node.extend(self._with_weights(self.nodes[i]) for i in chosen)
        needed = {n for i in chosen for n in operands(self.nodes[i])}
        room, beside = INLINE_BYTES, {}
        for name in sorted(n for n in needed - self.live if n in self.stored or n not in self.producer):
            array = np.asarray(self.read(name), order="C")
            if array.nbytes > max(room, SMALL_BYTES) and _has_bytes(array):
                beside[name] = array
                model.graph.initializer.append(_elsewhere(name, array))
            else:
                room -= array.nbytes
                model.graph.initializer.append(numpy_helper.from_array(array, name))
        for name in inputs:
            kind = onnx.helper.np_dtype_to_tensor_dtype(self.get(name, 0).dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs)
        return model, beside

    def _with_weights(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node with what its subgraphs hold themselves as it is now."""
        if not bodies(node):
            return node
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for name, tensor in held_tensors(copy):
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(self.read(name), order="C"), name))
        return copy


def _has_bytes(array: Array) -> bool:
    """Whether the numbers are plain ones, of a byte or more each."""
    return array.dtype.kind in "fiub" or array.dtype == onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)


def _elsewhere(name: str, array: Array) -> onnx.TensorProto:
    """An initializer whose numbers the session is given apart from the model."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="memory")
    return tensor


def reader(proto: onnx.ModelProto, read: Callable[[str], Array | None], values: Mapping[str, Array]) -> Read:
    """Weights by name: those in `values` first, then the model's, then those only `proto` has."""
    own = stored_tensors(proto)

    def find(name: str) -> Array:
        if name in values:
            return values[name]
        found = read(name)
        return numpy_helper.to_array(own[name]) if found is None else found

    return find
