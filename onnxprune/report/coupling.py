"""The coupling as a drawing: groups, and the operators that produce and consume them, for Mermaid and Graphviz.

    operator --> group     a weight of the operator produces the group
    group --> operator     a weight of the operator sums over it
    group -.- operator     a weight of the operator carries it (a bias, a norm)

Frozen groups are dashed and say why. An operator has one node, whatever it does; it bears the names of its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from onnxprune.errors import UsageError
from onnxprune.records import GroupReport, Report, Role, Tie

STARTS = {".mmd": "flowchart", ".dot": "digraph"}
"""How a drawing begins, by the suffix of its file."""
_RANK: dict[Role, int] = {"produced": 0, "contracted": 1, "carried": 2}
_MERMAID_STYLES = (
    "  classDef group fill:#dbeafe,stroke:#1d4ed8,color:#000",
    "  classDef frozen fill:#eeeeee,stroke:#999999,color:#555,stroke-dasharray:4 3",
    "  classDef operator fill:#ffffff,stroke:#666666,color:#000",
)
_DOT_STYLES = {
    "group": 'shape=box, style="rounded,filled", fillcolor="#dbeafe", color="#1d4ed8"',
    "frozen": 'shape=box, style="rounded,filled,dashed", fillcolor="#eeeeee", color="#999999", fontcolor="#555555"',
    "operator": 'shape=ellipse, color="#666666"',
}

Edge = tuple[str, str, bool]
"""From, to, whether it is only carried."""


def text(report: Report, path: Path) -> str:
    """The drawing in the language that the suffix of `path` asks for. Raises UsageError for any other."""
    start(path)
    return mermaid(report) if path.suffix == ".mmd" else dot(report)


def start(path: Path) -> str:
    """How the drawing in such a file begins. Raises UsageError for a suffix without a language."""
    if path.suffix not in STARTS:
        raise UsageError(f"--graph: {path} must end with .mmd (Mermaid) or .dot (Graphviz)")
    return STARTS[path.suffix]


def mermaid(report: Report) -> str:
    """A Mermaid flowchart. Above some 500 edges viewers refuse it unless `maxEdges` is raised; then take `dot`."""
    operators = _operators(report.groups)
    lines = ["flowchart LR", *_MERMAID_STYLES]
    for k, entry in enumerate(report.groups):
        label = "<br/>".join(_mermaid_escape(line) for line in _group_lines(entry))
        lines.append(f'  g{k}("{label}"):::{_style(entry)}')
    for name, (number, tied) in operators.items():
        label = "<br/>".join(_mermaid_escape(line) for line in _operator_lines(name, tied))
        lines.append(f'  o{number}["{label}"]:::operator')
    lines += [f"  {a} {'-.-' if carried else '-->'} {b}" for a, b, carried in _edges(report.groups, operators)]
    return "\n".join(lines) + "\n"


def dot(report: Report) -> str:
    """A Graphviz digraph."""
    operators = _operators(report.groups)
    lines = ["digraph coupling {", "  rankdir=LR;", '  node [fontname="Helvetica"];']
    for k, entry in enumerate(report.groups):
        label = "\\n".join(_dot_escape(line) for line in _group_lines(entry))
        lines.append(f'  g{k} [label="{label}", {_DOT_STYLES[_style(entry)]}];')
    for name, (number, tied) in operators.items():
        label = "\\n".join(_dot_escape(line) for line in _operator_lines(name, tied))
        lines.append(f'  o{number} [label="{label}", {_DOT_STYLES["operator"]}];')
    for a, b, carried in _edges(report.groups, operators):
        lines.append(f"  {a} -> {b}{' [style=dotted, arrowhead=none]' if carried else ''};")
    return "\n".join([*lines, "}"]) + "\n"


# ---- Parts -----------------------------------------------------------------------------------------------------------


def _operators(groups: Iterable[GroupReport]) -> dict[str, tuple[int, list[Tie]]]:
    """By name: a number, and all places of groups in its weights. A weight that nobody reads stands for itself."""
    found: dict[str, tuple[int, list[Tie]]] = {}
    for tie in (t for g in groups for t in g.ties):
        found.setdefault(tie.operator or tie.tensor, (len(found), []))[1].append(tie)
    return found


def _edges(groups: Iterable[GroupReport], operators: Mapping[str, tuple[int, list[Tie]]]) -> list[Edge]:
    """Every edge once; an operator that produces or consumes a group is not also said to carry it."""
    edges: dict[Edge, None] = {}
    for k, entry in enumerate(groups):
        linear: set[str] = set()
        for tie in sorted(entry.ties, key=lambda t: _RANK[t.role]):
            name = tie.operator or tie.tensor
            group, operator = f"g{k}", f"o{operators[name][0]}"
            if tie.role == "produced":
                edges[operator, group, False] = None
            elif tie.role == "contracted":
                edges[group, operator, False] = None
            elif name not in linear:
                edges[group, operator, True] = None
            if tie.role != "carried":
                linear.add(name)
    return list(edges)


def _style(entry: GroupReport) -> str:
    return "frozen" if entry.status == "frozen" else "group"


def _group_lines(entry: GroupReport) -> list[str]:
    lines = [entry.words or f"{entry.group.size} in {entry.group.id}", entry.group.id]
    if entry.group.renormalised:
        lines.append("renormalised")
    return [*lines, entry.reason] if entry.status == "frozen" else lines


def _operator_lines(name: str, tied: Iterable[Tie]) -> list[str]:
    listed = list(tied)
    weights = [tensor for tensor in dict.fromkeys(t.tensor for t in listed) if tensor != name]
    return [f"{listed[0].kind} {name}".strip(), *weights]


def _mermaid_escape(name: str) -> str:
    """Mermaid's entities: `#` and a code. Letters, digits and harmless signs stay readable."""
    return "".join(c if c.isalnum() or c in " _-./,:+=*()[]" else f"#{ord(c)};" for c in name)


def _dot_escape(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\r", " ").replace("\n", " ")
