from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._tail import Tail, TailRows

def fill_ordering(
    ptr: NDArray[np.int64], idx: NDArray[np.int64], method: Literal["amd", "metis"] = "amd"
) -> NDArray[np.int64]: ...

class SparseTail(Tail):
    def __init__(self, rows: TailRows, c_ptr: NDArray[np.int64], c_idx: NDArray[np.int64], threads: int) -> None: ...
    @property
    def lnz(self) -> float: ...
    @property
    def flops(self) -> float: ...
    @staticmethod
    def predict(c_ptr: NDArray[np.int64], c_idx: NDArray[np.int64]) -> tuple[float, float]: ...
