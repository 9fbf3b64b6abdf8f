import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

def ordinal_rows(link: int, y: Array, eta: Array, bounds: Array, threads: int) -> Array: ...
def two_part_rows(
    family: int, link: int, hurdle: bool, y: Array, eta: Array, z: Array, rho: float, threads: int
) -> Array: ...
