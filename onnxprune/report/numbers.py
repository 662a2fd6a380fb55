"""Numbers for people."""

from __future__ import annotations

import math


def count(value: float) -> str:
    """A count with three digits and a decimal prefix: 1234567 -> "1.23 M"."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        # 999.5 k would print as 1e+03 k.
        if abs(value) >= 0.9995 * 10**power:
            return f"{_three_digits(value / 10**power)} {prefix}"
    return _three_digits(value) if value != int(value) else str(int(value))


def size(value: float) -> str:
    """A number of bytes: 3400000 -> "3.40 MB"."""
    text = count(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def share(value: float) -> str:
    """A share of one as a percentage: 0.1234 -> "12.3%"; what is not nothing never reads as 0%."""
    if 0 < value < 0.001:
        return "<0.1%"
    return f"{value:.1%}"


def milliseconds(value: float) -> str:
    """A time in milliseconds with three digits, or all before the point: 1.234 -> "1.23 ms", 1234.5 -> "1234 ms"."""
    return f"{value:.0f} ms" if value >= 999.5 else f"{value:.3g} ms"


def plain(value: float, digits: int) -> str:
    """Fixed digits behind the point; "inf" and "nan" as they are."""
    return f"{value:.{digits}f}" if math.isfinite(value) else str(value)


def brief(value: float) -> str:
    """Three significant digits, for values whose size is not known."""
    return f"{value:.3g}"


def _three_digits(value: float) -> str:
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, min(2, digits))}f}"


def counted(count: int, noun: str) -> str:
    """The noun with its number: "1 row", "3 rows"."""
    return f"{count} {noun}{'s' * (count != 1)}"
