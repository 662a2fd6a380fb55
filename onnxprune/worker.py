"""Runs a function in a child process, so that a crash or a hang of native code is an error message.

Crafted and merely unusual models have crashed ONNX Runtime (SIGSEGV takes the whole process with it) and can keep it
busy for ever. `call` therefore runs verification and timing in a child of its own. `multiprocessing` is not used: its
spawn method imports the user's main script again, which an unguarded script does not survive.

The two sides exchange pickles through files in one private temporary directory. The child's standard output and error
go to a log file there: ONNX Runtime writes to them directly, and none of it belongs on the user's terminal. What the
user's own code prints there is handed on to standard error when the child has ended.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from onnxprune import errors, usercode
from onnxprune.errors import OnnxPruneError, WorkerError

_logger = logging.getLogger(__name__)

_REQUEST, _REPLY, _LOG, _PRINTS = "request.pickle", "reply.pickle", "log.txt", "prints.txt"
_LOG_TAIL_BYTES = 65536
_LOG_TAIL_LINES = 8
# Colour codes, which ONNX Runtime puts around its log lines.
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class _Request:
    function: str
    arguments: dict[str, Any]
    log_level: int


@dataclass(frozen=True)
class _Failure:
    """An exception of the child: class names from the class itself up, message, and the traceback as text."""

    classes: tuple[str, ...]
    message: str
    traceback: str


def call(function: str, arguments: Mapping[str, Any], *, timeout_s: float, threads: int = 1) -> Any:
    """Return `function(**arguments)`, run in a child process; `function` is written "package.module:name".

    An exception of the OnnxPruneError tree is raised here with the same class and message. WorkerError is raised for
    every other exception, for a crash (naming the signal) and after `timeout_s` seconds. KeyboardInterrupt ends the
    child. Arguments and result must be picklable, and the function importable by that name. `threads`: of numpy's
    matrix products.
    """
    with calling(function, arguments, timeout_s=timeout_s, threads=threads) as result:
        return result()


@contextlib.contextmanager
def calling(
    function: str, arguments: Mapping[str, Any], *, timeout_s: float, threads: int = 1
) -> Iterator[Callable[[], Any]]:
    """`call` in two steps: the child works while the block runs, and what the block is given waits for the result.

    Where the block ends without it, the child is ended.
    """
    child = _take(threads)
    try:
        with (child.directory / _REQUEST).open("wb") as file:
            pickle.dump(_Request(function, dict(arguments), _logger.getEffectiveLevel()), file, protocol=5)
        child.begin()
        yield lambda: _result(child, function, timeout_s)
    finally:
        child.end()
        _forward_log(child.directory)
        _forward_prints(child.directory)
        shutil.rmtree(child.directory, ignore_errors=True)


@contextlib.contextmanager
def ready(module: str, threads: int = 1) -> Iterator[None]:
    """Have a child process import `module` while the block goes on; it answers the first call with as many threads.

    Starting Python and importing take longer than many a call.
    """
    child = _Child(threads, module)
    with _idle_lock:
        _idle.append(child)
    try:
        yield
    finally:
        with _idle_lock:
            is_left = child in _idle
            if is_left:
                _idle.remove(child)
        if is_left:
            child.end()
            shutil.rmtree(child.directory, ignore_errors=True)


class _Child:
    """A child process that waits for a request in its `directory`. `module`: what it imports meanwhile.

    Raises WorkerError where it cannot be started.
    """

    def __init__(self, threads: int, module: str = "onnxprune.worker") -> None:
        self.threads = threads
        self.directory = Path(tempfile.mkdtemp(prefix="onnxprune-"))
        try:
            self.process = self._started(module)
        except BaseException as error:
            shutil.rmtree(self.directory, ignore_errors=True)
            if isinstance(error, OSError):
                raise WorkerError(f"a child process ({sys.executable}) cannot be started: {error}") from error
            raise

    def _started(self, module: str) -> subprocess.Popen[bytes]:
        # runpy warns when the package has imported this module already; under PYTHONWARNINGS=error that would be fatal.
        command = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", "onnxprune.worker"]
        # Of a child of a child, the process at the top hands on what is printed.
        environment = {usercode.PRINTS: str(self.directory / _PRINTS), **_environment(self.threads)}
        with (self.directory / _LOG).open("wb") as log:
            # A session of its own: Ctrl-C reaches only the parent, which ends the child.
            return subprocess.Popen(
                [*command, str(self.directory), module],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def begin(self) -> None:
        """Tell the child that its request is there."""
        with contextlib.suppress(BrokenPipeError):  # it has ended; `_result` says how
            os.write(self._pipe(), b"\n")

    def _pipe(self) -> int:
        if self.process.stdin is None:
            raise ValueError("a child without standard input")
        return self.process.stdin.fileno()

    def end(self) -> None:
        """Kill the child where it is still there."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


_idle: list[_Child] = []
"""Children that wait for a request."""
_idle_lock = threading.Lock()


def _take(threads: int) -> _Child:
    """A child that waits already, or else a new one."""
    with _idle_lock:
        for child in _idle:
            if child.threads == threads and child.process.poll() is None:
                _idle.remove(child)
                return child
    return _Child(threads)


def _result(child: _Child, function: str, timeout_s: float) -> Any:
    try:
        exit_code = child.process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        child.end()
        limit = f"{timeout_s:g} s"
        message = f"{function} did not finish within {limit} and was stopped. Raise the limit (timeout_s in Python)"
        message += " where the model is merely slow; a model that never finishes hangs in the runtime."
        raise WorkerError(message + _log_tail(child.directory)) from None
    reply = _read_reply(child.directory, function, exit_code)
    if isinstance(reply, _Failure):
        _raise(reply, function, child.directory)
    return reply


def _environment(count: int = 1) -> dict[str, str]:
    """The parent's environment, with its import path: the child must find the same packages in the same order."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    # Safe path: `-m` would put the working directory first, where any file could shadow a module.
    # A given number of threads for numpy's matrix products: the sums are then the same on every run.
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(count))
    return {**os.environ, **threads, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _read_reply(directory: Path, function: str, exit_code: int) -> Any:
    if exit_code != 0:
        raise WorkerError(f"{function} {describe_exit(exit_code)} in its child process.{_log_tail(directory)}")
    try:
        with (directory / _REPLY).open("rb") as file:
            return pickle.load(file)
    except Exception as error:  # a damaged pickle can raise nearly anything
        text = f"the result of {function} cannot be read back: {type(error).__name__}: {error}"
        raise WorkerError(text + _log_tail(directory)) from error


def describe_exit(exit_code: int) -> str:
    """Words for the exit code of a child that failed, such as "crashed with SIGSEGV (segmentation fault)"."""
    if exit_code >= 0:
        return f"ended with exit code {exit_code if exit_code < 256 else hex(exit_code)}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        return f"was ended by signal {-exit_code}"
    if name == "SIGKILL":
        return "was killed (SIGKILL; most often the machine ran out of memory)"
    words = signal.strsignal(-exit_code)
    return f"crashed with {name}" + (f" ({words.lower()})" if words else "")


def _raise(failure: _Failure, function: str, directory: Path) -> None:
    _logger.debug("%s failed in its child process:\n%s", function, failure.traceback)
    for name in failure.classes:
        known = getattr(errors, name, None)
        if isinstance(known, type) and issubclass(known, OnnxPruneError):
            raise known(failure.message)
    if "MemoryError" in failure.classes:
        raise WorkerError(
            "there is not enough memory to run the model; give smaller sizes with --input-shape or --batch"
        )
    text = f"{function} failed in its child process: {failure.classes[0]}: {failure.message}"
    raise WorkerError(text + _log_tail(directory))


def _log_lines(directory: Path) -> list[str]:
    try:
        with (directory / _LOG).open("rb") as file:
            # A hanging runtime can write gigabytes; only the end is of interest.
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in _ESCAPE.sub("", text).splitlines() if line.strip()]


def _log_tail(directory: Path) -> str:
    lines = _log_lines(directory)[-_LOG_TAIL_LINES:]
    return "".join(["\nLast output of the child process:", *(f"\n  {line}" for line in lines)]) if lines else ""


def _forward_log(directory: Path) -> None:
    if _logger.isEnabledFor(logging.DEBUG):
        for line in _log_lines(directory):
            _logger.debug("child: %s", line)


def _forward_prints(directory: Path) -> None:
    """What user code printed in the child, on standard error."""
    path = directory / _PRINTS
    if path.exists() and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError), path.open(encoding="utf-8", errors="replace") as file:
            shutil.copyfileobj(file, sys.stderr)


# ---- The child's side ------------------------------------------------------------------------------------------------


def main() -> None:
    """Import the module named on the command line, answer the request in the directory named there, and leave without
    any teardown."""
    directory = Path(sys.argv[1])
    _forbid_core_file()
    _keep_temporary_files_in(directory)
    with contextlib.suppress(Exception):  # a call that needs the module says why it cannot be imported
        importlib.import_module(sys.argv[2])
    if not os.read(0, 1):  # the parent is gone, or needs no child after all
        _leave(directory)
    threading.Thread(target=_watch_parent, args=(directory,), daemon=True).start()
    reply = _answer(directory)
    try:
        _write_reply(directory, reply)
    except Exception as error:  # noqa: BLE001 - any object may refuse to be pickled, in any way
        _write_reply(directory, _failure(error))
    sys.stdout.flush()
    sys.stderr.flush()
    # Native libraries (CUDA above all) are known to crash while they unload; the result is on disk by now.
    os._exit(0)


def _forbid_core_file() -> None:
    """A crash is expected here and reported; it must not leave a core file in the user's working directory."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # absent on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _keep_temporary_files_in(directory: Path) -> None:
    """Those of this process and of the ones it starts: they go with the directory, however it ends."""
    tempfile.tempdir = str(directory)
    for name in ("TMPDIR", "TEMP", "TMP"):
        os.environ[name] = str(directory)


def _watch_parent(directory: Path) -> None:
    """End this process when the parent is gone: its end of the pipe on standard input closes however it died."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    _leave(directory)


def _leave(directory: Path) -> NoReturn:
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)


def _answer(directory: Path) -> Any:
    try:
        with (directory / _REQUEST).open("rb") as file:
            request: _Request = pickle.load(file)
        logging.basicConfig(level=request.log_level, format="%(name)s: %(message)s")
        module, _, name = request.function.partition(":")
        return getattr(importlib.import_module(module), name)(**request.arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it
        return _failure(error)


def _failure(error: Exception) -> _Failure:
    classes = tuple(kind.__name__ for kind in type(error).__mro__)
    return _Failure(classes, str(error), traceback.format_exc())


def _write_reply(directory: Path, reply: Any) -> None:
    with (directory / _REPLY).open("wb") as file:
        pickle.dump(reply, file, protocol=5)


if __name__ == "__main__":
    # Pickles name classes by module: use those of the imported module, not their twins in __main__.
    importlib.import_module("onnxprune.worker").main()
