import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

WIDTH: int
WIDTHS: tuple[int, ...]
MAX_LEADING: int

def on_lines(rows: int, width: int = 8) -> _Array: ...

class RowForm:
    n: int
    q: int
    m: int
    l: int
    products: int
    version: int
    def __init__(
        self,
        ptr: NDArray[np.int64],
        codes: NDArray[np.int32],
        levels: NDArray[np.int64],
        widths: NDArray[np.int64],
        z: _Array | None,
        t: _Array | None,
        w: _Array | None,
        threads: int,
    ) -> None: ...
    @property
    def codes(self) -> NDArray[np.int32]: ...
    @property
    def ptr(self) -> NDArray[np.int64]: ...
    def reweight(self, w: _Array) -> None: ...
    def product(self, K: _Array, x: _Array, out: _Array | None = None) -> _Array: ...
    def lead_sums(self, x: _Array) -> _Array: ...
    def tail_sums(self, u: _Array) -> _Array: ...
    def diagonals(self, K: _Array, R: _Array) -> tuple[list[_Array], list[_Array]]: ...
    def aggregated(self, K: _Array, labels: NDArray[np.int32], size: int) -> _Array: ...
