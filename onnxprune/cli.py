"""The command line: a thin twin of the Python API. One command is one function, one flag one field of `Config`.

Results go to standard output, progress and messages to standard error. Nothing heavy is imported before the options
have been read, so that `--help` is quick.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import click

from onnxprune import __version__
from onnxprune.config import ALLOCATIONS, PROVIDERS, Config, RoundTo, check_paths, check_report_path
from onnxprune.errors import OnnxPruneError, OutputError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

Function = TypeVar("Function", bound=Callable[..., Any])

INTERRUPTED = 130
TERMINATED = 143

_ABOUT = """\
Removes the channels, heads and hidden units of an ONNX model that matter least, proves the surgery exact, measures
quality and latency with ONNX Runtime, and writes a smaller model. No training framework is involved.

\b
Examples:
  onnxprune model.onnx --ratio 0.5
  onnxprune model.onnx -o small.onnx --ratio 0.3 --calibration inputs.npz --benchmark
  onnxprune model.onnx --keep 'head.*' --save-plan plan.json --dry-run
  onnxprune inspect model.onnx
  onnxprune benchmark model.onnx small.onnx
"""
_EXIT_CODES = """\
\b
0  done: pruned and verified
1  internal error
2  usage: an option, an input array or an output path does not fit
3  the model cannot be loaded or is not supported
4  nothing can be pruned, or the target cannot be reached
5  verification failed; nothing was written
"""


def main() -> None:
    """Entry point of the command `onnxprune`."""
    for stream in (sys.stdout, sys.stderr):
        # Names in models may hold what the terminal's encoding does not.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # As an exception, so that temporary files are removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    command(prog_name="onnxprune")


# ---- The group whose default command prunes --------------------------------------------------------------------------


class _Group(click.Group):
    """`onnxprune MODEL ...` is `onnxprune prune MODEL ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names, "--version"):
            args = ["prune", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "MODEL [OPTIONS]")
        for name in ("inspect", "benchmark"):
            arguments = "MODEL [OPTIONS]" if name == "inspect" else "A.onnx B.onnx [...] [OPTIONS]"
            formatter.write_usage(ctx.command_path, f"{name} {arguments}", prefix="       ")
        self.format_help_text(ctx, formatter)
        default = self.commands["prune"]
        with formatter.section("Options of onnxprune MODEL"):
            options = (parameter for parameter in default.get_params(ctx) if isinstance(parameter, click.Option))
            records = (option.get_help_record(ctx) for option in options)
            formatter.write_dl([record for record in records if record])
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(90)) for name in ("inspect", "benchmark")]
            )
            formatter.write_text("`onnxprune COMMAND --help` lists their options.")
        with formatter.section("Exit codes"):
            formatter.write_text(_EXIT_CODES)


class _DefaultContext(click.Context):
    """In usage lines, the default command goes by the name of the group."""

    @property
    def command_path(self) -> str:
        return self.parent.command_path if self.parent else super().command_path


class _Default(click.Command):
    """The command that needs no name: its help is that of the whole."""

    context_class = _DefaultContext

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if ctx.parent is None:
            super().format_help(ctx, formatter)
        else:
            ctx.parent.command.format_help(ctx.parent, formatter)


# ---- Options ---------------------------------------------------------------------------------------------------------


def _parse_shapes(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, colon, sizes = value.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not (name and colon and shape) or min(shape) < 1:
            raise click.BadParameter(f"{value!r} is not NAME:SIZE,SIZE,... with whole sizes of at least 1")
        if name in shapes:
            raise click.BadParameter(f"input {name!r} is given twice")
        shapes[name] = shape
    return shapes


def _parse_round_to(context: click.Context, parameter: click.Parameter, value: str) -> RoundTo:
    if value == "auto":
        return "auto"
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither 'auto' nor a whole number of at least 1")
    return int(value)


_PATH = click.Path(readable=False, path_type=Path)  # whoever opens it has the better message
_input_shape = click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    callback=_parse_shapes,
    metavar="NAME:1,3,224,224",
    help="Shape of an input with dynamic axes. Repeatable.",
)
_calibration = click.option(
    "--calibration", type=_PATH, metavar="PATH", help="Inputs: a .npz of arrays by input name, or a folder of them."
)
_provider = click.option(
    "--provider", type=click.Choice(PROVIDERS), default="cpu", show_default=True, help="What the model will run on."
)
_seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random.")
_json = click.option(
    "--json", "json_path", type=_PATH, metavar="FILE", help="Write the report as JSON; '-' is standard output."
)


def _messages(function: Function) -> Function:
    """The options that decide what is said."""
    options = (
        click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only."),
        click.option("-v", "--verbose", is_flag=True, help="Log every step, and shorten no list."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@dataclass(frozen=True)
class _Voice:
    quiet: bool
    verbose: bool
    debug: bool


# ---- Commands --------------------------------------------------------------------------------------------------------


@click.group(
    cls=_Group, help=_ABOUT, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="onnxprune", message="%(prog)s %(version)s")
def command() -> None:
    """Prune ONNX models; see `_ABOUT`."""


@command.command("prune", cls=_Default, hidden=True)
@click.argument("model", type=_PATH)
@click.option("-o", "--output", type=_PATH, metavar="OUT", help="Where to write; MODEL_pruned.onnx if not given.")
@click.option(
    "--ratio", type=float, default=0.5, show_default=True, metavar="R", help="Share of every group to remove, 0 to 1."
)
@click.option(
    "--depth",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Remove the N residual blocks that matter least first; alone with --ratio 0.",
)
@click.option(
    "--target",
    metavar="WHAT=X",
    help="In place of --ratio: macs=0.5 or params=0.5 (the share kept), or size=10MB. Needs --calibration.",
)
@click.option(
    "--allocation",
    type=click.Choice(ALLOCATIONS),
    default="sensitivity",
    show_default=True,
    help="How a --target is split over the groups.",
)
@click.option(
    "--criterion",
    metavar="NAME",
    help="What a channel is worth: l1, l2, linf or random; with --calibration also obs, variance, wanda or pca.  "
    "[default: obs with --calibration, else l2]",
)
@_calibration
@_input_shape
@click.option(
    "--round-to",
    default="auto",
    show_default=True,
    callback=_parse_round_to,
    metavar="auto|N",
    help="Round kept widths up to multiples: 'auto' for what the provider is fast at.",
)
@click.option("--keep", multiple=True, metavar="P", help="Leave groups whose id, tensors or nodes match P. Repeatable.")
@click.option("--only", multiple=True, metavar="P", help="Prune only groups that match the pattern P. Repeatable.")
@click.option(
    "--heads/--no-heads",
    default=True,
    show_default=True,
    help="Whether attention heads and groups of channels may go; without, such products stay whole.",
)
@click.option("--head-width", is_flag=True, help="Of heads times width, cut the width of every head, not the heads.")
@click.option(
    "--recover/--no-recover",
    default=True,
    show_default=True,
    help="Refit what is left to the original's outputs on the --calibration inputs.",
)
@click.option("--tune", is_flag=True, help="Distil from the original after that (needs the extra 'gradients').")
@click.option(
    "--calibration-size",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Rows of the calibration data to use, at most.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Threads for the recovery."
)
@click.option(
    "--memory",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    metavar="MB",
    help="Activations the recovery holds in memory, at most; beyond that in temporary files.",
)
@_provider
@click.option("--benchmark", is_flag=True, help="Measure the latency of both models, interleaved.")
@click.option("--dry-run", is_flag=True, help="Decide and report, but write no model.")
@_json
@click.option("--save-plan", type=_PATH, metavar="FILE", help="Write what is kept as a JSON plan.")
@click.option(
    "--plan", type=_PATH, metavar="FILE", help="Prune as this plan says; --ratio and --criterion do not count."
)
@_seed
@click.option("--force", is_flag=True, help="Replace an existing output.")
@_messages
def prune_command(  # noqa: PLR0913 - one argument per flag
    model: Path,
    *,
    output: Path | None,
    ratio: float,
    depth: int,
    target: str | None,
    allocation: str,
    criterion: str | None,
    calibration: Path | None,
    input_shapes: dict[str, tuple[int, ...]],
    round_to: RoundTo,
    keep: tuple[str, ...],
    only: tuple[str, ...],
    heads: bool,
    head_width: bool,
    recover: bool,
    tune: bool,
    calibration_size: int,
    threads: int,
    memory: int,
    provider: Literal["cpu", "cuda"],
    benchmark: bool,
    dry_run: bool,
    json_path: Path | None,
    save_plan: Path | None,
    plan: Path | None,
    seed: int,
    force: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Prune MODEL."""
    voice = _Voice(quiet, verbose, debug)
    with _failures(voice):
        config = Config(
            output=output,
            ratio=ratio,
            depth=depth,
            target=target,
            allocation=allocation,
            criterion=criterion,
            calibration=calibration,
            input_shapes=input_shapes,
            round_to=round_to,
            keep=keep,
            only=only,
            heads=heads,
            head_width=head_width,
            recover=recover,
            tune=tune,
            calibration_size=calibration_size,
            threads=threads,
            memory_bytes=memory << 20,
            provider=provider,
            benchmark=benchmark,
            dry_run=dry_run,
            plan=plan,
            save_plan=save_plan,
            seed=seed,
            force=force,
        )
        _prune(model, config, json_path, voice)


@command.command("inspect", short_help="Show groups, couplings, shares and refusals; write nothing.")
@click.argument("model", type=_PATH)
@_input_shape
@_json
@click.option(
    "--graph", type=_PATH, metavar="FILE", help="Draw what couples what: FILE.mmd for Mermaid, FILE.dot for Graphviz."
)
@_messages
def inspect_command(
    model: Path,
    *,
    input_shapes: dict[str, tuple[int, ...]],
    json_path: Path | None,
    graph: Path | None,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Show what of MODEL can be pruned, what must go together, and what cannot be pruned and why. Writes nothing."""
    voice = _Voice(quiet, verbose, debug)
    with _failures(voice):
        _inspect(model, input_shapes, json_path, graph, voice)


@command.command("benchmark", short_help="Compare the latency of models in interleaved pairs of runs.")
@click.argument("models", type=_PATH, nargs=-1, required=True, metavar="A.onnx B.onnx [...]")
@_input_shape
@_calibration
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Size of dynamic first axes; 1 if not given.")
@_provider
@click.option(
    "--threads", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="0 means all physical cores."
)
@click.option(
    "--budget", type=float, default=10.0, show_default=True, metavar="SECONDS", help="Time for each comparison."
)
@_json
@click.option("--svg", type=_PATH, metavar="FILE", help="Draw both distributions (two models).")
@_seed
@_messages
def benchmark_command(  # noqa: PLR0913 - one argument per flag
    models: tuple[Path, ...],
    *,
    input_shapes: dict[str, tuple[int, ...]],
    calibration: Path | None,
    batch: int | None,
    provider: str,
    threads: int,
    budget: float,
    json_path: Path | None,
    svg: Path | None,
    seed: int,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Time every further model against the first, on the same inputs, in interleaved pairs of runs."""
    voice = _Voice(quiet, verbose, debug)
    with _failures(voice):
        _check_reports(models, calibration, json_path, svg)
        from onnxprune import latency
        from onnxprune.comparison import benchmark
        from onnxprune.report import console, plain_json

        with _progress(voice, "benchmark ..."):
            results = benchmark(
                models,
                input_shapes=input_shapes,
                calibration=calibration,
                batch=batch,
                provider=provider,
                threads=threads,
                budget_s=budget,
                seed=seed,
            )
        if svg:
            _write_text(svg, latency.histogram_svg(results[0], f"{models[0].name} and {models[1].name}"))
        data = plain_json.dumps(plain_json.comparison_data(models, results, seed=seed))
        text = console.comparison_text(models, results, width=_width(), colour=_colour())
        _deliver(text, data, json_path, voice)


def _check_reports(models: Sequence[Path], calibration: Path | None, json_path: Path | None, svg: Path | None) -> None:
    if svg and len(models) != 2:
        raise UsageError(f"--svg draws two models, {len(models)} are given")
    read = {f"the model {model}": model for model in models}
    check_paths({**read, "--calibration": calibration}, {"--json": _file(json_path), "--svg": svg})
    check_report_path("--json", _file(json_path), "{")
    check_report_path("--svg", svg, "<")


def _prune(model: Path, config: Config, json_path: Path | None, voice: _Voice) -> None:
    report = _file(json_path)
    config.validate(model)
    read = {"the input model": model, "--calibration": config.calibration, "--plan": config.plan}
    output = config.output_for(model)
    check_paths(read, {"--output": output, "--save-plan": config.save_plan, "--json": report})
    check_report_path("--json", report, "{")
    from onnxprune.api import prune
    from onnxprune.report import console, plain_json

    with _progress(voice, "load ..."):
        found = prune(model, config)
    text = console.prune_text(found, width=_width(), colour=_colour())
    _deliver(text, plain_json.dumps(plain_json.report_data(found)), json_path, voice)


def _inspect(
    model: Path, shapes: dict[str, tuple[int, ...]], json_path: Path | None, graph: Path | None, voice: _Voice
) -> None:
    from onnxprune.report import coupling

    report = _file(json_path)
    check_paths({"the input model": model}, {"--json": report, "--graph": graph})
    check_report_path("--json", report, "{")
    check_report_path("--graph", graph, coupling.start(graph) if graph else "")
    from onnxprune.api import inspect
    from onnxprune.report import console, plain_json

    with _progress(voice, "load ..."):
        found = inspect(model, shapes)
    if graph:
        _write_text(graph, coupling.text(found, graph))
    text = console.inspect_text(found, width=_width(), colour=_colour(), every=voice.verbose)
    _deliver(text, plain_json.dumps(plain_json.report_data(found)), json_path, voice)


# ---- Results ---------------------------------------------------------------------------------------------------------


def _file(path: Path | None) -> Path | None:
    """A report path, or None where '-' stands for standard output."""
    return None if path == Path("-") else path


def _deliver(text: str, data: str, json_path: Path | None, voice: _Voice) -> None:
    """Print the text, unless standard output is for the JSON or nothing is wanted there; write the JSON."""
    report = _file(json_path)
    if report:
        _write_text(report, data)
    if json_path and not report:
        _print(data)
    elif not voice.quiet:
        _print(text)


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _print(text: str) -> None:
    try:
        click.echo(text, nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` perhaps, has seen enough; Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise OutputError(f"standard output cannot be written ({error.strerror})") from error


def _width() -> int:
    """The terminal's columns, within reason; a fixed width where there is none."""
    from onnxprune.report.console import WIDTH

    if not sys.stdout.isatty():
        return WIDTH
    import shutil

    return min(160, max(60, shutil.get_terminal_size((WIDTH, 24)).columns))


def _colour() -> bool:
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
def _progress(voice: _Voice, first: str) -> Iterator[None]:
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
def _failures(voice: _Voice) -> Iterator[None]:
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


def _fail(message: str, code: int, voice: _Voice) -> NoReturn:
    if voice.debug:
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
    raise click.exceptions.Exit(code)
