from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.criterion import Criterion

class CallbackCriterion(Criterion):
    @property
    def error(self) -> Exception | None: ...
    def __init__(
        self,
        n: int,
        evaluate: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64], NDArray[np.float64]]],
        accuracy: float,
    ) -> None: ...
