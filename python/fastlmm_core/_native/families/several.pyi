import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

def ordinal_rows(link: int, y: _Array, eta: _Array, bounds: _Array, threads: int) -> _Array: ...
def two_part_rows(
    family: int, link: int, hurdle: bool, y: _Array, eta: _Array, z: _Array, rho: float, threads: int
) -> _Array: ...
