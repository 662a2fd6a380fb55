"""How far the outputs of a changed model are from those of the original, as a share of what they say at all.

Outputs that are probabilities are compared as such, by the Kullback-Leibler divergence of what enters the last
Softmax or Sigmoid: it grows smoothly where the probabilities themselves jump. All others by their squared error:

    sum KL(p || q) / sum KL(p || mean p)        sum (y - z)^2 / sum (y - mean y)^2

Both are 0 for the same outputs and 1 for a model that gives the mean whatever its input is: of probabilities that of
every class, of others one number, the mean over all batches and elements.
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
    """A tensor that stands for an output: what enters its last Softmax (over `axis`, or over all axes from there on:
    `flat`) or Sigmoid, or the output."""

    name: str
    kind: Literal["categorical", "binary", "real"]
    axis: int = -1
    flat: bool = False


def probes(proto: onnx.ModelProto) -> list[Probe]:
    """One probe for every output that is a tensor or, by ZipMap, the rows of one; each tensor once."""
    producers = {o: n for n in proto.graph.node for o in n.output}
    version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    found: dict[str, Probe] = {}
    for output in proto.graph.output:
        maker, kind = producers.get(output.name), output.type.WhichOneof("value")
        if maker is not None and maker.op_type == "ZipMap":
            probe = Probe(maker.input[0], "real")
        elif kind in (None, "tensor_type"):
            probe = Probe(output.name, "real")
        else:
            continue
        while probe.name in producers and (node := producers[probe.name]).op_type in _LAST:
            is_flat = version < 13 and node.op_type in ("Softmax", "LogSoftmax")
            default = 0 if node.op_type == "ArgMax" else 1 if is_flat else -1
            probe = Probe(node.input[0], "categorical", int(node_attributes(node).get("axis", default)), is_flat)
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
        shares.append({"categorical": _categorical, "binary": _binary, "real": _real}[probe.kind](pairs, probe))
    return float(np.mean(shares)) if shares else 0.0


def spread(probe: Probe, reference: Array) -> float:
    """The error of always giving the mean of `reference`: that a divergence is a share of."""
    return _SPREADS[probe.kind]([reference.astype(np.float64)], probe)


Pairs = Sequence[tuple[Float, Float]]


def _real(pairs: Pairs, probe: Probe) -> float:
    error = sum(float(np.square(_difference(x, y)).sum()) for x, y in pairs)
    return error / max(_real_spread([x for x, _ in pairs], probe), 1e-30)


def _real_spread(reference: Sequence[Float], probe: Probe) -> float:
    """Of one number alone: its square."""
    numbers = [x[np.isfinite(x)] for x in reference]
    count = sum(x.size for x in numbers)
    mean = sum(float(x.sum()) for x in numbers) / count if count > 1 else 0.0
    return sum(float(np.square(x - mean).sum()) for x in numbers)


def _categorical(pairs: Pairs, probe: Probe) -> float:
    logs = [(_log_softmax(x, probe), _log_softmax(y, probe)) for x, y in pairs]
    error = sum(float(_weighed(np.exp(p), _difference(p, q)).sum()) for p, q in logs)
    return error / max(_log_spread([p for p, _ in logs]), 1e-30)


def _categorical_spread(reference: Sequence[Float], probe: Probe) -> float:
    return _log_spread([_log_softmax(x, probe) for x in reference])


def _log_spread(logs: Sequence[Float]) -> float:
    base = np.log(np.maximum(_mean([np.exp(p) for p in logs]), 1e-12))
    return sum(float((np.exp(p).reshape(-1, p.shape[-1]) @ (-base)).sum() + _weighed(np.exp(p), p).sum()) for p in logs)


def _difference(x: Float, y: Float) -> Float:
    """x - y, 0 where both are the same infinity (masked logits)."""
    with np.errstate(invalid="ignore"):
        return np.where(x == y, 0.0, x - y)


def _weighed(probability: Float, value: Float) -> Float:
    """p * v, 0 where p is: the limit of p log p."""
    with np.errstate(invalid="ignore"):
        return np.where(probability == 0, 0.0, probability * value)


def _binary(pairs: Pairs, probe: Probe) -> float:
    error = sum(_bernoulli(x, y) for x, y in pairs)
    return error / max(_binary_spread([x for x, _ in pairs], probe), 1e-30)


def _binary_spread(reference: Sequence[Float], probe: Probe) -> float:
    mean = np.clip(np.concatenate([_sigmoid(x).ravel() for x in reference]).mean(), 1e-12, 1 - 1e-12)
    base = float(np.log(mean) - np.log1p(-mean))
    return sum(_bernoulli(x, np.full_like(x, base)) for x in reference)


_SPREADS = {"real": _real_spread, "categorical": _categorical_spread, "binary": _binary_spread}


def _log_softmax(x: Float, probe: Probe) -> Float:
    """(..., classes), the classes moved to the last axis."""
    x = x.reshape(*x.shape[: probe.axis], -1) if probe.flat else np.moveaxis(x, probe.axis, -1)
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
    linear = _weighed(_sigmoid(x), _difference(x, y))
    return float((linear + _difference(np.logaddexp(0, y), np.logaddexp(0, x))).sum())
