"""Recurrent cells."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import TOLERANCE, groups, model, places, prunable, prune, prune_and_compare

CELLS = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _cell(op: str, directions: int, extra: str = "") -> str:
    """Six steps of a cell with 8 units; the consumer reads the last state of every direction."""
    gates = CELLS[op]
    direction = "bidirectional" if directions == 2 else "forward"
    return f"""(float[6,N,4] x) => (float[{directions},N,3] y)
        <float[{directions},{8 * gates},4] w, float[{directions},{8 * gates},8] r, float[{directions},{16 * gates}] b,
         float[8,3] v> {{
        s, h = {op}<hidden_size=8, direction="{direction}"{extra}>(x, w, r, b)
        y = MatMul(h, v)
    }}"""


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_hidden_unit_goes_from_every_gate_and_direction(op: str, directions: int) -> None:
    m = model(_cell(op, directions))
    assert prunable(m) == {"w:1": 8}
    found = places(groups(m)["w:1"])
    assert (found["r", 1], found["r", 2], found["v", 0]) == ("produced", "contracted", "contracted")
    result = prune_and_compare(m)
    assert result.attribute(op, "hidden_size") == 4
    assert result.weights["r"] == (directions, 4 * CELLS[op], 4)


def test_gru_with_the_reset_after_the_product() -> None:
    prune_and_compare(model(_cell("GRU", 1, ", linear_before_reset=1")))


def test_the_input_of_a_cell_and_the_sequence_of_its_states() -> None:
    """Two cells one after the other, as in text recognisers."""
    m = model("""(float[6,N,4] x) => (float[6,N,3] y) <float[4,10] e, float[1,32,10] w, float[1,32,8] r,
        float[1,24,8] w2,
        float[1,24,8] r2, float[8,3] v, int64[1] one = {1}> {
        g = MatMul(x, e)
        s, h, c = LSTM<hidden_size=8>(g, w, r)
        q = Squeeze(s, one)
        s2, h2 = GRU<hidden_size=8>(q, w2, r2)
        q2 = Squeeze(s2, one)
        y = MatMul(q2, v)
    }""")
    assert prunable(m) == {"e:1": 10, "w:1": 8, "w2:1": 8}
    prune_and_compare(m)
    prune_and_compare(m, ratio=0.3, seed=1)


def test_peepholes_and_initial_states_are_carried() -> None:
    m = model("""(float[6,2,4] x) => (float[1,2,3] y) <float[1,32,4] w, float[1,32,8] r, float[1,64] b,
        int32[2] l = {6, 6},
        float[1,2,8] h0, float[1,2,8] c0, float[1,24] p, float[8,3] v> {
        s, h, c = LSTM<hidden_size=8>(x, w, r, b, l, h0, c0, p)
        y = MatMul(c, v)
    }""")
    found = places(groups(m)["w:1"])
    assert (found["p", 1], found["h0", 2], found["c0", 2]) == ("carried", "carried", "carried")
    prune_and_compare(m)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_quantized_lstm(directions: int, columns: bool) -> None:
    d, direction = directions, "bidirectional" if directions == 2 else "forward"
    scale = f"{d},32" if columns else f"{d}"
    m = model(
        f"""(float[6,N,4] x) => (float[{d},N,3] y) <float[4,6] e, int8[{d},6,32] w, int8[{d},8,32] r, float[{d},64] b,
        float[{scale}] ws, int8[{scale}] wz, float[{scale}] rs, int8[{scale}] rz, float[8,3] v> {{
        g = MatMul(x, e)
        s, h = com.microsoft.DynamicQuantizeLSTM<hidden_size=8, direction="{direction}">(
            g, w, r, b, , , , , ws, wz, rs, rz)
        y = MatMul(h, v)
    }}""",
        ws=np.full([d, 32] if columns else [d], 0.01),
        rs=np.full([d, 32] if columns else [d], 0.01),
        wz=np.zeros([d, 32] if columns else [d]),
        rz=np.zeros([d, 32] if columns else [d]),
    )
    assert prunable(m) == {"e:1": 6, "w:2": 8}
    assert groups(m)["e:1"].renormalised
    alone = prune(m, {"w:2": np.asarray([0, 2, 3, 7])})
    assert max(alone.differences.values()) <= TOLERANCE
    result = prune_and_compare(m)
    assert result.attribute("DynamicQuantizeLSTM", "hidden_size") == 4
    assert result.weights["r"] == (d, 4, 16)
