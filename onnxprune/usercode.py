"""The user's Python code: a module by its name, or a file `path/file.py`, and what becomes of what it prints.

Standard output is for results (`--json -`), so what user code prints goes to standard error. In a child process, whose
streams are a log, it goes to a file that `PRINTS` names, and the parent hands that on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TextIO

PRINTS = "ONNXPRUNE_PRINTS"
"""The environment variable of a child process with the path of the file that takes what user code prints there."""


def load(source: str) -> ModuleType:
    """The module of that name, from the working directory too, or of that file. Raises whatever its code raises."""
    with running(source):
        return _loaded_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)


def _loaded_file(path: Path) -> ModuleType:
    """The module of a file, executed once in a process where it stays as it is."""
    state = path.stat()
    return _load_once(path.resolve(), state.st_mtime_ns, state.st_size)


@functools.cache
def _load_once(path: Path, changed_ns: int, size: int) -> ModuleType:
    return _load_file(path)


def words(error: BaseException) -> str:
    """What user code raised, in one line."""
    if isinstance(error, SystemExit):
        return f"SystemExit: it calls sys.exit({'' if error.code is None else repr(error.code)})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _load_file(path: Path) -> ModuleType:
    """Its name among the modules is its path: dataclasses look their module up there, and no other has that name."""
    spec = importlib.util.spec_from_file_location(str(path), path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


@contextlib.contextmanager
def running(source: str) -> Iterator[None]:
    """Around the user's code: what lies beside the file (of a module: in the working directory) can be imported, and
    what is printed goes to standard error."""
    folder = str(Path(source).parent.resolve()) if source.endswith(".py") else os.getcwd()
    sys.path.insert(0, folder)
    try:
        with _aside.block():
            yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


# ---- What is printed -------------------------------------------------------------------------------------------------


class _Aside:
    """Where the streams of this process point while user code runs. They are the same for all threads: the first block
    that is entered turns them aside, and when the last is left they are put back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._silences = 0
        self._restore = contextlib.ExitStack()

    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """What the block prints goes to standard error, that of the processes it starts too; in a child to the file."""
        with self._lock:
            if not self._blocks:
                self._restore = _turned_aside(is_silent=self._silences > 0)
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    self._restore.close()

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """What blocks that are entered meanwhile print is dropped."""
        with self._lock:
            self._silences += 1
        try:
            yield
        finally:
            with self._lock:
                self._silences -= 1


_aside = _Aside()


def unheard() -> contextlib.AbstractContextManager[None]:
    """Meanwhile what user code prints is dropped: for code that is called a thousand times over."""
    return _aside.silence()


def _turned_aside(*, is_silent: bool) -> contextlib.ExitStack:
    """The streams of this process, turned aside until the result is closed."""
    path = os.environ.get(PRINTS)
    kept = None if path is None else _lasting(path)
    sink = _lasting(os.devnull) if is_silent else kept
    with contextlib.ExitStack() as stack:
        _flush(kept, sink)
        for number in (1,) if sink is None else (1, 2):
            stack.enter_context(_descriptor(number, to=2 if sink is None else sink.fileno()))
        if sink is not None and kept is not None and sink is not kept:
            # Of code that kept the stream that it was given earlier.
            stack.enter_context(_descriptor(kept.fileno(), to=sink.fileno()))
        stack.enter_context(contextlib.redirect_stdout(sink or sys.stderr))
        stack.enter_context(contextlib.redirect_stderr(sink or sys.stderr))
        stack.callback(_flush, kept, sink)  # goes first when the stack is closed
        return stack.pop_all()


@functools.cache
def _lasting(path: str) -> TextIO:
    """A file to add to, opened once for the whole process: user code may keep the stream it is given, as a logging
    handler does."""
    return open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def _descriptor(number: int, *, to: int) -> Iterator[None]:
    """Meanwhile what is written to one file descriptor goes to another; nothing happens where one of them is closed."""
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
        os.dup2(saved, number)
        os.close(saved)


def _flush(*others: TextIO | None) -> None:
    """What was written before goes where it was meant to go."""
    for stream in (sys.__stdout__, sys.__stderr__, *others):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[union-attr]
