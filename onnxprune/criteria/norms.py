"""Norms of the weights of a group (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017), and chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.criteria.registry import FloatArray, criterion

BLOCK_ELEMENTS = 1 << 17


def by_block(rows: FloatArray, function: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """Apply a row-wise function in float64 to a few rows at a time: temporary copies stay small."""
    step = max(1, BLOCK_ELEMENTS // max(rows.shape[1], 1))
    blocks = [function(rows[k : k + step].astype(np.float64)) for k in range(0, len(rows), step)]
    return np.concatenate(blocks)


@criterion("l1")
def l1(rows: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Sum of absolute weights."""
    return by_block(rows, lambda block: np.asarray(np.abs(block).sum(axis=1)))


@criterion("l2")
def l2(rows: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Euclidean norm."""
    return by_block(rows, lambda block: np.sqrt(np.einsum("ij,ij->i", block, block)))


@criterion("linf")
def linf(rows: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Largest absolute weight."""
    return by_block(rows, lambda block: np.asarray(np.abs(block).max(axis=1)))


@criterion("random")
def random(rows: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Uniform draws: the baseline every other criterion must beat."""
    return generator.random(len(rows))
