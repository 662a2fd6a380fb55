"""Operators that read an image at computed places."""

from __future__ import annotations

import pytest
from oracle import model, prunable, prune_and_compare


@pytest.mark.parametrize("call", ["GridSample(h, g)", "com.microsoft.GridSample(h, g)"])
def test_channels_pass_a_sampling_grid(call: str) -> None:
    m = model(f"""(float[N,3,6,6] x, float[N,4,5,2] g) => (float[N,5,4,5] y) <float[8,3,1,1] w, float[5,8,1,1] v> {{
        h = Conv(x, w)
        s = {call}
        y = Conv(s, v)
    }}""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)


def test_a_grid_computed_by_the_model() -> None:
    """A spatial transformer: the transformation comes from a layer whose width stays, what is sampled is pruned."""
    m = model(
        """(float[2,3,6,6] x) => (float[2,5,4,4] y)
        <float[8,3,1,1] w, float[12,3] t, float[12,8] t1, float[8,6] t2, int64[4] size = {2,8,4,4},
        int64[3] rows = {2,2,3}, float[5,8,1,1] v> {
        p = GlobalAveragePool(x)
        f = Flatten(p)
        a = Gemm<transB=1>(f, t)
        b = MatMul(a, t1)
        c = MatMul(b, t2)
        theta = Reshape(c, rows)
        g = AffineGrid(theta, size)
        h = Conv(x, w)
        s = GridSample(h, g)
        y = Conv(s, v)
    }""",
        opset=20,
        ir=9,
    )
    assert prunable(m) == {"w:0": 8, "t:0": 12, "t1:1": 8}
    prune_and_compare(m)


@pytest.mark.parametrize(
    ("call", "boxes"),
    [
        ("RoiAlign<output_height=2, output_width=2>(h, boxes, images)", "float[3,4] boxes = {0,0,3,3,1,1,4,4,0,2,5,5}"),
        (
            "MaxRoiPool<pooled_shape=[2,2]>(h, boxes)",
            "float[3,5] boxes = {0,0,0,3,3,1,1,1,4,4,1,0,2,5,5}",
        ),
        (
            "com.microsoft.CropAndResize(h, boxes, numbers, crop)",
            "float[3,4] boxes = {0,0,0.5,0.5,0.1,0.1,0.9,0.9,0,0.2,1,1}",
        ),
    ],
)
def test_channels_pass_regions(call: str, boxes: str) -> None:
    m = model(f"""(float[2,3,6,6] x) => (float[3,5,2,2] y) <float[8,3,1,1] w, float[5,8,1,1] v, {boxes},
        int64[3] images = {{0,1,1}}, int32[3] numbers = {{0,1,1}}, int32[2] crop = {{2,2}}> {{
        h = Conv(x, w)
        r = {call}
        y = Conv(r, v)
    }}""")
    assert prunable(m) == {"w:0": 8}
    prune_and_compare(m)
