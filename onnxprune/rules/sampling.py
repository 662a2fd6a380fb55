"""Operators that read an image at computed places: channels pass through, the places stay.

GridSample   y[n, c, p] = x[n, c, grid[n, p]], interpolated
RoiAlign     y[r, c, p] = the part r of x[batch[r], c], pooled to a fixed size
"""

from __future__ import annotations

from onnxprune.rules.registry import Operator, rule


@rule("GridSample", since=16)
@rule("GridSample", domain="com.microsoft")
def grid_sample(op: Operator) -> None:
    op.apply("n c *, n * -> n c *")


@rule("AffineGrid", since=20)
def affine_grid(op: Operator) -> None:
    op.apply("n _ _, _ -> n *")


@rule("RoiAlign", "MaxRoiPool")
@rule("CropAndResize", domain="com.microsoft")
def regions(op: Operator) -> None:
    """Regions r of any image: x, regions, the images they are in, and sizes -> r c *."""
    op.apply("_ c *, r _, r?, *? -> r c *")
