"""User code in this process: where its prints go, also from several threads at once."""

from __future__ import annotations

import json  # noqa: F401 - it has to be among the modules
import os
import sys
import threading
from pathlib import Path

import pytest

from onnxprune import usercode


def test_prints_of_user_code_go_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with usercode.running("user.py"):
        print("from Python")
        os.write(1, b"of a library\n")
    print("a result", flush=True)
    assert capfd.readouterr() == ("a result\n", "from Python\nof a library\n")


def test_a_file_is_executed_once_while_it_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.py"
    file.write_text("print('hi')")
    assert usercode.load(str(file)) is usercode.load(str(file))
    assert capsys.readouterr().err == "hi\n"
    file.write_text("print('another')")
    usercode.load(str(file))
    assert capsys.readouterr().err == "another\n"


def test_a_file_may_define_dataclasses_and_be_called_like_a_module(tmp_path: Path) -> None:
    lines = (
        "from __future__ import annotations",
        "import dataclasses",
        "@dataclasses.dataclass",
        "class A:",
        "    x: int",
    )
    file = tmp_path / "json.py"
    file.write_text("\n".join(lines))
    assert usercode.load(str(file)).A(3) == usercode.load(str(file)).A(3)
    assert "dumps" in vars(sys.modules["json"])
    file.write_text("raise ValueError('no')")
    with pytest.raises(ValueError, match="no"):
        usercode.load(str(file))
    assert str(file) not in sys.modules


def test_prints_are_dropped_where_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    with usercode.unheard(), usercode.running("user.py"):
        print("from Python")
        os.write(1, b"of a library\n")
    with usercode.running("user.py"):
        print("heard")
    assert capfd.readouterr() == ("", "heard\n")


def test_blocks_that_overlap_put_the_streams_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with usercode.running("user.py"):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(30)
    with usercode.running("user.py"):
        leave.set()
        thread.join()
        print("user code")
        os.write(1, b"of a library\n")
    assert (sys.stdout, sys.stderr) == before
    print("a result", flush=True)
    os.write(1, b"another\n")
    assert capfd.readouterr() == ("a result\nanother\n", "user code\nof a library\n")


def test_what_user_code_raises_is_one_line() -> None:
    assert usercode.words(ValueError("two\n  lines")) == "ValueError: two lines"
