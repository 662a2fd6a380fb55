"""The group of commands, and the help of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from onnxprune import __version__

ABOUT = """\
Removes the channels, heads and hidden units of an ONNX model that matter least, proves the surgery exact, measures
quality and latency with ONNX Runtime, and writes a smaller model. No training framework is involved.

\b
Examples:
  onnxprune model.onnx --ratio 0.5
  onnxprune model.onnx -o small.onnx --ratio 0.3 --calibration inputs.npz --benchmark
  onnxprune model.onnx --keep 'head.*' --save-plan plan.json --dry-run
  onnxprune a.onnx b.onnx -o pruned --jobs 2
  onnxprune search model.onnx --calibration inputs.npz --ratios 0.1,0.2,0.4 --criteria obs,l2
  onnxprune inspect model.onnx
  onnxprune benchmark model.onnx small.onnx
"""
EXIT_CODES = """\
\b
0  done: pruned and verified
1  internal error, or too little memory or time
2  usage: an option, an input array or an output path does not fit
3  the model cannot be loaded or is not supported
4  nothing can be pruned, the target cannot be reached, or the result was measured and is not faster
5  verification failed; nothing was written
"""


ARGUMENTS = {
    "search": "MODEL --calibration PLACE --ratios R,R,... [OPTIONS]",
    "inspect": "MODEL [OPTIONS]",
    "sensitivity": "MODEL --calibration PATH [OPTIONS]",
    "benchmark": "A.onnx B.onnx [...] [OPTIONS]",
    "calibrate-widths": "[OPTIONS]",
}
"""The commands that need their name, and what they take."""


class _OneLine(click.UsageError):
    """What is wrong with the words of a command, in one line."""

    def show(self, file: IO[Any] | None = None) -> None:
        message = self.format_message().rstrip(".")
        path = self.ctx.command_path if self.ctx else "onnxprune"
        text = f"error: {message[:1].lower()}{message[1:]}; see `{path} --help`"
        click.echo(text, file=file, err=file is None)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        raise _OneLine(error.format_message(), error.ctx) from error


class Group(click.Group):
    """`onnxprune MODEL ...` is `onnxprune prune MODEL ...`."""

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line():
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names, "--version"):
            args = ["prune", *args]
        with _one_line():
            return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "MODEL [MODEL ...] [OPTIONS]")
        for name, arguments in ARGUMENTS.items():
            formatter.write_usage(ctx.command_path, f"{name} {arguments}", prefix="       ")
        self.format_help_text(ctx, formatter)
        default = self.commands["prune"]
        with formatter.section("Options of onnxprune MODEL"):
            options = (parameter for parameter in default.get_params(ctx) if isinstance(parameter, click.Option))
            records = (option.get_help_record(ctx) for option in options)
            formatter.write_dl([record for record in records if record])
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(90)) for name in ARGUMENTS])
            formatter.write_text("`onnxprune COMMAND --help` lists their options.")
        with formatter.section("Exit codes"):
            formatter.write_text(EXIT_CODES)


class _DefaultContext(click.Context):
    """In usage lines, the default command goes by the name of the group."""

    @property
    def command_path(self) -> str:
        return self.parent.command_path if self.parent else super().command_path


class Once(click.Command):
    """A command whose options with one value are given once: a second one would silently win."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            given = [p for p in order if isinstance(p, click.Option) and not (p.multiple or p.is_flag)]
            twice = next((p for p in given if given.count(p) > 1), None)
            if twice is not None:
                raise click.BadParameter("it is given twice: leave one of them out", ctx, twice)
        return super().parse_args(ctx, args)


class Default(Once):
    """The command that needs no name: its help is that of the whole."""

    context_class = _DefaultContext

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if ctx.parent is None:
            super().format_help(ctx, formatter)
        else:
            ctx.parent.command.format_help(ctx.parent, formatter)


@click.group(cls=Group, help=ABOUT, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="onnxprune", message="%(prog)s %(version)s")
def command() -> None:
    """Prune ONNX models; see `ABOUT`."""
