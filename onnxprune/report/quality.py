"""How good the result is, for people: closeness to the original, the metric, the layers that lost most."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from onnxprune.records import Distillation, LayerQuality, Measured, Quality, Report
from onnxprune.report import numbers
from onnxprune.report.page import Page, new_table

_LAYERS = 3


def add(page: Page, report: Report, every: bool) -> None:
    """The parts about quality that the run produced; all layers with `every`."""
    if report.metric:
        page.table(_metric_title(report), _metric_table(report))
    if report.rounds:
        page.table("Models measured on the way to the smallest within --max-drop", _rounds_table(report))
    if report.quality:
        page.table(_closeness_title(report.quality), _closeness_table(report.quality, report.cut_quality))
    if report.layers:
        _layers(page, report, every)
    if report.distillation:
        page.line()
        page.line(_distillation_line(report.distillation))


def _metric_title(report: Report) -> str:
    found = report.metric
    if found is None:
        return ""
    rows = {"calibration": "rows held out of the calibration data", "evaluation": "rows of the evaluation data"}
    labels = "" if found.labels in (None, found.rows) else f" ({found.labels} labels count)"
    return f"{escape(found.name)} on {found.rows} {rows[found.data]}{labels}, to which nothing was fitted"


def _metric_table(report: Report) -> Table:
    found = report.metric
    if found is None:
        return new_table("")
    shown = new_table("", "value", "95% interval")
    entries = (("original", found.original), ("cut alone", found.cut), ("result", found.final), ("drop", found.drop))
    for name, entry in entries:
        if entry is not None:
            shown.add_row(name, numbers.plain(entry.value, 4), _interval(entry))
    return shown


def _interval(entry: Measured) -> str:
    return "-" if entry.ci95 is None else " to ".join(numbers.plain(end, 4) for end in entry.ci95)


def _rounds_table(report: Report) -> Table:
    shown = new_table("kept", "value", "drop", "within")
    for entry in report.rounds:
        cells = numbers.plain(entry.value, 4), numbers.plain(entry.drop, 4), "yes" if entry.within else "no"
        shown.add_row(numbers.share(entry.share), *cells)
    return shown


def _closeness_title(found: Quality) -> str:
    if found.data == "calibration":
        return f"Closeness to the original on {numbers.counted(found.samples, 'calibration sample')}"
    return (
        f"Closeness to the original on {numbers.counted(found.samples, 'synthetic sample')} "
        "(says little about accuracy: give real inputs with --calibration)"
    )


def _closeness_table(found: Quality, before: Quality | None) -> Table:
    shown = new_table("output", "cosine", "relative error", "SQNR", "same top-1")
    for name, output in found.outputs.items():
        sides = [(name, output)]
        if before is not None and name in before.outputs:
            sides.append((f"{name}, cut alone", before.outputs[name]))
        for label, entry in sides:
            agreement = "-" if entry.top1_agreement is None else numbers.share(entry.top1_agreement)
            error, noise = numbers.plain(entry.relative_error, 4), numbers.plain(entry.sqnr_db, 1)
            shown.add_row(escape(label), numbers.plain(entry.cosine, 4), error, f"{noise} dB", agreement)
    return shown


def _layers(page: Page, report: Report, every: bool) -> None:
    entries = report.layers if every else sorted(report.layers, key=_loss, reverse=True)[:_LAYERS]
    shown = new_table("layer", "cut alone", "recovered")
    for entry in entries:
        shown.add_row(escape(entry.node), numbers.plain(entry.before, 4), numbers.plain(entry.after, 4))
    which = (
        "" if len(entries) == len(report.layers) else f", the worst {len(entries)} of {len(report.layers)} (-v: all)"
    )
    page.table(
        f"Error of the refitted layers on inputs that their own fit left out, as a share of their variance{which}",
        shown,
    )


def _distillation_line(found: Distillation) -> str:
    before, after = (numbers.plain(value, 4) for value in (found.before, found.after))
    verdict = "" if found.kept else ", which is no better, so it is not kept"
    return f"Distillation: loss on inputs held out {before} -> {after}{verdict}"


def _loss(entry: LayerQuality) -> float:
    return entry.after
