import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

def constants(family: int, y: _Array, m: _Array, freq: _Array, rho: float) -> tuple[float, float, float]: ...
def link_derivatives(link: int, eta: _Array) -> _Array: ...
def row_derivatives(
    family: int, link: int, y: _Array, eta: _Array, m: _Array, rho: float, full: bool = ...
) -> _Array: ...
def working_rows(
    family: int,
    link: int,
    y: _Array,
    eta: _Array,
    m: _Array,
    freq: _Array,
    rho: float,
    out: _Array,
    full: bool,
    threads: int,
) -> tuple[float, float, float]: ...
