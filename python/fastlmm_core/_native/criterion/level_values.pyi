import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.criterion import Criterion

Array = NDArray[np.float64]
Longs = NDArray[np.int64]

class LevelValues(Criterion):
    def __init__(
        self,
        family: int,
        link: int,
        ptr: Longs,
        X: Array,
        z: Array,
        offset: Array,
        m: Array,
        freq: Array,
        row: Longs,
        col: Longs,
        estimated: bool,
        rho: float,
        nodes: Array,
        log_weights: Array,
        expected: bool,
        threads: int,
        rho_range: tuple[float, float],
    ) -> None: ...
    def set_response(self, y: Array) -> None: ...
    def value(self, x: Array) -> float: ...
    def modes(self) -> Array: ...
    def cond_var(self) -> Array: ...
