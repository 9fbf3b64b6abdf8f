import numpy as np
from numpy.typing import NDArray

def mendelian_variances(
    sire: NDArray[np.int64], dam: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
