"""The machine that is measured on: whether it has other work to do."""

from __future__ import annotations

import os
import time
from pathlib import Path

_BUSY_SHARE = 0.25


def busy_warnings(share: float | None) -> tuple[str, ...]:
    """The warning about other work on the machine, if `share` (0 to 1, None for unknown) of it was busy."""
    if share is None or share < _BUSY_SHARE:
        return ()
    return (f"the machine was {share:.0%} busy with other work before the measurement: timings are less certain",)


def busy_share(wait_s: float = 0.3) -> float | None:
    """Share of all processors that was busy over `wait_s` seconds in which this process slept; None where unknown.

    The load average is the second choice: it still holds the work that this command itself did a minute ago.
    """
    before = _processor_ticks()
    if before is not None:
        time.sleep(wait_s)
        after = _processor_ticks()
        if after is not None and after[1] > before[1]:
            return 1.0 - (after[0] - before[0]) / (after[1] - before[1])
    try:
        return min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    except (AttributeError, OSError):
        return None


def _processor_ticks() -> tuple[int, int] | None:
    """(idle, all) clock ticks since boot from Linux's /proc/stat; see proc(5)."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
        ticks = [int(word) for word in first.split()[1:9]]
    except (OSError, ValueError):
        return None
    return (ticks[3] + ticks[4], sum(ticks)) if len(ticks) > 4 else None
