import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.criterion import Criterion

_Array = NDArray[np.float64]
_Longs = NDArray[np.int64]

class LevelValues(Criterion):
    @property
    def n(self) -> int: ...
    @property
    def q(self) -> int: ...
    @property
    def l(self) -> int: ...  # noqa: E743
    @property
    def p(self) -> int: ...
    @property
    def n_theta(self) -> int: ...
    @property
    def n_nodes(self) -> int: ...
    @property
    def n_chunks(self) -> int: ...
    @property
    def n_steps(self) -> int: ...
    @property
    def estimated(self) -> bool: ...
    @property
    def expected(self) -> bool: ...
    def __init__(
        self,
        family: int,
        link: int,
        ptr: _Longs,
        X: _Array,
        z: _Array,
        offset: _Array,
        m: _Array,
        freq: _Array,
        row: _Longs,
        col: _Longs,
        estimated: bool,
        rho: float,
        nodes: _Array,
        log_weights: _Array,
        expected: bool,
        threads: int,
        rho_range: tuple[float, float],
    ) -> None: ...
    def set_response(self, y: _Array) -> None: ...
    def place(self) -> _Array: ...
    def begin_at(self, u: _Array) -> None: ...
    def value(self, x: _Array) -> float: ...
    def modes(self) -> _Array: ...
    def cond_var(self) -> _Array: ...
