import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.solver import Solver

class Evaluator(Solver):
    @property
    def n_chunks(self) -> int: ...
    def derivatives(self, theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]: ...
