from typing import Literal

import numpy as np
from numpy.typing import NDArray

def fill_ordering(
    ptr: NDArray[np.int64], idx: NDArray[np.int64], method: Literal["amd", "metis"] = "amd"
) -> NDArray[np.int64] | None: ...
def elimination_tree(
    ptr: NDArray[np.int64], idx: NDArray[np.int64], perm: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
