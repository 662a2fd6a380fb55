"""`onnxprune A.onnx B.onnx ...`: several models, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli.terminal import Voice, deliver, file_of, has_colour, progress, terminal_width
from onnxprune.config import Config, check_paths, check_report_path
from onnxprune.distribution import Workers

if TYPE_CHECKING:
    from onnxprune.records import Pruned


def prune_several(
    models: Sequence[Path], config: Config, workers: Workers, json_path: Path | None, voice: Voice
) -> None:
    """Prune the models; an error line for each that fails. Ends with the largest of their exit codes."""
    report = file_of(json_path)
    read = {f"the model {model}": model for model in models}
    check_paths({**read, **config.files_read}, {"--output": config.output, "--json": report})
    check_report_path("--json", report, "[")
    from onnxprune.many import prune_many
    from onnxprune.report import plain_json, several

    with progress(voice, "prune ..."):
        found = prune_many(models, config, workers=workers)
    for entry in found:
        if entry.error is not None:
            click.echo(f"error: {_named(entry)}", err=True)
    text = several.many_text(found, width=terminal_width(), colour=has_colour())
    deliver(text, plain_json.dumps(plain_json.many_data(found)), json_path, voice)
    worst = max(entry.exit_code for entry in found)
    if worst:
        raise click.exceptions.Exit(worst)


def _named(entry: Pruned) -> str:
    """The error with the name of its model."""
    message = str(entry.error)
    return message if message.startswith(entry.model) else f"{entry.model}: {message}"
