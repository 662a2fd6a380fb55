"""Norms of the weights of a group (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017), and chance."""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.registry import FloatArray, criterion


@criterion("l1")
def l1(rows: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Sum of absolute weights."""
    return np.asarray(np.abs(rows).sum(axis=1))


@criterion("l2")
def l2(rows: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Euclidean norm."""
    return np.asarray(np.sqrt(np.square(rows).sum(axis=1)))


@criterion("linf")
def linf(rows: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Largest absolute weight."""
    return np.asarray(np.abs(rows).max(axis=1))


@criterion("random")
def random(rows: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Uniform draws: the baseline every other criterion must beat."""
    return generator.random(len(rows))
