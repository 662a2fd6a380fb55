"""The child process: results, every kind of failure, and nothing left behind."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxprune import worker
from onnxprune.errors import ModelError, UsageError, WorkerError

_TARGETS = '''
import contextlib, ctypes, os, subprocess, sys, tempfile, time, warnings
from onnxprune import usercode, worker
from onnxprune.errors import ModelError

class BentModelError(ModelError):
    """A class the parent cannot know by name."""

def add(a, b): return a + b
def echo(**arguments): return arguments
def refuse(): raise ModelError("node 'conv1': 3 channels, 4 expected")
def refuse_subclass(): raise BentModelError("bent")
def fail(): raise ZeroDivisionError("by zero")
def segfault():
    os.write(2, b"\\x1b[0;93m[E:onnxruntime] the last words\\x1b[m\\n")
    ctypes.string_at(0)
def hang(seconds=60):
    print("still busy", file=sys.stderr, flush=True)
    time.sleep(seconds)
def chatter():
    print("on stdout")
    os.write(2, b"on stderr\\n")
    return 1
def own_pid(): return os.getpid()
def leave(): sys.exit(7)
def user_code():
    print("for the log")
    with usercode.running("user.py"):
        print("for the user")
        os.write(2, b"of a library\\n")
    return 1
def pass_on(): return worker.call("worker_targets:user_code", {}, timeout_s=60)
def user_crash():
    with usercode.running("user.py"):
        print("the last words of the user", flush=True)
        ctypes.string_at(0)
def keeper(silent=False):
    with usercode.running("kept_streams.py"):
        module = usercode.load(os.path.join(os.path.dirname(__file__), "kept_streams.py"))
    with usercode.unheard() if silent else contextlib.nullcontext():
        with usercode.running("kept_streams.py"):
            module.speak()
    return 1
def litter(path=None):
    folder = tempfile.mkdtemp()
    with open(os.path.join(folder, "spilled"), "w") as file: file.write("x" * 100000)
    subprocess.run([sys.executable, "-c", "import tempfile; tempfile.mkdtemp()"], check=True)
    if path is None: time.sleep(60)
    write_pid(path)
def vanish(): os._exit(0)
def unpicklable(): return lambda: None
def write_pid(path):
    with open(path, "w") as file: file.write(str(os.getpid()))
    time.sleep(60)
'''

_KEPT = """
import logging, sys

out = sys.stdout
log = logging.Logger("user")
log.addHandler(logging.StreamHandler())
print("at import")

def speak():
    print("by the stream kept", file=out)
    log.warning("by the handler")
    print("by print")
"""


@pytest.fixture(autouse=True)
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of functions to call, importable here and in the child, and a private place for temporary files."""
    (tmp_path / "worker_targets.py").write_text(_TARGETS, encoding="utf-8")
    (tmp_path / "kept_streams.py").write_text(_KEPT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return scratch


def _call(name: str, timeout_s: float = 60.0, **arguments: Any) -> Any:
    return worker.call(f"worker_targets:{name}", arguments, timeout_s=timeout_s)


def test_returns_the_result_and_leaves_no_file(targets: Path) -> None:
    assert _call("add", a=2, b=3) == 5
    assert list(targets.iterdir()) == []


def test_large_arrays_pass_both_ways_and_stay_writable() -> None:
    array = np.arange(2_000_000, dtype=np.float64)
    result = _call("echo", feeds={"x": array})
    np.testing.assert_array_equal(result["feeds"]["x"], array)
    assert result["feeds"]["x"].flags.writeable


def test_a_ready_child_answers_the_next_call(targets: Path) -> None:
    with worker.ready("worker_targets"):
        waiting = worker._idle[0].process.pid
        assert _call("own_pid") == waiting
        assert _call("own_pid") != waiting
    assert list(targets.iterdir()) == []


def test_a_ready_child_that_nobody_needs_ends(targets: Path) -> None:
    with worker.ready("worker_targets"):
        process = worker._idle[0].process
    assert process.poll() is not None
    assert list(targets.iterdir()) == []


def test_a_ready_child_that_cannot_import_answers_all_the_same() -> None:
    with worker.ready("worker_targets_that_are_not_there"):
        waiting = worker._idle[0].process.pid
        assert _call("own_pid") == waiting


def test_only_one_of_many_threads_takes_a_child_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting:
        threads, process = 1, SimpleNamespace(poll=lambda: time.sleep(0.01))

    kinds: list[type] = []
    monkeypatch.setattr(worker, "_Child", lambda threads: object())
    monkeypatch.setattr(worker, "_idle", [Waiting() for _ in range(3)])
    threads = [threading.Thread(target=lambda: kinds.append(type(worker._take(1)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(kinds), kinds.count(Waiting)) == (8, 3)


def test_a_child_that_cannot_be_started_is_an_error_and_leaves_no_file(
    targets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(targets.parent / "no_python"))
    with pytest.raises(WorkerError, match=r"a child process \(.*no_python\) cannot be started: .*No such file"):
        _call("add", a=1, b=2)
    assert list(targets.iterdir()) == []


def test_temporary_files_of_a_child_that_is_killed_go_with_it(targets: Path) -> None:
    with worker.calling("worker_targets:litter", {}, timeout_s=60):
        _wait_for(lambda: len([p for p in targets.glob("*/*") if p.is_dir()]) == 2)
    assert list(targets.iterdir()) == []


def test_the_block_goes_on_while_the_child_works(targets: Path) -> None:
    with worker.calling("worker_targets:hang", {"seconds": 0.2}, timeout_s=60) as result:
        assert list(targets.iterdir()) != []
        assert result() is None
    assert list(targets.iterdir()) == []


def test_an_error_in_the_block_ends_the_child(targets: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(KeyError), worker.calling("worker_targets:hang", {}, timeout_s=60):
        raise KeyError
    assert time.perf_counter() - start < 30
    assert list(targets.iterdir()) == []


def test_an_error_of_the_tree_keeps_class_and_message(targets: Path) -> None:
    with pytest.raises(ModelError) as caught:
        _call("refuse")
    assert str(caught.value) == "node 'conv1': 3 channels, 4 expected"
    assert list(targets.iterdir()) == []


def test_an_unknown_subclass_becomes_its_nearest_known_ancestor() -> None:
    with pytest.raises(ModelError, match="^bent$") as caught:
        _call("refuse_subclass")
    assert type(caught.value) is ModelError


def test_any_other_exception_is_named_with_its_message() -> None:
    with pytest.raises(
        WorkerError, match="worker_targets:fail failed in its child process: ZeroDivisionError: by zero"
    ):
        _call("fail")


@pytest.mark.skipif(os.name == "nt", reason="signals are a POSIX notion")
def test_a_crash_names_the_signal_and_the_last_output(targets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerError) as caught:
        _call("segfault")
    assert "crashed with SIGSEGV (segmentation fault)" in str(caught.value)
    assert str(caught.value).endswith("\n  [E:onnxruntime] the last words")
    assert capfd.readouterr() == ("", "")
    assert list(targets.iterdir()) == []


def test_a_time_out_states_the_limit_and_the_way_out(targets: Path) -> None:
    with pytest.raises(WorkerError) as caught:
        _call("hang", timeout_s=3.0)
    assert "worker_targets:hang did not finish within 3 s and was stopped. Raise the limit (timeout_s" in str(
        caught.value
    )
    assert "still busy" in str(caught.value)
    assert list(targets.iterdir()) == []


def test_the_child_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    assert _call("chatter") == 1
    assert capfd.readouterr() == ("", "")


def test_the_output_of_the_child_is_logged_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="onnxprune"):
        _call("chatter")
    assert {"child: on stdout", "child: on stderr"} <= set(caplog.messages)


def test_an_exit_is_an_error() -> None:
    with pytest.raises(WorkerError, match="ended with exit code 7 in its child process"):
        _call("leave")
    with pytest.raises(WorkerError, match="the result of worker_targets:vanish cannot be read back"):
        _call("vanish")


def test_a_result_that_cannot_be_pickled_is_an_error() -> None:
    with pytest.raises(WorkerError, match="worker_targets:unpicklable failed in its child process: .*pickle"):
        _call("unpicklable")


def test_an_unknown_function_is_an_error() -> None:
    with pytest.raises(WorkerError, match="AttributeError.*no_such"):
        _call("no_such")


def test_arguments_that_cannot_be_pickled_leave_no_file(targets: Path) -> None:
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        _call("echo", function=lambda: None)
    assert list(targets.iterdir()) == []


def test_works_from_an_unguarded_script(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from onnxprune import worker\nprint(worker.call('math:hypot', {}, timeout_s=60))\n", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=worker._environment(), capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("0.0\n", "")


@pytest.mark.skipif(not hasattr(sys.flags, "safe_path"), reason="the safe path is new in Python 3.11")
def test_a_module_in_the_working_directory_does_not_shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "logging.py").write_text("raise SystemExit('shadowed')", encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    assert _call("add", a=1, b=1) == 2


def _wait_for(condition: Any, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the child did not get there"
        time.sleep(0.02)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ctrl_c_ends_the_child(tmp_path: Path, targets: Path) -> None:
    note = tmp_path / "pid"
    # A job in the background of a shell ignores the signal, and its tests must not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        _wait_for(lambda: note.exists() and note.read_text(encoding="ascii"))
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        _call("write_pid", path=str(note))
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert not _running(int(note.read_text(encoding="ascii")))
    assert list(targets.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["write_pid", "litter"])
def test_the_child_of_a_killed_parent_ends_and_cleans_up(name: str, tmp_path: Path, targets: Path) -> None:
    note, script = tmp_path / "pid", tmp_path / "parent.py"
    text = f"""
        import tempfile
        from onnxprune import worker
        tempfile.tempdir = {str(targets)!r}
        worker.call("worker_targets:{name}", {{"path": {str(note)!r}}}, timeout_s=60)
    """
    script.write_text(textwrap.dedent(text), encoding="utf-8")
    environment = {**worker._environment(), "TMPDIR": str(targets)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    _wait_for(lambda: note.exists() and note.read_text(encoding="ascii"))
    parent.kill()
    parent.wait()
    pid = int(note.read_text(encoding="ascii"))
    _wait_for(lambda: not Path(f"/proc/{pid}").exists() or not _running(pid))
    assert list(targets.iterdir()) == []


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (3, "ended with exit code 3"),
        (0xC0000005, "ended with exit code 0xc0000005"),
        pytest.param(-9, "was killed (SIGKILL; most often the machine ran out of memory)"),
        pytest.param(-6, "crashed with SIGABRT (aborted)"),
        (-250, "was ended by signal 250"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="signals are a POSIX notion")
def test_exit_codes_in_words(exit_code: int, words: str) -> None:
    assert worker.describe_exit(exit_code) == words


def test_usage_errors_cross_the_border() -> None:
    with pytest.raises(UsageError, match="at least two models"):
        worker.call("onnxprune.latency.measure:compare_many", {"models": ["a.onnx"], "feeds": {}}, timeout_s=60)


@pytest.mark.parametrize("name", ["user_code", "pass_on"])
def test_what_user_code_prints_reaches_standard_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert _call(name) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == "for the user\nof a library\n"


def test_what_user_code_prints_before_a_crash_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerError, match="SIGSEGV"):
        _call("user_crash")
    assert capfd.readouterr().err == "the last words of the user\n"


def test_user_code_may_keep_the_streams_it_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    assert _call("keeper") == 1
    assert capfd.readouterr() == ("", "at import\nby the stream kept\nby the handler\nby print\n")


def test_kept_streams_are_dropped_where_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    assert _call("keeper", silent=True) == 1
    assert capfd.readouterr() == ("", "at import\n")
