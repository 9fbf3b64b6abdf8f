import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.symbolic.supernodes import Supernodes
from fastlmm_core._native.tail.supernodal import SupernodalCholesky
from fastlmm_core._native.tail.tail import Tail, _TailRows

class PatternTail(Tail): ...

class SparseTail(PatternTail):
    def __init__(
        self,
        rows: _TailRows,
        c_ptr: NDArray[np.int64],
        c_idx: NDArray[np.int64],
        threads: int,
        tree: Supernodes | None = None,
    ) -> None: ...
    @property
    def cholesky(self) -> SupernodalCholesky: ...
    @staticmethod
    def bytes(tree: Supernodes, nnz: int, threads: int) -> int: ...
