"""What the analysis finds in a model: its groups, what goes with them, and what their operators do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnxprune.dims import Dim

Role = Literal["produced", "contracted", "carried"]


@dataclass(frozen=True)
class Refusal:
    """Why a dimension cannot shrink: the node that said so, its operator, the reason in words."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Occurrence:
    """One place where a group lies: `axis` of the weight `tensor`, in the given role."""

    tensor: str
    axis: int
    role: Role


@dataclass(frozen=True)
class Group:
    """One independent dimension of the model: `size` channels (heads, hidden units) that fall together.

    `dim` is the resolved atom; `refusal` is None where the group may be pruned; `renormalised` says that an
    operator averages over the group or compares its indices; `nodes` are the operators that produce or consume it.
    `least`: so many indices must stay. `parts`: operators choose among the indices, and each is a part of the model
    with a matrix of its own (an expert of a mixture).
    """

    id: str
    size: int
    dim: Dim
    occurrences: tuple[Occurrence, ...]
    nodes: tuple[str, ...]
    refusal: Refusal | None
    renormalised: bool
    least: int = 1
    parts: bool = False


@dataclass(frozen=True)
class Comparison:
    """An operator chooses among the indices of `dim` or weighs them against each other, and needs `least` of them.

    `refusal` is what it says where they cannot go.
    """

    dim: Dim
    refusal: Refusal
    least: int


@dataclass(frozen=True)
class Contraction:
    """A node sums (or, `average`, averages, normalises or compares) over the axes `dims` of its operand `operand`.

    `gather`: to see only a part, the operator must be given only that part; zeros in the rest would change the result.
    `weighted`: a weight takes part in the sum.
    """

    node: int
    operand: int
    axes: tuple[int, ...]
    dims: tuple[Dim, ...]
    average: bool
    gather: bool
    weighted: bool


@dataclass(frozen=True)
class SizeUse:
    """A place outside the weights that states sizes: attribute `where` (str) or operand `where` (int) of node `node`.

    Element k must be the size of `dims[k]`, or stays as it is where `dims[k]` is None.
    """

    node: int
    where: str | int
    dims: tuple[Dim | None, ...]


@dataclass(frozen=True)
class Pick:
    """Operand `operand` of node `node` lists indices of the dimension `source`; what they pick is `result`."""

    node: int
    operand: int
    source: Dim
    result: Dim


@dataclass(frozen=True)
class Owned:
    """What only one operand of a node needs: the numbers of nodes, and the names of tensors, stored or made by them."""

    nodes: frozenset[int]
    tensors: frozenset[str]


@dataclass(frozen=True)
class Stack:
    """Operand i of the Concat number `node` is index i of `dim`, and falls with `owned[i]`."""

    node: int
    dim: Dim
    owned: tuple[Owned, ...]


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one node: the product of the sizes of `dims`."""

    node: int
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class Analysis:
    """What must go together. `groups` are in graph order, frozen ones included.

    `weights`: the dimensions of every stored weight, by name (a Constant node is named by its output); `tensors`:
    those of every tensor; `contractions`, `uses`, `picks` and `work` index `nodes`, the names of the walked nodes.
    `places`: the tensors whose elements are places on a dimension (results of TopK, ArgMax), and that dimension.
    `stacks`: the Concats whose operands are the indices of a prunable dimension. `main`: for every node of
    the main graph its number among `nodes`; `holders`: for every one of `nodes` where it lies in the main graph, or the
    node whose body it is in.
    """

    groups: tuple[Group, ...]
    weights: Mapping[str, tuple[Dim, ...]]
    tensors: Mapping[str, tuple[Dim, ...]]
    contractions: tuple[Contraction, ...]
    uses: tuple[SizeUse, ...]
    picks: tuple[Pick, ...]
    work: tuple[Work, ...]
    nodes: tuple[str, ...]
    main: tuple[int, ...]
    holders: tuple[int, ...]
    places: Mapping[str, Dim] = field(default_factory=dict)
    stacks: tuple[Stack, ...] = ()
