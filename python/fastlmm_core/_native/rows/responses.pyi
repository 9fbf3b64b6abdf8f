from typing import Self

import numpy as np
from numpy.typing import NDArray

class ResponseProducts:
    def __new__(
        cls,
        X: NDArray[np.float64],
        basis: NDArray[np.float64],
        q: NDArray[np.float64] | None,
        w: NDArray[np.float64] | None,
        metric: NDArray[np.float64],
        codes: list[NDArray[np.int32]],
        columns: list[NDArray[np.float64] | None],
        levels: list[int],
        chunk: int,
        span: float,
    ) -> Self: ...
    @property
    def calls_blas(self) -> bool: ...
    def __call__(
        self, Y: NDArray[np.float64]
    ) -> tuple[
        NDArray[np.float64],
        NDArray[np.float64],
        NDArray[np.float64],
        tuple[NDArray[np.float64], ...],
        NDArray[np.float64],
        bool,
    ]: ...
