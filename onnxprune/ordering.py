"""The order of nodes: runtimes sort the nodes of a graph themselves, so files exist that are not in order."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import onnx

from onnxprune.bodies import bodies, operands


def put_in_order(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Sort the nodes of a graph or function and of its bodies, in place: each behind those whose results it reads.

    Nodes that can keep their place among the others do, and a graph in order is not touched. Nodes of a cycle, and
    those behind it, come last, as they were.
    """
    for node in graph.node:
        for body in bodies(node):
            put_in_order(body)
    reads = [list(operands(node)) for node in graph.node]
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{makers[name] for name in names if name in makers} for names in reads]
    if any(need >= index for index, found in enumerate(needs) for need in found):
        nodes = list(graph.node)
        del graph.node[:]
        graph.node.extend(nodes[index] for index in _sorted(needs))


def _sorted(needs: Sequence[set[int]]) -> list[int]:
    """The indices, each behind those it needs, the smallest that is ready first; those never ready come last."""
    waiting = [len(found) for found in needs]
    readers: dict[int, list[int]] = {}
    for index, found in enumerate(needs):
        for need in found:
            readers.setdefault(need, []).append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    return order + [index for index, count in enumerate(waiting) if count > 0]
