"""Operators that have no rule, and why they cannot have one: what they touch stays whole."""

from __future__ import annotations

_COUNT = "how many it finds depends on the data"
_RANDOM = "its result is random, so that nothing could be proved of it"
_SEQUENCE = "a sequence of tensors has no axes of its own"
_TEXT = "it works on text"

_WHY: dict[str, tuple[str, ...]] = {
    _COUNT: ("NonMaxSuppression", "NonZero", "Unique"),
    _RANDOM: (
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ),
    _SEQUENCE: (
        "ConcatFromSequence",
        "Optional",
        "OptionalGetElement",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceErase",
        "SequenceInsert",
        "SequenceMap",
        "SplitToSequence",
    ),
    _TEXT: ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
    "the indices of a pooling count over all channels": ("MaxUnpool",),
    "its result is a grid of positions": ("EyeLike", "Range"),
    "it works along the signal": ("STFT",),
}
REASONS = {name: reason for reason, names in _WHY.items() for name in names}
"""Why an operator of ai.onnx without a rule freezes what it touches."""


def why_no_rule(domain: str, name: str) -> str:
    """Why an operator has no rule."""
    known = REASONS.get(name) if domain in ("", "ai.onnx") else None
    if known:
        return f"{name}: {known}"
    return f"no rule for operator {f'{domain}::' if domain else ''}{name}"
