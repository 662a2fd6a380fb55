"""Conditions of If that come out the same in every run, such as tests of a rank: the other branch is dead.

Exports by tracing of scripted code are full of them; a branch that never runs says nothing about the tensors around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

KEEPING = {"Concat", "Gather", "Identity", "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze"}
"""Operators whose results are sizes, or elements of their first operand (of Concat: of all) as they are."""


class Settled:
    """Which numbers computed from sizes are the same at all input sizes.

    `makers`: the node behind every name; `values`: the known numbers at one choice of sizes; `moving`: for those that a
    node computes, which of their elements differ at another choice. That a comparison gives the same at both choices
    does not mean that it always does, so what is compared must itself be settled.
    """

    def __init__(
        self,
        makers: Mapping[str, onnx.NodeProto],
        values: Mapping[str, npt.NDArray[Any]],
        moving: Mapping[str, npt.NDArray[np.bool_]],
    ) -> None:
        self.makers, self.values, self.moving = makers, values, moving
        self.known: dict[str, bool] = {}

    def holds(self, name: str) -> bool:
        """Whether the number `name` is the same in every run."""
        if name not in self.known:
            self.known[name] = False
            self.known[name] = self._decide(name)
        return self.known[name]

    def _decide(self, name: str) -> bool:
        if name not in self.values:
            return False
        if name not in self.moving:
            return True
        node = self.makers.get(name)
        if node is None or self.moving[name].any():
            return False
        return self._is_faithful(name) or (
            node.op_type not in ("Shape", "Size") and all(self.holds(n) for n in node.input if n)
        )

    def _is_faithful(self, name: str) -> bool:
        """Whether `name` holds sizes as they are, so that an element which did not move never does."""
        if name not in self.moving:
            return name in self.values
        node = self.makers.get(name)
        if node is None or node.op_type not in KEEPING:
            return False
        if node.op_type == "Shape":
            return True
        data = len(node.input) if node.op_type == "Concat" else 1
        return all(self._is_faithful(n) for n in node.input[:data]) and all(
            self.holds(n) for n in node.input[data:] if n
        )
