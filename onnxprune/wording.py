"""Groups in words: what a group is, where it lies, and what falls with it, from the graph and its names.

    product on a produced axis   (h d): h heads of d; (g c) of a convolution: g groups of c channels
    packed weights               (k i): k blocks of i
    gate that chooses            experts
    recurrent cell               hidden units
    looked-up table              embedding width
    convolution, matrix product  channels, features

The place is what the names of all its weights, or of all its nodes, begin with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx

from onnxprune import dims
from onnxprune.bodies import flat_nodes
from onnxprune.dims import Dim
from onnxprune.records import Analysis, Group, Refusal, Tie

RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
CONVOLUTIONS = frozenset(
    {"Conv", "ConvTranspose", "ConvTransposeWithDynamicPads", "FusedConv", "DeformConv", "QLinearConv", "ConvInteger"}
)
LOOKUPS = frozenset({"Gather", "EmbedLayerNormalization", "QEmbedLayerNormalization"})
SPATIAL = "works along this axis"
PACKED = "packs this axis in blocks"
"""How the reason ends that freezes the axes a convolution or pooling window moves along."""
NAMED = 2
"""Producers that stand for the place where the names have nothing in common."""

Readers = Mapping[str, Sequence[tuple[str, str]]]
Path = list[str]


def plural(count: int, noun: str) -> str:
    """The noun with its number: "1 node", "3 nodes"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are: "a, b and 3 more"."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def readers(proto: onnx.ModelProto, found: Analysis) -> Readers:
    """For every weight, (name, operator) of the nodes that read it, or what is computed from it and constants alone."""
    origin: dict[str, frozenset[str]] = {name: frozenset([name]) for name in found.weights}
    result: dict[str, list[tuple[str, str]]] = {}
    for name, (_, node) in zip(found.nodes, flat_nodes(proto), strict=True):
        sources = [origin.get(operand, frozenset()) for operand in node.input if operand]
        if all(sources) and sources:
            origin.update((o, origin.get(o, frozenset().union(*sources))) for o in node.output)
        else:
            for weight in frozenset().union(*sources):
                result.setdefault(weight, []).append((name, node.op_type))
    return result


def ties(group: Group, by_weight: Readers) -> tuple[Tie, ...]:
    """Every place of the group with each operator that works on it there."""
    entries = [(o, *reader) for o in group.occurrences for reader in by_weight.get(o.tensor, [("", "")])]
    names = [(o.tensor, operator) for o, operator, _ in entries]
    place = _place(names)
    return tuple(
        Tie(operator, kind, o.tensor, o.axis, o.role, _label(o.tensor, operator, place))
        for o, operator, kind in entries
    )


def words(found: Analysis, group: Group, tied: Sequence[Tie]) -> str:
    """The group in words: "12 heads of 64 in encoder.layer.3.attention"."""
    amount = f"{group.size} experts" if group.parts else _amount(found, group, tied)
    producers = [t for t in tied if t.role == "produced"]
    place = _place([(t.tensor, t.operator) for t in tied]) or _place([(t.tensor, t.operator) for t in producers])
    if place:
        return f"{amount} in {'.'.join(place)}"
    return f"{amount} of {listed(list(dict.fromkeys(t.label for t in producers)))}"


# ---- What ------------------------------------------------------------------------------------------------------------


def _amount(found: Analysis, group: Group, tied: Sequence[Tie]) -> str:
    n = group.size
    kinds = [t.kind for t in tied if t.role == "produced"]
    if RECURRENT & set(kinds):
        return f"{n} hidden units"
    if _is_fixed(group.dim, SPATIAL):
        return f"{n} positions"
    unit = "channels" if sum(k in CONVOLUTIONS for k in kinds) * 2 > len(kinds) else "features"
    produced = [o for o in group.occurrences if o.role == "produced"]
    around = [pair for o in produced for pair in _around(found.weights[o.tensor][o.axis], group.dim)]
    inner = [i for _, i in around if i]
    if inner:
        return _outer_factor(n, unit, inner)
    if all(outer for outer, _ in around):
        return f"{n} {unit} in each of {_counted(around[0][0][-1], unit)}"
    if any(t.kind in LOOKUPS and t.axis == 1 and len(found.weights[t.tensor]) == 2 for t in tied):
        return f"embedding width {n}"
    return f"{n} {unit}"


def _outer_factor(n: int, unit: str, inner: Sequence[Sequence[Dim]]) -> str:
    widths = sorted({dims.prod(factors).size for factors in inner})
    width = f"{widths[0]}{' and ' if len(widths) == 2 else ' to '}{widths[-1]}" if len(widths) > 1 else str(widths[0])
    if all(_is_fixed(d, SPATIAL) for factors in inner for d in factors):
        return f"{n} channels of {width} positions"
    if all(_is_fixed(d, PACKED) for factors in inner for d in factors):
        return f"{n} blocks of {width} {unit}"
    return f"{n} groups of {width} channels" if unit == "channels" else f"{n} heads of {width}"


def _is_fixed(d: Dim, reason: str) -> bool:
    return isinstance(d.frozen, Refusal) and d.frozen.reason.endswith(reason)


def _counted(outer: Dim, unit: str) -> str:
    if outer.frozen is not None:
        return f"{outer.size} parts"
    return f"{outer.size} {'groups' if unit == 'channels' else 'heads'}"


def _around(axis: Dim, wanted: Dim) -> Iterator[tuple[list[Dim], list[Dim]]]:
    """For every place of the atom on the axis, the factors outside and inside of it."""
    for part in dims.cat_parts(axis):
        factors = dims.prod_factors(part)
        for k, factor in enumerate(factors):
            if factor is wanted:
                yield factors[:k], factors[k + 1 :]
            elif factor.kind == "cat":
                for outer, inner in _around(factor, wanted):
                    yield [*factors[:k], *outer], [*inner, *factors[k + 1 :]]


# ---- Where -----------------------------------------------------------------------------------------------------------


def _path(name: str) -> Path:
    """The parts of a name between dots and slashes; a scope that the next one repeats counts once.

    "/layer1/layer1.0/conv" is layer1, 0, conv. Empty for names that an exporter made up ("onnx::Conv_12", "Relu(y)").
    """
    if "::" in name or "(" in name:
        return []
    scopes: list[str] = []
    for scope in name.split("/"):
        if scopes and f"{scope}.".startswith(f"{scopes[-1]}."):
            scopes.pop()
        scopes.append(scope)
    return [part for scope in scopes for part in scope.split(".") if part]


def _place(names: Iterable[tuple[str, str]]) -> Path:
    """What all (weight, node) pairs begin with by the name that tells, or by the node's; the longer of the two."""
    pairs = [(_path(tensor), _path(operator)) for tensor, operator in names]
    telling = [tensor if len(tensor) > 1 else operator for tensor, operator in pairs]
    return max(_common(telling), _common(operator for _, operator in pairs), key=len)


def _common(paths: Iterable[Path]) -> Path:
    folders = [path[:-1] for path in paths if len(path) > 1]
    if not folders:
        return []
    first, last = min(folders), max(folders)
    same = next((k for k, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), None)
    return first[: min(len(first), len(last)) if same is None else same]


def _label(tensor: str, operator: str, place: Path) -> str:
    """The name of the layer below the place: of the weight where it tells, else of the node."""
    path = next((p for p in (_path(tensor), _path(operator)) if len(p) > 1), None)
    if path is None:
        return operator or tensor
    folder = path[:-1]
    if folder == place:
        return ".".join(path[-2:])
    rest = folder[len(place) :] if folder[: len(place)] == place else folder[-2:]
    if rest[0].isdigit():
        rest = folder[-len(rest) - 1 :]
    return ".".join(path if len(rest) == 1 and rest[0].isdigit() else rest)
