import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

def score_glm(
    family: int,
    link: int,
    y: _Array,
    m: _Array,
    freq: _Array,
    offset: _Array,
    X: _Array,
    rho: float,
    eta: _Array,
    max_steps: int,
    enough: float,
) -> tuple[_Array, float]: ...
