import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.evaluator import Evaluator
from fastlmm_core._native.rows.refill import RowPlaces

def explicit_parts(evaluator: object) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
def leverages(evaluator: Evaluator, theta: NDArray[np.float64], rows: RowPlaces) -> NDArray[np.float64]: ...
def row_forms(
    evaluator: Evaluator,
    h_lead: NDArray[np.float64],
    ptr: NDArray[np.int64],
    rows: NDArray[np.int64],
    z_lead: NDArray[np.float64],
    starts: NDArray[np.int64],
    z_tail: NDArray[np.float64],
) -> NDArray[np.float64]: ...
