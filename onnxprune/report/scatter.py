"""The picture of a search: quality against latency, the results that no other beats joined by a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from onnxprune.records import SearchReport
from onnxprune.report import drawing

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 690, 72, 384
_LEAST, _MOST = 3.0, 11.0
_NEAR = 13.0
"""Points on the picture between labels one above the other."""


@dataclass(frozen=True)
class _Point:
    """Cost relative to the original, quality, size relative to the original; `kind`: "original", "front", "beaten"."""

    x: float
    y: float
    size: float
    kind: str
    label: str


def front(found: SearchReport) -> str:
    """A self-contained SVG picture: a dot per result (its area is the file size), the original a square.

    Across goes the latency relative to the original or, where none was measured, the share of the MACs.
    """
    points = _points(found)
    columns, rows = _range([p.x for p in points]), _range([p.y for p in points])
    metric = next((r.metric for r in found.results if r.metric), "quality")
    title = f"{found.model}: {metric} against {_cost(found)}"
    parts = [
        drawing.start(_WIDTH, _HEIGHT, title),
        drawing.text(_LEFT, 24, title, "font-size='16' font-weight='600'"),
        drawing.text(_LEFT, 44, "area of a dot: file size; joined: no other result beats it", "fill='#555555'"),
        *_axes(columns, rows, _cost(found), metric),
        _line([p for p in points if p.kind != "beaten"], columns, rows),
        *(_mark(p, columns, rows) for p in points),
        *_labels(points, columns, rows),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _cost(found: SearchReport) -> str:
    timed = any(r.latency for r in found.results)
    return f"{'latency' if timed else 'MACs'}, relative to the original"


def _points(found: SearchReport) -> list[_Point]:
    timed = any(r.latency for r in found.results)
    original = next((r.original.value for r in found.results if r.original), 1.0)
    points = [_Point(1.0, original, 1.0, "original", "original")]
    for number, result in enumerate(found.results):
        if result.after is None or result.quality is None or (timed and result.latency is None):
            continue
        latency = result.latency
        x = 1 / latency.speedup if latency else result.after.macs / max(found.before.macs, 1)
        label = f"{result.trial.amount} {result.trial.criterion}"
        kind = "front" if number in found.front else "beaten"
        points.append(_Point(x, result.quality.value, result.after.bytes / max(found.before.bytes, 1), kind, label))
    return points


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.1
    return low - pad, high + pad


def _place(point: _Point, columns: tuple[float, float], rows: tuple[float, float]) -> tuple[float, float]:
    x = _LEFT + (_RIGHT - _LEFT) * (point.x - columns[0]) / (columns[1] - columns[0])
    return x, _BOTTOM - (_BOTTOM - _TOP) * (point.y - rows[0]) / (rows[1] - rows[0])


def _axes(columns: tuple[float, float], rows: tuple[float, float], cost: str, metric: str) -> list[str]:
    parts = []
    for value in drawing.ticks(*rows):
        y = _BOTTOM - (_BOTTOM - _TOP) * (value - rows[0]) / (rows[1] - rows[0])
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}" stroke="{drawing.GRID}"/>')
        parts.append(drawing.text(_LEFT - 8, y + 4, f"{value:.4g}", "text-anchor='end'"))
    for value in drawing.ticks(*columns):
        x = _LEFT + (_RIGHT - _LEFT) * (value - columns[0]) / (columns[1] - columns[0])
        parts.append(f'<line x1="{x:.1f}" y1="{_BOTTOM}" x2="{x:.1f}" y2="{_BOTTOM + 5}" stroke="{drawing.INK}"/>')
        parts.append(drawing.text(x, _BOTTOM + 19, f"{value:.4g}", "text-anchor='middle'"))
    parts.append(f'<line x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT}" y2="{_BOTTOM}" stroke="{drawing.INK}"/>')
    parts.append(drawing.text((_LEFT + _RIGHT) / 2, _BOTTOM + 42, cost, "text-anchor='middle'"))
    middle = (_TOP + _BOTTOM) / 2
    turned = f"text-anchor='middle' transform='rotate(-90 16 {middle:.0f})'"
    return [*parts, drawing.text(16, middle, metric, turned)]


def _line(points: Sequence[_Point], columns: tuple[float, float], rows: tuple[float, float]) -> str:
    places = [_place(p, columns, rows) for p in sorted(points, key=lambda p: (p.x, p.y))]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{path}" fill="none" stroke="{drawing.BLUE}" stroke-opacity="0.4"/>'


def _mark(point: _Point, columns: tuple[float, float], rows: tuple[float, float]) -> str:
    x, y = _place(point, columns, rows)
    told = f"<title>{escape(point.label)}</title>"
    if point.kind == "original":
        return f'<rect class="original" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10">{told}</rect>'
    radius = _LEAST + (_MOST - _LEAST) * min(1.0, point.size) ** 0.5
    colour = drawing.BLUE if point.kind == "front" else "#999999"
    style = f'fill="{colour}" fill-opacity="0.55" stroke="{colour}"'
    return f'<circle class="{point.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" {style}>{told}</circle>'


def _labels(points: Sequence[_Point], columns: tuple[float, float], rows: tuple[float, float]) -> list[str]:
    """The names of the original and the front, each left out where it would lie on one that is there."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for point in points:
        x, y = _place(point, columns, rows)
        free = all(abs(y - other) >= _NEAR or abs(x - beside) > 90 for beside, other in taken)
        if point.kind == "beaten" or not free:
            continue
        taken.append((x, y))
        side = "text-anchor='end'" if x > (_LEFT + _RIGHT) / 2 else ""
        parts.append(drawing.text(x - 14 if side else x + 14, y + 4, point.label, side))
    return parts
