"""Inputs that are looked up in a table: how many rows it has, at the size at hand or at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from click.testing import CliRunner
from oracle import graph, model

from onnxprune import calibration, cli
from onnxprune.errors import UsageError

EDGES = """(float[N,4] x, int64[2,E] edges, int64[N] kind) => (float[E,3] y) <float[4,64] w, float[5,64] table,
        float[64,3] v> {
    one = Constant<value = int64 {1}>()
    to = Gather(edges, one)
    h = MatMul(x, w)
    k = Gather(table, kind)
    s = Add(h, k)
    e = Gather(s, to)
    y = MatMul(e, v)
}"""


def test_rows_that_follow_the_input_are_sure_only_for_the_first() -> None:
    m = model(EDGES)
    found = graph(m)[1]
    view = gs.import_onnx(m)
    assert calibration.index_bounds(view, found) == {"edges": 1, "kind": 5}
    assert calibration.index_limits(view, found) == {"kind": 5}


def test_indices_into_rows_of_the_input_are_not_refused() -> None:
    m = model(EDGES)
    limits = calibration.index_limits(gs.import_onnx(m), graph(m)[1])
    feed = {"edges": np.asarray([[0], [99]]), "kind": np.asarray([4])}
    calibration.check_indices([feed], limits)
    with pytest.raises(UsageError, match="a table of 5 rows"):
        calibration.check_indices([{**feed, "kind": np.asarray([5])}], limits)


def test_a_network_over_edges_is_pruned(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(EDGES).SerializeToString())
    arguments = [str(path), "--ratio", "0.5", "--no-recover", "-o", str(tmp_path / "p.onnx")]
    result = CliRunner().invoke(cli.command, arguments, prog_name="onnxprune")
    assert result.exit_code == 0, result.output
