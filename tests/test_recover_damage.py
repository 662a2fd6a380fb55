"""What each group costs where grouped convolutions read it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import choosing, recovery
from onnxprune.records import Feed
from onnxprune.recover import damage
from onnxprune.recover.execution import Shelf

PARTS, WIDTH = 2, 6
FEEDS: list[Feed] = [{"x": np.random.default_rng(k).normal(size=(8, 5, 6, 6)).astype(np.float32)} for k in range(6)]


def build(folder: Path) -> Path:
    """Channels in 2 groups of 6, the last three of each nearly repeating the first three at twice their size, read by
    a grouped convolution and a plain one."""
    channels = PARTS * WIDTH
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,5,6,6] x) => (float[n,8,6,6] y) {
            c = Conv(x, w1)
            r = Relu(c)
            d = Conv<group=2, pads=[1,1,1,1]>(r, w2)
            y = Conv(d, w3)
        }""")
    random = np.random.default_rng(0)
    half = random.normal(size=(PARTS, WIDTH // 2, 5))
    twins = 2 * half + random.normal(0, 0.1, half.shape)
    values = {
        "w1": np.concatenate([half, twins], axis=1).reshape(channels, 5, 1, 1),
        "w2": random.normal(size=(8, WIDTH, 3, 3)),
        "w3": random.normal(size=(8, 8, 1, 1)),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in values.items())
    path = folder / "grouped.onnx"
    onnx.save(proto, path)
    return path


def test_channels_within_the_groups_of_a_convolution_go_by_what_it_can_spare(tmp_path: Path) -> None:
    source = recovery.Source(str(build(tmp_path)), {}, FEEDS, 0, 1, 1 << 30)
    groups = {g.id: g.size for g in recovery.open_source(source).analysis.groups if g.refusal is None}
    (inner,) = [name for name, size in groups.items() if size == WIDTH]
    wanted = choosing.Wanted([inner], "sensitivity", ("macs", 0.9), 0.5, {inner: 1}, "obs")
    found = choosing.prepare(source, wanted)
    removed = found.order[inner].order[: WIDTH // 2]
    assert sorted(removed % (WIDTH // 2)) == list(range(WIDTH // 2))  # one of each pair, whichever is larger
    curve = found.measured[inner]
    assert curve.refitted
    cut = recovery.cut_weights(found.model, {inner: np.setdiff1d(np.arange(WIDTH), removed)})
    limits = {"threads": 1, "memory_bytes": 1 << 30}
    whole, left = (
        np.concatenate([b[0] for b in damage.tensors_of(m.proto, read, ["y"], FEEDS, **limits)])
        for m, read in ((found.model.file, found.model.read), (cut, cut.get))
    )
    plain = float(np.square(whole - left).sum() / np.square(whole - whole.mean()).sum())
    assert curve.at(WIDTH // 2) < 0.1 * plain


def test_the_parts_of_one_operator_count_as_one(tmp_path: Path) -> None:
    source = recovery.Source(str(build(tmp_path)), {}, FEEDS, 0, 1, 1 << 30)
    model = recovery.open_source(source)
    (inner,) = [g for g in model.analysis.groups if g.refusal is None and g.size == WIDTH]
    with contextlib.closing(Shelf(1 << 30)) as shelf:
        found = damage.collect(model.file.proto, model.read, model.analysis, [inner], FEEDS, shelf=shelf, seed=0)
        own = [c for _, c in damage.consumers(inner, found)]
    assert len(own) == PARTS
    assert own[0].scale == own[1].scale
    assert own[0].scale == pytest.approx(sum(float(np.trace(c.weight @ c.gram @ c.weight.T)) for c in own))
