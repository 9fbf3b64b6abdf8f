import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

WIDTH: int
MAX_LEADING: int

class RowForm:
    n: int
    q: int
    m: int
    l: int
    products: int
    def __init__(
        self,
        ptr: NDArray[np.int64],
        codes: NDArray[np.int32],
        m: int,
        z: _Array | None,
        t: _Array | None,
        w: _Array | None,
        threads: int,
    ) -> None: ...
    def product(self, K: _Array, x: _Array) -> _Array: ...
    def lead_sums(self, x: _Array) -> _Array: ...
    def tail_sums(self, u: _Array) -> _Array: ...
    def diagonals(self, K: _Array, R: _Array) -> tuple[_Array, _Array]: ...
