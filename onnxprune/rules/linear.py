"""Matrix products.

Gemm     y[m, n] = alpha sum_k a[m, k] b[k, n] + beta c[m, n]     a, b transposed by transA, transB
MatMul   y[..., m, n] = sum_k a[..., m, k] b[..., k, n]           a 1-D operand has no m (or n)
"""

from __future__ import annotations

import re

from onnxprune.rules.registry import Operator, rule


@rule("Gemm")
@rule("FusedGemm", domain="com.microsoft")
def gemm(op: Operator) -> None:
    a = "k m" if op.attribute("transA", 0) else "m k"
    b = "n k" if op.attribute("transB", 0) else "k n"
    letters = op.apply(f"{a}, {b} -> m n")
    if op.has(2):
        product = op.outputs[0]
        op.broadcast([2])
        op.unify_all(product, op.outputs[0])
        op.outputs[0] = product
    op.macs(letters["m"], letters["k"], letters["n"])


@rule("MatMul")
@rule("FusedMatMul", "TransposeMatMul", domain="com.microsoft")
def matmul(op: Operator) -> None:
    if op.attribute("transBatchA", 0) or op.attribute("transBatchB", 0):
        op.freeze_all("FusedMatMul that transposes batch axes")
        return
    a, b = operand_terms(op)
    letters = op.apply(f"{a}, {b} -> {result_terms(op)}")
    op.macs(*op.outputs[0], letters["k"])


def operand_terms(op: Operator) -> tuple[str, str]:
    """The notation of the two operands of a matrix product."""
    a = "k" if len(op.dims(0)) == 1 else "... k m" if op.attribute("transA", 0) else "... m k"
    b = "k" if len(op.dims(1)) == 1 else "... n k" if op.attribute("transB", 0) else "... k n"
    return a, b


def result_terms(op: Operator, second: int = 1) -> str:
    """The notation of the result of a matrix product whose second operand is number `second`."""
    rank_a, rank_b = len(op.dims(0)), len(op.dims(second))
    return " ".join(["..."] * (max(rank_a, rank_b) > 2) + ["m"] * (rank_a > 1) + ["n"] * (rank_b > 1))


@rule("Einsum")
def einsum(op: Operator) -> None:
    """Same letter, same dimension; a letter without a place in the result is summed over. An absent result has every
    letter that occurs once, in alphabetical order."""
    left, arrow, right = op.attribute("equation").replace(" ", "").partition("->")
    terms = [_tokens(term) for term in left.split(",")]
    everything = [x for term in terms for x in term]
    result = _tokens(right) if arrow else sorted(x for x in set(everything) if everything.count(x) == 1 or x == "...")
    if ("..." in everything and "..." not in result) or any(len(set(term)) != len(term) for term in terms):
        op.freeze_all("an Einsum that takes a diagonal, or sums over the axes of an ellipsis")
        return
    letters = op.apply(f"{', '.join(' '.join(term) for term in terms)} -> {' '.join(result)}")
    for operand, term in enumerate(terms):
        alone = [k for k, x in enumerate(term) if x not in result and sum(x in t for t in terms) == 1]
        if alone:
            after = term.index("...") if "..." in term else len(term)
            op.contract(operand, [k if k < after else k - len(term) for k in alone], weighted=False)
    op.macs(*op.outputs[0], *(d for x, d in letters.items() if x not in result))


def _tokens(term: str) -> list[str]:
    return re.findall(r"\.\.\.|\w", term)
