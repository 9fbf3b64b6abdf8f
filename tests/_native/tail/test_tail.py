"""The engines' own entry points: sizes, ownership, and what they refuse."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastlmm_core._native.tail.tail import DenseTail, EmptyTail, Tail
from fastlmm_core.core.incidence import structures
from kernel_oracle import both, diagonal_blocks, problem


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


@pytest.mark.parametrize("position", [0, 1])
def test_rows_of_a_wrong_type_are_refused(position):
    rows = [np.array([0, 1], np.int64), np.array([0], np.int32)]
    rows[position] = rows[position].astype(np.float32)
    with pytest.raises(ValueError, match="mismatch"):
        DenseTail(tuple(rows), 1)


@pytest.mark.parametrize(("levels", "widths"), [((230, 200), (1, 1)), ((210, 60, 30), (1, 2, 3))], ids=["1", "2, 3"])
def test_factor_and_inverse_over_several_tiles(levels, widths):
    """Four tiles, the last one narrow."""
    objective, dense = both(problem(levels, widths, n=500), engine="dense")
    m = objective.plan.tail.m
    assert 3 * DenseTail.tile_size(m) < m < 4 * DenseTail.tile_size(m)
    theta = dense.random_theta(0)
    value, gradient, hessian = objective.evaluator.derivatives(theta)
    expected_gradient, expected_hessian = dense.derivatives(theta)
    np.testing.assert_allclose(value, dense.value(theta), rtol=1e-11)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-8 * np.abs(expected_gradient).max())
    np.testing.assert_allclose(hessian, expected_hessian, atol=1e-8 * np.abs(expected_hessian).max())
    covariance = dense.covariance(theta)
    for group, places, got in zip(dense.groups[1:], dense.places, objective.evaluator.cond_var(theta)[1], strict=True):
        expected = diagonal_blocks(covariance, dense.lead_size + places, group.n_columns)
        order = np.argsort(places[:: group.n_columns])
        np.testing.assert_allclose(got, expected[order], atol=1e-10)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("m", [97, 300])
def test_fits_of_several_tiles_in_two_threads_are_the_fits_of_one(m, engine):
    """BLAS may use more threads under one Python thread than under another: the tail asks what rounds alike."""
    given = problem((320, m), (1, 1), n=900)

    def fit(_):
        return given.model(engine=engine, threads=1).fit(given.y)

    alone = fit(0)
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(fit, range(4)):
            assert found.criterion == alone.criterion
            np.testing.assert_array_equal(found.theta, alone.theta)
