"""The table of rules, and that every rule has a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxprune import rules
from onnxprune.rules import registry
from onnxprune.rules.registry import Operator, rule

FOLDER = Path(__file__).parent


def _texts(path: Path) -> Iterator[str]:
    """All strings of a test file but its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def _used(texts: Iterator[str]) -> set[tuple[str, str]]:
    """(domain, operator) of every call in an ONNX text, and of every name in a plain list of operator names."""
    known = {name for _, name, _, _ in rules.supported()}
    used: set[tuple[str, str]] = set()
    for text in texts:
        for domain, name in re.findall(r"((?:\w+\.)*)(\w+)\s*[<(]", text):
            used.add((domain.rstrip("."), name))
        if text.split() and set(text.split()) <= known:
            used |= {("", name) for name in text.split()}
    return used


def test_every_rule_is_exercised() -> None:
    used = _used(text for path in FOLDER.glob("test_*.py") if path.name != "test_registry.py" for text in _texts(path))
    missing = sorted({(domain, name) for domain, name, _, _ in rules.supported()} - used)
    assert not missing, f"operators with a rule and without a test in tests/rules: {missing}"


def test_the_meta_test_can_fail() -> None:
    assert _used(iter(["y = Conv(x)", "Abs Relu", "no list of Add"])) == {("", "Conv"), ("", "Abs"), ("", "Relu")}


@pytest.fixture(name="table")
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RULES", {})


def test_a_rule_is_found_by_domain_operator_and_opset(table: None) -> None:
    @rule("Thing")
    def old(op: Operator) -> None: ...

    @rule("Thing", since=13)
    def new(op: Operator) -> None: ...

    @rule("Thing", domain="other")
    def foreign(op: Operator) -> None: ...

    assert rules.find("", "Thing", 12) is old
    assert rules.find("", "Thing", 13) is new
    assert rules.find("ai.onnx", "Thing", 20) is new
    assert rules.find("other", "Thing", 1) is foreign
    assert rules.find("", "Nothing", 20) is None
    assert [entry[:3] for entry in rules.supported()] == [("", "Thing", 1), ("", "Thing", 13), ("other", "Thing", 1)]


def test_no_rule_before_its_first_opset(table: None) -> None:
    @rule("Thing", since=17)
    def late(op: Operator) -> None: ...

    assert rules.find("", "Thing", 16) is None
    assert rules.find("", "Thing", 17) is late


def test_registering_twice_is_an_error(table: None) -> None:
    def thing(op: Operator) -> None: ...

    assert rule("Thing", since=3)(thing) is thing
    with pytest.raises(ValueError, match=r"a rule for ai\.onnx::Thing from opset 3 exists already"):
        rule("Other", "Thing", since=3)(thing)
    with pytest.raises(ValueError, match=r"a rule for far::Thing from opset 1 exists already"):
        rule("Thing", "Thing", domain="far")(thing)
