import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

def ridge_sums(blocks: Array, s: Array, ridge: float) -> tuple[Array, Array, Array, float, float]: ...
def group_moment(blocks: Array, s: Array, ridge: float, n: int, total: float, noise: float = ...) -> Array: ...
def clipped_roots(
    estimates: list[Array], scale: float, index: NDArray[np.int64], low: float, high: float
) -> Array: ...
