import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.evaluator import Evaluator

_Array = NDArray[np.float64]

def level_information(evaluator: Evaluator, theta: _Array) -> tuple[_Array, _Array, _Array, _Array, float]: ...
def group_slopes(
    products: _Array, t: _Array, factor: _Array, lam: _Array, row: NDArray[np.int64], col: NDArray[np.int64]
) -> tuple[_Array, _Array]: ...
def pseudo_inverse(matrix: _Array, dropped: float) -> tuple[_Array, int]: ...
