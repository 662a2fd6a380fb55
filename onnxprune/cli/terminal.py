"""What is said: results on standard output, progress and errors on standard error, reports in files."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from onnxprune.config import check_report_path
from onnxprune.errors import OnnxPruneError, OutputError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

INTERRUPTED = 130
_PAGES = (".html", ".htm")


@dataclass(frozen=True)
class Voice:
    """How much is said: errors only, every step, tracebacks."""

    quiet: bool
    verbose: bool
    debug: bool


# ---- Results ---------------------------------------------------------------------------------------------------------


def file_of(path: Path | None) -> Path | None:
    """A report path, or None where '-' stands for standard output."""
    return None if path == Path("-") else path


def deliver(text: str, data: str, json_path: Path | None, voice: Voice) -> None:
    """Print the text, unless standard output is for the JSON or nothing is wanted there; write the JSON."""
    report = file_of(json_path)
    if report:
        write_text(report, data)
    if json_path and not report:
        _print(data)
    elif not voice.quiet:
        _print(text)


def write_text(path: Path, text: str) -> None:
    """Write a report; OutputError where that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def check_picture_path(path: Path | None) -> None:
    """Raise UsageError where the name is not one of the kinds of picture that `write_picture` makes, OutputError where
    none can be written."""
    check_report_path("--svg", path, "<")
    if path is not None and path.suffix.lower() not in (".svg", *_PAGES):
        raise UsageError(f"--svg {path}: pictures are written as .svg, or as pages, .html; rename it")


def write_picture(path: Path, svg: str) -> None:
    """Write an SVG, or a page that shows it where the name is one of HTML; OutputError where that fails."""
    if path.suffix.lower() in _PAGES:
        from onnxprune.report import drawing

        svg = drawing.page(svg, path.stem)
    write_text(path, svg)


def _print(text: str) -> None:
    try:
        click.echo(text, nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` perhaps, has seen enough; Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise OutputError(f"standard output cannot be written ({error.strerror})") from error


def terminal_width() -> int:
    """The terminal's columns, within reason; a fixed width where there is none."""
    from onnxprune.report.page import WIDTH

    if not sys.stdout.isatty():
        return WIDTH
    import shutil

    return min(160, max(60, shutil.get_terminal_size((WIDTH, 24)).columns))


def has_colour() -> bool:
    """Whether standard output is a terminal that shows colours and wants them."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


# ---- Messages --------------------------------------------------------------------------------------------------------


class _Log(logging.Handler):
    """Log records as lines on standard error; with `status`, INFO is what the spinner says."""

    def __init__(self, console: Console, status: Status | None) -> None:
        super().__init__()
        self._console = console
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if self._status and record.levelno == logging.INFO:
            from rich.markup import escape

            self._status.update(escape(message))
            return
        self._console.print(f"{record.levelname.lower()}: {message}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(voice: Voice, first: str) -> Iterator[None]:
    """Show the log of the library while the block runs: a spinner on a terminal, lines where they are asked for."""
    from rich.console import Console

    console = Console(stderr=True, emoji=False)
    spins = console.is_terminal and not voice.quiet and not voice.verbose
    status = console.status(first) if spins else None
    handler = _Log(console, status)
    logger = logging.getLogger("onnxprune")
    before = logger.level
    logger.setLevel(logging.DEBUG if voice.verbose else logging.INFO if spins else logging.WARNING)
    logger.addHandler(handler)
    if status:
        status.start()
    try:
        yield
    finally:
        if status:
            status.stop()
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def failures(voice: Voice) -> Iterator[None]:
    """End the command with a message and the right exit code, whatever goes wrong in the block."""
    try:
        if voice.quiet and voice.verbose:
            raise UsageError("--quiet and --verbose exclude each other")
        yield
    except OnnxPruneError as error:
        _fail(str(error), error.exit_code, voice)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED, voice)
    except MemoryError:
        _fail("not enough memory for this model; close other programs, or use a machine with more", 1, voice)
    except click.exceptions.Exit:
        raise
    except Exception as error:  # noqa: BLE001 - the last resort: a message in place of a traceback
        advice = "this is a fault of onnxprune; see the traceback with --debug and report it with the model's name"
        _fail(f"internal error: {type(error).__name__}: {error} ({advice})", 1, voice)


def _fail(message: str, code: int, voice: Voice) -> NoReturn:
    if voice.debug:
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
    raise click.exceptions.Exit(code)
