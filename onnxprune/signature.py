"""The notation of operator rules: `n (g i) *, (g o) i *, (g o)? -> n (g o) *`.

Operands are separated by commas and written axis by axis. The same letter is the same dimension; `(g o)` is a
row-major product; a number is an axis of that size that stays; `_` is an axis that must stay as it is (frozen), `*` a
run of such axes; `...` is a run of axes that broadcast and pass through; `?` marks an operand that may be absent.

A letter of two or more input operands that no output has is *contracted*: the operator sums over it. An operand with
a contracted letter is multiplied; its other axes are *produced*. The axes of all other operands are *carried*.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

Term = tuple[str, ...]
"""The letters of one axis; `("*",)` and `("...",)` are runs of axes."""

_TOKEN = re.compile(r"\(([^()]*)\)|(\*|\.\.\.|\w+)")


@dataclass(frozen=True)
class Signature:
    """A parsed signature. `contracted` holds the letters summed over."""

    inputs: tuple[tuple[Term, ...], ...]
    optional: tuple[bool, ...]
    outputs: tuple[tuple[Term, ...], ...]
    contracted: frozenset[str]

    def multiplied(self, operand: int) -> bool:
        """Whether the operator sums over an axis of this operand."""
        return any(letter in self.contracted for term in self.inputs[operand] for letter in term)


@cache
def parse(text: str) -> Signature:
    """Parse the notation. Raises ValueError naming the text where it is malformed."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"signature {text!r} has no '->'")
    operands = [o.strip() for o in left.split(",")]
    inputs = tuple(_terms(o.removesuffix("?"), text) for o in operands)
    outputs = tuple(_terms(o, text) for o in right.split(","))
    seen = [_letters(terms) for terms in inputs]
    kept = {letter for terms in outputs for letter in _letters(terms)}
    letters = {letter for s in seen for letter in s}
    contracted = frozenset(x for x in letters - kept if sum(x in s for s in seen) > 1)
    return Signature(inputs, tuple(o.endswith("?") for o in operands), outputs, contracted)


def _letters(terms: tuple[Term, ...]) -> set[str]:
    return {letter for term in terms for letter in term if letter.isalpha()}


def _terms(operand: str, text: str) -> tuple[Term, ...]:
    terms: list[Term] = []
    position = 0
    for token in _TOKEN.finditer(operand):
        if operand[position : token.start()].strip():
            raise ValueError(f"signature {text!r}: cannot read {operand!r}")
        position = token.end()
        terms.append(tuple(token[1].split()) if token[1] is not None else (token[2],))
    if operand[position:].strip():
        raise ValueError(f"signature {text!r}: cannot read {operand!r}")
    if sum(term[0] in ("*", "...") for term in terms) > 1:
        raise ValueError(f"signature {text!r}: more than one run of axes in {operand!r}")
    return tuple(terms)
