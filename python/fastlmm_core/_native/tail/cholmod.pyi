import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.tail.sparse import PatternTail
from fastlmm_core._native.tail.tail import _TailRows

class CholmodTail(PatternTail):
    def __init__(self, rows: _TailRows, c_ptr: NDArray[np.int64], c_idx: NDArray[np.int64], threads: int) -> None: ...
    @staticmethod
    def bytes(m: int, nnz: int, entries: float, threads: int) -> int: ...
