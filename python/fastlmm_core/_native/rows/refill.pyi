import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.values import Values

_Array = NDArray[np.float64]

class RowPlaces:
    def __init__(
        self,
        codes: list[NDArray[np.int32]],
        columns: list[_Array | None],
        levels: list[int],
        offsets: list[NDArray[np.int64]],
        arrays: dict[str, NDArray[np.generic]],
        threads: int,
    ) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def n_factors(self) -> int: ...
    @property
    def n_pairs(self) -> int: ...
    @property
    def values(self) -> Values: ...
    def refill(self, w: _Array) -> Values: ...
    def sums(self, D: _Array) -> tuple[_Array, _Array]: ...
    def products(self, lead: _Array, tail: _Array) -> _Array: ...
