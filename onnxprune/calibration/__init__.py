"""Real inputs to measure on: found, read up to a limit, checked against the inputs of the model, cut into batches.

arrays     .npz and .npy files and folders of them
images     folders of pictures, decoded and prepared (extra `images`)
functions  a Python function that yields inputs
checks     names, types, axes, values
batching   batches of equal rows
"""

from onnxprune.calibration.batching import BATCH, batches, fixed_rows, mixed, some
from onnxprune.calibration.checks import (
    check_indices,
    check_rows,
    check_variety,
    dtype_words,
    fitting,
    index_bounds,
    index_limits,
    ranges,
    remarks,
    rows_of,
)
from onnxprune.calibration.loading import Loaded, load
from onnxprune.calibration.places import exists

__all__ = [
    "BATCH",
    "Loaded",
    "batches",
    "check_indices",
    "check_rows",
    "check_variety",
    "dtype_words",
    "exists",
    "fitting",
    "fixed_rows",
    "index_bounds",
    "index_limits",
    "load",
    "mixed",
    "ranges",
    "remarks",
    "rows_of",
    "some",
]
