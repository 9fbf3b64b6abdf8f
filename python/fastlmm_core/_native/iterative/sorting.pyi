import numpy as np
from numpy.typing import NDArray

_Codes = NDArray[np.int32]
_Longs = NDArray[np.int64]
_Array = NDArray[np.float64]
_Bits = NDArray[np.uint32]

def level_starts(codes: _Codes, q: int) -> _Longs: ...
def place_codes(
    ptr: _Longs, lead: _Codes, values: _Codes, shift: int, out: _Codes, column: int, scale: int = 1
) -> None: ...
def place_columns(ptr: _Longs, lead: _Codes, values: _Array, out: _Array, column: int) -> None: ...
def reach(source: _Codes, bits: _Bits, target: _Codes, q: int) -> _Bits: ...
