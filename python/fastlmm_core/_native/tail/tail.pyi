import numpy as np
from numpy.typing import NDArray

TailRows = tuple[NDArray[np.int64], NDArray[np.int32]]

class Tail:
    @property
    def m(self) -> int: ...
    @property
    def stamp(self) -> int: ...
    @property
    def entries(self) -> str: ...

class EmptyTail(Tail):
    def __init__(self) -> None: ...

class DenseTail(Tail):
    def __init__(self, rows: TailRows, threads: int) -> None: ...
    @staticmethod
    def tile_size(m: int) -> int: ...
