"""The engines' own entry points: sizes, ownership, and what they refuse."""

import numpy as np
import pytest

from fastlmm_core._tail import DenseTail, EmptyTail, Tail
from fastlmm_core.core.plan import structures
from kernel_oracle import problem


def test_empty_tail():
    tail = EmptyTail()
    assert isinstance(tail, Tail)
    assert tail.m == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_dense_tail_keeps_its_rows(threads):
    objective = problem((13, 7), (1, 1)).model(engine="dense")
    cross = objective.products.cross(problem((13, 7), (1, 1)).y)
    rows = structures(cross, [np.arange(7, dtype=np.int64)])[1]
    tail = DenseTail(rows, threads)
    assert tail.m == 7
    assert all(a is b for a, b in zip(tail._keep, rows, strict=True))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_rows_of_a_wrong_type_are_refused(position):
    rows = [np.array([0, 1], np.int64), np.array([0], np.int32), np.array([1.0])]
    rows[position] = rows[position].astype(np.float32)
    with pytest.raises(ValueError, match="mismatch"):
        DenseTail(tuple(rows), 1)
