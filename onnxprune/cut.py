"""The surgery: slices the weights and restates every size outside them. It carries out a plan and decides nothing.

Weights shrink along the axes their dimensions tell. Attributes that state sizes get the new ones. Operands that state
sizes (targets of Reshape, bounds of Slice ...) are evaluated as the pruned model would compute them, and put right
where that differs from what the dimensions demand; so entries that follow the input stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnxprune import dims
from onnxprune.bodies import (
    drop_entries,
    flat_nodes,
    graphs,
    is_walkable,
    numbered_graphs,
    operands,
    opset_of,
    walked_bodies,
)
from onnxprune.computed import are_replaceable, recompute
from onnxprune.dims import Dim
from onnxprune.errors import ModelError
from onnxprune.records import Analysis, IndexArray, SizeUse
from onnxprune.shapes import Shapes, constant_tensor

Array = npt.NDArray[Any]
INITIALIZERS_NEED_NO_INPUT = 4
"""First IR version in which an initializer need not be a graph input as well."""

SPLIT_OPERAND_FROM, WHERE_FROM = 13, 9
"""The operator sets from which on Split takes its sizes as an operand, and Where exists."""

Edit = Callable[[Array], Array]
Keep = Mapping[Dim, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Cut:
    """The pruned skeleton and what happens to each stored weight.

    `proto`: nodes, attributes and interface of the pruned model, weights still as they were. `slices`: for each
    weight that shrinks, the kept indices int64 by axis. `edits`: for each weight that changes, the function from the
    original array to the new one.
    """

    proto: onnx.ModelProto
    slices: Mapping[str, Mapping[int, IndexArray]]
    edits: dict[str, Edit]


@dataclass
class _Surgery:
    proto: onnx.ModelProto
    analysis: Analysis
    shapes: Shapes
    keep: Keep
    counts: dict[Dim, int]
    nodes: list[onnx.NodeProto]
    """Every walked node, as `bodies.flat_nodes` numbers them."""
    values: dict[str, Array] = field(default_factory=dict)
    """Values of the pruned model where they differ from the original's."""
    edits: dict[str, Edit] = field(default_factory=dict)
    before: dict[int, list[onnx.NodeProto]] = field(default_factory=dict)
    """New nodes to insert before the node of that index."""
    stored: frozenset[str] = frozenset()
    """Weights that have a payload: initializers and results of Constant nodes."""
    dropped: frozenset[int] = frozenset()
    """Nodes that fall with an operand of a stack."""
    readers: dict[str, int] = field(default_factory=dict)
    """How often each tensor is read, graph outputs and subgraphs included."""


def cut(proto: onnx.ModelProto, analysis: Analysis, shapes: Shapes, kept: Mapping[str, IndexArray]) -> Cut:
    """Carry out the plan `kept` (kept indices by group id) on a copy of the skeleton `proto`."""
    atoms = {g.id: g for g in analysis.groups}
    keep = {atoms[name].dim: _as_mask(atoms[name].size, indices) for name, indices in kept.items()}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes = [node for _, node in flat_nodes(copy)]
    counts = {a: int(m.sum()) for a, m in keep.items()}
    surgery = _Surgery(copy, analysis, shapes, keep, counts, nodes)
    surgery.readers, surgery.stored = _count_readers(copy), frozenset(stored_names(proto))
    slices = {name: found for name in stored_names(proto) if (found := _slices(analysis.weights.get(name, ()), keep))}
    surgery.edits.update({name: _slicer(found) for name, found in slices.items()})
    lost = _unstack(surgery)
    _renumber(surgery)
    _restate_sizes(surgery)
    _restate_value_info(surgery)
    _insert_nodes(surgery)
    _store_lists(surgery)
    _forget(surgery, lost | _no_longer_read(surgery))
    return Cut(copy, slices, surgery.edits)


def _count_readers(proto: onnx.ModelProto) -> dict[str, int]:
    walkable = is_walkable(proto)
    names = [o.name for graph in graphs(proto) for o in graph.output]
    for _, node in flat_nodes(proto):
        names += node.input if walkable and walked_bodies(node) else operands(node)
    return dict(Counter(names))


def _no_longer_read(surgery: _Surgery) -> set[str]:
    """Initializers that nodes read before, and none does now that their sizes are stated anew."""
    readers = _count_readers(surgery.proto)
    graph = surgery.proto.graph
    stored = {t.name for t in graph.initializer} - {i.name for i in graph.input}
    return {name for name in stored if surgery.readers.get(name) and not readers.get(name)}


def _as_mask(size: int, indices: IndexArray) -> npt.NDArray[np.bool_]:
    result = np.zeros(size, bool)
    result[indices] = True
    return result


def stored_names(proto: onnx.ModelProto) -> list[str]:
    """Names of the initializers, and of the results of Constant nodes, of the main graph and the walked bodies."""
    nodes = [n for _, n in flat_nodes(proto)]
    constants = [n.output[0] for n in nodes if n.op_type == "Constant" and constant_tensor(n) is not None]
    return [t.name for g in graphs(proto) for t in g.initializer] + constants


def _slices(axes: Sequence[Dim], keep: Keep) -> dict[int, IndexArray]:
    masks = {axis: dims.mask(d, keep) for axis, d in enumerate(axes) if any(a in keep for a in dims.atoms(d))}
    return {axis: np.flatnonzero(m) for axis, m in masks.items() if not m.all()}


def _slicer(slices: Mapping[int, IndexArray]) -> Edit:
    def edit(array: Array) -> Array:
        for axis, indices in slices.items():
            array = np.take(array, indices, axis)
        return array

    return edit


def _unstack(surgery: _Surgery) -> set[str]:
    """Take the removed operands off the stacks; returns the names of the tensors that go with them."""
    lost: set[str] = set()
    for stack in surgery.analysis.stacks:
        mask = dims.mask(stack.dim, surgery.keep)
        node = surgery.nodes[stack.node]
        node.input[:] = [name for name, stays in zip(node.input, mask, strict=True) if stays]
        for part in (part for part, stays in zip(stack.owned, mask, strict=True) if not stays):
            surgery.dropped |= part.nodes
            lost |= part.tensors
    return lost


def _forget(surgery: _Surgery, lost: set[str]) -> None:
    """Drop what is stored or noted of tensors that are there no more."""
    drop_entries(surgery.proto.graph, lost)
    for name in lost & set(surgery.edits):
        del surgery.edits[name]


def _renumber(surgery: _Surgery) -> None:
    """Constant indices of a dimension that shrinks get the new numbers of what they picked and still pick."""
    for pick in (p for p in surgery.analysis.picks if p.node not in surgery.dropped):
        source, result = dims.mask(pick.source, surgery.keep), dims.mask(pick.result, surgery.keep)
        if source.all():
            continue
        old = surgery.shapes.values[surgery.nodes[pick.node].input[pick.operand]]
        left = old[result] % len(source)
        _replace_operand(surgery, pick.node, pick.operand, (np.cumsum(source) - 1)[left].astype(old.dtype))


def _restate_sizes(surgery: _Surgery) -> None:
    uses: dict[int, list[SizeUse]] = {}
    for use in surgery.analysis.uses:
        uses.setdefault(use.node, []).append(use)
    for index, node in enumerate(surgery.nodes):
        if index in surgery.dropped:
            continue
        stated = uses.get(index, [])
        for use in stated:
            _restate(surgery, use)
        if all(o in surgery.shapes.derived for o in node.output if o):
            _undo_before_rounding(surgery, index, node)
            _refold(surgery, node)
        else:
            _keep_values(surgery, index, node, {u.where for u in stated})


def _new_sizes(surgery: _Surgery, use: SizeUse) -> list[int | None]:
    return [None if d is None else dims.size(d, surgery.counts) for d in use.dims]


def _restate(surgery: _Surgery, use: SizeUse) -> None:
    node = surgery.nodes[use.node]
    wanted = _new_sizes(surgery, use)
    if all(d is None or dims.size(d, surgery.counts) == d.size for d in use.dims) and not _moved(surgery, node, use):
        return
    if isinstance(use.where, str):
        _restate_attribute(surgery, use.node, use.where, wanted)
    elif node.op_type == "Gather":
        _as_reshape(surgery, use, wanted)
    else:
        _restate_operand(surgery, use, wanted)


def _as_reshape(surgery: _Surgery, use: SizeUse, wanted: Sequence[int | None]) -> None:
    """A Gather states the sizes of its result where it reads a flat tensor from first to last: it becomes a Reshape."""
    node = surgery.nodes[use.node]
    moving = surgery.shapes.dynamic_axes[node.output[0]]
    sizes = [-1 if m else int(w or 0) for m, w in zip(moving, wanted, strict=True)]
    node.op_type = "Reshape"
    del node.attribute[:]
    _set_input(node, 1, _add_constant(surgery, use.node, "shape", np.asarray(sizes, np.int64)))


def _moved(surgery: _Surgery, node: onnx.NodeProto, use: SizeUse) -> bool:
    return isinstance(use.where, int) and node.input[use.where] in surgery.values


def _restate_attribute(surgery: _Surgery, index: int, name: str, wanted: Sequence[int | None]) -> None:
    found = next((a for a in surgery.nodes[index].attribute if a.name == name), None)
    if found is None:
        _add_split(surgery, index, [w or 0 for w in wanted])
    elif found.type == onnx.AttributeProto.INT:
        found.i = wanted[0] if wanted[0] is not None else found.i
    else:
        found.ints[:] = [old if w is None else w for old, w in zip(found.ints, wanted, strict=True)]


def _add_split(surgery: _Surgery, index: int, sizes: list[int]) -> None:
    """A Split into equal parts that are not equal any more."""
    node = surgery.nodes[index]
    if len(set(sizes)) == 1:
        return
    if opset_of(surgery.proto) < SPLIT_OPERAND_FROM:
        node.attribute.append(helper.make_attribute("split", sizes))
        return
    kept = [a for a in node.attribute if a.name != "num_outputs"]
    del node.attribute[:]
    node.attribute.extend(kept)
    _set_input(node, 1, _add_constant(surgery, index, "split", np.asarray(sizes, np.int64)))


def _set_input(node: onnx.NodeProto, operand: int, name: str) -> None:
    while len(node.input) <= operand:
        node.input.append("")
    node.input[operand] = name


def _add_constant(surgery: _Surgery, index: int, what: str, value: Array) -> str:
    """A new stored value for node `index`: an initializer, or a Constant node where those must be inputs too."""
    node = surgery.nodes[index]
    base = f"{next(o for o in node.output if o)}_{what}_pruned"
    taken = {t.name for t in surgery.proto.graph.initializer} | set(surgery.analysis.tensors)
    name = next(n for k in range(len(taken) + 1) if (n := f"{base}_{k}" if k else base) not in taken)
    tensor = numpy_helper.from_array(np.asarray(value), name)
    if surgery.proto.ir_version >= INITIALIZERS_NEED_NO_INPUT:
        surgery.proto.graph.initializer.append(tensor)
    else:
        surgery.before.setdefault(index, []).append(helper.make_node("Constant", [], [name], value=tensor))
    return name


def _replace_operand(surgery: _Surgery, index: int, operand: int, value: Array) -> None:
    """Give a node another stored operand: in place where nobody else reads it, else a new one."""
    node = surgery.nodes[index]
    name = node.input[operand]
    if name in surgery.analysis.weights and name in surgery.stored and surgery.readers[name] == 1:
        surgery.edits[name] = lambda _: value
    else:
        _set_input(node, operand, _add_constant(surgery, index, f"operand{operand}", value))


def _restate_operand(surgery: _Surgery, use: SizeUse, wanted: Sequence[int | None]) -> None:
    node, operand = surgery.nodes[use.node], use.where
    if not isinstance(operand, int):
        return
    name = node.input[operand]
    actual = surgery.values.get(name, surgery.shapes.values.get(name))
    if actual is None:
        _replace_unknown(surgery, use, operand, wanted)
        return
    flat = actual.reshape(-1)
    copied = _copied(node, use, flat, wanted)
    target = np.asarray([a if w is None or c else w for a, w, c in zip(flat, wanted, copied, strict=True)], flat.dtype)
    if np.array_equal(flat, target):
        return
    moving = surgery.shapes.dynamic_values.get(name)
    if moving is None or not moving.any():
        _replace_operand(surgery, use.node, operand, target.reshape(actual.shape))
    else:
        _scale_operand(surgery, use.node, operand, actual, target.reshape(actual.shape), moving)


def _copied(node: onnx.NodeProto, use: SizeUse, stated: Array, wanted: Sequence[int | None]) -> list[bool]:
    """Which entries of a Reshape are 0, which stands for the size of the operand, and mean an axis that is not cut."""
    copies = node.op_type == "Reshape" and not any(a.name == "allowzero" and a.i for a in node.attribute)
    same = [d is not None and d.size == w for d, w in zip(use.dims, wanted, strict=True)]
    return [copies and s == 0 and k for s, k in zip(stated.tolist(), same, strict=True)]


def _replace_unknown(surgery: _Surgery, use: SizeUse, operand: int, wanted: Sequence[int | None]) -> None:
    """Sizes nobody could compute: the known new ones instead, and -1 for the one that follows the input; where more
    than one does, those that change are put in their place."""
    node = surgery.nodes[use.node]
    moving = surgery.shapes.dynamic_axes[node.output[0]]
    if are_replaceable(surgery.shapes, node, use):
        sizes = [-1 if m else int(w or 0) for m, w in zip(moving, wanted, strict=True)]
        _replace_operand(surgery, use.node, operand, np.asarray(sizes, np.int64))
        return
    changed = [d is not None and d.size != w for d, w in zip(use.dims, wanted, strict=True)]
    if any(c and m for c, m in zip(changed, moving, strict=True)):
        raise ModelError(
            f"node {node.name!r}: the sizes in {node.input[operand]!r} are not known; exclude the group with --keep"
        )
    fixed = np.asarray([w if c else 0 for c, w in zip(changed, wanted, strict=True)], np.int64)
    _choose(surgery, use.node, operand, (node.input[operand], ~np.asarray(changed, bool), fixed))


def _scale_operand(surgery: _Surgery, index: int, operand: int, actual: Array, target: Array, moving: Array) -> None:
    """Entries that follow the input are multiplied by target / actual; of the others those that differ are replaced."""
    node = surgery.nodes[index]
    common = np.gcd(actual, target)
    up = np.where(moving & (common > 0), target // np.maximum(common, 1), 1)
    down = np.where(moving & (common > 0), actual // np.maximum(common, 1), 1)
    name = node.input[operand]
    if (up != down).any():
        for op, factors in (("Mul", up), ("Div", down)):
            name = _insert(surgery, index, op, [name, _add_constant(surgery, index, op, factors.astype(actual.dtype))])
    fine = moving | (actual == target)
    if fine.all():
        _set_input(node, operand, name)
    else:
        _choose(surgery, index, operand, (name, fine, target.astype(actual.dtype)))


def _choose(surgery: _Surgery, index: int, operand: int, choice: tuple[str, Array, Array]) -> None:
    """An operand is the tensor `name` where `fine`, `fixed` elsewhere."""
    name, fine, fixed = choice
    if opset_of(surgery.proto) < WHERE_FROM:
        kept = _insert(surgery, index, "Mul", [name, _add_constant(surgery, index, "moving", fine.astype(fixed.dtype))])
        others = _add_constant(surgery, index, "sizes", np.where(fine, 0, fixed).astype(fixed.dtype))
        _set_input(surgery.nodes[index], operand, _insert(surgery, index, "Add", [kept, others]))
        return
    names = [_add_constant(surgery, index, "moving", fine), name, _add_constant(surgery, index, "sizes", fixed)]
    _set_input(surgery.nodes[index], operand, _insert(surgery, index, "Where", names))


def _insert(surgery: _Surgery, index: int, op: str, inputs: list[str]) -> str:
    queue = surgery.before.setdefault(index, [])
    name = f"{inputs[0] if op != 'Where' else inputs[1]}_{op}_{index}"
    queue.append(helper.make_node(op, inputs, [name], name=name))
    return name


def _store_lists(surgery: _Surgery) -> None:
    """A Constant node that changes and holds a list (value_floats, value_ints) holds a tensor from now on."""
    for _, node in flat_nodes(surgery.proto):
        if node.op_type != "Constant" or node.output[0] not in surgery.edits or node.attribute[0].name == "value":
            continue
        stored = constant_tensor(node)
        if stored is not None:
            value = surgery.edits.pop(node.output[0])(numpy_helper.to_array(stored))
            node.attribute[0].CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))


def _insert_nodes(surgery: _Surgery) -> None:
    if not surgery.before and not surgery.dropped:
        return
    for graph, numbered in numbered_graphs(surgery.proto):
        left = [(index, node) for index, node in numbered if index not in surgery.dropped]
        nodes = [n for index, node in left for n in (*surgery.before.get(index, []), node)]
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _undo_before_rounding(surgery: _Surgery, index: int, node: onnx.NodeProto) -> None:
    """A number that follows the input is as it was where an integer division by a fixed number rounds it: batch times
    heads, divided by the number of heads there were, is the batch."""
    name, *divisor = node.input
    moving = surgery.shapes.dynamic_values.get(name)
    if node.op_type not in ("Div", "Mod") or name not in surgery.values or moving is None or not moving.any():
        return
    old = surgery.shapes.values[name]
    if old.dtype.kind == "i" and not any(d in surgery.values for d in divisor):
        _scale_operand(surgery, index, 0, surgery.values[name], old, moving)
        surgery.values[node.input[0]] = old


def _refold(surgery: _Surgery, node: onnx.NodeProto) -> None:
    """Recompute a node of shape arithmetic as the pruned model will."""
    if node.op_type in ("Shape", "Size"):
        if node.input[0] not in surgery.analysis.tensors:
            return
    elif not any(n in surgery.values for n in node.input):
        return
    results = recompute(node, surgery.values, surgery.shapes.values, surgery.analysis.tensors, surgery.counts)
    if results is None:
        raise ModelError(f"node {node.name!r} cannot be computed for the new sizes; exclude the group with --keep")
    for name, value in zip(node.output, results, strict=False):
        if not np.array_equal(value, surgery.shapes.values[name]):
            surgery.values[name] = value


def _keep_values(surgery: _Surgery, index: int, node: onnx.NodeProto, stated: set[str | int]) -> None:
    """A number computed from a size that shrinks, used as a number (1 / sqrt(width)), keeps its old value."""
    for operand, name in enumerate(node.input):
        if operand in stated or name not in surgery.values:
            continue
        moving = surgery.shapes.dynamic_values.get(name)
        if moving is not None and moving.any():
            raise ModelError(
                f"node {node.name!r}: {name!r} is computed from both the input size and a width that shrinks; "
                "exclude the group with --keep"
            )
        old = surgery.shapes.values[name]
        _set_input(node, operand, _add_constant(surgery, index, f"operand{operand}", old))


def _restate_value_info(surgery: _Surgery) -> None:
    described = [v for g in graphs(surgery.proto) for v in (*g.value_info, *g.input, *g.output)]
    for value in described:
        found = surgery.analysis.tensors.get(value.name)
        if found is None or not value.type.HasField("tensor_type"):
            continue
        for d, stored in zip(found, value.type.tensor_type.shape.dim, strict=False):
            new = dims.size(d, surgery.counts)
            if stored.HasField("dim_value") and new != d.size:
                stored.dim_value = new
