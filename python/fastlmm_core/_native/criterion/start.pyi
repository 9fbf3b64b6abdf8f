import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

def ridge_sums(blocks: _Array, s: _Array, ridge: float) -> tuple[_Array, _Array, _Array, float, float]: ...
def group_moment(blocks: _Array, s: _Array, ridge: float, n: int, total: float, noise: float = ...) -> _Array: ...
def moment_roots(
    blocks: tuple[_Array, ...],
    sums: tuple[_Array, ...],
    n: int,
    total: float,
    index: NDArray[np.int64],
    ridge: float,
    low: float,
    high: float,
) -> _Array: ...
def clipped_roots(
    estimates: list[_Array], scale: float, index: NDArray[np.int64], low: float, high: float
) -> _Array: ...
