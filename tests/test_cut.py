"""The surgery: what changes in the model besides the weights, and what must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper
from oracle import applied, graph, model, prunable, prune, prune_and_compare, run, stored

from onnxprune import api, runtime, shapes
from onnxprune.config import Config
from onnxprune.cut import cut, stored_names
from onnxprune.errors import ModelError

PLAIN = """(float[N,3,H,W] x) => (float[N,5,H,W] y) <float[8,3,1,1] w, float[8] b, float[5,8,1,1] v> {
    h = Conv(x, w, b)
    y = Conv(h, v)
}"""


def _evens(size: int) -> np.ndarray:
    return np.arange(0, size, 2)


def test_weights_are_sliced_at_the_kept_indices() -> None:
    m = model(PLAIN)
    result = prune(m, {"w:0": np.array([1, 2, 6])})
    before = {n: onnx.numpy_helper.to_array(t) for n, t in stored(m).items()}
    after = {n: onnx.numpy_helper.to_array(t) for n, t in stored(result.pruned).items()}
    np.testing.assert_array_equal(after["w"], before["w"][[1, 2, 6]])
    np.testing.assert_array_equal(after["b"], before["b"][[1, 2, 6]])
    np.testing.assert_array_equal(after["v"], before["v"][:, [1, 2, 6]])


def test_slices_and_edits_name_what_changes() -> None:
    m = model(PLAIN)
    found, sizes = graph(m)
    done = cut(m, found, sizes, {"w:0": _evens(8)})
    assert {name: list(axes) for name, axes in done.slices.items()} == {"w": [0], "b": [0], "v": [1]}
    assert done.slices["v"][1].tolist() == [0, 2, 4, 6]
    assert done.slices["v"][1].dtype == np.int64
    assert set(done.edits) == {"w", "b", "v"}


def test_the_original_is_left_alone() -> None:
    m = model(PLAIN)
    before = m.SerializeToString(deterministic=True)
    found, sizes = graph(m)
    cut(m, found, sizes, {"w:0": _evens(8)})
    assert m.SerializeToString(deterministic=True) == before


def test_an_empty_plan_changes_nothing() -> None:
    m = model(PLAIN)
    found, sizes = graph(m)
    done = cut(m, found, sizes, {})
    assert (done.proto, done.slices, done.edits) == (m, {}, {})


def test_metadata_doc_strings_names_and_versions_are_kept() -> None:
    m = model(PLAIN)
    m.doc_string, m.producer_name, m.producer_version, m.domain, m.model_version = (
        "model",
        "maker",
        "1.2",
        "test.org",
        7,
    )
    m.graph.doc_string, m.graph.name = "graph", "net"
    helper.set_model_props(m, {"labels": "cat,dog"})
    node = m.graph.node[0]
    node.name, node.doc_string = "first", "node"
    node.metadata_props.add(key="scope", value="backbone")
    m.graph.initializer[0].doc_string = "weight"
    m.graph.input[0].doc_string = "pixels"
    m.graph.quantization_annotation.add(tensor_name="h")
    result = prune(m, {"w:0": _evens(8)}).pruned
    for field in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "ir_version"):
        assert getattr(result, field) == getattr(m, field)
    assert result.metadata_props == m.metadata_props
    assert result.opset_import == m.opset_import
    assert (result.graph.doc_string, result.graph.name) == ("graph", "net")
    assert result.graph.node[0] == node
    assert result.graph.input == m.graph.input
    assert result.graph.quantization_annotation == m.graph.quantization_annotation


def test_stored_shapes_of_inner_tensors_follow() -> None:
    m = model(PLAIN)
    m.graph.value_info.append(helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["N", 8, "H", "W"]))
    result = prune(m, {"w:0": _evens(8)}).pruned
    d = result.graph.value_info[0].type.tensor_type.shape.dim
    assert [x.dim_param or x.dim_value for x in d] == ["N", 4, "H", "W"]


def test_an_attribute_that_states_a_size_gets_the_new_one() -> None:
    m = model("""(float[N,3,6,6] x) => (float[N,5,6,6] y) <float[8,3,1,1] w, float[8,1,3,3] d, float[5,8,1,1] v> {
        h = Conv(x, w)
        k = Conv<group=8, pads=[1,1,1,1]>(h, d)
        y = Conv(k, v)
    }""")
    result = prune(m, {"w:0": np.arange(5)})
    assert result.attribute("Conv", "group", 1) == 5


def test_split_sizes_follow_each_part() -> None:
    text = """(float[N,4] x) => (float[N,3] y) <float[4,8] w, int64[2] s = {{3,5}}, float[3,3] u, float[5,3] v> {{
        h = MatMul(x, w)
        a, b = {split}
        p = MatMul(a, u)
        q = MatMul(b, v)
        y = Add(p, q)
    }}"""
    kept = {"w:1": np.array([0, 2]), "w:1#2": np.array([1])}
    old = prune(model(text.format(split="Split<axis=1, split=[3,5]>(h)"), opset=11), kept)
    assert old.attribute("Split", "split") == [2, 1]
    new = prune(model(text.format(split="Split<axis=1>(h, s)")), kept)
    sizes = stored(new.pruned)[new.node("Split").input[1]]
    assert onnx.numpy_helper.to_array(sizes).tolist() == [2, 1]
    for result in (old, new):
        assert max(result.differences.values()) < 1e-5


def test_equal_parts_that_become_unequal_are_written_out() -> None:
    m = model(
        """(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[4,3] u, float[4,3] v> {
        h = MatMul(x, w)
        a, b = Split<axis=1, num_outputs=2>(h)
        p = MatMul(a, u)
        q = MatMul(b, v)
        y = Add(p, q)
    }""",
        opset=18,
    )
    result = prune(m, {"w:1": np.array([0])})
    node = result.node("Split")
    assert [a.name for a in node.attribute] == ["axis"]
    assert onnx.numpy_helper.to_array(stored(result.pruned)[node.input[1]]).tolist() == [1, 4]
    assert max(result.differences.values()) < 1e-5


def test_sizes_that_another_node_reads_too_are_not_changed_for_it() -> None:
    """One initializer is the target of two Reshapes, of which one shrinks."""
    m = model("""(float[2,8] x) => (float[2,3] y, float[2,2,4] z) <float[8,8] w, int64[3] t = {2,2,4}, float[2,1] s,
        int64[2] flat = {2,8}, float[8,3] v> {
        h = MatMul(x, w)
        r = Reshape(h, t)
        m = Mul(r, s)
        f = Reshape(m, flat)
        z = Reshape(x, t)
        y = MatMul(f, v)
    }""")
    result = prune_and_compare(m)
    assert result.node("Reshape", 2).input[1] == "t"
    assert onnx.numpy_helper.to_array(stored(result.pruned)["t"]).tolist() == [2, 2, 4]


def test_reshape_targets_read_from_the_input_stay_computed() -> None:
    m = model("""(float[N,T,4] x) => (float[N,T,3] y) <float[4,12] w, float[3,4] s, float[12,3] v, int64[1] a = {0},
        int64[1] b = {2}, int64[2] heads = {3,4}, int64[1] wide = {12}> {
        h = MatMul(x, w)
        z = Shape(x)
        nt = Slice(z, a, b)
        apart = Concat<axis=0>(nt, heads)
        r = Reshape(h, apart)
        m = Mul(r, s)
        together = Concat<axis=0>(nt, wide)
        f = Reshape(m, together)
        y = MatMul(f, v)
    }""")
    assert list(prunable(m).values()) == [3, 4]
    result = prune_and_compare(m)
    found = shapes.infer(result.pruned)
    targets = [result.node("Reshape", k).input[1] for k in (0, 1)]
    assert [found.dynamic_values[t].tolist() for t in targets] == [[True, True, False, False], [True, True, False]]
    assert [found.values[t].tolist()[2:] for t in targets] == [[2, 4], [8]]


def test_a_size_that_mixes_input_and_width_is_scaled() -> None:
    """Heads folded into the batch: the target (n * heads, t, width) follows the input and the heads."""
    m = model("""(float[N,6,4] x) => (float[N,6,3] y) <float[4,12] w, int64 zero = {0}, int64[1] front = {0},
        int64[3] apart = {6,4,3}, int64 heads = {3}, int64[2] tail = {6,4}, float[4,4] u, float[12,3] v,
        int64[2] rest = {6,-1}, int64[4] q = {0,6,3,4}, int64[3] tv = {3,6,4}> {
        h = MatMul(x, w)
        r = Reshape(h, q)
        t = Transpose<perm=[0,2,1,3]>(r)
        s = Shape(x)
        n = Gather(s, zero)
        nh = Mul(n, heads)
        nh1 = Unsqueeze(nh, front)
        folded = Concat<axis=0>(nh1, tail)
        f = Reshape(t, folded)
        g = Sigmoid(f)
        n1 = Unsqueeze(n, front)
        unfolded = Concat<axis=0>(n1, tv)
        b = Reshape(g, unfolded)
        c = Transpose<perm=[0,2,1,3]>(b)
        last = Concat<axis=0>(n1, rest)
        d = Reshape(c, last)
        y = MatMul(d, v)
    }""")
    assert 3 in prunable(m).values()
    prune_and_compare(m)


def test_the_batch_is_found_again_from_batch_times_heads() -> None:
    """(n heads, t, width) -> n from its first size by an integer division by the number of heads there were."""
    m = model("""(float[N,T,4] x) => (float[N,T,3] y) <float[4,16] w, float[4,4] u, float[16,3] v, int64 zero = {0},
        int64 one = {1}, int64[1] front = {0}, int64[2] hd = {4,4}, int64 heads = {4}, int64[1] h1 = {4},
        int64[1] minus = {-1}, int64[1] d1 = {4}, int64[1] wide = {16}> {
        h = MatMul(x, w)
        s = Shape(x)
        n = Gather(s, zero)
        t = Gather(s, one)
        n1 = Unsqueeze(n, front)
        t1 = Unsqueeze(t, front)
        apart = Concat<axis=0>(n1, t1, hd)
        r = Reshape(h, apart)
        q = Transpose<perm=[0,2,1,3]>(r)
        nh = Mul(n, heads)
        nh1 = Unsqueeze(nh, front)
        folded = Concat<axis=0>(nh1, minus, d1)
        f = Reshape(q, folded)
        g = Sigmoid(f)
        sg = Shape(g)
        m = Gather(sg, zero)
        b = Div(m, heads)
        b1 = Unsqueeze(b, front)
        unfolded = Concat<axis=0>(b1, h1, t1, d1)
        z = Reshape(g, unfolded)
        c = Transpose<perm=[0,2,1,3]>(z)
        last = Concat<axis=0>(b1, t1, wide)
        d = Reshape(c, last)
        y = MatMul(d, v)
    }""")
    assert sorted(prunable(m).values()) == [4, 4]
    for kept in (np.arange(1), np.arange(3)):
        result = prune(m, {"w:1": kept, "w:1#2": np.arange(3)})
        assert max(result.differences.values()) < 1e-6


def test_a_size_that_a_bound_caps_stays_computed() -> None:
    """The first 16 places, or as many as there are: the same number at every long input, another at a short one."""
    m = model("""(float[N,T,4] x) => (float[N,S,3] y) <float[4,12] w, float[12,3] v, int64[1] start = {0},
        int64[1] stop = {16}, int64[1] axis = {1}, int64[1] two = {2}, int64[2] heads = {3,4}, int64[1] wide = {12}> {
        h = MatMul(x, w)
        k = Slice(h, start, stop, axis)
        z = Shape(k)
        nt = Slice(z, start, two)
        apart = Concat<axis=0>(nt, heads)
        r = Reshape(k, apart)
        m = Sigmoid(r)
        together = Concat<axis=0>(nt, wide)
        f = Reshape(m, together)
        y = MatMul(f, v)
    }""")
    result = prune_and_compare(m)
    assert run(result.pruned, {"x": np.ones((2, 5, 4), np.float32)})["y"].shape == (2, 5, 3)


def test_a_number_computed_from_input_and_width_is_refused_by_name() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        s = Size(h)
        f = Cast<to=1>(s)
        d = Div(h, f)
        y = MatMul(d, v)
    }""")
    found, sizes = graph(m)
    if prunable(m):
        with pytest.raises(ModelError, match=r"'f' is computed from both the input size and a width that shrinks"):
            cut(m, found, sizes, {"w:1": _evens(8)})


def test_stored_names_are_initializers_and_constant_nodes() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,3] w> {
        c = Constant<value = float[3] {1,2,3}>()
        h = MatMul(x, w)
        y = Add(h, c)
    }""")
    assert stored_names(m) == ["w", "c"]


def test_new_names_do_not_meet_old_ones() -> None:
    m = model("""(float[2,4] x) => (float[2,3] y) <float[4,8] w, int64[3] t = {2,2,4}, float[2,4] r_operand1_pruned,
        int64[2] flat = {2,8}, float[8,3] v> {
        h = MatMul(x, w)
        r = Reshape(h, t)
        m = Mul(r, r_operand1_pruned)
        f = Reshape(m, flat)
        y = MatMul(f, v)
    }""")
    result = prune_and_compare(m)
    names = [t.name for t in result.pruned.graph.initializer]
    assert len(names) == len(set(names))


def test_old_files_get_no_initializer_that_is_not_an_input() -> None:
    """Before IR version 4 every initializer must be an input of the graph too."""
    m = model(
        """(float[2,4] x) => (float[2,3] y) <float[4,8] w, float[4,3] u, float[4,3] v> {
        h = MatMul(x, w)
        a, b = Split<axis=1>(h)
        p = MatMul(a, u)
        q = MatMul(b, v)
        y = Add(p, q)
    }""",
        opset=8,
        ir=3,
    )
    for t in m.graph.initializer:
        m.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    found, sizes = graph(m)
    done = cut(m, found, sizes, {"w:1": np.array([0])})
    result = applied(done)
    assert {t.name for t in result.graph.initializer} <= {i.name for i in result.graph.input}


def test_sizes_that_are_stated_anew_and_read_no_more_are_dropped() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[4,8] u, int64[2] s = {4, 4},
            float[4,3] v, float[3] unread> {
        h = MatMul(x, w)
        k = MatMul(x, u)
        a, b = Split<axis=1>(h, s)
        c, d = Split<axis=1>(k, s)
        e = Add(a, b)
        f = Add(c, d)
        g = Add(e, f)
        y = MatMul(g, v)
    }""")
    assert list(prunable(m).values()) == [4]
    pruned = prune(m, {name: np.array([0, 2]) for name in prunable(m)}).pruned
    assert "s" not in {t.name for t in pruned.graph.initializer}
    assert "unread" in {t.name for t in pruned.graph.initializer}
    prune_and_compare(m, ratio=0.5)


SIZES = """<ir_version: 7, opset_import: ["": {opset}]> g (float[b,8,w] x) => (float[b,1,w,4] y) {{
    h = Conv(x, k) t = Transpose<perm=[0,2,1]>(h) s = Shape(t) l = Gather(s, first)
    c = Concat<axis=0>(zero, one, l, wide) r = Reshape(t, c) y = MatMul(r, m)
}}"""


@pytest.mark.parametrize("opset", [7, 13])
@pytest.mark.parametrize("given", [{}, {"x": (1, 8, 5)}, {"x": (2, 8, 5)}])
def test_a_size_that_is_copied_stays_copied(tmp_path: Path, opset: int, given: dict[str, tuple[int, ...]]) -> None:
    """0 in a Reshape is the size of the operand, of batches other than the one that the model is cut at too."""
    random = np.random.default_rng(0)
    m = onnx.parser.parse_model(SIZES.format(opset=opset))
    arrays = {"k": random.standard_normal((16, 8, 1)), "m": random.standard_normal((16, 4))}
    numbers = {"first": [1], "zero": [0], "one": [1], "wide": [16]}
    stored_arrays = {n: a.astype(np.float32) for n, a in arrays.items()} | {n: np.array(v) for n, v in numbers.items()}
    m.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in stored_arrays.items())
    onnx.save(m, tmp_path / "m.onnx")
    output = tmp_path / "out.onnx"
    api.prune(tmp_path / "m.onnx", Config(output=output, recover=False, round_to=1, input_shapes=given))
    found = runtime.run(runtime.session(output), {"x": np.ones((3, 8, 7), np.float32)})
    assert found["y"].shape == (3, 1, 7, 4)
