"""Options: targets in all their forms, and what would be without effect."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from onnxprune.cli import command
from onnxprune.cli.group import ARGUMENTS
from onnxprune.config import ALLOCATIONS, Config, parse_target
from onnxprune.errors import UsageError
from onnxprune.report import numbers
from onnxprune.trials import space

MODELS = Path(__file__).parents[1] / "models"


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("size=0.5", 0.5),
        ("size=1", 1.0),
        ("size=314159", 314159),
        ("size=314159 B", 314159),
        ("size=0.3MB", 300_000),
        ("size=400kB", 400_000),
        ("size=400KB", 400_000),
        ("size=722 kb", 722_000),
        ("size=2gb", 2e9),
        ("size=1KiB", 1024),
        ("size=1.5mib", 1.5 * 1024**2),
        ("size=1GIB", 1024**3),
    ],
)
def test_sizes_are_counted_as_the_report_counts_them(text: str, amount: float) -> None:
    assert parse_target(text) == ("bytes", pytest.approx(amount))


@pytest.mark.parametrize("value", [12, 314_159, 722_400, 1_560_000, 2_040_000_000])
def test_a_size_of_the_report_is_a_target(value: int) -> None:
    assert parse_target(f"size={numbers.size(value)}") == ("bytes", pytest.approx(value, rel=0.005))


@pytest.mark.parametrize("text", ["size=0.5MB2", "size=0", "size=10XB", "size=1B", "size=10ms", "macs=2", "macs=0.5kB"])
def test_a_target_that_is_none_lists_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"B, kB, MB, GB of 1000, or KiB, MiB, GiB of 1024"):
        parse_target(text)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_options_without_effect_are_refused(allocation: str) -> None:
    with pytest.raises(UsageError, match="--tune distils what was recovered, and --no-recover says not to"):
        Config(tune=True, recover=False).validate()
    result = CliRunner().invoke(command, [str(MODELS / "resnet.onnx"), "--allocation", allocation, "--ratio", "0.3"])
    assert result.exit_code == 2
    assert "--allocation says how a target is split, and there is none: give --target" in result.stderr
    if allocation != Config().allocation:
        with pytest.raises(UsageError, match="--allocation says how a target is split"):
            Config(allocation=allocation).validate()
    Config().validate()
    Config(allocation=allocation, target="macs=0.5").validate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "macs=0.5", "--target", "macs=0.7"], "invalid value for '--target': it is given twice"),
        (["--seed", "1", "--seed", "1"], "'--seed': it is given twice: leave one of them out"),
        (["--plan", "README.md", "--ratio", "0.5"], "--plan takes the place of --ratio: leave one of them out"),
        (["--plan", "README.md", "--target", "macs=0.5"], "--plan says which groups are cut: leave --target out"),
        (["--plan", "README.md", "--criterion", "l2"], "--plan says which groups are cut: leave --criterion out"),
        (["--plan", "README.md", "--round-to", "4"], "--plan says which groups are cut: leave --round-to out"),
        (["--jobs", "2"], "--jobs 2 is for several models, and one is given: leave it out"),
        (["--batch", "4"], "--batch says how latency is measured, and nothing measures it: give --benchmark"),
        (["--budget", "4", "--target", "macs=0.5"], "--budget says how latency is measured"),
        (
            ["--labels", "l.npy", "--metric", "cosine", "--calibration", "."],
            "--metric cosine compares with",
        ),
    ],
)
def test_options_given_twice_or_in_vain_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(command, [str(MODELS / "resnet.onnx"), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("name", [*ARGUMENTS, "prune"])
def test_every_command_refuses_what_is_given_twice(name: str) -> None:
    found = command.commands[name]
    option = next(o for o in found.params if isinstance(o, click.Option) and not o.multiple and not o.is_flag)
    result = CliRunner().invoke(command, [name, option.opts[-1], "1", "a.onnx", option.opts[-1], "1"])
    assert result.exit_code == 2
    assert "is given twice" in result.stderr


def test_a_budget_without_a_metric_names_both_that_it_may_be_of(tmp_path: Path) -> None:
    message = "--max-drop 5: agreement can fall by 1 and cosine can fall by 2 at most"
    with pytest.raises(UsageError, match=message):
        Config(max_drop=5, calibration=tmp_path).validate()


def test_a_search_of_ratios_takes_an_allocation_for_its_targets() -> None:
    config = Config(allocation="global", calibration=Path(__file__), tune=False)
    trials = space.trials([0.3], ["macs=0.5"], ["obs"])
    space.check(config, trials, MODELS / "resnet.onnx")
    assert [space.of(config, trial).allocation for trial in trials] == ["sensitivity", "global"]
    with pytest.raises(UsageError, match="trial 'ratio=0.3 obs': --tune distils what was recovered"):
        space.check(dataclasses.replace(config, tune=True, recover=False), trials, MODELS / "resnet.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["size=9MB"], r"it is 9,000,000 bytes, and the model has 1,5\d\d,\d{3}; give a smaller"),
        (["macs=1"], "a share of 1 is all of the MACs; give a smaller"),
        (["size=9MB", "--max-drop", "0.1"], "it is 9,000,000 bytes"),
    ],
)
def test_a_target_that_is_met_already_says_both_numbers(tmp_path: Path, options: list[str], message: str) -> None:
    where = ["--calibration", str(MODELS / "glyphs_calibration.npz"), "-o", str(tmp_path / "o.onnx")]
    result = CliRunner().invoke(command, [str(MODELS / "resnet.onnx"), *where, "--target", *options])
    assert result.exit_code == 4
    assert re.search(f"the target is met already: {message}", result.stderr)


@pytest.mark.parametrize("size", ["314kB", "0.3MB", "290KiB"])
def test_the_file_is_not_larger_than_the_target(tmp_path: Path, size: str) -> None:
    output = tmp_path / "o.onnx"
    options = ["--target", f"size={size}", "--allocation", "uniform", "--no-recover", "-o", str(output)]
    assert CliRunner().invoke(command, [str(MODELS / "resnet.onnx"), *options]).exit_code == 0
    assert 0.8 * parse_target(f"size={size}")[1] < output.stat().st_size <= parse_target(f"size={size}")[1]
