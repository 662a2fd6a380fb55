"""The user's Python code: a module by its name, or a file `path/file.py`, and what becomes of what it prints.

Standard output is for results (`--json -`), so what user code prints goes to standard error. In a child process, whose
streams are a log, it goes to a file that `PRINTS` names, and the parent hands that on.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

PRINTS = "ONNXPRUNE_PRINTS"
"""The environment variable of a child process with the path of the file that takes what user code prints there."""


def load(source: str) -> ModuleType:
    """The module of that name, from the working directory too, or of that file. Raises whatever its code raises."""
    with running(source):
        return _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def running(source: str) -> Iterator[None]:
    """Around the user's code: what lies beside the file (of a module: in the working directory) can be imported, and
    what is printed goes to standard error."""
    folder = str(Path(source).parent.resolve()) if source.endswith(".py") else os.getcwd()
    sys.path.insert(0, folder)
    try:
        with _aside():
            yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


# ---- What is printed -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Meanwhile what user code prints is dropped: for code that is called a thousand times over."""
    before = os.environ.get(PRINTS)
    os.environ[PRINTS] = os.devnull
    try:
        yield
    finally:
        if before is None:
            del os.environ[PRINTS]
        else:
            os.environ[PRINTS] = before


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """What the block prints goes to standard error, that of the processes it starts too; in a child to the file."""
    path = os.environ.get(PRINTS)
    with contextlib.ExitStack() as stack:
        if path is None:
            stack.enter_context(_descriptor(1, to=2))
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        else:
            file = stack.enter_context(open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace"))
            for number in (1, 2):
                stack.enter_context(_descriptor(number, to=file.fileno()))
            stack.enter_context(contextlib.redirect_stdout(file))
            stack.enter_context(contextlib.redirect_stderr(file))
        yield


@contextlib.contextmanager
def _descriptor(number: int, *, to: int) -> Iterator[None]:
    """Meanwhile what is written to one file descriptor goes to another; nothing happens where one of them is closed."""
    _flush()
    try:
        saved = os.dup(number)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            os.dup2(to, number)
        yield
    finally:
        _flush()
        os.dup2(saved, number)
        os.close(saved)


def _flush() -> None:
    """What was written before goes where it was meant to go."""
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[union-attr]
