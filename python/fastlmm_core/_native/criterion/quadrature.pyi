import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.level_values import LevelValues

_Array = NDArray[np.float64]

class Quadrature(LevelValues):
    def derivatives(self, x: _Array) -> tuple[float, _Array, _Array]: ...
