"""Dimension inference: one walk over the graph that finds which slices of which weights go together.

Weights are never read. What no rule covers is frozen, with the node and the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx

from onnxprune import dims, rules
from onnxprune.bodies import (
    by_life,
    captured_names,
    entering,
    flat_nodes,
    graphs,
    is_walkable,
    leaving,
    live_bodies,
    live_nodes,
    outer_names,
    returning,
    unchanged,
    walked_bodies,
)
from onnxprune.computed import Numbers, unstatable
from onnxprune.dims import Dim
from onnxprune.errors import ModelError
from onnxprune.grouping import groups, roles_by_weight
from onnxprune.parts import is_matrix, outer_parts, owned
from onnxprune.records import (
    Analysis,
    Comparison,
    Contraction,
    Pick,
    Refusal,
    Role,
    SizeUse,
    Stack,
    Work,
)
from onnxprune.rules import Operator
from onnxprune.rules.opaque import why_no_rule
from onnxprune.rules.registry import SizeMismatchError
from onnxprune.shapes import Shapes, constant_tensor, graph_inputs, node_attributes
from onnxprune.unknown import Makers

Dims = tuple[Dim, ...]
LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
MOVES = {"Cast", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators whose result is still a weight if their operand is one."""
PASSIVE = {"Cast", "Constant", "Identity", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that a runtime takes operands of any width for."""
CARRIES = MOVES | {"Expand", "Flatten", "Gather", "Tile"}
"""Operators whose results are made of elements of their first operand."""


@dataclass
class _State:
    shapes: Shapes
    opsets: dict[str, int]
    makers: Makers
    tensors: dict[str, Dims] = field(default_factory=dict)
    weights: dict[str, Dims] = field(default_factory=dict)
    origin: dict[str, frozenset[str]] = field(default_factory=dict)
    """The weights a constant tensor is computed from; absent for everything that depends on the inputs."""
    alias: dict[str, str] = field(default_factory=dict)
    """What a body calls a constant that a loop hands on, and its name outside."""
    picked: dict[str, frozenset[str]] = field(default_factory=dict)
    """The weights that a lookup by computed indices picks slices from (the experts of a mixture)."""
    chosen: set[str] = field(default_factory=set)
    """Those lookups of `picked` whose indices are places that the model chose, so that they are weights as any."""
    places: dict[str, Dim] = field(default_factory=dict)
    """The tensors whose elements are places on a dimension."""
    comparisons: list[Comparison] = field(default_factory=list)
    stacked: list[tuple[int, Dim]] = field(default_factory=list)
    """Concats (by number) of operands of one index each, and the dimension of these indices."""
    stacks: list[Stack] = field(default_factory=list)
    roles: list[tuple[str, int, Dim, Role]] = field(default_factory=list)
    users: dict[str, list[str]] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    uses: list[SizeUse] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Names of the visited nodes, in the order of `bodies.flat_nodes`."""


def analyse(proto: onnx.ModelProto, shapes: Shapes) -> Analysis:
    """Find the groups of the main graph of the skeleton `proto`."""
    state = _State(shapes, {o.domain: o.version for o in proto.opset_import}, Makers(proto))
    state.opsets.setdefault("", state.opsets.get("ai.onnx", 1))
    for tensor in proto.graph.initializer:
        _add_weight(state, tensor.name, tensor.dims)
    for value in graph_inputs(proto):
        found = tuple(dims.atom(n) for n in shapes.shape.get(value.name, ()))
        state.tensors[value.name] = found
        _freeze(found, Refusal(value.name, "graph input", "the interface keeps its shape"))
    main, holders = _visit_all(state, proto)
    _settle_stacks(state, proto)
    _settle_comparisons(state)
    for value in proto.graph.output:
        reason = Refusal(value.name, "graph output", "the interface keeps its shape")
        _freeze([*state.tensors.get(value.name, ()), *_places(state, [value.name])], reason)
    _freeze_measured(state, proto)
    return Analysis(
        groups=tuple(
            groups(state.weights, state.roles, _sources(state), state.contractions, state.comparisons, state.users)
        ),
        weights=state.weights,
        tensors=state.tensors,
        contractions=tuple(state.contractions),
        uses=tuple(state.uses),
        picks=tuple(state.picks),
        work=tuple(state.work),
        nodes=tuple(state.names),
        main=main,
        holders=holders,
        places=state.places,
        stacks=tuple(state.stacks),
    )


def _visit_all(state: _State, proto: onnx.ModelProto) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Visit every node; returns `main` and `holders` of the analysis."""
    walkable = is_walkable(proto)
    main: list[int] = []
    holders: list[int] = []
    for index, node in enumerate(proto.graph.node):
        _visit(state, node, walkable)
        holders += [index] * (len(state.names) - len(holders))
        main.append(len(holders) - 1)
    return tuple(main), tuple(holders)


def _freeze_measured(state: _State, proto: onnx.ModelProto) -> None:
    """A size that the model uses in a way that cannot follow a width keeps that width: as a result of the model or of
    a body, in a number that also follows the input, or among sizes that only the data tells."""
    flat = [node for _, node in flat_nodes(proto)]
    numbers = Numbers(flat, state.tensors, state.shapes)
    derived = state.shapes.derived
    results = {o.name for graph in graphs(proto) for o in graph.output}
    stated = {(use.node, use.where) for use in state.uses}
    for index, node in enumerate(flat):
        results.update(captured_names(node))
        for operand, name in enumerate(node.input if any(o not in derived for o in node.output if o) else ()):
            if (index, operand) not in stated and name in derived and state.shapes.dynamic_values[name].any():
                reason = "takes a number computed from this width and from the size of the input"
                _freeze(numbers.widths(name), Refusal(node_name(node, index), node.op_type, reason))
    for asking in (n for n in flat if n.op_type == "If" and n.output and n.output[0] in state.shapes.taken):
        _freeze(numbers.widths(asking.input[0]), Refusal(asking.name, "If", "asks for this width"))
    for name in sorted(results & derived):
        _freeze(numbers.widths(name), Refusal(name, "Shape", "the size is a result of the model, or of a body"))
    for use in state.uses:
        refusal = Refusal(state.names[use.node], flat[use.node].op_type, "takes sizes that only the data tells")
        _freeze(unstatable(state.shapes, flat[use.node], use), refusal)


def node_name(node: onnx.NodeProto, index: int) -> str:
    """The name of a node, or its operator with its first result where it has none."""
    return node.name or f"{node.op_type}({next((o for o in node.output if o), index)})"


def _freeze(found: Iterable[Dim], reason: Refusal) -> None:
    for d in found:
        dims.freeze(d, reason)


def _places(state: _State, names: Iterable[str]) -> list[Dim]:
    """The dimensions that the elements of these tensors are places on."""
    return [state.places[name] for name in names if name in state.places]


def _add_weight(state: _State, name: str, sizes: Sequence[int]) -> None:
    state.tensors[name] = state.weights[name] = tuple(dims.atom(n) for n in sizes)
    state.origin[name] = frozenset([name])


def _visit(state: _State, node: onnx.NodeProto, walkable: bool) -> None:
    walked = walked_bodies(node) if walkable else []
    for body, lives in by_life(node, state.shapes.taken) if walkable else ():
        if lives:
            _visit_body(state, node, body)
        else:
            _pass_over(state, node, body)
    index, name = len(state.names), node_name(node, len(state.names))
    state.names.append(name)
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        if node.output[0] in state.shapes.shape:
            _add_weight(state, node.output[0], state.shapes.shape[node.output[0]])
        return
    if all(o in state.shapes.derived for o in node.output if o):
        for o in node.output:
            state.tensors[o] = _fresh(
                state,
                o,
                Refusal(name, node.op_type, "numbers computed from sizes alone (positions, masks) keep their axes"),
            )
        _record_origin(state, node, derived=True)
        return
    op = _operator(state, index, name, node)
    if walked:
        passed = [*node.input, *(o.name for body in walked for o in body.output)]
        _freeze(_places(state, passed), op.refusal("the numbers of indices pass through control flow"))
        _leave_bodies(state, node, op)
        return
    reason = _apply_rule(state, node, op)
    if reason is not None:
        op.outputs = [_fresh(state, o) for o in node.output]
        op.freeze_all(reason)
        for captured in captured_names(node):
            _freeze([*state.tensors.get(captured, ()), *_places(state, [captured])], op.refusal(reason))
        op.contractions, op.roles, op.uses, op.picks, op.work = [], [], [], [], []
        op.comparisons, op.understood, op.placed, op.stack = [], set(), {}, None
    _record(state, node, op)


def _visit_body(state: _State, node: onnx.NodeProto, body: onnx.GraphProto) -> None:
    """Tie the inputs of a body to the operands of its node, then walk it."""
    for value in body.input:
        state.tensors[value.name] = _fresh(state, value.name)
    kept = unchanged(node, body)
    for link in entering(node, body):
        outer = state.tensors.get(link.outer)
        if outer is None:
            continue
        if link.inner in kept and link.outer in state.origin:
            state.origin[link.inner] = state.origin[link.outer]
            state.alias[link.inner] = state.alias.get(link.outer, link.outer)
        if link.axis is not None:
            axis = link.axis % len(outer)
            dims.freeze(outer[axis], Refusal(node.name, node.op_type, "the steps of a Scan"))
            outer = (*outer[:axis], *outer[axis + 1 :])
        state.tensors[link.inner] = outer
    for tensor in body.initializer:
        _add_weight(state, tensor.name, tensor.dims)
    for inner in body.node:
        _visit(state, inner, True)
    for before, after in returning(node, body):
        _tie(state, node, state.tensors.get(before), state.tensors.get(after))


def _pass_over(state: _State, node: onnx.NodeProto, body: onnx.GraphProto) -> None:
    """A branch that never runs says nothing of the tensors it reads, but it has to stay one that a runtime loads."""
    inner = list(live_nodes(body, {}))
    state.names += [node_name(n, len(state.names) + k) for k, n in enumerate(inner)]
    for tensor in body.initializer:
        _add_weight(state, tensor.name, tensor.dims)
    for constant in (n for n in inner if n.op_type == "Constant"):
        stored = constant_tensor(constant)
        if stored is not None:
            _add_weight(state, constant.output[0], stored.dims)
    if any(n.op_type not in PASSIVE or n.domain not in ("", "ai.onnx") for n in inner):
        reason = Refusal(node.name, node.op_type, "read in a branch that never runs")
        for name in outer_names(body):
            _freeze(state.tensors.get(name, ()), reason)


def _leave_bodies(state: _State, node: onnx.NodeProto, op: Operator) -> None:
    """Tie the results of a control flow node to the outputs of its bodies."""
    results = dict(zip(node.output, op.outputs, strict=True))
    for body in live_bodies(node, state.shapes.taken):
        for link in leaving(node, body):
            outer = results[link.outer]
            if link.axis is not None and outer:
                axis = link.axis % len(outer)
                op.freeze(outer[axis], "the steps of a loop")
                outer = (*outer[:axis], *outer[axis + 1 :])
            _tie(state, node, outer, state.tensors.get(link.inner))
    state.tensors.update(results)


def _tie(state: _State, node: onnx.NodeProto, a: Dims | None, b: Dims | None) -> None:
    """The two tensors have the same axes; where that is not known both are frozen."""
    reason = Refusal(node.name, node.op_type, "tensors of a body whose shapes are not known or differ")
    if a is None or b is None or [d.size for d in a] != [d.size for d in b]:
        _freeze((*(a or ()), *(b or ())), reason)
        return
    for x, y in zip(a, b, strict=True):
        dims.unify(x, y, reason)


def _apply_rule(state: _State, node: onnx.NodeProto, op: Operator) -> str | None:
    """Apply the rule of the operator; returns why that cannot be done, or None."""
    rule = rules.find(node.domain, node.op_type, state.opsets.get(node.domain, 1))
    reason = _why_not(state, node, rule is None)
    if reason is not None or rule is None:
        return reason
    try:
        rule(op)
    except SizeMismatchError as error:
        if node.op_type in LINEAR and any(op.constant):
            raise ModelError(
                f"{node.op_type} node {op.name!r} cannot work: {error}; the model is damaged, export it again"
            ) from error
        return str(error)
    except (ValueError, IndexError, KeyError, TypeError, ArithmeticError) as error:
        return f"a form of {node.op_type} that is not covered ({error})"
    return _contradiction(state, node, op)


def _contradiction(state: _State, node: onnx.NodeProto, op: Operator) -> str | None:
    """Why what a rule says of its results cannot be true, or None."""
    for name, found in zip(node.output, op.outputs, strict=True):
        if name and tuple(d.size for d in found) != state.shapes.shape.get(name):
            return f"the rule of {node.op_type} does not give the shape {state.shapes.shape.get(name)} of {name!r}"
    return None


def _why_not(state: _State, node: onnx.NodeProto, unknown: bool) -> str | None:
    """Why the rule cannot be applied, or None."""
    if unknown:
        return why_no_rule(node.domain, node.op_type)
    known = state.shapes.shape
    missing = next((name for name in (*node.input, *node.output) if name and name not in known), None)
    return None if missing is None else state.makers.why_unknown(missing, known)


def _fresh(state: _State, name: str, frozen: Refusal | None = None) -> Dims:
    return tuple(dims.atom(n, frozen=frozen) for n in state.shapes.shape.get(name, ()))


def _operator(state: _State, index: int, name: str, node: onnx.NodeProto) -> Operator:
    shapes = state.shapes
    op = Operator(
        index=index,
        name=name,
        kind=node.op_type,
        opset=state.opsets.get(node.domain, 1),
        attributes=node_attributes(node),
        inputs=[state.tensors.get(n) if n else None for n in node.input],
        outputs=[_fresh(state, o) for o in node.output],
        values=[shapes.values.get(n) for n in node.input],
        constant=[n in state.origin for n in node.input],
        moving=[shapes.dynamic_values.get(n) for n in node.input],
    )
    op.places = [state.places.get(n) for n in node.input]
    op.stretching = [shapes.dynamic_axes.get(n) for n in node.input]
    op.stretched = [shapes.dynamic_axes.get(n) for n in node.output]
    return op


def _record(state: _State, node: onnx.NodeProto, op: Operator) -> None:
    for name, found in zip(node.output, op.outputs, strict=True):
        if name:
            state.tensors[name] = found
    _record_places(state, node, op)
    _record_origin(state, node)
    if node.op_type in ("Gather", "GatherND") and op.constant[0]:
        state.picked[node.output[0]] = state.origin[node.input[0]]
        state.chosen.update(node.output[:1] if 1 in op.understood else [])
    elif len(node.input) and node.op_type in MOVES and node.input[0] in state.picked:
        state.picked[node.output[0]] = state.picked[node.input[0]]
        state.chosen.update(node.output if node.input[0] in state.chosen else [])
    for operand, axis, role in op.roles:
        name = node.input[operand]
        if op.constant[operand] or name in state.chosen or (operand > 0 and name in state.picked):
            state.roles.append((state.alias.get(name, name), axis, op.dims(operand)[axis], role))
    for operand in node.input:
        for weight in state.origin.get(operand, ()):
            state.users.setdefault(weight, []).append(op.name)
    state.comparisons += op.comparisons
    state.stacked += [(op.index, op.stack)] if op.stack is not None else []
    state.contractions += op.contractions
    state.uses += op.uses
    state.picks += op.picks
    state.work += op.work


def _record_places(state: _State, node: onnx.NodeProto, op: Operator) -> None:
    """Places move with the elements that tell them; an operator that takes them for numbers keeps the dimension."""
    carried = op.places[0] if op.places and node.op_type in CARRIES else None
    for output, name in enumerate(node.output):
        found = op.placed.get(output, carried)
        if name and found is not None:
            state.places[name] = found
    for operand, d in enumerate(op.places):
        if d is not None and operand not in op.understood and (operand or carried is None):
            op.freeze(d, "it computes with the numbers of the indices")


def _settle_stacks(state: _State, proto: onnx.ModelProto) -> None:
    """What is stacked stays, except where operators choose among it."""
    compared = {a for c in state.comparisons for a in dims.atoms(c.dim)}
    flat = flat_nodes(proto) if state.stacked else []
    for node, d in state.stacked:
        if dims.resolve(d) in compared:
            state.stacks.append(Stack(node, dims.resolve(d), tuple(owned(proto, flat, node))))
        else:
            dims.freeze(d, Refusal(state.names[node], "Concat", "nothing chooses among the tensors it stacks"))


def _sources(state: _State) -> dict[str, frozenset[str]]:
    """The weights that every constant, or slice looked up in a constant, is made of."""
    return state.picked | {name: found for name, found in state.origin.items() if found}


def _settle_comparisons(state: _State) -> None:
    """What operators compare stays, except where every index is a part of the model with a matrix of its own, of which
    more are there than they need."""
    if not state.comparisons:
        return
    roles = roles_by_weight(state.roles, _sources(state))
    parts = {a for weight, axes in state.weights.items() for a in outer_parts(axes, weight, roles)}
    for stack in state.stacks:
        matrices = [any(is_matrix(state.weights.get(w, ()), w, roles) for w in part.tensors) for part in stack.owned]
        parts |= {dims.resolve(stack.dim)} if all(matrices) else set()
    for c in state.comparisons:
        found = dims.prod_factors(c.dim)
        whole = len(found) == 1 and found[0].kind == "atom" and c.least < c.dim.size
        for a in dims.atoms(c.dim):
            if a not in parts or not whole:
                dims.freeze(a, c.refusal)


def _record_origin(state: _State, node: onnx.NodeProto, *, derived: bool = False) -> None:
    """A result of constants alone is one. Made from nothing but a shape (ConstantOfShape) it is a weight itself, if not
    a number `derived` from sizes.
    """
    data = node.input[:1] if node.op_type in ("QuantizeLinear", "DequantizeLinear") else node.input
    sources = [state.origin.get(n) for n in data if n]
    if any(s is None for s in sources):
        return
    for name in node.output:
        state.origin[name] = frozenset(w for s in sources for w in s or ())
        if node.op_type == "ConstantOfShape" and not derived:
            state.origin[name] = frozenset([name])
            state.weights[name] = state.tensors[name]
