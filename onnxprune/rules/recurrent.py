"""Recurrent cells: LSTM (4 gates), GRU (3), RNN (1).

    h_t = cell(W x_t + Wb, R h_{t-1} + Rb)    W: d (gates h) i, R: d (gates h) h, B: d (2 gates h), P: d (3 h)

A hidden unit is removed from every gate of both directions d at once: the gates are fixed factors. R sums over the
hidden units of the step before.
"""

from __future__ import annotations

from onnxprune import dims
from onnxprune.rules.registry import FIXED_FACTOR, Operator, rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule("LSTM", "GRU", "RNN")
def recurrent(op: Operator) -> None:
    gates = GATES[op.kind]
    batch_first = op.attribute("layout", 0) == 1
    x, state, y = ("b t i", "b d h", "b t d h") if batch_first else ("t b i", "d b h", "t d b h")
    operands = [x, f"d ({gates} h) i", f"d ({gates} h) h", f"d ({2 * gates} h)?", "b?", f"{state}?"]
    if op.kind == "LSTM":
        operands += [f"{state}?", "d (3 h)?"]
    letters = op.apply(f"{', '.join(operands)} -> {y}, {state}, {state}", h=op.dims(2)[2].size)
    op.role(2, 1, "produced")
    op.role(2, 2, "contracted")
    op.contract(2, [2])
    op.freeze(letters["d"], FIXED_FACTOR)
    op.sizes("hidden_size", [letters["h"]])
    cell = (letters["t"], letters["b"], letters["d"], dims.atom(gates), letters["h"])
    op.macs(*cell, letters["i"])
    op.macs(*cell, letters["h"])


@rule("DynamicQuantizeLSTM", domain="com.microsoft")
def quantized_lstm(op: Operator) -> None:
    """W and R with the gates last, then their scales and zero points: d, or one for every unit of every gate.

    The scales of the input and of the states come from their extremes, so they change with what is left of them.
    """
    scales = ["d (4 h)" if op.dims(operand)[-1].size == op.dims(1)[2].size else "d" for operand in range(8, 12)]
    letters = op.apply(
        f"t b i, d i (4 h), d h (4 h), d (8 h)?, b?, d b h?, d b h?, d (3 h)?, {', '.join(scales)}"
        " -> t d b h, d b h, d b h",
        quantized=True,
        h=op.dims(2)[1].size,
    )
    op.role(2, 2, "produced")
    op.role(2, 1, "contracted")
    op.contract(0, [2], average=True)
    op.contract(2, [1], average=True)
    op.freeze(letters["d"], FIXED_FACTOR)
    op.sizes("hidden_size", [letters["h"]])
    cell = (letters["t"], letters["b"], letters["d"], dims.atom(4), letters["h"])
    op.macs(*cell, letters["i"])
    op.macs(*cell, letters["h"])
