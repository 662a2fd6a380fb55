"""Results of several models, or of several ways to prune one, for people: one table each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from onnxprune.records import Measured, Pruned, SearchReport, TrialResult
from onnxprune.report import numbers
from onnxprune.report.page import WIDTH, Page, new_table

NAMED = 3
"""Models that are named where they share a note, at most."""


def many_text(found: Sequence[Pruned], *, width: int = WIDTH, colour: bool = False) -> str:
    """A row per model: sizes before and after, closeness, speed-up; or that it failed. Then the notes, each once."""
    page = Page(width, colour)
    timed = any(entry.report and entry.report.latency for entry in found)
    table = new_table("model", "params kept", "MACs kept", "size", "closeness", *(["speed-up"] if timed else []))
    for entry in found:
        table.add_row(escape(entry.model), *_cells(entry, timed))
    done = sum(entry.exit_code == 0 for entry in found)
    page.line(f"[bold]{done} of {len(found)} models pruned[/bold]")
    page.table("", table)
    _notes(page, found)
    return page.text()


def _notes(page: Page, found: Sequence[Pruned]) -> None:
    """Every note, with the models it is of."""
    models: dict[str, list[str]] = {}
    for entry in found:
        for note in dict.fromkeys(entry.report.notes if entry.report else ()):
            models.setdefault(note, []).append(entry.model)
    if models:
        page.line()
    for note, names in models.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        page.line(f"[yellow]note:[/yellow] {escape(', '.join(names[:NAMED]) + more)}: {escape(note)}")


def _cells(entry: Pruned, timed: bool) -> list[str]:
    report = entry.report
    if report is None or report.after is None:
        return ["[red]failed[/red]" if report is None else "-", "-", "-", "-", *(["-"] if timed else [])]
    before, after = report.before, report.after
    kept = [_share(after.parameters, before.parameters), _share(after.macs, before.macs)]
    size = numbers.size(after.bytes) if report.output else "-"
    closeness = "-"
    if report.metric:
        closeness = f"{report.metric.name} {report.metric.final.value:.4f}"
    elif report.quality:
        closeness = f"cosine {min((o.cosine for o in report.quality.outputs.values()), default=1.0):.4f}"
    speed = [f"{report.latency.speedup:.2f}x" if report.latency else "-"] if timed else []
    return [*kept, size, closeness, *speed]


def search_text(found: SearchReport, *, width: int = WIDTH, colour: bool = False) -> str:
    """A row per trial, those that no other beats first and marked; then where the plans are."""
    page = Page(width, colour)
    made = [r for r in found.results if r.after]
    metric = next((r.metric for r in made), "quality")
    rows = next((r.rows for r in made), 0)
    original = next((r.original for r in made), None)
    reused = f", {found.reused} of them from an earlier run" if found.reused else ""
    amount = f"{len(found.results)} trial{'s' * (len(found.results) != 1)}"
    page.line(f"[bold]{escape(found.model)}[/bold]: {amount}{reused}")
    if original:
        page.line(f"{escape(metric)} of the original: {original.value:.4f}, on {rows} rows that nothing was fitted to")
    table = new_table("", "amount", "criterion", metric, "MACs", "size", "latency", "speed-up", wide=("amount",))
    ordered = sorted(range(len(found.results)), key=lambda k: (k not in found.front, _cost(found.results[k])))
    for number in ordered:
        result = found.results[number]
        if result.after:
            table.add_row(*_row(found, result, number in found.front))
    page.table("Trials; * marks those that no other beats in quality, latency and size", table)
    page.line()
    for result in found.results:
        if result.error:
            name = f"{result.trial.amount} {result.trial.criterion}"
            page.line(f"[yellow]{escape(name)}[/yellow]: {escape(result.error)}")
    page.line(f"Plans for --plan, in {escape(found.folder)}:")
    for number in ordered:
        if number in found.front:
            page.line(f"  {escape(str(found.results[number].plan))}")
    for warning in dict.fromkeys(w for r in found.results if r.latency for w in r.latency.warnings):
        page.line(f"[yellow]warning:[/yellow] {escape(warning)}")
    return page.text()


def _cost(result: TrialResult) -> float:
    if result.after is None:
        return 0.0
    return 1 / result.latency.speedup if result.latency else float(result.after.macs)


def _row(found: SearchReport, result: TrialResult, on_front: bool) -> list[str]:
    after, latency = result.after, result.latency
    cells = ["*" if on_front else "", escape(result.trial.amount), escape(result.trial.criterion)]
    cells.append(_value(result.quality))
    if after:
        cells += [_share(after.macs, found.before.macs), numbers.size(after.bytes)]
    if latency:
        interval = f"{latency.ci95[0]:.2f} to {latency.ci95[1]:.2f}"
        return [*cells, numbers.milliseconds(latency.after.p50), f"{latency.speedup:.2f}x ({interval})"]
    return [*cells, "-", "-"]


def _value(measured: Measured | None) -> str:
    if measured is None:
        return "-"
    interval = measured.ci95
    return f"{measured.value:.4f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _share(part: int, whole: int) -> str:
    return numbers.share(part / whole) if whole else "-"
