"""Opening and writing ONNX files; no other module reads or writes .onnx.

A model is opened as a *skeleton*: the protobuf without the external data, whose tensors are then read one at a time.
It is written from an edited copy of the skeleton, so whatever nobody edited leaves as it came.
"""

from onnxprune.modelfile.datafile import CHUNK_BYTES, Array
from onnxprune.modelfile.model import ModelFile, external_files, skeleton
from onnxprune.modelfile.payloads import bits_of
from onnxprune.modelfile.writing import Edit, preflight, publish, write

__all__ = [
    "CHUNK_BYTES",
    "Array",
    "Edit",
    "ModelFile",
    "bits_of",
    "external_files",
    "preflight",
    "publish",
    "skeleton",
    "write",
]
