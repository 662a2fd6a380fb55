"""Groups in words."""

from __future__ import annotations

import onnx
import pytest
from oracle import graph, model

from onnxprune import wording


def described(proto: onnx.ModelProto) -> dict[str, str]:
    """The words for every group of a model, by id."""
    found, _ = graph(proto)
    by_weight = wording.readers(proto, found)
    return {g.id: wording.words(found, g, wording.ties(g, by_weight)) for g in found.groups}


def named(proto: onnx.ModelProto, **names: str) -> onnx.ModelProto:
    """The model with other names of weights (by name) and nodes (by result)."""
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        node.name = names.get(node.output[0], "")
        node.input[:] = [names.get(i, i) if i not in "abcd" else i for i in node.input]
    return proto


HEADS = """(float[2,6,4] x) => (float[2,6,3] y) <float[4,12] w, int64[4] t = {2,6,3,4}, float[3,4] s,
    int64[3] flat = {2,6,12}, float[12,3] v> {
    a = MatMul(x, w)
    b = Reshape(a, t)
    c = Mul(b, s)
    d = Reshape(c, flat)
    y = MatMul(d, v)
}"""


def test_heads_and_their_width() -> None:
    m = named(model(HEADS), w="enc.3.attention.self.query.weight", s="enc.3.attention.scale", v="enc.3.attention.out.w")
    assert list(described(m).values()) == [
        "3 heads of 4 in enc.3.attention",
        "4 features in each of 3 heads in enc.3.attention",
        "3 features in enc.3.attention.out",
    ]


def test_made_up_names_of_weights_give_way_to_those_of_nodes() -> None:
    names = {"w": "onnx::MatMul_1", "s": "onnx::Mul_2", "v": "onnx::MatMul_3"}
    m = named(
        model(HEADS), **names, a="/enc/enc.3/att/query/MatMul", c="/enc/enc.3/att/Mul", y="/enc/enc.3/att/o/MatMul"
    )
    assert next(iter(described(m).values())) == "3 heads of 4 in enc.3.att"


def test_names_without_a_common_place_are_listed() -> None:
    assert next(iter(described(model(HEADS)).values())) == "3 heads of 4 of MatMul(a)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            """(float[N,4,6,6] x) => (float[N,5,6,6] y) <float[8,4,1,1] w, float[8,1,3,3] k, float[5,8,1,1] v> {
            h = Conv(x, w)
            d = Conv<group=8, pads=[1,1,1,1]>(h, k)
            y = Conv(d, v)
        }""",
            ["8 channels of Conv(h), Conv(d)", "5 channels of Conv(y)"],
        ),
        (
            """(float[N,8,6,6] x) => (float[N,5,6,6] y) <float[8,8,1,1] w, float[12,2,3,3] k, float[5,12,1,1] v> {
            h = Conv(x, w)
            d = Conv<group=4, pads=[1,1,1,1]>(h, k)
            y = Conv(d, v)
        }""",
            [
                "4 groups of 2 and 3 channels of Conv(h), Conv(d)",
                "2 channels in each of 4 groups of Conv(h)",
                "3 channels in each of 4 groups of Conv(d)",
                "5 channels of Conv(y)",
            ],
        ),
        (
            """(int64[N,6] ids) => (float[N,6,3] y) <float[9,8] table, float[8,3] v> {
            h = Gather(table, ids)
            y = MatMul(h, v)
        }""",
            ["embedding width 8 of Gather(h)", "3 features of MatMul(y)"],
        ),
        (
            """(float[6,N,4] x) => (float[6,1,N,3] y)
            <float[1,20,4] w, float[1,20,5] r, float[5,3] v> {
            h = LSTM<hidden_size=5>(x, w, r)
            y = MatMul(h, v)
        }""",
            ["5 hidden units of LSTM(h)", "3 features of MatMul(y)"],
        ),
        (
            """(float[N,4] x) => (float[N,5,4,4] y) <float[4,96] w, int64[4] t = {0,6,4,4}, float[5,6,3,3] v> {
            h = MatMul(x, w)
            m = Reshape(h, t)
            y = Conv<pads=[1,1,1,1]>(m, v)
        }""",
            ["6 channels of 16 positions of MatMul(h)", *["4 positions of MatMul(h)"] * 2, "5 channels of Conv(y)"],
        ),
    ],
    ids=["depthwise", "grouped", "embedding", "recurrent", "feature map"],
)
def test_words_by_operator(text: str, words: list[str]) -> None:
    assert list(described(model(text)).values()) == words


def test_weights_are_followed_through_constant_operators() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[8,4] w, float[8,3] v> {
        t = Transpose(w)
        h = MatMul(x, t)
        y = MatMul(h, v)
    }""")
    found, _ = graph(m)
    tied = wording.ties(found.groups[0], wording.readers(m, found))
    assert [(t.operator, t.kind, t.tensor, t.axis, t.role) for t in tied] == [
        ("MatMul(h)", "MatMul", "w", 0, "produced"),
        ("MatMul(y)", "MatMul", "v", 0, "contracted"),
    ]


def test_weights_read_inside_a_body_are_tied_to_its_nodes() -> None:
    m = model("""(float[N,4] x, bool c) => (float[N,3] y) <float[4,8] w, float[8,8] u, float[8,3] v> {
        h = MatMul(x, w)
        z = If(c) <then_branch = a () => (float[N,8] p) { p = MatMul(h, u) },
                   else_branch = b () => (float[N,8] q) { q = Identity(h) }>
        y = MatMul(z, v)
    }""")
    found, _ = graph(m)
    assert wording.readers(m, found)["u"] == [("MatMul(p)", "MatMul")]
    assert wording.readers(m, found)["v"] == [("MatMul(y)", "MatMul")]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("/layer1/layer1.0/conv1/Conv", ["layer1", "0", "conv1", "Conv"]),
        ("encoder.layer.3.weight", ["encoder", "layer", "3", "weight"]),
        ("/d2/d2.1/d2.1.0/Conv", ["d2", "1", "0", "Conv"]),
        ("model/dense/MatMul", ["model", "dense", "MatMul"]),
        ("onnx::Conv_12", []),
        ("Relu(/a/b)", []),
    ],
)
def test_parts_of_names(name: str, parts: list[str]) -> None:
    assert wording._path(name) == parts


@pytest.mark.parametrize(
    ("tensor", "operator", "place", "label"),
    [
        ("a.b.query.weight", "", ["a", "b"], "query"),
        ("a.query.weight", "", ["a", "query"], "query.weight"),
        ("onnx::MatMul_1", "/a/b/out/MatMul", ["a", "c"], "b.out"),
        ("onnx::MatMul_1", "Conv_7", [], "Conv_7"),
        ("5.body.0.weight", "", ["5", "body"], "body.0"),
        ("0.weight", "", [], "0.weight"),
        ("w", "", [], "w"),
    ],
)
def test_labels(tensor: str, operator: str, place: list[str], label: str) -> None:
    assert wording._label(tensor, operator, place) == label
