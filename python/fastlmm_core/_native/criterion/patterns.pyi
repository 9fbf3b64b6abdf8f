import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

def factor(R: _Array, counts: _Array) -> tuple[_Array, _Array, float]: ...
def add_derivatives(
    C: _Array,
    directions: _Array,
    counts: _Array,
    moments: _Array | None,
    E: _Array | None,
    F: _Array,
    gradient: _Array,
    hessian: _Array,
    slopes: _Array,
) -> _Array: ...
def unit_moments(D: _Array, units: NDArray[np.int64], out: _Array) -> None: ...
