import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.evaluator import Evaluator

_Array = NDArray[np.float64]

def level_information(evaluator: Evaluator, theta: _Array) -> tuple[_Array, _Array, _Array, _Array, float]: ...
def group_slopes(
    products: _Array, t: _Array, factor: _Array, lam: _Array, row: NDArray[np.int64], col: NDArray[np.int64]
) -> tuple[_Array, _Array]: ...
def pseudo_inverse(matrix: _Array, dropped: float) -> tuple[_Array, int]: ...
def assembled(
    profiled: _Array,
    slopes: _Array,
    of_r2: _Array,
    factor: _Array,
    r: _Array,
    nu: float,
    r2: float,
    unit: float,
    dropped: float,
) -> tuple[_Array, _Array, int, _Array, _Array]: ...
def contrast_df(rows: _Array, half: _Array, slopes: _Array, cov: _Array) -> _Array: ...
