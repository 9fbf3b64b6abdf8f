import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

def constants(family: int, y: Array, m: Array, freq: Array, rho: float) -> tuple[float, float, float]: ...
def link_derivatives(link: int, eta: Array) -> Array: ...
def row_derivatives(family: int, link: int, y: Array, eta: Array, m: Array, rho: float, full: bool = ...) -> Array: ...
def working_rows(
    family: int,
    link: int,
    y: Array,
    eta: Array,
    m: Array,
    freq: Array,
    rho: float,
    out: Array,
    full: bool,
    threads: int,
) -> tuple[float, float, float]: ...
