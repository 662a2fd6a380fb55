"""Whole residual blocks: found by a law, measured, and taken out of the model.

y = a + b is a block where both are of one shape, a is computed from b, a weight of two axes or more takes part in
that, and whatever is computed from b on the way to a is needed for nothing else. Then y = b is a model with the same
interface and without the branch. A block in which a is 0 gives the same y, and that is what proves a removal.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune import runtime, worker
from onnxprune.bodies import captured_names, operands
from onnxprune.errors import ModelError, NothingToPruneError, UsageError, runs_nowhere
from onnxprune.records import Block, Feed, RemovedBlock
from onnxprune.shapes import Shapes
from onnxprune.wording import plural

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]

MEASURE_LIMIT_S = 3600.0
MADE_UP_FEEDS = 2
MEASURED_ROWS = 64
"""Made-up inputs, and rows of calibration data, that damage is measured on."""
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_WHOLE = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.STRING}
_RANDOM = {"RandomNormal", "RandomUniform"}


# ---- The graph -------------------------------------------------------------------------------------------------------


class _Graph:
    """Who makes and who reads each tensor of the main graph; subgraphs read for the node that holds them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes: Sequence[NodeProto] = graph.node
        self.reads = [frozenset(operands(node)) for node in graph.node]
        self.maker = {o: index for index, node in enumerate(graph.node) for o in node.output if o}
        self.readers: dict[str, set[int]] = {}
        for index, names in enumerate(self.reads):
            for name in names:
                self.readers.setdefault(name, set()).add(index)
        self.stored = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        self.inputs = {i.name for i in graph.input} - self.stored
        self.outputs = frozenset(o.name for o in graph.output)

    def constants(self) -> set[str]:
        """Tensors that stored weights alone make."""
        found = set(self.stored)
        for node, names in zip(self.nodes, self.reads, strict=True):
            if names <= found and node.op_type not in _RANDOM:
                found.update(node.output)
        return found

    def is_stored(self, name: str) -> bool:
        """Whether a tensor is a weight: stored, or filled by ConstantOfShape."""
        maker = self.maker.get(name)
        return name in self.stored if maker is None else self.nodes[maker].op_type in ("Constant", "ConstantOfShape")

    def read_only_by(self, nodes: Collection[int]) -> set[str]:
        """The tensors that `nodes` read and nothing else needs."""
        read = {name for index in nodes for name in self.reads[index]} - self.outputs
        return {name for name in read if self.readers[name] <= set(nodes)}

    def useless(self, starts: Iterable[str], gone: Collection[int], alive: Collection[str]) -> set[int]:
        """The nodes that nothing needs when the nodes `gone` are, looking upwards from the tensors `starts`.

        The tensors `alive` are needed in any case.
        """
        found = set(gone)
        waiting = list(starts)
        while waiting:
            index = self.maker.get(waiting.pop())
            if index is None or index in found:
                continue
            if all(o not in alive and self.readers.get(o, set()) <= found for o in self.nodes[index].output if o):
                found.add(index)
                waiting += self.reads[index]
        return found - set(gone)


def find_blocks(proto: onnx.ModelProto, shapes: Shapes) -> list[Block]:
    """The residual blocks of the main graph of the skeleton `proto`, in graph order; of nested ones all."""
    graph = _Graph(proto.graph)
    constants = graph.constants()
    names = _names(graph.nodes)
    found = []
    for index, node in enumerate(graph.nodes):
        if not _adds_alike(node, shapes):
            continue
        for branch, kept in (tuple(node.input), tuple(reversed(node.input))):
            nodes = _branch_nodes(graph, shapes, constants, index, (branch, kept))
            if nodes:
                weights = tuple(sorted(n for n in graph.read_only_by(nodes) if graph.is_stored(n)))
                size = sum(_parameters(shapes, name) for name in weights)
                found.append(Block(names[index], index, kept, branch, tuple(sorted(nodes)), weights, size))
    return found


def _names(nodes: Sequence[NodeProto]) -> list[str]:
    """A name for every node that no other node has."""
    counts = Counter(node.name for node in nodes)
    return [
        node.name if node.name and counts[node.name] == 1 else f"{node.op_type}({next(iter(node.output), index)})"
        for index, node in enumerate(nodes)
    ]


def _adds_alike(node: NodeProto, shapes: Shapes) -> bool:
    """Whether a node adds two different float tensors of one shape."""
    if node.op_type not in ("Add", "Sum") or node.domain not in ("", "ai.onnx") or len(set(node.input)) != 2:
        return False
    if len(node.input) != 2 or shapes.element_types.get(node.output[0]) not in _FLOATS:
        return False
    a, b = (shapes.shape.get(name) for name in node.input)
    moving = [shapes.dynamic_axes.get(name) for name in node.input]
    return a is not None and a == b and np.array_equal(moving[0], moving[1])  # type: ignore[arg-type]


def _branch_nodes(
    graph: _Graph, shapes: Shapes, constants: Collection[str], index: int, ends: tuple[str, str]
) -> set[int]:
    """The nodes that only the branch needs; none where the sum `index` of `ends` (branch, kept) ends no block."""
    branch, kept = ends
    between = _between(graph, shapes, branch, kept)
    if not any(_is_matrix(shapes, name) for p in between for name in graph.reads[p] if name in constants):
        return set()
    found = graph.useless([branch], [index], {*graph.outputs, kept})
    return found if between <= found and not graph.read_only_by(found) & graph.inputs else set()


def _between(graph: _Graph, shapes: Shapes, branch: str, kept: str) -> set[int]:
    """The nodes on the ways from `kept` to `branch`, those that compute shapes left out."""
    first = graph.maker.get(kept, -1)
    above: set[int] = set()
    waiting = [branch]
    while waiting:
        index = graph.maker.get(waiting.pop(), -1)
        if index > first and index not in above:
            above.add(index)
            waiting += graph.reads[index]
    known, found = {kept}, set()
    for index in sorted(above):
        outputs = [o for o in graph.nodes[index].output if o and o not in shapes.derived]
        if outputs and known & graph.reads[index]:
            found.add(index)
            known.update(outputs)
    return found if branch in known else set()


def _is_matrix(shapes: Shapes, name: str) -> bool:
    """Whether a constant is a weight along two axes or more; scales, slopes and biases are not."""
    sizes = shapes.shape.get(name, ())
    return sum(n > 1 for n in sizes) > 1 and shapes.element_types.get(name) not in _WHOLE


def _parameters(shapes: Shapes, name: str) -> int:
    return 0 if shapes.element_types.get(name) in _WHOLE else math.prod(shapes.shape.get(name, ()))


# ---- Taking out ------------------------------------------------------------------------------------------------------


def remove(proto: onnx.ModelProto, blocks: Iterable[Block]) -> onnx.ModelProto:
    """A copy of the skeleton without `blocks` (as `find_blocks` found them in it), in whatever order they are given.

    Whoever read a sum reads its kept operand, by another name; a sum that is a graph output, or read inside a
    subgraph, becomes an Identity, so that the name stays. Nodes and weights that nothing needs any more are dropped.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    before = _Graph(result.graph)
    captured = {name for node in result.graph.node for name in captured_names(node)}
    new: dict[str, str] = {}
    gone: set[int] = set()
    chosen = sorted(blocks, key=lambda block: block.node)
    for block in chosen:
        node = result.graph.node[block.node]
        if node.output[0] in before.outputs | captured:
            node.op_type = "Identity"
            node.input[:] = [block.kept]
        else:
            new[node.output[0]] = new.get(block.kept, block.kept)
            gone.add(block.node)
    for node in result.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
    after = _without(result.graph, gone)
    useless = after.useless([b.branch for b in chosen], (), after.outputs)
    _drop(result.graph, gone | useless, before)
    return result


def _without(graph: onnx.GraphProto, gone: Collection[int]) -> _Graph:
    """Who makes and reads what when the nodes `gone` read nothing."""
    found = _Graph(graph)
    for readers in found.readers.values():
        readers.difference_update(gone)
    return found


def _drop(graph: onnx.GraphProto, nodes: Collection[int], before: _Graph) -> None:
    """Drop nodes, and whatever is stored or noted of tensors that only they made or read."""
    lost = before.read_only_by(nodes) | {o for index in nodes for o in before.nodes[index].output}
    for index in sorted(nodes, reverse=True):
        del graph.node[index]
    lost -= {name for node in graph.node for name in operands(node)}
    lost -= before.outputs | before.inputs
    for entries in (graph.initializer, graph.input, graph.value_info):
        _filter(entries, lambda entry: entry.name not in lost)
    _filter(graph.sparse_initializer, lambda entry: entry.values.name not in lost)
    _filter(graph.quantization_annotation, lambda entry: entry.tensor_name not in lost)


def _filter(entries: Any, stays: Callable[[Any], bool]) -> None:
    """Keep the entries of a repeated field that `stays` says, without a copy of any."""
    for index in reversed(range(len(entries))):
        if not stays(entries[index]):
            del entries[index]


# ---- Gates and the proof ---------------------------------------------------------------------------------------------


def silenced(proto: onnx.ModelProto, blocks: Sequence[Block], element_types: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of the skeleton in which the branch of every block is multiplied by zero: what `remove` must equal."""

    def gate(graph: onnx.GraphProto, block: Block, name: str) -> list[NodeProto]:
        zero = np.zeros((), helper.tensor_dtype_to_np_dtype(element_types[block.branch]))
        graph.initializer.append(numpy_helper.from_array(zero, name))
        return []

    return _insert(proto, blocks, gate)


def gated(proto: onnx.ModelProto, blocks: Sequence[Block], element_types: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of the skeleton in which the branch of block k is multiplied by a new scalar input, `gate_name(k)`."""

    def gate(graph: onnx.GraphProto, block: Block, name: str) -> list[NodeProto]:
        kind = element_types[block.branch]
        fed = gate_name(blocks.index(block))
        graph.input.append(helper.make_tensor_value_info(fed, TensorProto.FLOAT, []))
        return [helper.make_node("Cast", [fed], [name], to=kind)]

    return _insert(proto, blocks, gate)


def gate_name(number: int) -> str:
    """The name of the graph input that opens (1) or shuts (0) a block."""
    return f"onnxprune_gate_{number}"


def _insert(
    proto: onnx.ModelProto,
    blocks: Sequence[Block],
    gate: Callable[[onnx.GraphProto, Block, str], list[NodeProto]],
) -> onnx.ModelProto:
    """Multiply each branch by the scalar that the nodes of `gate` make, or that it stores, under the name given."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    for number, block in sorted(enumerate(blocks), key=lambda entry: -entry[1].node):
        scalar, product = f"onnxprune_scalar_{number}", f"onnxprune_product_{number}"
        node = graph.node[block.node]
        node.input[:] = [product if name == block.branch else name for name in node.input]
        made = [*gate(graph, block, scalar), helper.make_node("Mul", [block.branch, scalar], [product])]
        for new in reversed(made):
            graph.node.insert(block.node, new)
    return result


# ---- Measuring and choosing ------------------------------------------------------------------------------------------


def choose(
    proto: onnx.ModelProto,
    blocks: Sequence[Block],
    count: int,
    *,
    shapes: Shapes,
    folder: Path,
    sizes: Sequence[Mapping[str, Sequence[int]]],
    bounds: Mapping[str, int],
    feeds: Sequence[Feed],
    seed: int = 0,
) -> list[RemovedBlock]:
    """The `count` blocks whose removal, one after the other, does the least damage to the outputs, in that order.

    No two of them overlap. Damage is measured in a child process: on `feeds`, or where there are none on made-up
    inputs of `sizes` (`bounds`: for integer inputs, one more than the largest value). `folder` holds external data.
    Raises NothingToPruneError where fewer blocks can be removed.
    """
    most = _most_apart(blocks, ())
    if count > most:
        raise NothingToPruneError(_too_few(blocks, count, most))
    measured = gated(proto, blocks, shapes.element_types)
    arguments = {
        "model": measured.SerializeToString(),
        "folder": str(folder),
        "blocks": list(blocks),
        "count": count,
        "sizes": [dict(s) for s in sizes],
        "bounds": dict(bounds),
        "feeds": list(feeds),
        "seed": seed,
        "optimize": not any(t.data_location == TensorProto.EXTERNAL for t in proto.graph.initializer),
    }
    found: list[RemovedBlock] = worker.call("onnxprune.depth:greedy", arguments, timeout_s=MEASURE_LIMIT_S)
    return found


def first_rows(batches: Sequence[Feed]) -> list[Feed]:
    """The first batches of calibration data, enough to measure damage on."""
    chosen: list[Feed] = []
    rows = 0
    for batch in batches:
        if rows < MEASURED_ROWS:
            chosen.append(batch)
            rows += max((len(a) for a in batch.values() if a.ndim), default=1)
    return chosen


def _too_few(blocks: Sequence[Block], count: int, most: int) -> str:
    law = "a sum of a tensor and a branch computed from it, with weights, that feeds nothing else"
    if not blocks:
        return f"--depth {count}: the model has no residual block that can be removed ({law})"
    names = ", ".join(block.name for block in blocks[:5]) + (", ..." if len(blocks) > 5 else "")
    return (
        f"--depth {count}: only {plural(most, 'residual block')} of the model can be removed together ({law}): {names}"
    )


def named(blocks: Sequence[Block], names: Sequence[str]) -> list[RemovedBlock]:
    """The blocks with these names, as a plan gives them. Raises UsageError for a name that is none, or overlaps."""
    known = {block.name: block for block in blocks}
    found: list[RemovedBlock] = []
    for name in names:
        if name not in known:
            raise UsageError(f"the plan removes the residual block {name!r}, which the model does not have")
        if any(_overlap(known[name], other.block) for other in found):
            raise UsageError(f"the plan removes the residual block {name!r} twice, or another one around it or in it")
        found.append(RemovedBlock(known[name], None))
    return found


def _overlap(a: Block, b: Block) -> bool:
    return not {a.node, *a.nodes}.isdisjoint({b.node, *b.nodes})


def _apart(blocks: Iterable[Block], taken: Iterable[Block]) -> list[Block]:
    """The blocks that overlap with none of `taken`."""
    used = {index for block in taken for index in (block.node, *block.nodes)}
    return [block for block in blocks if used.isdisjoint((block.node, *block.nodes))]


def _most_apart(blocks: Iterable[Block], taken: Sequence[Block]) -> int:
    """How many blocks can still be removed: blocks nest or lie apart, so the smallest first."""
    chosen: list[Block] = []
    for block in sorted(_apart(blocks, taken), key=lambda block: len(block.nodes)):
        chosen += _apart([block], chosen)
    return len(chosen)


def greedy(
    model: bytes,
    *,
    folder: str,
    blocks: Sequence[Block],
    count: int,
    sizes: Sequence[Mapping[str, Sequence[int]]],
    bounds: Mapping[str, int],
    feeds: Sequence[Feed],
    seed: int,
    optimize: bool,
) -> list[RemovedBlock]:
    """Remove the block of least damage, measure again, and so on, `count` times. Run in a child process.

    `model` is the serialised `gated` model. Ties go to the block with more parameters, then to the earlier one.
    """
    session = runtime.session(model, optimize=optimize, prepack=optimize, folder=folder)
    inputs = list(feeds) or _made_up(session, len(blocks), sizes, bounds, seed)
    reference = [_outputs(session, feed, len(blocks), ()) for feed in inputs]
    taken: list[Block] = []
    found: list[RemovedBlock] = []
    while len(found) < count:
        candidates = [b for b in _apart(blocks, taken) if 1 + _most_apart(blocks, [*taken, b]) >= count - len(found)]
        damages = measure(session, blocks, candidates, taken, inputs=inputs, reference=reference)
        best = min(candidates, key=lambda b: (damages[b.name], -b.parameters, b.node))
        log.debug("damage of the blocks: %s", damages)
        taken.append(best)
        found.append(RemovedBlock(best, damages[best.name]))
    return found


def measure(
    session: Any,
    blocks: Sequence[Block],
    candidates: Iterable[Block],
    taken: Sequence[Block],
    *,
    inputs: Sequence[Feed],
    reference: Sequence[Outputs],
) -> dict[str, float]:
    """The damage, by name, that each candidate does when it is shut besides the blocks `taken`.

    `session` runs the model `gated` for `blocks`; `reference` are the original outputs for each of `inputs`.
    """
    damages = {}
    for candidate in candidates:
        shut = [blocks.index(b) for b in (*taken, candidate)]
        damages[candidate.name] = damage_of(reference, [_outputs(session, feed, len(blocks), shut) for feed in inputs])
    return damages


def _outputs(session: Any, feed: Feed, gates: int, shut: Collection[int]) -> Outputs:
    opened = {gate_name(k): np.float32(k not in shut) for k in range(gates)}
    found = runtime.run(session, {**feed, **{name: np.asarray(value) for name, value in opened.items()}})
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def _made_up(
    session: Any, gates: int, sizes: Sequence[Mapping[str, Sequence[int]]], bounds: Mapping[str, int], seed: int
) -> list[Feed]:
    """Made-up inputs that the model runs on. Raises ModelError where there are none."""
    names = {gate_name(k) for k in range(gates)}
    specs = [spec for spec in runtime.input_specs(session) if spec[0] not in names]
    made: list[Feed] = []
    failure: ModelError | None = None
    for shapes in sizes:
        feed = runtime.synthetic_feed(specs, shapes, seed, high=bounds)
        try:
            _outputs(session, feed, gates, ())
            made.append(feed)
        except ModelError as error:
            failure = error
        if len(made) == MADE_UP_FEEDS:
            break
    if not made:
        raise runs_nowhere("the original model", failure)
    return made


def damage_of(reference: Sequence[Outputs], result: Sequence[Outputs]) -> float:
    """Relative error |result - reference| / |reference| of each output over all runs, averaged over the outputs.

    1 where a shape changes or a result is not finite; of outputs that are not real numbers, the share that differs.
    """
    errors = [_error([r[name] for r in reference], [r[name] for r in result]) for name in reference[0]]
    return math.fsum(errors) / len(errors) if errors else 0.0


def _error(reference: Sequence[Array], result: Sequence[Array]) -> float:
    if any(a.shape != b.shape for a, b in zip(reference, result, strict=True)):
        return 1.0
    a, b = (np.concatenate([np.ravel(x) for x in side]) for side in (reference, result))
    if a.dtype.kind != "f":
        return float(np.mean(a != b)) if a.size else 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    known = np.isfinite(a)
    if not np.isfinite(b[known]).all():
        return 1.0
    error, norm = float(np.linalg.norm(a[known] - b[known])), float(np.linalg.norm(a[known]))
    return error / norm if norm > 0 else float(error > 0)
