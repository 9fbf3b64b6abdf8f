import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

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
        z: Array | None,
        t: Array | None,
        w: Array | None,
        threads: int,
    ) -> None: ...
    def product(self, K: Array, x: Array) -> Array: ...
    def lead_sums(self, x: Array) -> Array: ...
    def tail_sums(self, u: Array) -> Array: ...
    def diagonals(self, K: Array, R: Array) -> tuple[Array, Array]: ...
