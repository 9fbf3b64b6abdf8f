import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.level_values import LevelValues

Array = NDArray[np.float64]

class Quadrature(LevelValues):
    def derivatives(self, x: Array) -> tuple[float, Array, Array]: ...
