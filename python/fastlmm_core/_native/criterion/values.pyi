from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

class Values:
    def __init__(
        self,
        blocks: Array,
        cells: Array,
        tail: Array,
        dense_lead: Array,
        dense_tail: Array,
        dense: Array,
        total_weight: float,
        even: bool = False,
    ) -> None: ...
    @property
    def blocks(self) -> Array: ...
    @property
    def cells(self) -> Array: ...
    @property
    def tail(self) -> Array: ...
    @property
    def dense_lead(self) -> Array: ...
    @property
    def dense_tail(self) -> Array: ...
    @property
    def dense(self) -> Array: ...
    @property
    def total_weight(self) -> float: ...
    @property
    def even(self) -> bool: ...
    @property
    def version(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
