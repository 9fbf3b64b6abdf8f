import numpy as np
from numpy.typing import NDArray

def row_forms(
    evaluator: object,
    h_lead: NDArray[np.float64],
    ptr: NDArray[np.int64],
    rows: NDArray[np.int64],
    z_lead: NDArray[np.float64],
    starts: NDArray[np.int64],
    z_tail: NDArray[np.float64],
    complete: bool,
) -> NDArray[np.float64]: ...
