"""Pictures of results: self-contained SVG, written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.records import FloatArray, Latency, Sensitivity
from onnxprune.report import drawing

_WIDTH, _HEIGHT = 720, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 696, 100, 324
_BINS = 60
_COLOURS = {"before": drawing.BLUE, "after": drawing.VERMILION}


def histograms(models: Sequence[str], results: Sequence[Latency]) -> str:
    """A picture of every further model's latency beside the first one's, below each other."""
    panels = [histogram(r, f"{models[0]} and {name}") for name, r in zip(models[1:], results, strict=True)]
    return panels[0] if len(panels) == 1 else drawing.stacked(panels, _WIDTH, _HEIGHT, ", ".join(models))


def histogram(latency: Latency, title: str) -> str:
    """A self-contained SVG picture of the two latency distributions, in milliseconds.

    The axis ends a little beyond the slower model's 99th percentile; the text counts the runs beyond it.
    """
    sides = {"before": latency.before, "after": latency.after}
    low = min(side.min for side in sides.values())
    high = max(side.p99 for side in sides.values())
    pad = 0.05 * (high - low) or 0.05 * high or 1.0
    edges = np.linspace(max(0.0, low - pad), high + pad, _BINS + 1)
    shares = {name: _shares(side.samples, edges) for name, side in sides.items()}
    top = max(float(share.max()) for share in shares.values()) or 1.0
    beyond = sum(int(value > edges[-1]) for side in sides.values() for value in side.samples)
    parts = [
        drawing.start(_WIDTH, _HEIGHT, title),
        drawing.text(_LEFT, 24, title, "font-size='16' font-weight='600'"),
        drawing.text(_LEFT, 44, _verdict(latency), "fill='#555555'"),
        drawing.text(_LEFT, 61, _conditions(latency, beyond), "fill='#555555'"),
        *_axes(edges, top),
        *(_distribution(name, shares[name], top) for name in sides),
        *(_median_line(name, side.p50, edges) for name, side in sides.items()),
        *_legend(sides),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _verdict(latency: Latency) -> str:
    text = f"speed-up {latency.speedup:.3g}x (95% interval {latency.ci95[0]:.3g} to {latency.ci95[1]:.3g})"
    return text if latency.significant else f"no significant difference: {text}"


def _conditions(latency: Latency, beyond: int) -> str:
    threads = f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
    text = f"{latency.pairs} pairs of runs, {latency.provider}, {threads}, batch {latency.batch}"
    return text + (f"; {beyond} slow run{'s' if beyond > 1 else ''} beyond the right edge" if beyond else "")


def _shares(samples: Sequence[float], edges: FloatArray) -> FloatArray:
    """Percentage of the runs in each bin."""
    counts, _ = np.histogram(np.asarray(samples, dtype=np.float64), bins=edges)
    return np.asarray(100.0 * counts / max(1, len(samples)))


def _x(value: float, edges: FloatArray) -> float:
    return _LEFT + (_RIGHT - _LEFT) * float((value - edges[0]) / (edges[-1] - edges[0]))


def _y(share: float, top: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * share / top


def _axes(edges: FloatArray, top: float) -> list[str]:
    parts = []
    for share in drawing.ticks(0.0, top):
        y = _y(share, top)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(drawing.text(_LEFT - 8, y + 4, f"{share:g}%", "text-anchor='end'"))
    for value in drawing.ticks(float(edges[0]), float(edges[-1])):
        x = _x(value, edges)
        parts.append(f'<line x1="{x:.1f}" y1="{_BOTTOM}" x2="{x:.1f}" y2="{_BOTTOM + 5}" stroke="#222222"/>')
        parts.append(drawing.text(x, _BOTTOM + 19, f"{value:.6g}", "text-anchor='middle'"))
    parts.append(f'<line x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT}" y2="{_BOTTOM}" stroke="#222222"/>')
    parts.append(drawing.text((_LEFT + _RIGHT) / 2, _BOTTOM + 42, "latency of one run (ms)", "text-anchor='middle'"))
    middle = (_TOP + _BOTTOM) / 2
    parts.append(
        drawing.text(16, middle, "share of runs", f"text-anchor='middle' transform='rotate(-90 16 {middle:.0f})'")
    )
    return parts


def _distribution(name: str, shares: FloatArray, top: float) -> str:
    step = (_RIGHT - _LEFT) / shares.size
    heights = [_y(float(share), top) for share in shares]
    path = "".join(f"V{y:.1f}H{_LEFT + (index + 1) * step:.1f}" for index, y in enumerate(heights))
    style = f'fill="{_COLOURS[name]}" fill-opacity="0.35" stroke="{_COLOURS[name]}" stroke-width="1.2"'
    return f'<path class="{name}" d="M{_LEFT},{_BOTTOM}{path}V{_BOTTOM}Z" {style}/>'


def _median_line(name: str, median: float, edges: FloatArray) -> str:
    x = _x(median, edges)
    style = f'stroke="{_COLOURS[name]}" stroke-width="1.6" stroke-dasharray="5 3"'
    return f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_BOTTOM}" {style}/>'


def _legend(sides: Mapping[str, Any]) -> list[str]:
    parts = []
    for index, (name, side) in enumerate(sides.items()):
        x = _LEFT + 316 * index
        parts.append(f'<rect x="{x}" y="74" width="12" height="12" fill="{_COLOURS[name]}"/>')
        text = f"{name}: median {side.p50:.4g} ms, p90 {side.p90:.4g}, p99 {side.p99:.4g}"
        parts.append(drawing.text(x + 18, 84, text))
    return parts


# ---- Curves of groups ------------------------------------------------------------------------------------------------

_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222", "#8c6d31")
_LEGEND_ROW = 18


def curves(found: Sensitivity, title: str) -> str:
    """A self-contained SVG picture of damage (up to 1) by share removed, a line for every group."""
    height = _BOTTOM + 70 + _LEGEND_ROW * len(found.groups)
    parts = [
        drawing.start(_WIDTH, height, title),
        drawing.text(_LEFT, 24, title, "font-size='16' font-weight='600'"),
        drawing.text(
            _LEFT, 44, "damage at the outputs (0: none, 1: as wrong as their mean) by share removed", "fill='#555555'"
        ),
    ]
    edges = np.array([0.0, 1.0])
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, x = _y(tick, 1.0), _x(tick, edges)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(drawing.text(_LEFT - 8, y + 4, f"{tick:g}", "text-anchor='end'"))
        parts.append(drawing.text(x, _BOTTOM + 19, f"{tick:.0%}", "text-anchor='middle'"))
    for index, group in enumerate(found.groups):
        colour, dash = _LINES[index % len(_LINES)], "none" if index < len(_LINES) else "5 3"
        pairs = zip(group.removed, group.damage, strict=True)
        points = " ".join(f"{_x(r / group.size, edges):.1f},{_y(min(d, 1.0), 1.0):.1f}" for r, d in pairs)
        style = f'fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{points}" {style}/>')
        row = _BOTTOM + 46 + _LEGEND_ROW * index
        parts.append(f'<line x1="{_LEFT}" y1="{row}" x2="{_LEFT + 24}" y2="{row}" {style}/>')
        parts.append(
            drawing.text(_LEFT + 32, row + 4, f"{group.words or group.id} ({group.macs_share:.1%} of the MACs)")
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
