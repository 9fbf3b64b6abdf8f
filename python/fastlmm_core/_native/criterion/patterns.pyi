import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

def factor(R: Array, counts: Array) -> tuple[Array, Array, float]: ...
def add_derivatives(
    C: Array,
    directions: Array,
    counts: Array,
    moments: Array | None,
    E: Array | None,
    F: Array,
    gradient: Array,
    hessian: Array,
    slopes: Array,
) -> Array: ...
def unit_moments(D: Array, units: NDArray[np.int64], out: Array) -> None: ...
