"""Operators that move elements without changing them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from oracle import groups, model, places, prunable, prune_and_compare, reasons, stored

_HEADS = """(float[N,T,4] x) => (float[N,T,4] y) <
    float[4,12] q, float[4,12] k, float[4,12] u, float[12,4] o, int64[4] apart = {SPLIT}, int64[3] together = {JOIN}> {
    a = MatMul(x, q)
    b = MatMul(x, k)
    c = MatMul(x, u)
    a4 = Reshape(a, apart)
    b4 = Reshape(b, apart)
    c4 = Reshape(c, apart)
    ah = Transpose<perm=[0,2,1,3]>(a4)
    bt = Transpose<perm=[0,2,3,1]>(b4)
    ch = Transpose<perm=[0,2,1,3]>(c4)
    s = MatMul(ah, bt)
    p = Softmax<axis=-1>(s)
    z = MatMul(p, ch)
    zt = Transpose<perm=[0,2,1,3]>(z)
    j = Reshape(zt, together)
    y = MatMul(j, o)
}"""


def _heads(split: str, join: str) -> str:
    return _HEADS.replace("{SPLIT}", f"{{{split}}}").replace("{JOIN}", f"{{{join}}}")


@pytest.mark.parametrize(("split", "join"), [("0,0,3,4", "0,0,12"), ("0,0,3,-1", "0,0,-1"), ("0,0,-1,4", "0,0,12")])
def test_reshape_into_heads_and_back(split: str, join: str) -> None:
    """Three heads of four: heads are shared by all three projections, the width by queries and keys alone."""
    m = model(_heads(split, join))
    found = groups(m)
    assert prunable(m) == {"q:1": 3, "q:1#2": 4, "u:1": 4}
    assert {t for t, _ in places(found["q:1"])} == {"q", "k", "u", "o"}
    assert {t for t, _ in places(found["q:1#2"])} == {"q", "k"}
    assert {t for t, _ in places(found["u:1"])} == {"u", "o"}
    heads = prune_and_compare(m)
    assert heads.weights["q"] == (4, 8)
    assert heads.weights["o"] == (8, 4)
    assert set(heads.differences) == {"masked", "zeroed"}
    every = prune_and_compare(m, factors=True, seed=1)
    assert every.weights["q"] == (4, 4)


def test_reshape_to_one_fixed_target() -> None:
    m = model("""(float[2,6,4] x) => (float[2,6,3] y) <float[4,8] w, int64[4] t = {2,6,2,4}, float[2,4] scale,
        int64[3] back = {2,6,8}, float[8,3] v> {
        h = MatMul(x, w)
        a = Reshape(h, t)
        s = Mul(a, scale)
        b = Reshape(s, back)
        y = MatMul(b, v)
    }""")
    assert prunable(m) == {"w:1": 2, "w:1#2": 4}
    result = prune_and_compare(m)
    assert result.weights["scale"] == (1, 4)
    prune_and_compare(m, factors=True)


@pytest.mark.parametrize("flatten", ["Flatten(h)", "Flatten<axis=-3>(h)", "Reshape(h, rows)", "Reshape(h, columns)"])
def test_flatten_before_a_gemm_removes_a_block_of_columns_per_channel(flatten: str) -> None:
    m = model(f"""(float[N,3,4,4] x) => (float[N,5] y) <float[8,3,1,1] w, float[5,128] v, float[5] c,
        int64[2] rows = {{0,-1}}, int64[2] columns = {{-1,128}}> {{
        h = Conv(x, w)
        f = {flatten}
        y = Gemm<transB=1>(f, v, c)
    }}""")
    assert prunable(m) == {"w:0": 8}
    result = prune_and_compare(m)
    kept = result.kept["w:0"]
    original = numpy_helper.to_array(stored(m)["v"]).reshape(5, 8, 16)
    np.testing.assert_array_equal(numpy_helper.to_array(stored(result.pruned)["v"]), original[:, kept].reshape(5, -1))


def test_flatten_with_the_channels_last() -> None:
    m = model("""(float[N,4,4,3] x) => (float[N,5] y) <float[3,8] w, float[128,5] v> {
        h = MatMul(x, w)
        f = Flatten(h)
        y = MatMul(f, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    result = prune_and_compare(m)
    kept = result.kept["w:1"]
    original = numpy_helper.to_array(stored(m)["v"]).reshape(16, 8, 5)
    np.testing.assert_array_equal(numpy_helper.to_array(stored(result.pruned)["v"]), original[:, kept].reshape(-1, 5))


def test_flatten_of_a_concat_of_convolutions() -> None:
    m = model("""(float[N,3,2,2] x) => (float[N,5] y) <float[6,3,1,1] a, float[4,3,1,1] b, float[40,5] v> {
        p = Conv(x, a)
        q = Conv(x, b)
        c = Concat<axis=1>(p, q)
        f = Flatten(c)
        y = MatMul(f, v)
    }""")
    assert prunable(m) == {"a:0": 6, "b:0": 4}
    prune_and_compare(m)


def test_reshape_to_a_target_read_from_the_input_shape() -> None:
    """Shape -> Gather -> Concat, as PyTorch exports x.view(n, c, -1): the entry of the batch stays computed."""
    m = model("""(float[N,3,H,W] x) => (float[N,5,L] y) <float[8,3,1,1] w, float[8,1] scale, float[5,8,1] v,
        int64 zero = {0}, int64[1] front = {0}, int64[1] channels = {8}, int64[1] rest = {-1}> {
        h = Conv(x, w)
        s = Shape(h)
        n = Gather(s, zero)
        n1 = Unsqueeze(n, front)
        t = Concat<axis=0>(n1, channels, rest)
        r = Reshape(h, t)
        a = Mul(r, scale)
        y = Conv(a, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    result = prune_and_compare(m)
    assert result.weights["scale"] == (4, 1)
    assert {"Shape", "Gather", "Concat"} <= {n.op_type for n in result.pruned.graph.node}


def test_reshape_to_a_target_whose_width_is_read_too() -> None:
    """The width of the target comes out of Shape and shrinks by itself."""
    m = model("""(float[N,3,H,W] x) => (float[N,5,L] y) <float[8,3,1,1] w, float[5,8,1] v, int64[1] rest = {-1},
        int64[1] a = {0}, int64[1] b = {2}> {
        h = Conv(x, w)
        s = Shape(h)
        nc = Slice(s, a, b)
        t = Concat<axis=0>(nc, rest)
        r = Reshape(h, t)
        y = Conv(r, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


def test_heads_computed_from_a_width_that_shrinks() -> None:
    """reshape(n, t, c // 4, 4) keeps a head width of 4 as the number of heads follows c."""
    m = model("""(float[N,T,4] x) => (float[N,T,3] y) <float[4,12] w, float[3,4] scale, float[12,3] v,
        int64[1] four = {4},
        int64[1] a = {0}, int64[1] b = {2}, int64[1] c = {3}> {
        h = MatMul(x, w)
        s = Shape(h)
        nt = Slice(s, a, b)
        width = Slice(s, b, c)
        heads = Div(width, four)
        t = Concat<axis=0>(nt, heads, four)
        r = Reshape(h, t)
        k = Mul(r, scale)
        f = Reshape(k, s)
        y = MatMul(f, v)
    }""")
    assert prunable(m) == {"w:1": 3, "w:1#2": 4}
    prune_and_compare(m)
    prune_and_compare(m, factors=True)


def test_a_width_read_from_a_shape_and_used_as_a_number_keeps_its_value() -> None:
    """1 / sqrt(width) in attention must stay that of the original network."""
    m = model("""(float[N,6,4] x) => (float[N,6,6] y) <float[4,8] q, float[4,8] k, int64 last = {2}> {
        a = MatMul(x, q)
        b = MatMul(x, k)
        s = Shape(a)
        d = Gather(s, last)
        f = Cast<to=1>(d)
        r = Sqrt(f)
        t = Transpose<perm=[0,2,1]>(b)
        p = MatMul(a, t)
        y = Div(p, r)
    }""")
    assert prunable(m) == {"q:1": 8}
    prune_and_compare(m)


def test_reshape_that_mixes_channels_with_a_dynamic_axis_is_not_guessed() -> None:
    m = model("""(float[N,T,4] x) => (float[A,3] y) <float[4,8] w, int64[2] t = {-1, 2}, float[2,3] v> {
        h = MatMul(x, w)
        r = Reshape(h, t)
        y = MatMul(r, v)
    }""")
    if prunable(m):
        prune_and_compare(m)


@pytest.mark.parametrize("total", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("target", ["0, -1, 8", "0, -1, 4"])
def test_a_length_of_the_input_is_not_taken_apart_by_a_width(target: str, total: str) -> None:
    """8 x 24 becomes 24 x 8, but 8 x 10 becomes 10 x 8, where the 8 channels are no factor of the 10."""
    width = target[-1]
    m = model(
        f"""(float[N,3,L] x) => (float[N,5] y) <float[8,3,1] w, float[{width},5] v, int64[3] t = {{{target}}}> {{
        h = Conv(x, w)
        r = Reshape(h, t)
        q = Exp(r)
        k = {total}<axes=[1], keepdims=0>(q)
        y = MatMul(k, v)
    }}""",
        opset=12,
    )
    assert reasons(m)["w:0"] == "Reshape: sizes that follow the input are not divided alike at every size"


@pytest.mark.parametrize("target", ["0, 2, -1", "0, 2, 2, -1"])
def test_channels_are_grouped_with_places_of_any_number(target: str) -> None:
    """The last axis is 4 x H x W (or 2 x H x W) at every size, so that what H and W leave of it are channels."""
    rank = target.count(",") + 1
    scale = "float[2]" if rank == 3 else "float[1,2,1,1]"
    norm = "i = InstanceNormalization(g, scale, nil)" if rank == 3 else "j = Mul(g, scale) i = Add(j, nil)"
    m = model(f"""(float[N,3,H,W] x) => (float[N,5,H,W] y) <float[8,3,1,1] w, float[5,8,1,1] v,
        int64[{rank}] apart = {{{target}}}, {scale} scale, {scale} nil> {{
        h = Conv(x, w)
        g = Reshape(h, apart)
        {norm}
        s = Shape(h)
        k = Reshape(i, s)
        r = Relu(k)
        y = Conv(r, v)
    }}""")
    sizes = sorted(prunable(m).values())
    assert sizes == ([2, 4] if rank == 3 else [2, 2, 2])
    prune_and_compare(m)
    prune_and_compare(m, factors=True)


def test_heads_move_into_the_batch_and_back() -> None:
    """The new batch follows the input and is divided by the heads, which its making implies."""
    m = model(
        """(float[N,6,4] x) => (float[N,6,3] y) <float[4,8] w, float[8,3] v,
        int64[4] apart = {0,-1,4,2}, int64[3] fold = {-1,6,2}, int64[3] together = {0,-1,8},
        int64[4] unfold = {-1,4,6,2}> {
        h = MatMul(x, w)
        a = Reshape(h, apart)
        b = Transpose<perm=[0,2,1,3]>(a)
        c = Reshape(b, fold)
        d = Relu(c)
        e = Reshape(d, unfold)
        f = Transpose<perm=[0,2,1,3]>(e)
        g = Reshape(f, together)
        y = MatMul(g, v)
    }"""
    )
    assert prunable(m) == {"w:1": 4, "w:1#2": 2}
    prune_and_compare(m)


def test_a_target_that_copies_a_product_of_input_sizes_copies_it_still() -> None:
    """Batch times queries as the first axis: 0 in the target of a group normalisation stays 0 at every batch."""
    m = model("""(float[N,Q,5] x) => (float[M,3,H,W] y) <int64[4] apart = {-1,1,5,1}, float[8,1,1,1] w,
        float[3,8,1,1] v, int64[3] grouped = {0,4,-1}, float[4] one, float[4] nil> {
        r = Reshape(x, apart)
        h = Conv(r, w)
        g = Reshape(h, grouped)
        i = InstanceNormalization(g, one, nil)
        s = Shape(h)
        b = Reshape(i, s)
        y = Conv(b, v)
    }""")
    assert prunable(m)
    result = prune_and_compare(m, ratio=0.5)
    stated = stored(result.pruned)[result.node("Reshape", 1).input[1]]
    assert numpy_helper.to_array(stated)[0] == 0


def test_reshape_of_nothing_is_no_error() -> None:
    """What a cache holds at first: (n, 0, 8) -> (n, 0, 2, 4)."""
    m = model("""(float[5,3,4] x) => (float[5,3,3] y, float[5,0,2,4] z) <float[4,8] w, float[8,3] v, int64[1] nil = {0},
        int64[1] axis = {1}, int64[4] t = {5,0,2,4}> {
        h = MatMul(x, w)
        e = Slice(h, nil, nil, axis)
        z = Reshape<allowzero=1>(e, t)
        y = MatMul(h, v)
    }""")
    assert reasons(m)["w:1"].startswith("graph output")


def test_channel_shuffle() -> None:
    """(2, 4) becomes (4, 2): only a group or a position in all groups can go."""
    m = model("""(float[N,3,6,6] x) => (float[N,5,6,6] y) <float[8,3,1,1] w, float[8,1,3,3] d, float[5,8,1,1] v,
        int64[5] apart = {0,2,4,6,6}, int64[4] together = {0,8,6,6}> {
        h = Conv(x, w)
        a = Reshape(h, apart)
        b = Transpose<perm=[0,2,1,3,4]>(a)
        c = Reshape(b, together)
        k = Conv<group=8, pads=[1,1,1,1]>(c, d)
        y = Conv(k, v)
    }""")
    assert prunable(m) == {"w:0": 2, "w:0#2": 4}
    assert prune_and_compare(m, factors=True).attribute("Conv", "group", 1) == 2


@pytest.mark.parametrize("perm", ["", "<perm=[1,0]>"])
def test_transpose_moves_dimensions(perm: str) -> None:
    m = model(f"""(float[N,4] x) => (float[3,N] y) <float[4,8] w, float[3,8] v> {{
        h = MatMul(x, w)
        t = Transpose{perm}(h)
        y = MatMul(v, t)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_and_unsqueeze_keep_the_other_axes(opset: int) -> None:
    squeeze, unsqueeze = ("Squeeze<axes=[2,3]>(p)", "Unsqueeze<axes=[2]>(q)")
    if opset >= 13:
        squeeze, unsqueeze = "Squeeze(p, ab)", "Unsqueeze(q, c)"
    m = model(
        f"""(float[N,3,H,W] x) => (float[N,5,1] y) <float[8,3,1,1] w, float[5,8,1] v, int64[2] ab = {{2,3}},
        int64[1] c = {{2}}> {{
        h = Conv(x, w)
        p = GlobalAveragePool(h)
        q = {squeeze}
        r = {unsqueeze}
        y = Conv(r, v)
    }}""",
        opset=opset,
    )
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


@pytest.mark.parametrize("target", ["2,8,5", "1,1,1", "2,1,5"])
def test_expand_stretches_axes_of_size_one(target: str) -> None:
    m = model(f"""(float[2,4] x) => (float[2,3,K] y) <float[4,8] w, int64[1] two = {{2}}, int64[3] t = {{{target}}},
        float[3,8] v> {{
        h = MatMul(x, w)
        u = Unsqueeze(h, two)
        e = Expand(u, t)
        y = MatMul(v, e)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_expand_to_a_computed_target() -> None:
    """A learned query expanded over the batch."""
    m = model("""(float[N,T,4] x) => (float[N,6,3] y) <float[6,4] query, float[4,8] w, float[8,3] v, int64[1] a = {0},
        int64[1] b = {1}, int64[2] sizes = {6, 8}> {
        h = MatMul(query, w)
        s = Shape(x)
        n = Slice(s, a, b)
        t = Concat<axis=0>(n, sizes)
        e = Expand(h, t)
        y = MatMul(e, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)


def test_tile_repeats_a_dimension() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, int64[2] r = {1,3}, float[24,3] v> {
        h = MatMul(x, w)
        t = Tile(h, r)
        y = MatMul(t, v)
    }""")
    assert prunable(m)["w:1"] == 8
    result = prune_and_compare(m)
    assert result.weights["v"] == (12, 3)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_prunes_all_places_of_a_block(mode: str) -> None:
    m = model(f"""(float[N,3,H,W] x) => (float[N,5,P,Q] y) <float[16,3,1,1] w, float[5,4,1,1] v> {{
        h = Conv(x, w)
        d = DepthToSpace<blocksize=2, mode="{mode}">(h)
        y = Conv(d, v)
    }}""")
    assert list(prunable(m).values()) == [4]
    result = prune_and_compare(m)
    assert result.weights["w"] == (8, 3, 1, 1)
    assert result.weights["v"] == (5, 2, 1, 1)


def test_space_to_depth_multiplies_the_channels() -> None:
    m = model("""(float[N,3,8,8] x) => (float[N,5,4,4] y) <float[8,3,1,1] w, float[5,32,1,1] v> {
        h = Conv(x, w)
        d = SpaceToDepth<blocksize=2>(h)
        y = Conv(d, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    assert prune_and_compare(m).weights["v"] == (5, 16, 1, 1)


def test_pixel_unshuffle_by_reshape_and_transpose() -> None:
    m = model("""(float[N,3,4,4] x) => (float[N,5,2,2] y) <float[8,3,1,1] w, float[5,32,1,1] v,
        int64[6] apart = {0,8,2,2,2,2}, int64[4] together = {0,32,2,2}> {
        h = Conv(x, w)
        a = Reshape(h, apart)
        b = Transpose<perm=[0,1,3,5,2,4]>(a)
        d = Reshape(b, together)
        y = Conv(d, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    assert prune_and_compare(m).weights["v"] == (5, 16, 1, 1)


RESIZES = {
    "scales": ('Resize<mode="nearest">(h, , scales)', 13),
    "sizes": ('Resize<mode="nearest">(h, , , sizes)', 13),
    "linear": ('Resize<mode="linear", coordinate_transformation_mode="half_pixel">(h, , sizes2)', 13),
    "old": ("Resize(h, scales)", 10),
    "upsample": ("Upsample(h, scales)", 9),
    "axes": ('Resize<axes=[2,3], mode="nearest">(h, , , space)', 18),
}


@pytest.mark.parametrize("form", sorted(RESIZES))
def test_resize_of_space_passes_channels(form: str) -> None:
    call, opset = RESIZES[form]
    sizes = "float[4] scales = {1,1,2,2}, float[4] sizes2 = {1,1,2,1}, int64[4] sizes = {2,8,12,10}, "
    sizes += "int64[2] space = {12,10}"
    m = model(
        f"""(float[2,3,6,5] x) => (float[2,5,12,10] y) <float[8,3,1,1] w, {sizes}, float[5,8,1,1] v> {{
        h = Conv(x, w)
        r = {call}
        y = Conv(r, v)
    }}""".replace("12,10] y", "12,5] y" if form == "linear" else "12,10] y"),
        opset=opset,
    )
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


def test_resize_to_the_size_of_another_tensor() -> None:
    """Shape -> Slice -> Concat of the channels of one and the space of another, as feature pyramids do."""
    m = model("""(float[N,3,H,W] x) => (float[N,5,P,Q] y) <float[8,3,1,1] w, float[8,3,2,2] u, float[5,8,1,1] v,
        int64[1] a = {0}, int64[1] b = {2}, int64[1] c = {4}> {
        h = Conv(x, w)
        k = Conv<strides=[2,2]>(x, u)
        s = Shape(k)
        nc = Slice(s, a, b)
        t = Shape(h)
        hw = Slice(t, b, c)
        sizes = Concat<axis=0>(nc, hw)
        r = Resize<mode="nearest">(k, , , sizes)
        z = Add(h, r)
        y = Conv(z, v)
    }""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


def test_resize_of_the_channel_axis_freezes_it() -> None:
    m = model("""(float[N,4,6] x) => (float[N,T,3] y) <float[6,8] w, float[3] scales = {1,1,2}, float[16,3] v> {
        h = MatMul(x, w)
        r = Resize<mode="nearest">(h, , scales)
        y = MatMul(r, v)
    }""")
    assert reasons(m)["w:1"] == "Resize: Resize works along this axis"


def test_a_table_of_zeros_made_by_constant_of_shape_shrinks_with_its_group() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y) <float[4,8] w, int64[1] n = {8}, float[8,3] v> {
        h = MatMul(x, w)
        b = ConstantOfShape<value = float[1] {0.5}>(n)
        s = Add(h, b)
        y = MatMul(s, v)
    }""")
    assert prunable(m) == {"w:1": 8}
    assert places(groups(m)["w:1"])["b", 0] == "carried"
    prune_and_compare(m)


def test_shape_and_size_of_a_pruned_tensor_that_become_outputs_are_not_changed() -> None:
    m = model("""(float[N,4] x) => (float[N,3] y, int64[2] s, int64 z) <float[4,8] w, float[8,3] v> {
        h = MatMul(x, w)
        s = Shape(h)
        z = Size(h)
        y = MatMul(h, v)
    }""")
    assert prunable(m) == {}
    assert reasons(m)["w:1"].endswith("the size is a result of the model, or of a body")


def test_a_window_in_the_centre_leaves_the_channels() -> None:
    m = model(
        """(float[2,3,6,6] x) => (float[2,5,4,8] y) <float[8,3,1,1] w, float[5,8,1,1] v, int64[2] s = {4, 8}> {
        h = Conv(x, w)
        c = CenterCropPad<axes=[2,-1]>(h, s)
        y = Conv(c, v)
    }""",
        opset=18,
    )
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


def test_a_window_over_all_axes_keeps_them() -> None:
    m = model(
        """(float[2,4] x) => (float[2,3] y) <float[4,8] w, float[6,3] v, int64[2] s = {2, 6}> {
        h = MatMul(x, w)
        c = CenterCropPad(h, s)
        y = MatMul(c, v)
    }""",
        opset=18,
    )
    assert reasons(m)["w:1"] == "CenterCropPad: CenterCropPad cuts or pads this axis"


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_expand_dims_adds_an_axis(axis: int) -> None:
    m = model(f"""(float[2,4] x) => (float[A,B,C] y) <float[4,8] w, int32 k = {{{axis}}}, int64[2] flat = {{2,8}},
        float[8,3] v, int64[3] last = {{2,3,1}}> {{
        h = MatMul(x, w)
        u = com.microsoft.ExpandDims(h, k)
        r = Reshape(u, flat)
        z = MatMul(r, v)
        y = com.microsoft.ExpandDims(z, k)
    }}""")
    assert prunable(m) == {"w:1": 8}
    prune_and_compare(m)
