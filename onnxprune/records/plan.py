"""What is to go and what stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.records.arrays import FloatArray, IndexArray


@dataclass(frozen=True)
class Plan:
    """Which indices of each group stay: int64, ascending, by group id. Groups that keep all are absent.

    `blocks`: the residual blocks (names of their sums) taken out before; the groups are those of what is left.
    `note`: what was meant to be measured and could not.
    """

    kept: Mapping[str, IndexArray]
    blocks: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Block:
    """A residual block y = branch(kept) + kept of the main graph: node number `node`, called `name`, is the sum.

    `nodes`: the numbers of the nodes that only the branch needs; `weights`: the stored or constant tensors that only
    they read; `parameters`: the float elements of those.
    """

    name: str
    node: int
    kept: str
    branch: str
    nodes: tuple[int, ...]
    weights: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class RemovedBlock:
    """A block taken out. `damage`: relative error of the outputs without it and the ones before; None: not measured."""

    block: Block
    damage: float | None


@dataclass(frozen=True)
class Allocation:
    """How many indices of each group stay, by group id."""

    counts: Mapping[str, int]


@dataclass(frozen=True)
class Removal:
    """The indices of a group in the order in which they go, and the damage of removing the first n of them, (size,)."""

    order: IndexArray
    damage: FloatArray
