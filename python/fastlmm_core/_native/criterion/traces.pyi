import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.solver import Solver

class Traces(Solver):
    @property
    def n_chunks(self) -> int: ...
    def traces(self, theta: NDArray[np.float64]) -> list[NDArray[np.float64]]: ...
