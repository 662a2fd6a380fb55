"""The page of `onnxprune sensitivity`: one line per group."""

from __future__ import annotations

import numpy as np
from rich.markup import escape

from onnxprune.records import GroupCurve, Sensitivity
from onnxprune.report import numbers
from onnxprune.report.page import WIDTH, Page, new_table


def sensitivity_text(found: Sensitivity, *, width: int = WIDTH, colour: bool = False) -> str:
    """The damage of every group at the levels, the most harmless first; of a small group from the nearest counts."""
    page = Page(width, colour)
    page.line(f"[bold]{escape(found.model)}[/bold]")
    page.line(
        "Damage at the outputs when a share of one group is removed and what reads it is refitted; "
        f"{numbers.counted(found.rows, 'row')}, order by {found.criterion}"
    )
    page.line("0: the same outputs, 1: as wrong as their mean")
    if not all(group.refitted for group in found.groups):
        page.line("*: the damage of the cut alone, as no layer that is refitted reads the group")
    shown = new_table("group", "MACs", *(f"-{level:.0%}" for level in found.levels))
    for group in sorted(found.groups, key=lambda g: at(g, 0.5)):
        label = f"{group.words or group.id}{'' if group.refitted else ' *'}"
        shown.add_row(
            escape(label),
            numbers.share(group.macs_share),
            *(numbers.plain(at(group, level), 4) for level in found.levels),
        )
    page.table("", shown)
    return page.text()


def at(group: GroupCurve, level: float) -> float:
    """The damage when the share `level` of a group is removed, between measured ones by straight lines."""
    return float(np.interp(level * group.size, group.removed, group.damage))
