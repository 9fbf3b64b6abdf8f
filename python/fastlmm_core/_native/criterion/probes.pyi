import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.evaluator import Evaluator

def probe_many(
    evaluator: Evaluator,
    lead: NDArray[np.float64],
    tail: NDArray[np.float64],
    xty: NDArray[np.float64],
    constants: NDArray[np.float64],
    points: NDArray[np.float64],
    gradient: NDArray[np.float64],
    ld: NDArray[np.float64],
    outcome: NDArray[np.int32],
) -> None: ...
