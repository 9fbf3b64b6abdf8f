import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import RowForm

_Array = NDArray[np.float64]

def forms(form: RowForm, K: _Array, x: _Array, y: _Array, v: _Array) -> _Array: ...
def leverages(form: RowForm, K: _Array, blocks: list[_Array]) -> _Array: ...
