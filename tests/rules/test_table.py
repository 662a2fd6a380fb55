"""The page of supported operators is what the registry says."""

from __future__ import annotations

import ast
from pathlib import Path

from onnxprune import rules
from onnxprune.rules import table


def row(name: str, family: str) -> list[str]:
    """The cells of an operator in the table of a family."""
    section = table.page().split(f"## {family}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return next(cells for cells in rows if name in cells[0].split(", "))


def test_the_page_is_up_to_date() -> None:
    written = table.PAGE.read_text(encoding="utf-8")
    assert written == table.page(), "the rules have changed: run `python -m onnxprune.rules.table`"


def test_every_operator_is_listed_once_for_every_opset() -> None:
    lines = [line.strip("| ").split(" | ") for line in table.page().splitlines() if line.startswith("| ")]
    listed = [
        ("" if c[1] == "ai.onnx" else c[1], n, int(c[2])) for c in lines if c[2].isdigit() for n in c[0].split(", ")
    ]
    own = [entry[:3] for entry in rules.supported() if entry[3].__module__.startswith("onnxprune.rules.")]
    assert sorted(listed) == sorted(own)


def test_forms_and_refusals_come_from_the_source() -> None:
    assert "n (g i) \\*, (g i) o \\*, (g o)? -> n (g o) \\*" in row("ConvTranspose", "Conv")[3]
    assert "TopK over this axis" in row("TopK", "Reduce")[4]
    assert "the operator compares along this axis" in row("Softmax", "Pointwise")[4]
    assert "QGemm with transA" in row("QGemm", "Quantized")[5]
    assert "(k m or m k)" in row("Gemm", "Linear")[3]


def test_what_a_called_function_refuses_is_listed() -> None:
    assert "MultiHeadAttention derives its scale from the width of a head" in row("MultiHeadAttention", "Attention")[4]


def test_every_text_that_refuses_is_on_the_page() -> None:
    """Whatever a rule file gives `freeze` or `freeze_all` as a plain text, some row has it."""
    page = table.page()
    for path in Path(rules.__file__).parent.glob("*.py"):
        for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr in ("freeze", "freeze_all") and call.args:
                reason = call.args[-1]
                if isinstance(reason, ast.Constant) and path.stem != "registry":
                    assert table._cell(str(reason.value)) in page, (path.name, reason.value)
