import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

def score_glm(
    family: int,
    link: int,
    y: Array,
    m: Array,
    freq: Array,
    offset: Array,
    X: Array,
    rho: float,
    eta: Array,
    max_steps: int,
    enough: float,
) -> tuple[Array, float]: ...
