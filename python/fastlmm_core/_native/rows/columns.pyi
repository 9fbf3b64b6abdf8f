import numpy as np
from numpy.typing import NDArray

FEW: int

def all_finite(values: NDArray[np.float64]) -> bool: ...
def gram_factor(
    columns: NDArray[np.float64],
    root: NDArray[np.float64] | None,
    tolerance: float,
    smallest: float,
    largest: float,
) -> NDArray[np.float64] | None: ...
def small_inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]: ...
def triangle_inverse(r: NDArray[np.float64]) -> NDArray[np.float64]: ...
