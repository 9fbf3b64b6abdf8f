import numpy as np
from numpy.typing import NDArray

# cell_ptr, cell_idx, cell_val of `_crossprod.pair_cells`, then where each level of one or of both factors begins
_LeadingPair = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]
_TailPair = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]

def leading_rows(
    q: int, m: int, pairs: list[_LeadingPair]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]: ...
def leading_values(
    l: int, ptr: NDArray[np.int64], t_ptr: NDArray[np.int64], t_pos: NDArray[np.int64], pairs: list[_LeadingPair]
) -> NDArray[np.float64]: ...
def tail_rows(
    m: int, blocks: list[tuple[NDArray[np.float64], NDArray[np.int64]]], pairs: list[_TailPair]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]: ...
def tail_values(
    ptr: NDArray[np.int64], blocks: list[tuple[NDArray[np.float64], NDArray[np.int64]]], pairs: list[_TailPair]
) -> NDArray[np.float64]: ...
def schur_fill(
    a_ptr: NDArray[np.int64],
    a_idx: NDArray[np.int32],
    ptr: NDArray[np.int64],
    idx: NDArray[np.int32],
    t_ptr: NDArray[np.int64],
    t_lead: NDArray[np.int32],
    t_pos: NDArray[np.int64],
    sample: NDArray[np.int64],
) -> float: ...
def schur_pattern(
    a_ptr: NDArray[np.int64],
    a_idx: NDArray[np.int32],
    ptr: NDArray[np.int64],
    idx: NDArray[np.int32],
    t_ptr: NDArray[np.int64],
    t_lead: NDArray[np.int32],
    t_pos: NDArray[np.int64],
    limit: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None: ...
def permuted_pattern(
    ptr: NDArray[np.int64], idx: NDArray[np.int64], position: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
