import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.traces import Traces

class Evaluator(Traces):
    def derivatives(self, theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]: ...
    def given_sigma(
        self, theta: NDArray[np.float64], log_sigma: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
    def chain(
        self, theta: NDArray[np.float64], blocks: list[NDArray[np.float64]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
