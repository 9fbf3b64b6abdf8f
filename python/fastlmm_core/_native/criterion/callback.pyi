from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.criterion import Criterion

_Array = NDArray[np.float64]

class Callback(Criterion):
    def __init__(
        self,
        n_free: int,
        value: Callable[[_Array], float],
        derivatives: Callable[[], tuple[_Array, _Array]],
        size: float,
        relative: float = 1e-12,
    ) -> None: ...
    @property
    def error(self) -> BaseException | None: ...
    def raise_error(self) -> None: ...
