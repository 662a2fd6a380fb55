"""The arrays that records hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
Feed = dict[str, npt.NDArray[np.generic]]
