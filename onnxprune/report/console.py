"""Results for people: text of a fixed width, with colours only where they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from onnxprune.records import (
    GroupReport,
    Inputs,
    Latency,
    LatencySide,
    Occurrence,
    Pursuit,
    Report,
    Status,
    Tie,
    Totals,
    WidthCalibration,
)
from onnxprune.report import numbers, quality
from onnxprune.report.page import WIDTH, Page, new_table

_ROWS = 8
_NAMES = 3
_LABEL = 34
_ROLES = {"produced": 0, "carried": 2, "contracted": 1}


# ---- The three pages -------------------------------------------------------------------------------------------------


def prune_text(report: Report, *, width: int = WIDTH, colour: bool = False, every: bool = False) -> str:
    """What a pruning run did: sizes before and after, proofs, latency, what could not be pruned and why.

    `every`: all layers and refusals, not just the worst, and why groups were kept whole.
    """
    page = Page(width, colour)
    page.line(_headline(report))
    page.table("", _totals_table(report))
    page.line()
    page.line(_groups_line(report.groups))
    if report.exactness:
        verdict = "[green]exact[/green]" if report.exactness.passed else "[red]NOT exact[/red]"
        page.line(
            f"Surgery: {verdict}; the largest difference from the masked original is "
            f"{report.exactness.max_rel:.1e} of the output range ({report.exactness.runs} runs)"
        )
    if report.fused:
        page.line(
            f"Fused: {report.fused} nodes between the layers are part of others now, or in cheaper terms (--no-fuse "
            "leaves them)"
        )
    if report.inputs:
        page.line(_inputs_line(report.inputs))
        for guess in report.inputs.guesses:
            page.line(f"  guess: {escape(guess)}")
    if report.pursuit:
        page.line(_pursuit_line(report.pursuit))
    if report.latency:
        _latency_lines(page, report.latency)
    quality.add(page, report, every)
    if every:
        _unpruned(page, report, "kept", "Groups kept whole")
    _refusals(page, report, len(report.refusals) if every else _ROWS)
    _notes(page, report)
    return page.text()


def inspect_text(report: Report, *, width: int = WIDTH, colour: bool = False, every: bool = False) -> str:
    """What can be pruned of a model, its groups in words with their shares, and what is refused.

    One screen; `every` shortens no list, and gives every place of every group.
    """
    page = Page(width, colour)
    totals = report.before
    page.line(f"[bold]{escape(report.model)}[/bold]")
    page.line(
        f"{totals.nodes} node{'s' * (totals.nodes != 1)}, {numbers.count(totals.parameters)} parameters, "
        f"{numbers.size(totals.bytes)}, {numbers.count(totals.macs)} MACs"
    )
    _reach_lines(page, report)
    free = _by_share(entry for entry in report.groups if entry.status != "frozen")
    if free:
        page.table("Prunable groups", _groups_table(free if every else free[:_ROWS], every))
        _more(page, 0 if every else len(free) - _ROWS)
    if every:
        _unpruned(page, report, "frozen", "Frozen groups")
    _refusals(page, report, len(report.refusals) if every else _ROWS)
    return page.text()


def comparison_text(
    models: Sequence[str | Path], results: Sequence[Latency], *, width: int = WIDTH, colour: bool = False
) -> str:
    """Latency of every model, and the speed-up of each over the first."""
    page = Page(width, colour)
    page.line(f"[bold]{_conditions(results[0])}[/bold]")
    table = new_table("model", "p50", "p90", "p99", "min", "speed-up", "95% interval")
    _side_row(table, str(models[0]), results[0].before, "", "")
    for model, result in zip(models[1:], results, strict=True):
        _side_row(table, str(model), result.after, f"{result.speedup:.2f}x", _interval(result.ci95))
    page.table("", table)
    page.line()
    for model, result in zip(models[1:], results, strict=True):
        page.line(f"{escape(str(model))}: {_verdict(result)}")
    page.line(_noise(results[0]))
    for model, result in zip(models[1:], results, strict=True):
        page.line(f"{escape(str(model))}: {_placement(result)}")
    for warning in dict.fromkeys(text for result in results for text in result.warnings):
        page.line(f"[yellow]warning:[/yellow] {escape(warning)}")
    return page.text()


def widths_text(found: WidthCalibration, *, width: int = WIDTH, colour: bool = False) -> str:
    """The steps that widths are rounded up to, and the latencies that show them."""
    page = Page(width, colour)
    key, seen = found.key, found.staircases
    threads = "1 thread" if key["threads"] == 1 else f"{key['threads']} threads"
    page.line(f"[bold]{escape(str(key['processor']))}[/bold], {key['provider']}, {threads}, {key['runtime']}")
    kinds = list(seen.milliseconds)
    table = new_table("width", *kinds)
    for width_of in sorted({w for times in seen.milliseconds.values() for w in times}):
        table.add_row(str(width_of), *(f"{seen.milliseconds[kind][width_of]:.3f}" for kind in kinds))
    steps = (f"{getattr(seen.widths, kind)}{' ?' * (kind in seen.unclear)}" for kind in kinds)
    table.add_row("[bold]step[/bold]", *steps)
    page.table("Latency (ms) of four layers, by width; --round-to auto rounds up to the step", table)
    page.line()
    if seen.unclear:
        page.line(
            f"[yellow]note:[/yellow] no clear steps for {', '.join(seen.unclear)}: the values of the table are used; "
            "measure again when the machine is quiet"
        )
    page.line(f"Remembered in {escape(found.path)}" if found.path else "Not remembered")
    return page.text()


# ---- Parts -----------------------------------------------------------------------------------------------------------


def _headline(report: Report) -> str:
    target = escape(report.output) if report.output else "[yellow]dry run, nothing written[/yellow]"
    return f"[bold]{escape(report.model)}[/bold] -> [bold]{target}[/bold]"


def _totals_table(report: Report) -> Table:
    table = new_table("", "before", "after", "kept", "smaller by")
    before, after = report.before, report.after
    rows = (("parameters", "parameters", numbers.count), ("file size", "bytes", numbers.size))
    for label, name, shown in (*rows, ("MACs", "macs", numbers.count)):
        old = getattr(before, name)
        new = getattr(after, name) if after and _is_known(report, after, name) else None
        cells = [shown(old), "-" if new is None else shown(new), *_ratio(old, new)]
        table.add_row(label, *cells)
    if report.latency:
        a, b = report.latency.before, report.latency.after
        table.add_row("latency p50", numbers.milliseconds(a.p50), numbers.milliseconds(b.p50), *_ratio(a.p50, b.p50))
        table.add_row("latency p90", numbers.milliseconds(a.p90), numbers.milliseconds(b.p90), *_ratio(a.p90, b.p90))
    return table


def _is_known(report: Report, after: Totals, name: str) -> bool:
    return name != "bytes" or (report.output is not None and after.bytes > 0)


def _ratio(old: float, new: float | None) -> tuple[str, str]:
    if new is None or old <= 0 or new <= 0:
        return "-", "-"
    return numbers.share(new / old), f"{old / new:.2f}x"


def _inputs_line(inputs: Inputs) -> str:
    """Where the inputs come from, and the values that were seen in them."""
    held = f", {inputs.held_out} of them held out" if inputs.held_out else ""
    ranges = "; ".join(
        f"{name} {numbers.brief(r.low)} to {numbers.brief(r.high)}, mean {numbers.brief(r.mean)}"
        for name, r in inputs.ranges.items()
    )
    label = "Calibration" if inputs.kind == "calibration" else "[yellow]Synthetic inputs[/yellow]"
    rows = f"{numbers.counted(inputs.rows, 'row')}{held}"
    return f"{label}: {escape(inputs.words)}, {rows}" + (f"; {escape(ranges)}" if ranges else "")


def _groups_line(groups: Sequence[GroupReport]) -> str:
    counts = {status: sum(g.status == status for g in groups) for status in ("pruned", "kept", "frozen")}
    return f"Groups: {counts['pruned']} pruned, {counts['kept']} kept whole, {counts['frozen']} frozen"


def _pursuit_line(found: Pursuit) -> str:
    ratios = found.model.ratios
    candidates = f"{len(found.attempts)} candidate{'s' * (len(found.attempts) > 1)} measured"
    return (
        f"Target: {found.goal:.3f} of the original's latency, {found.reached:.3f} reached with {candidates}; "
        f"the whole takes {min(ratios):.2f} to {max(ratios):.2f} times the sum of its nodes"
    )


def _latency_lines(page: Page, latency: Latency) -> None:
    page.line(f"Speed: {_verdict(latency)}; {_conditions(latency)}")
    page.line(f"{_noise(latency)}; {_placement(latency)}")
    for warning in latency.warnings:
        page.line(f"[yellow]warning:[/yellow] {escape(warning)}")


def _verdict(latency: Latency) -> str:
    text = f"{latency.speedup:.2f}x (95% interval {_interval(latency.ci95)})"
    if not latency.significant:
        return f"[yellow]no significant difference[/yellow]: {text}"
    if latency.speedup < 1:
        return f"[red]slower[/red] than the original: {text}"
    return f"[green]faster[/green]: {text}"


def _noise(latency: Latency) -> str:
    return f"The first model against itself: {_interval(latency.noise_floor)} (noise floor)"


def _placement(latency: Latency) -> str:
    counts = latency.nodes_per_provider
    placed = ", ".join(f"{count} on {name}" for name, count in counts.items())
    return f"nodes: {placed}" if counts else "nodes per provider unknown with this version of ONNX Runtime"


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}"


def _conditions(latency: Latency) -> str:
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return f"{latency.provider}, {threads}, batch {latency.batch}, {latency.pairs} pairs of runs"


def _side_row(table: Table, model: str, side: LatencySide, speedup: str, interval: str) -> None:
    times = [numbers.milliseconds(value) for value in (side.p50, side.p90, side.p99, side.min)]
    table.add_row(escape(model), *times, speedup, interval)


def _reach_lines(page: Page, report: Report) -> None:
    frozen = sum(entry.status == "frozen" for entry in report.groups)
    free = len(report.groups) - frozen
    page.line(f"{free} prunable group{'s' * (free != 1)}, {frozen} frozen")
    reach = report.reach
    if reach:
        page.line(
            f"Reachable: [bold]{numbers.share(reach.parameters)}[/bold] of the parameters, "
            f"[bold]{numbers.share(reach.macs)}[/bold] of the MACs"
        )
        page.line(
            f"Half of every group removed: {numbers.share(reach.parameters_at_half)} of the parameters and "
            f"{numbers.share(reach.macs_at_half)} of the MACs go (before rounding)"
        )


def _by_share(groups: Iterable[GroupReport]) -> list[GroupReport]:
    return sorted(groups, key=lambda g: (-g.macs_share, -g.parameters_share))


def _groups_table(groups: Sequence[GroupReport], every: bool) -> Table:
    table = new_table("group", "MACs", "params", "tied with", wide=("tied with",))
    for entry in groups:
        shares = numbers.share(entry.macs_share), numbers.share(entry.parameters_share)
        tied = _coupled(entry.group.occurrences) if every else _tied(entry.ties)
        table.add_row(_group_cell(entry, every), *shares, escape(tied))
    return table


def _group_cell(entry: GroupReport, named: bool) -> str:
    mark = " (renormalised)" if entry.group.renormalised else ""
    name = f"\n[dim]{escape(entry.group.id)}[/dim]" if named or not entry.words else ""
    return f"{escape(entry.words or str(entry.group.size))}{mark}{name}"


def _tied(ties: Sequence[Tie]) -> str:
    """How many nodes produce the group and how many consume it, with the first names of each."""
    lines = []
    for role, noun in (("produced", "producer"), ("contracted", "consumer")):
        found = {t.operator or t.tensor: t.label for t in ties if t.role == role}
        if found:
            nodes = Counter(found.values())
            labels = [f"{label} ({count} nodes)" if count > 1 else label for label, count in nodes.items()]
            lines.append(f"{len(found)} {noun}{'s' * (len(found) > 1)}: {_first(labels)}")
    return "\n".join(lines)


def _first(labels: Sequence[str]) -> str:
    """The first names, fewer of them where they are long, their beginnings left out where they do not fit a line."""
    names = [label if len(label) <= _LABEL else f"..{label[2 - _LABEL :]}" for label in labels[:_NAMES]]
    while len(names) > 1 and sum(map(len, names)) > 2 * _LABEL:
        names.pop()
    return ", ".join(names) + (", ..." if len(names) < len(labels) else "")


def _coupled(occurrences: Sequence[Occurrence]) -> str:
    ordered = sorted(occurrences, key=lambda o: (_ROLES[o.role], o.tensor, o.axis))
    return "\n".join(f"{o.tensor} axis {o.axis} {o.role}" for o in ordered)


def _unpruned(page: Page, report: Report, status: Status, title: str) -> None:
    """The groups of that status, and why."""
    found = _by_share(entry for entry in report.groups if entry.status == status)
    table = new_table("group", "MACs", "params", "reason", wide=("reason",))
    for entry in found:
        shares = numbers.share(entry.macs_share), numbers.share(entry.parameters_share)
        table.add_row(_group_cell(entry, True), *shares, escape(entry.reason))
    if found:
        page.table(title, table)


def _refusals(page: Page, report: Report, rows: int) -> None:
    if not report.refusals:
        return
    table = new_table("node", "operator", "MACs", "params", "groups", "reason", wide=("operator", "reason"))
    for entry in report.refusals[:rows]:
        shares = numbers.share(entry.macs_share), numbers.share(entry.parameters_share)
        found = entry.refusal
        table.add_row(escape(found.node), escape(found.op), *shares, str(entry.groups), escape(found.reason))
    page.table("What cannot be pruned, by share of the MACs it freezes", table)
    _more(page, len(report.refusals) - rows)


def _more(page: Page, count: int) -> None:
    if count > 0:
        page.line(f"... and {count} more (use --json, or `onnxprune inspect -v`, for all)")


def _notes(page: Page, report: Report) -> None:
    if report.notes:
        page.line()
    for note in report.notes:
        page.line(f"[yellow]note:[/yellow] {escape(note)}")
