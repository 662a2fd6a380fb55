"""A page of text for people: lines and tables of a fixed width, with colours only where they are asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

from rich.box import Box
from rich.console import Console
from rich.table import Table

WIDTH = 100
"""Columns where the output is no terminal."""
_LINES = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


class Page:
    """Text that grows part by part."""

    def __init__(self, width: int, colour: bool) -> None:
        self._file = io.StringIO()
        self._console = Console(
            file=self._file,
            width=width,
            force_terminal=colour,
            color_system="standard" if colour else None,
            highlight=False,
            emoji=False,
        )

    def line(self, text: str = "") -> None:
        """A line of rich markup; names must be escaped."""
        self._console.print(text, soft_wrap=True)

    def table(self, title: str, table: Table) -> None:
        """A table under its title, after an empty line."""
        self.line()
        if title:
            self.line(f"[bold]{title}[/bold]")
        self._console.print(table)

    def text(self) -> str:
        """Everything so far, without blanks at the ends of lines."""
        return "".join(f"{line.rstrip()}\n" for line in self._file.getvalue().splitlines())


def new_table(first: str, *others: str, wide: Sequence[str] = ()) -> Table:
    """A table whose first column, and those in `wide`, are text; the others are numbers."""
    table = Table(box=_LINES, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        side: Literal["left", "right"] = "left" if name in wide else "right"
        table.add_column(name, justify=side, overflow="fold", no_wrap=name not in wide)
    return table
