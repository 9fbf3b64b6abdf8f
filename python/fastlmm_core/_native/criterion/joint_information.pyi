import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.evaluator import Evaluator

_Array = NDArray[np.float64]

def joint_information(evaluator: Evaluator, theta: _Array) -> tuple[_Array, _Array, _Array, _Array, float]: ...
