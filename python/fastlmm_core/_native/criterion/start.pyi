import numpy as np
from numpy.typing import NDArray

def ridge_sums(
    blocks: NDArray[np.float64], s: NDArray[np.float64], ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float, float]: ...
