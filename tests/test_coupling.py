"""The drawings of what couples what: their structure is read back from the text."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxprune.dims import atom
from onnxprune.errors import UsageError
from onnxprune.records import Group, GroupReport, Refusal, Report, Role, Tie, Totals
from onnxprune.report import coupling

NASTY = 'a "quoted"\\name; <b>#1</b>\n`x` & {y} | end'
TOP = Refusal("top", "TopK", 'TopK "compares"')


def tie(operator: str, role: Role, tensor: str, kind: str = "Conv") -> Tie:
    return Tie(operator, kind, tensor, 0, role, operator)


def entry(name: str, *ties: Tie, refusal: Refusal | None = None, renormalised: bool = False) -> GroupReport:
    group = Group(name, 8, atom(8), (), (), refusal, renormalised)
    reason = f"{refusal.op} {refusal.node}: {refusal.reason}" if refusal else ""
    return GroupReport(group, 8, "frozen" if refusal else "kept", reason, 0.5, 0.5, f"8 channels in {name}", ties)


REPORT = Report(
    model="net.onnx",
    output=None,
    seed=0,
    options={},
    before=Totals(2, 1, 1, 1),
    after=None,
    groups=(
        entry(
            "first",
            tie("one", "produced", "w1"),
            tie("one", "carried", "b1"),
            tie("norm", "carried", "scale", "BatchNormalization"),
            tie(NASTY, "contracted", "w2"),
            renormalised=True,
        ),
        entry(NASTY, tie(NASTY, "produced", "w2"), tie("", "carried", "loose", ""), refusal=TOP),
    ),
    refusals=(),
    exactness=None,
    quality=None,
    latency=None,
    seconds={},
)
EDGES = {("o0", "g0", False), ("g0", "o2", False), ("g0", "o1", True), ("o2", "g1", False), ("g1", "o3", True)}


@dataclass(frozen=True)
class Drawing:
    """What a text draws: (label, style) by id, and (from, to, dotted)."""

    nodes: dict[str, tuple[str, str]]
    edges: set[tuple[str, str, bool]]


def read_mermaid(text: str) -> Drawing:
    """Reads every line of a flowchart, or fails."""
    first, *lines = text.splitlines()
    assert first == "flowchart LR"
    nodes, edges, styles = {}, set(), set()
    for line in lines:
        if found := re.fullmatch(r"  classDef (\w+) \S+", line) or re.fullmatch(r"  classDef (\w+) [^\"]+", line):
            styles.add(found[1])
        elif found := re.fullmatch(r'  (\w+)(?:\("([^"]*)"\)|\["([^"]*)"\]):::(\w+)', line):
            assert found[4] in styles
            label = found[2] or found[3]
            assert not re.search(r"[`<>&]|#(?!\d+;)", label.replace("<br/>", ""))
            decoded = html.unescape(re.sub(r"#(\d+);", r"&#\1;", label.replace("<br/>", "\0")))
            nodes[found[1]] = (decoded.replace("\0", "\n"), found[4])
        else:
            found = re.fullmatch(r"  (\w+) (-->|-\.-) (\w+)", line)
            assert found, line
            edges.add((found[1], found[3], found[2] == "-.-"))
    return Drawing(nodes, edges)


def read_dot(text: str) -> Drawing:
    """Reads every line of a digraph, or fails."""
    first, *lines, last = text.splitlines()
    assert (first, last) == ("digraph coupling {", "}")
    quoted = r'"((?:[^"\\]|\\.)*)"'
    nodes, edges = {}, set()
    for line in lines[2:]:
        if found := re.fullmatch(rf"  (\w+) \[label={quoted}, (shape=.*)\];", line):
            style = "operator" if "ellipse" in found[3] else "frozen" if "dashed" in found[3] else "group"
            label = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], found[2])
            nodes[found[1]] = (label, style)
        else:
            found = re.fullmatch(r"  (\w+) -> (\w+)( \[style=dotted, arrowhead=none\])?;", line)
            assert found, line
            edges.add((found[1], found[2], bool(found[3])))
    return Drawing(nodes, edges)


@pytest.mark.parametrize(("write", "read"), [(coupling.mermaid, read_mermaid), (coupling.dot, read_dot)])
def test_groups_and_operators_are_joined(write: object, read: object) -> None:
    drawing: Drawing = read(write(REPORT))  # type: ignore[operator]
    assert drawing.edges == EDGES
    assert {name: style for name, (_, style) in drawing.nodes.items()} == {
        "g0": "group",
        "g1": "frozen",
        **dict.fromkeys(("o0", "o1", "o2", "o3"), "operator"),
    }
    assert drawing.nodes["g0"][0] == "8 channels in first\nfirst\nrenormalised"
    assert drawing.nodes["o0"][0] == "Conv one\nw1\nb1"
    assert drawing.nodes["o3"][0] == "loose"


@pytest.mark.parametrize(("write", "read"), [(coupling.mermaid, read_mermaid), (coupling.dot, read_dot)])
def test_names_of_any_kind_stay_labels(write: object, read: object) -> None:
    drawing: Drawing = read(write(REPORT))  # type: ignore[operator]
    name = NASTY.replace("\n", " ")
    assert drawing.nodes["o2"][0].replace("\n", " ") == f"Conv {name} w2"
    assert drawing.nodes["g1"][0].replace("\n", " ") == f'8 channels in {name} {name} TopK top: TopK "compares"'


def test_the_suffix_decides() -> None:
    assert coupling.text(REPORT, Path("a.mmd")) == coupling.mermaid(REPORT)
    assert coupling.text(REPORT, Path("a.dot")) == coupling.dot(REPORT)
    for suffix, start in coupling.STARTS.items():
        assert coupling.text(REPORT, Path(f"a{suffix}")).startswith(start)
    with pytest.raises(UsageError, match=r"a\.svg must end with \.mmd \(Mermaid\) or \.dot"):
        coupling.text(REPORT, Path("a.svg"))
