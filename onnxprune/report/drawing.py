"""What all pictures are made of: self-contained SVG, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

# Blue and vermilion of Okabe and Ito's palette: told apart by colour-blind readers too.
BLUE, VERMILION = "#0072b2", "#d55e00"
INK, GRID = "#222222", "#e4e4e4"


def start(width: int, height: int, title: str) -> str:
    """The first element of a picture, with a white ground; `</svg>` ends it."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    font = f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}><title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    )


def page(svg: str, title: str) -> str:
    """A picture as a self-contained HTML page."""
    head = f'<meta charset="utf-8"/><title>{escape(title)}</title>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{svg}</body></html>\n'


def stacked(panels: Sequence[str], width: int, height: int, title: str) -> str:
    """Pictures of one size below each other, as one."""
    placed = [f'<g transform="translate(0 {height * k})">\n{panel}</g>' for k, panel in enumerate(panels)]
    return "\n".join([start(width, height * len(panels), title), *placed, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, attributes: str = "") -> str:
    """Text whose baseline starts at (x, y)."""
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(words)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high, four to nine of them."""
    rough = (high - low) / 4.0
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (5.0, 2.0, 1.0) if power * factor <= rough)
    return [float(step * index) for index in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
