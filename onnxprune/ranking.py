"""In which order the indices of every group go, and what damage that does: measured once, for any target."""

from __future__ import annotations

import numpy as np

from onnxprune import choosing
from onnxprune import target as targets
from onnxprune.choosing import Wanted
from onnxprune.latency.model import costs
from onnxprune.records import LatencyModel, Removal
from onnxprune.recovery import Source


def rank(source: Source, wanted: Wanted, latency: LatencyModel, share: float) -> dict[str, Removal]:
    """By group id. Run in a child process.

    Of the ways to weigh the measured damage the one is taken that errs least where the share `share` of the `latency`
    of the nodes is kept.
    """
    found = choosing.prepare(source, wanted)
    model, ids = found.model, {g.id for g in found.groups}
    groups = [g for g in model.listed.groups if g.id in ids]
    mixes = choosing.damages(groups, wanted, found.order, found.measured)
    terms = costs(model.file.proto, model.listed, latency.nodes)
    limit = share * targets.total(terms, {})
    candidates = [targets.by_damage(groups, own, terms, limit, wanted.steps, strict=False) for own in mixes]
    own = mixes[choosing.judge(found).best(candidates)]
    sizes = {g.id: g.size for g in groups}
    return {
        name: Removal(found.order[name].order, np.array([harm(n) for n in range(sizes[name])]))
        for name, harm in own.items()
    }
