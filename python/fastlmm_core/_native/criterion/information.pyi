import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.evaluator import Evaluator

Array = NDArray[np.float64]

def level_information(evaluator: Evaluator, theta: Array) -> tuple[Array, Array, Array, Array, float]: ...
def group_slopes(
    products: Array, t: Array, factor: Array, lam: Array, row: NDArray[np.int64], col: NDArray[np.int64]
) -> tuple[Array, Array]: ...
def pseudo_inverse(matrix: Array, dropped: float) -> tuple[Array, int]: ...
