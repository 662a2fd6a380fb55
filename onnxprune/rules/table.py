"""The page of supported operators, made from the registry: `python -m onnxprune.rules.table` writes OPERATORS.md.

Forms and refusals are read from the source of each rule and of the functions of this package that it calls, so the
page tells what the code does.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from onnxprune.rules.opaque import REASONS
from onnxprune.rules.registry import Rule, supported

PAGE = Path(__file__).with_name("OPERATORS.md")
_HEAD = """\
# Supported operators

Made by `python -m onnxprune.rules.table` from the registry of rules; do not edit.

An operator that is not listed freezes everything it touches, and `onnxprune inspect` says so. A form is given in the
notation of the rules, or in words: the same letter is the same dimension, `(g o)` is a product, a number is a fixed
factor, `...` is a run of axes that pass through, `?` marks an operand that may be absent; `_` is an axis, `*` a run
of axes, that must stay whole ("works along this axis"). In braces stands what the attributes and the ranks decide.
*Freezes* lists the reasons why a rule keeps an axis whole; *not covered* the forms of an operator that freeze all of
its operands. Any rule freezes axes that are made up in ways that do not go together ("an axis made up as 34 x 4 cannot
be taken as 4 x 34"). Some operators have no rule because nothing they touch can shrink:

"""
_FREEZES = {"freeze": 1, "freeze_all": 0, "refusal": 0, "compare": 2}
"""Methods of an operator that refuse, and which argument holds the reason."""


@dataclass(frozen=True)
class _Row:
    """One registration: the operators that share a rule, a domain and a first opset."""

    domain: str
    since: int
    rule: Rule
    names: list[str]


@dataclass
class _Facts:
    """What the source of a rule says, in order; the keys are the texts."""

    forms: dict[str, None]
    frozen: dict[str, None]
    uncovered: dict[str, None]


def page() -> str:
    """The whole page: for every file of rules its mathematics, and a table of its operators."""
    families: dict[str, list[_Row]] = {}
    for domain, name, since, rule in (entry for entry in supported() if _is_family(entry[3].__module__)):
        rows = families.setdefault(rule.__module__, [])
        row = next((r for r in rows if (r.domain, r.since, r.rule) == (domain, since, rule)), None)
        if row is None:
            rows.append(row := _Row(domain, since, rule, []))
        row.names.append(name)
    return _HEAD + _without_rule() + "".join(_family(sys.modules[name], families[name]) for name in sorted(families))


def _without_rule() -> str:
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(REASONS.items()):
        reasons.setdefault(reason, []).append(name)
    return "".join(f"- {', '.join(names)}: {reason}.\n" for reason, names in reasons.items())


def _family(module: ModuleType, rows: list[_Row]) -> str:
    title = module.__name__.rpartition(".")[2].capitalize()
    lines = ["", f"## {title}", "", "```text", inspect.getdoc(module) or "", "```", ""]
    lines += ["| Operators | Domain | Since opset | Forms | Freezes | Not covered |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda r: (inspect.getsourcelines(r.rule)[1], r.domain, r.since)):
        facts = _facts(row.rule, row.names)
        cells = [", ".join(row.names), row.domain or "ai.onnx", str(row.since)]
        cells += ["<br>".join(map(_cell, found)) for found in (facts.forms, facts.frozen, facts.uncovered)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


# ---- What the source says --------------------------------------------------------------------------------------------


def _facts(rule: Rule, names: list[str]) -> _Facts:
    facts = _Facts({}, {}, {})
    reached = _reached(rule)
    facts.forms.update(dict.fromkeys(_summaries([rule])))
    for function in reached:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            _note(call, _Reader(function, names), facts)
    if not facts.forms:
        stated = _summaries(f for f in reached if f.__name__.startswith("state_"))
        facts.forms.update(
            dict.fromkeys(stated or ["all but those not covered" if facts.uncovered else "no form is refused"])
        )
    return facts


def _summaries(functions: Iterable[Rule]) -> list[str]:
    """The first paragraph of every docstring."""
    docs = [inspect.getdoc(function) for function in functions]
    return [doc.partition("\n\n")[0] for doc in docs if doc]


def _reached(rule: Callable[..., Any]) -> list[FunctionType]:
    """The rule and the functions of this package that it calls, directly or not, in order."""
    found: list[FunctionType] = []
    queue: list[Callable[..., Any]] = [rule]
    while queue:
        function = queue.pop(0)
        if not isinstance(function, FunctionType) or function in found:
            continue
        found.append(function)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        called = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        known = [function.__globals__.get(name) for name in called]
        queue += [f for f in known if isinstance(f, FunctionType) and _is_family(f.__module__)]
    return found


def _is_family(module: str) -> bool:
    return module.startswith("onnxprune.rules.") and module != "onnxprune.rules.registry"


def _note(call: ast.Call, reader: _Reader, facts: _Facts) -> None:
    """Note what one call of the source states: a form, a reason to freeze, or a form that is not covered."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "apply" and call.args:
        facts.forms.update(dict.fromkeys(reader.texts(call.args[0])))
    elif name in _FREEZES and isinstance(call.func, ast.Attribute) and len(call.args) > _FREEZES[name]:
        target = facts.uncovered if name == "freeze_all" else facts.frozen
        target.update(dict.fromkeys(reader.texts(call.args[_FREEZES[name]])))
    elif name == "ValueError" and call.args:
        facts.uncovered.update(dict.fromkeys(reader.texts(call.args[0])))


@dataclass(frozen=True)
class _Reader:
    """Reads the texts that an expression of `function` may be, for the operators `names`."""

    function: FunctionType
    names: list[str]

    def texts(self, node: ast.expr) -> Iterator[str]:
        """Every text the expression may be; none where that cannot be told from the source."""
        if isinstance(node, ast.Constant):
            yield from [node.value] if isinstance(node.value, str) else []
        elif isinstance(node, ast.JoinedStr):
            yield "".join(self._part(part) for part in node.values)
        elif isinstance(node, ast.IfExp):
            yield from (*self.texts(node.body), *self.texts(node.orelse))
        elif isinstance(node, ast.Name):
            yield from self._named(node.id)

    def _part(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        if not isinstance(node, ast.FormattedValue):
            return ""
        if ast.unparse(node.value) == "op.kind":
            return self.names[0] if len(self.names) == 1 else "the operator"
        if isinstance(node.value, ast.Name):
            found = list(self._named(node.value.id))
            return f"({' or '.join(found)})" if len(found) > 1 else found[0] if found else f"{{{node.value.id}}}"
        called = node.value.func if isinstance(node.value, ast.Call) else None
        return f"{{{called.id.replace('_', ' ')}}}" if isinstance(called, ast.Name) else "{...}"

    def _named(self, name: str) -> Iterator[str]:
        """The value of a constant of the module, or of what the function assigns to the name."""
        value = self.function.__globals__.get(name)
        if isinstance(value, str):
            yield value
            return
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(self.function)))):
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                yield from self.texts(node.value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
