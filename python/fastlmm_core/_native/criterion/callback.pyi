from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.criterion import Criterion

Array = NDArray[np.float64]

class Callback(Criterion):
    def __init__(
        self,
        n_free: int,
        value: Callable[[Array], float],
        derivatives: Callable[[], tuple[Array, Array]],
        size: float,
    ) -> None: ...
    @property
    def error(self) -> BaseException | None: ...
    def raise_error(self) -> None: ...
