import numpy as np
from numpy.typing import NDArray

def sort_rows(codes: NDArray[np.int32], q: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
def level_blocks(
    codes: NDArray[np.int32], q: int, z: NDArray[np.float64] | None, w: NDArray[np.float64] | None
) -> NDArray[np.float64]: ...
def add_level_blocks(
    codes: NDArray[np.int32],
    z: NDArray[np.float64] | None,
    w: NDArray[np.float64] | None,
    out: NDArray[np.float64],
) -> None: ...
def mirror_blocks(blocks: NDArray[np.float64]) -> None: ...
def level_ranks(blocks: NDArray[np.float64], tolerance: float) -> tuple[int, int]: ...
def level_sums(
    codes: NDArray[np.int32],
    z: NDArray[np.float64] | None,
    w: NDArray[np.float64] | None,
    d: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None: ...
def pair_cells(
    ptr: NDArray[np.int64],
    rows: NDArray[np.int64],
    zg: NDArray[np.float64] | None,
    codes_h: NDArray[np.int32],
    qh: int,
    zh: NDArray[np.float64] | None,
    w: NDArray[np.float64] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]: ...
def nested_cells(
    codes_g: NDArray[np.int32],
    qg: int,
    zg: NDArray[np.float64] | None,
    codes_h: NDArray[np.int32],
    zh: NDArray[np.float64] | None,
    w: NDArray[np.float64] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]] | None: ...
