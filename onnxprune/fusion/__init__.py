"""Fusions that ONNX Runtime does not make itself, exact but for rounding.

Exporters leave maps  y = scale * x + shift  of stored constants between the layers, and spell activations out by them:
x * clip(x + 3, 0, 6) / 6, learned scalars behind convolutions and activations.
Each is a pass over memory, in a layout that the convolutions do not use, and costs the same per channel however narrow
the layers get; so of a pruned model they take the larger share.

    behind   maps that follow a linear operator are taken into its weight and bias
    ahead    other maps are carried on, through what they commute with, to a linear operator that takes them in;
             clip(s x + b, 0, h) becomes h * HardSigmoid(x), a map again; what cannot be carried further is one node
    cheaper  PRelu and Mish, whose kernels cost as much as a convolution on the CPU, in terms of quick ones

A model in which nothing gets shorter is left as it is, and so is what ONNX Runtime fuses by patterns of its own (Gelu,
LayerNormalization, a convolution and its BatchNormalization).
"""

from onnxprune.fusion.fuse import Fused, fused

__all__ = ["Fused", "fused"]
