"""How far the outputs of a changed model are from those of the original, as a share of what they say at all.

Outputs that are probabilities are compared as such, by the Kullback-Leibler divergence of what enters the last
Softmax or Sigmoid: it grows smoothly where the probabilities themselves jump. All others by their squared error:

    sum KL(p || q) / sum KL(p || mean p)        sum (y - z)^2 / sum (y - mean y)^2

Both are 0 for the same outputs and 1 for a model that gives the mean whatever its input is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.shapes import node_attributes

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

_LAST = {"Softmax", "Sigmoid", "LogSoftmax", "ArgMax"}


@dataclass(frozen=True)
class Probe:
    """A tensor that stands for an output: what enters its last Softmax (over `axis`) or Sigmoid, or the output."""

    name: str
    kind: Literal["categorical", "binary", "real"]
    axis: int = -1


def probes(proto: onnx.ModelProto) -> list[Probe]:
    """One probe for every output, each tensor once."""
    producers = {o: n for n in proto.graph.node for o in n.output}
    version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    found: dict[str, Probe] = {}
    for output in proto.graph.output:
        probe = Probe(output.name, "real")
        while probe.name in producers and (node := producers[probe.name]).op_type in _LAST:
            last = -1 if version >= 13 or node.op_type == "ArgMax" else 1
            probe = Probe(node.input[0], "categorical", int(node_attributes(node).get("axis", last)))
            if node.op_type == "Sigmoid":
                probe = Probe(node.input[0], "binary")
        found.setdefault(probe.name, probe)
    return list(found.values())


def divergence(
    found: Sequence[Probe], reference: Sequence[Sequence[Array]], result: Sequence[Sequence[Array]]
) -> float:
    """Mean over the float probes; `reference`, `result`: for every batch the tensors of the probes."""
    shares = []
    for k, probe in enumerate(found):
        if reference[0][k].dtype.kind != "f":
            continue
        pairs = [(a[k].astype(np.float64), b[k].astype(np.float64)) for a, b in zip(reference, result, strict=True)]
        shares.append({"categorical": _categorical, "binary": _binary, "real": _real}[probe.kind](pairs, probe.axis))
    return float(np.mean(shares)) if shares else 0.0


def spread(probe: Probe, reference: Array) -> float:
    """The error of always giving the mean of `reference`: that a divergence is a share of."""
    return _SPREADS[probe.kind]([reference.astype(np.float64)], probe.axis)


Pairs = Sequence[tuple[Float, Float]]


def _real(pairs: Pairs, axis: int) -> float:
    error = sum(float(np.square(x - y).sum()) for x, y in pairs)
    return error / max(_real_spread([x for x, _ in pairs], axis), 1e-30)


def _real_spread(reference: Sequence[Float], axis: int) -> float:
    return sum(float(np.square(x - x.mean()).sum()) for x in reference)


def _categorical(pairs: Pairs, axis: int) -> float:
    logs = [(_log_softmax(x, axis), _log_softmax(y, axis)) for x, y in pairs]
    error = sum(float((np.exp(p) * (p - q)).sum()) for p, q in logs)
    return error / max(_log_spread([p for p, _ in logs]), 1e-30)


def _categorical_spread(reference: Sequence[Float], axis: int) -> float:
    return _log_spread([_log_softmax(x, axis) for x in reference])


def _log_spread(logs: Sequence[Float]) -> float:
    base = np.log(np.maximum(_mean([np.exp(p) for p in logs]), 1e-12))
    return sum(float((np.exp(p).reshape(-1, p.shape[-1]) @ (-base)).sum() + (np.exp(p) * p).sum()) for p in logs)


def _binary(pairs: Pairs, axis: int) -> float:
    error = sum(_bernoulli(x, y) for x, y in pairs)
    return error / max(_binary_spread([x for x, _ in pairs], axis), 1e-30)


def _binary_spread(reference: Sequence[Float], axis: int) -> float:
    mean = np.clip(np.concatenate([_sigmoid(x).ravel() for x in reference]).mean(), 1e-12, 1 - 1e-12)
    base = float(np.log(mean) - np.log1p(-mean))
    return sum(_bernoulli(x, np.full_like(x, base)) for x in reference)


_SPREADS = {"real": _real_spread, "categorical": _categorical_spread, "binary": _binary_spread}


def _log_softmax(x: Float, axis: int) -> Float:
    """(..., classes), the classes moved to the last axis."""
    x = np.moveaxis(x, axis, -1)
    x = x - x.max(-1, keepdims=True)
    result: Float = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


def _mean(parts: Sequence[Float]) -> Float:
    """Over everything but the last axis."""
    count = sum(p.size // p.shape[-1] for p in parts)
    total: Float = np.sum([p.reshape(-1, p.shape[-1]).sum(0) for p in parts], axis=0) / count
    return total


def _sigmoid(x: Float) -> Float:
    result: Float = 0.5 * (1 + np.tanh(x / 2))
    return result


def _bernoulli(x: Float, y: Float) -> float:
    """Summed KL(sigmoid(x) || sigmoid(y)) = s(x) (x - y) + softplus(y) - softplus(x)."""
    return float((_sigmoid(x) * (x - y) + np.logaddexp(0, y) - np.logaddexp(0, x)).sum())
