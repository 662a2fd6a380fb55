"""The README: its commands, options and examples are those of the tool."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click
import pytest

from onnxprune import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_set_up_commands() -> None:
    commands = [line for line in TEXT.splitlines() if line.startswith("python3 -m venv")]
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/onnxprune models/resnet.onnx --ratio 0.5",
        'python3 -m venv .venv && .venv/bin/pip install ".[test]" && .venv/bin/pytest',
    ]


def test_named_files_exist() -> None:
    named = set(re.findall(r"models/\w+\.onnx", TEXT)) - {"models/resnet_pruned.onnx"}
    assert named
    for name in named:
        assert (ROOT / name).is_file()


def test_every_option_is_documented() -> None:
    for command in cli.command.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[-1] in TEXT or parameter.opts[0] in TEXT, parameter.opts


def test_exit_codes_are_those_of_the_help() -> None:
    for line in cli.group.EXIT_CODES.splitlines()[1:]:
        code, meaning = line.split(maxsplit=1)
        assert f"| {code} | {meaning} |" in TEXT


def test_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(example) == 1
    (tmp_path / "models").mkdir()
    shutil.copy(ROOT / "models" / "resnet.onnx", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    exec(compile(example[0], "README.md", "exec"), {})  # noqa: S102 - our own text
    assert "x (" in capsys.readouterr().out
