"""Matrix products.

    Gemm     y[m, n] = alpha sum_k a[m, k] b[k, n] + beta c[m, n]     a, b transposed by transA, transB
    MatMul   y[..., m, n] = sum_k a[..., m, k] b[..., k, n]           a 1-D operand has no m (or n)
"""

from __future__ import annotations

from onnxprune.rules.registry import Operator, rule


@rule("Gemm")
def gemm(op: Operator) -> None:
    a = "k m" if op.attribute("transA", 0) else "m k"
    b = "n k" if op.attribute("transB", 0) else "k n"
    letters = op.apply(f"{a}, {b} -> m n")
    if op.has(2):
        _add_bias(op)
    op.macs(letters["m"], letters["k"], letters["n"])


def _add_bias(op: Operator) -> None:
    for back, d in enumerate(reversed(op.dims(2)), start=1):
        if d.size == op.outputs[0][-back].size != 1:
            op.unify(d, op.outputs[0][-back])


@rule("MatMul")
def matmul(op: Operator) -> None:
    letters = op.apply(matmul_signature(len(op.dims(0)), len(op.dims(1))))
    op.macs(*op.outputs[0], letters["k"])


def matmul_signature(rank_a: int, rank_b: int) -> str:
    """The signature of a MatMul of operands of these ranks."""
    a, m = ("k", "") if rank_a == 1 else ("... m k", " m")
    b, n = ("k", "") if rank_b == 1 else ("... k n", " n")
    batch = "..." if rank_a > 2 or rank_b > 2 else ""
    return f"{a}, {b} -> {batch}{m}{n}".rstrip()
