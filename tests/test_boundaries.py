"""The architecture, checked: who imports whom, who opens models, who prints, what is public."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(onnxprune.__file__).parent
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

STAGES = {
    "depth",
    "analysis",
    "score",
    "allocate",
    "select",
    "cut",
    "fusion",
    "masking",
    "verify",
    "recover",
    "latency",
    "synthetic",
}
DRIVERS = {
    "__init__",
    "__main__",
    "api",
    "budget",
    "comparison",
    "compromise",
    "cli",
    "distribution",
    "evaluation",
    "fusing",
    "gathering",
    "jobs",
    "many",
    "opening",
    "pacing",
    "planning",
    "proving",
    "ranking",
    "choosing",
    "recovery",
    "saving",
    "summary",
    "survey",
    "trials",
    "unpruned",
    "widths",
}
LEAVES = {
    "augmentation",
    "bodies",
    "branches",
    "calibration",
    "clock",
    "closeness",
    "computed",
    "conditions",
    "cost",
    "criteria",
    "dequantized",
    "dims",
    "errors",
    "folder",
    "folding",
    "grouping",
    "holdout",
    "labelling",
    "modelfile",
    "naming",
    "opened",
    "ordering",
    "parts",
    "plan",
    "preparation",
    "processor",
    "records",
    "rules",
    "rungs",
    "runtime",
    "shapes",
    "signature",
    "canonical",
    "states",
    "target",
    "unknown",
    "usercode",
    "widening",
    "wire",
    "wording",
    "worker",
}
SETTINGS = {"config", "metric"}
"""What the user asks for; stages are told it by drivers."""
WRITERS = {"report"}
KINDS = {
    "stages": STAGES,
    "drivers": DRIVERS,
    "leaves": LEAVES,
    "settings": SETTINGS,
    "writers": WRITERS,
}


def imports_of(name: str, tree: ast.AST | None = None) -> Iterator[str]:
    """Dotted names of everything a module imports, in functions too; its own package is left out of the names."""
    for node in ast.walk(tree or TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from [module] if module != "onnxprune" else names


def own_imports(name: str) -> set[str]:
    """Top-level modules of onnxprune that a module imports, its own excepted."""
    return {i.split(".")[1] for i in imports_of(name) if i.startswith("onnxprune.")} - {name.partition(".")[0]}


def calls_of(name: str) -> Iterator[str]:
    """Source of every called function in a module."""
    return (ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call))


def functions_of(name: str) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef))


def is_rule(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a function is the rule of an operator, which the specification of the operator documents."""
    return any(ast.unparse(d).startswith("rule(") for d in node.decorator_list)


def test_the_walk_over_imports_sees_every_form() -> None:
    tree = ast.parse("import a.b\nfrom onnxprune import cut\ndef f():\n    from onnxprune.rules import conv\n")
    assert list(imports_of("", tree)) == ["a.b", "onnxprune.cut", "onnxprune.rules"]


def test_every_module_is_of_one_kind() -> None:
    modules = {name.partition(".")[0] for name in FILES}
    kinds = {module: [kind for kind, members in KINDS.items() if module in members] for module in modules}
    assert {module: found for module, found in kinds.items() if len(found) != 1} == {}
    assert set().union(*KINDS.values()) == modules


@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[0] in STAGES])
def test_stages_import_leaves_only(name: str) -> None:
    assert own_imports(name) <= LEAVES


@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[0] in LEAVES])
def test_leaves_import_leaves_only(name: str) -> None:
    assert own_imports(name) <= LEAVES


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_settings_know_leaves_only(name: str) -> None:
    assert own_imports(name) <= LEAVES | SETTINGS


def test_dims_knows_nothing_of_onnx() -> None:
    assert not {i for i in imports_of("dims") if i.startswith(("onnx", "google"))}


def test_rules_never_look_at_the_rest() -> None:
    for name in (n for n in FILES if n.startswith("rules")):
        assert own_imports(name) <= {"dims", "signature", "records", "errors"}, name


def test_only_the_drivers_know_stages() -> None:
    for name in FILES:
        if name.split(".")[0] not in DRIVERS:
            assert not own_imports(name) & STAGES, name


def test_reports_are_written_from_records_alone() -> None:
    for name in (n for n in FILES if n.startswith("report")):
        assert own_imports(name) <= {"records", "errors", "__version__"}, name


def test_only_modelfile_reads_and_writes_models() -> None:
    doors = {"onnx.load", "onnx.load_model", "onnx.save", "onnx.save_model", "onnx.load_external_data_for_model"}
    for name in FILES:
        if name.split(".")[0] != "modelfile":
            assert not doors & set(calls_of(name)), name


def test_only_the_command_line_prints() -> None:
    for name in FILES:
        if not name.startswith(("cli", "report")):
            assert not {"print", "click.echo", "sys.stdout.write", "sys.stderr.write"} & set(calls_of(name)), name


def test_only_runtime_and_latency_import_the_runtime() -> None:
    users = {name for name in FILES if any(i.split(".")[0] == "onnxruntime" for i in imports_of(name))}
    assert {name.split(".")[0] for name in users} <= {"runtime", "latency"}


def test_public_names_can_be_imported() -> None:
    assert sorted(onnxprune.__all__) == list(onnxprune.__all__)
    for name in onnxprune.__all__:
        assert getattr(onnxprune, name) is not None
    assert set(dir(onnxprune)) == set(onnxprune.__all__)
    assert callable(onnxprune.benchmark)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnxprune.nothing  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, onnxprune; assert not {'numpy', 'onnx', 'onnxruntime', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


@pytest.mark.parametrize("name", FILES)
def test_public_functions_and_classes_have_docstrings(name: str) -> None:
    kinds = (ast.FunctionDef, ast.ClassDef)
    public = [n for n in TREES[name].body if isinstance(n, kinds) and not n.name.startswith("_") and not is_rule(n)]
    assert ast.get_docstring(TREES[name])
    assert not [n.name for n in public if not ast.get_docstring(n)]


@pytest.mark.parametrize("name", [name for name in FILES if name != "rules.registry"])
def test_no_function_takes_nameless_options(name: str) -> None:
    """In the rules, keywords are the letters of the notation."""
    assert not [f.name for f in functions_of(name) if f.args.kwarg is not None]


@pytest.mark.parametrize("name", ["utils", "util", "helpers", "misc", "common"])
def test_no_module_for_odds_and_ends(name: str) -> None:
    assert not [module for module in FILES if name in module.split(".")]


def test_every_error_has_its_exit_code() -> None:
    errors = importlib.import_module("onnxprune.errors")
    tree = {n: c for n, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.OnnxPruneError)}
    assert {name: kind.exit_code for name, kind in tree.items()} == {
        "ModelError": 3,
        "NotFasterError": 4,
        "NothingToPruneError": 4,
        "OnnxPruneError": 1,
        "OutputError": 2,
        "UsageError": 2,
        "VerificationError": 5,
        "WorkerError": 1,
    }
    assert set(tree) <= set(onnxprune.__all__)
