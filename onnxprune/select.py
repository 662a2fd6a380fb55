"""Which indices of each group stay, given their scores and how many may."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.records import Allocation, FloatArray, Plan


def select(scores: Mapping[str, FloatArray], allocation: Allocation) -> Plan:
    """Keep the highest scores of each group; of equal scores the lower index. Groups that keep all are left out."""
    kept = {}
    for name, count in allocation.counts.items():
        found = scores[name]
        if count < len(found):
            kept[name] = np.sort(np.argsort(-found, kind="stable")[:count])
    return Plan(kept)
