"""One evaluation against dense algebra in conditioned coordinates, for every engine and block size."""

from dataclasses import replace

import numpy as np
import pytest

from fastlmm_core._native.tail.sparse import SparseTail
from fastlmm_core._native.tail.tail import DenseTail, EmptyTail
from fastlmm_core.core.engines import pattern
from fastlmm_core.core.incidence import structures
from fastlmm_core.core.layout import evaluator_arrays
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import NumericalError
from kernel_models import criteria, models, with_tail
from kernel_oracle import Dense, both, diagonal_blocks, problem, shuffled_offsets

TAILS = {"none": EmptyTail, "dense": DenseTail, "sparse": SparseTail}


def theta_list(dense):
    """Ordinary points, a factor of rank zero, and one that is nearly so."""
    plain, other = dense.random_theta(0), dense.random_theta(1)
    zero = plain.copy()
    zero[dense.cross.theta_index[:, 0] == dense.cross.theta_index[-1, 0]] = 0.0
    return [plain, other, zero]


@models
@criteria
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_value(levels, widths, engine, reml, weighted):
    objective, dense = both(problem(levels, widths, weighted=weighted), reml, engine)
    assert type(objective.evaluator.tail) is TAILS[objective.plan.engine]
    assert objective.plan.engine == ("none" if len(levels) == 1 else engine)
    for theta in theta_list(dense):
        got = objective.evaluator.value(theta)
        np.testing.assert_allclose(got, dense.value(theta), rtol=1e-11)
        evaluator = objective.evaluator
        np.testing.assert_allclose(evaluator.logdet_m, np.linalg.slogdet(dense.M(theta))[1], rtol=1e-10)
        np.testing.assert_allclose(evaluator.r2, dense.ld(theta)[-1, -1] ** 2, rtol=1e-10)
        assert evaluator.criterion == got


@models
@criteria
def test_derivatives(levels, widths, engine, reml):
    objective, dense = both(problem(levels, widths, weighted=True), reml, engine)
    for theta in theta_list(dense)[:2]:
        value, gradient, hessian = objective.evaluator.derivatives(theta)
        expected_gradient, expected_hessian = dense.derivatives(theta)
        assert value == objective.evaluator.value(theta)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-8 * np.abs(expected_gradient).max())
        np.testing.assert_allclose(hessian, expected_hessian, atol=1e-8 * np.abs(expected_hessian).max())


@models
def test_gradient_with_singular_factors(levels, widths, engine):
    """Traces of near-singular tail factors are extrapolated, hence the looser bound."""
    objective, dense = both(problem(levels, widths), True, engine)
    theta = theta_list(dense)[2]
    gradient = objective.evaluator.derivatives(theta)[1]
    expected = dense.derivatives(theta)[0]
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


@models
@criteria
def test_modes(levels, widths, engine, reml):
    objective, dense = both(problem(levels, widths, weighted=True), reml, engine)
    for theta in theta_list(dense):
        beta, b_lead, b_tail, ld, value = objective.evaluator.modes(theta)
        expected_beta, expected_lead, expected_tail = dense.modes(theta)
        np.testing.assert_allclose(beta, expected_beta, atol=1e-11)
        np.testing.assert_allclose(b_lead.ravel(), expected_lead, atol=1e-11)
        np.testing.assert_allclose(b_tail, expected_tail, atol=1e-11)
        np.testing.assert_allclose(np.abs(ld), np.abs(dense.ld(theta)), atol=1e-11)
        np.testing.assert_allclose(value, dense.value(theta), rtol=1e-11)


@models
def test_modes_after_a_value_elsewhere(levels, widths, engine):
    """`modes` reuses the factors in hand only where they are those of its theta."""
    objective, dense = both(problem(levels, widths), True, engine)
    here, there = dense.random_theta(0), dense.random_theta(1)
    fresh = objective.evaluator.modes(here)
    objective.evaluator.value(there)
    for again in (objective.evaluator.modes(here), objective.evaluator.modes(here)):
        for a, b in zip(fresh, again, strict=True):
            np.testing.assert_array_equal(a, b)
    objective.evaluator.derivatives(here)
    np.testing.assert_array_equal(objective.evaluator.modes(here)[1], fresh[1])
    objective.evaluator.cond_var(here)
    np.testing.assert_array_equal(objective.evaluator.modes(here)[1], fresh[1])


@models
def test_cond_var(levels, widths, engine):
    objective, dense = both(problem(levels, widths, weighted=True), True, engine)
    for theta in theta_list(dense):
        lead, tail = objective.evaluator.cond_var(theta)
        covariance = dense.covariance(theta)
        lead_columns = np.arange(dense.lead_size)
        np.testing.assert_allclose(lead, diagonal_blocks(covariance, lead_columns, lead.shape[1]), atol=1e-11)
        assert len(tail) == len(levels) - 1
        for blocks, place, group in zip(tail, dense.places, dense.groups[1:], strict=True):
            # the kernel's blocks are in the plan's order, ours by level
            expected = diagonal_blocks(covariance, dense.lead_size + np.sort(place), group.n_columns)
            np.testing.assert_allclose(blocks, expected, atol=1e-11)


@models
@pytest.mark.parametrize("k", [1, 3])
def test_solve(levels, widths, engine, k):
    objective, dense = both(problem(levels, widths, weighted=True), True, engine)
    f = np.random.default_rng(3).normal(size=(k, len(dense.w)))
    rhs = f * dense.w @ dense.Z
    lead, tail = rhs[:, : dense.lead_size].copy(), rhs[:, dense.lead_size :].copy()
    given = lead.copy(), tail.copy()
    for theta in theta_list(dense):
        b_lead, b_tail, t_lead, t_tail = objective.evaluator.solve(theta, lead, tail)
        np.testing.assert_allclose(np.hstack([b_lead, b_tail]), rhs @ dense.covariance(theta), atol=1e-10)
        expected = np.linalg.solve(dense.V(theta), f.T).T @ dense.Z
        np.testing.assert_allclose(np.hstack([t_lead, t_tail]), expected, atol=1e-10)
    np.testing.assert_array_equal(lead, given[0])
    np.testing.assert_array_equal(tail, given[1])


def test_solve_of_nothing_and_of_a_wrong_size():
    objective, dense = both(problem((13, 7), (1, 1)))
    theta = dense.random_theta(0)
    for part in objective.evaluator.solve(theta, np.empty((0, 13)), np.empty((0, 7))):
        assert len(part) == 0
    with pytest.raises(ValueError, match=r"2 x 13 and 2 x 7"):
        objective.evaluator.solve(theta, np.zeros((2, 13)), np.zeros((2, 6)))


@models
def test_set_response(levels, widths, engine):
    given = problem(levels, widths, weighted=True)
    model = given.model(engine=engine)
    objective = model.objective(given.y)
    theta = Dense(model, given.y, objective.plan).random_theta(0)
    before = objective.evaluator.value(theta)
    other = given.y[::-1] + np.random.default_rng(8).normal(size=len(given.y))
    again = objective
    again.set_response(model.products, model.products.response(other))
    fresh = given.model(engine=engine).objective(other)
    dense = Dense(model, other, objective.plan)
    np.testing.assert_allclose(again.evaluator.value(theta), dense.value(theta), rtol=1e-11)
    for a, b in zip(again.evaluator.derivatives(theta), fresh.evaluator.derivatives(theta), strict=True):
        np.testing.assert_array_equal(a, b)
    again.load(model.products.cross(given.y))
    assert again.evaluator.value(theta) == before


def test_set_response_of_another_model_is_refused():
    objective, _ = both(problem((13, 7), (1, 1), p=2))
    ok = np.zeros(13), np.zeros(7), np.zeros(2)
    for wrong in range(3):
        parts = list(ok)
        parts[wrong] = np.zeros(len(ok[wrong]) + 1)
        with pytest.raises(ValueError, match="do not belong"):
            objective.evaluator.set_response(*parts, 0.0)


@models
def test_without_fixed_effects(levels, widths, engine):
    for reml in (True, False):
        objective, dense = both(problem(levels, widths, p=0), reml, engine)
        theta = dense.random_theta(0)
        value, gradient, hessian = objective.evaluator.derivatives(theta)
        expected = dense.derivatives(theta)
        np.testing.assert_allclose(value, dense.value(theta), rtol=1e-11)
        np.testing.assert_allclose(gradient, expected[0], atol=1e-8 * np.abs(expected[0]).max())
        np.testing.assert_allclose(hessian, expected[1], atol=1e-8 * np.abs(expected[1]).max())


def rebuilt(objective, offsets, threads, reml=True):
    """The same model with the tail in another order, dense, and any number of threads."""
    cross = objective.cross
    leading, rows = structures(cross, offsets)
    arrays = evaluator_arrays(cross, offsets, leading, rows)
    tail = DenseTail(rows, threads) if len(offsets) else EmptyTail()
    layout = replace(objective.plan, offsets=offsets, arrays=arrays, tail=tail, threads=threads)
    evaluator = layout.evaluator(reml)
    layout.load(evaluator, cross)
    return evaluator


@with_tail
def test_any_order_of_the_tail(levels, widths, engine):
    objective, dense = both(problem(levels, widths), True, engine)
    groups = dense.groups[1:]
    offsets = shuffled_offsets([g.n_levels for g in groups], [g.n_columns for g in groups], 4)
    theta = dense.random_theta(0)
    expected = objective.evaluator.derivatives(theta)
    for a, b in zip(rebuilt(objective, offsets, 1).derivatives(theta), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize(
    ("levels", "widths"),
    [((700,), (2,)), ((700, 150), (1, 1)), ((400, 60, 40), (2, 3, 1))],
    ids=["one factor", "scalar tail", "blocks in the tail"],
)
def test_threads_do_not_change_a_bit(levels, widths):
    """Each row has one thread and chunks are fixed, so only BLAS could differ; it has one thread throughout."""
    objective, dense = both(problem(levels, widths, n=1500), True, "dense")
    theta = dense.random_theta(0)
    with one_blas_thread():
        one, two, three = (
            rebuilt(objective, objective.plan.offsets, threads).derivatives(theta) for threads in (1, 2, 3)
        )
    for a, b, c in zip(one, two, three, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_sparse_threads_do_not_change_a_bit():
    given = problem((700, 150, 20), (2, 1, 2), n=1500)
    objective, dense = both(given, True, "sparse")
    theta, plan, cross = dense.random_theta(0), objective.plan, objective.cross
    leading, rows = structures(cross, plan.offsets)
    lower = pattern(leading, rows, np.iinfo(np.int64).max)
    answers = []
    with one_blas_thread():
        for threads in (1, 2):
            layout = replace(plan, tail=SparseTail(rows, *lower, threads), threads=threads)
            evaluator = layout.evaluator(True)
            layout.load(evaluator, cross)
            answers.append(evaluator.derivatives(theta))
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)


@models
def test_values_that_are_not_numbers(levels, widths, engine):
    objective, dense = both(problem(levels, widths), True, engine)
    theta = dense.random_theta(0)
    before = objective.evaluator.value(theta)
    for bad in (np.nan, np.inf, 1e200):
        wrong = theta.copy()
        wrong[-1] = bad
        for method in (objective.evaluator.value, objective.evaluator.derivatives, objective.evaluator.cond_var):
            with pytest.raises(NumericalError, match="factorisation failed"):
                method(wrong)
        assert objective.evaluator.value(theta) == before


@models
def test_a_theta_of_the_wrong_length_is_refused(levels, widths, engine):
    objective, dense = both(problem(levels, widths), True, engine)
    evaluator, sizes = objective.evaluator, (dense.lead_size, dense.Z.shape[1] - dense.lead_size)
    for length in (0, objective.n_theta - 1, objective.n_theta + 1):
        theta = np.ones(length)
        for method in (evaluator.value, evaluator.derivatives, evaluator.modes, evaluator.cond_var):
            with pytest.raises(ValueError, match=f"length {length}"):
                method(theta)
        with pytest.raises(ValueError, match=f"length {length}"):
            evaluator.solve(theta, *(np.zeros((1, size)) for size in sizes))
