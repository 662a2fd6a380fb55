"""Shapes and known small values of every tensor, found by walks over the skeleton of the model.

Dynamic axes get representative sizes; walks are made at different ones, and what differs is dynamic.
"""

from onnxprune.shapes.inference import Shapes, infer
from onnxprune.shapes.sizes import (
    ANALYSIS_SIZES,
    RUN_SIZES,
    Shape,
    Sizes,
    concrete_inputs,
    graph_inputs,
    is_dynamic,
    typical_inputs,
    variations,
)
from onnxprune.shapes.walk import constant_tensor, node_attributes, stored_tensors

__all__ = [
    "ANALYSIS_SIZES",
    "RUN_SIZES",
    "Shape",
    "Shapes",
    "Sizes",
    "concrete_inputs",
    "constant_tensor",
    "graph_inputs",
    "infer",
    "is_dynamic",
    "node_attributes",
    "stored_tensors",
    "typical_inputs",
    "variations",
]
