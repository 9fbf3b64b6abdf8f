"""Evaluators as working models: values reloaded in place, a fixed scale, and factors that are used while they last."""

import numpy as np
import pytest

from fastlmm_core._native.criterion.row_forms import leverages
from fastlmm_core.core import Control, plan
from fastlmm_core.errors import ModelError
from kernel_models import criteria, models, models_of_all_engines
from kernel_oracle import Dense, both, problem


class Working:
    """log|M| of a model with weights that are not one on average, and its dense counterpart."""

    def __init__(self, levels, widths, engine, scale=0.15, seed=0):
        given = problem(levels, widths, p=0)
        model = given.model(engine=engine)
        self.layout = plan(model.products, Control(engine, threads=1))
        self.rows = self.layout.rows(model.products)
        self.evaluator = self.layout.working_evaluator()
        self.evaluator.load(self.rows.values)
        self.dense = Dense(model, given.y, self.layout)
        self.reweight(seed, scale)

    def reweight(self, seed, scale=0.15):
        w = scale * np.random.default_rng(seed).uniform(0.2, 2.0, self.rows.n)
        self.dense.w = w
        self.rows.refill(w)

    def logdet(self, theta):
        return np.linalg.slogdet(self.dense.M(theta))[1]

    @property
    def stamp(self):
        return self.layout.tail.stamp


def split(dense, rhs):
    return rhs[:, : dense.lead_size].copy(), rhs[:, dense.lead_size :].copy()


@models_of_all_engines
def test_value_is_log_m(levels, widths, engine):
    it = Working(levels, widths, engine)
    for seed in (1, 2):
        it.reweight(seed)
        theta = it.dense.random_theta(seed)
        np.testing.assert_allclose(it.evaluator.value(theta), it.logdet(theta), rtol=1e-11)


@models_of_all_engines
def test_traces(levels, widths, engine):
    it = Working(levels, widths, engine)
    theta = it.dense.random_theta(0)
    inner = it.dense.Z.T @ np.linalg.solve(it.dense.V(theta), it.dense.Z)
    places = [*[np.arange(it.dense.lead_size)] * it.dense.own, *(it.dense.lead_size + p for p in it.dense.places)]
    got = it.evaluator.traces(theta)
    for group, place, block in zip(it.layout.groups, places, got, strict=True):
        l = group.n_columns
        expected = sum(inner[np.ix_(at, at)] for at in place.reshape(-1, l))
        np.testing.assert_allclose(block, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@models_of_all_engines
@pytest.mark.parametrize("scale", [1e-4, 0.2, 300.0])
def test_chained_traces_are_the_gradient(levels, widths, engine, scale):
    """Against six-point differences of the value, at weights of any size."""
    it = Working(levels, widths, engine, scale)
    theta = it.dense.random_theta(3) / np.sqrt(scale)
    gradient, _ = it.evaluator.chain(theta, it.evaluator.traces(theta))
    h = 1e-2 * np.abs(theta).max()
    weights = {1: 45, -1: -45, 2: -9, -2: 9, 3: 1, -3: -1}
    for a in range(len(theta)):
        step = np.eye(len(theta))[a] * h
        slope = sum(c * it.evaluator.value(theta + k * step) for k, c in weights.items()) / (60 * h)
        np.testing.assert_allclose(gradient[a], slope, rtol=2e-6, atol=2e-6 * np.abs(gradient).max())


@models_of_all_engines
def test_traces_at_a_variance_of_zero(levels, widths, engine):
    it = Working(levels, widths, engine)
    theta = it.dense.random_theta(0)
    theta[it.dense.cross.theta_index[:, 0] == len(levels) - 1] = 0.0
    inner = it.dense.Z.T @ np.linalg.solve(it.dense.V(theta), it.dense.Z)
    place = it.dense.lead_size + it.dense.places[-1] if it.dense.places else np.arange(it.dense.lead_size)
    l = it.layout.groups[-1].n_columns
    expected = sum(inner[np.ix_(at, at)] for at in place.reshape(-1, l))
    got = it.evaluator.traces(theta)[-1]
    np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())


def test_curvature_of_the_chain():
    it = Working((11, 6), (3, 1), "dense")
    theta = it.dense.random_theta(0)
    G = [np.array([[2.0, 0.3, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 0.5]]), np.array([[0.7]])]

    def inner(t):
        factors = it.dense.factor_blocks(t)
        return sum(np.sum(g * (L @ L.T)) for g, L in zip(G, factors, strict=True))

    gradient, curvature = it.evaluator.chain(theta, G)
    h, unit = 1e-3, np.eye(len(theta))
    for a in range(len(theta)):
        slope = (inner(theta + h * unit[a]) - inner(theta - h * unit[a])) / (2 * h)
        assert gradient[a] == pytest.approx(slope, abs=1e-9)
        for b in range(len(theta)):
            u, v = h * unit[a], h * unit[b]
            second = inner(theta + u + v) - inner(theta + u - v) - inner(theta - u + v) + inner(theta - u - v)
            assert curvature[a, b] == pytest.approx(second / (4 * h * h), abs=1e-6)


@models_of_all_engines
def test_solves_and_leverages_with_one_factor(levels, widths, engine):
    """Whatever is asked for after the inverse is answered by it."""
    it = Working(levels, widths, engine)
    dense, evaluator, theta = it.dense, it.evaluator, it.dense.random_theta(0)
    f = np.random.default_rng(3).normal(size=(3, it.rows.n))
    rhs = f * dense.w @ dense.Z
    covariance = dense.covariance(theta)
    expected_t = np.linalg.solve(dense.V(theta), f.T).T @ dense.Z
    value, before = evaluator.value(theta), it.stamp
    for inverted in (False, True):
        if inverted:
            evaluator.invert(theta)
        b_lead, b_tail, t_lead, t_tail = evaluator.solve(theta, *split(dense, rhs))
        np.testing.assert_allclose(np.hstack([b_lead, b_tail]), rhs @ covariance, atol=1e-10)
        np.testing.assert_allclose(np.hstack([t_lead, t_tail]), expected_t, atol=1e-10)
        if inverted:
            got = leverages(evaluator, theta, it.rows)
            np.testing.assert_allclose(got, np.einsum("ij,jk,ik->i", dense.Z, covariance, dense.Z), atol=1e-11)
            evaluator.traces(theta)
    assert it.stamp == before
    assert evaluator.value(theta) == value


@models
@criteria
def test_one_factor_for_everything_at_one_theta(levels, widths, engine, reml):
    objective, dense = both(problem(levels, widths, weighted=True), reml, engine)
    evaluator, theta = objective.evaluator, dense.random_theta(0)
    expected = [evaluator.derivatives(theta), evaluator.modes(dense.random_theta(1)), evaluator.modes(theta)]
    before = objective.plan.tail.stamp
    for a, b in zip([*evaluator.derivatives(theta), *evaluator.modes(theta)], expected[0] + expected[2], strict=True):
        np.testing.assert_array_equal(a, b)
    evaluator.cond_var(theta)
    evaluator.cond_var(theta)
    for a, b in zip(evaluator.modes(theta), expected[2], strict=True):
        np.testing.assert_array_equal(a, b)
    assert objective.plan.tail.stamp == before


@models
def test_evaluators_that_share_a_tail_know_whose_factor_it_holds(levels, widths, engine):
    objective, dense = both(problem(levels, widths, weighted=True), True, engine)
    other = objective.plan.evaluator(False)
    objective.plan.load(other, objective.cross)
    here, there = dense.random_theta(0), dense.random_theta(1)
    expected = objective.evaluator.modes(here)
    for evaluator in (objective.evaluator, other):
        evaluator.modes(here)
        (other if evaluator is objective.evaluator else objective.evaluator).value(there)
        for a, b in zip(evaluator.modes(here)[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(a, b)


@models_of_all_engines
def test_factors_of_older_numbers_are_not_used(levels, widths, engine):
    it = Working(levels, widths, engine)
    theta = it.dense.random_theta(0)
    it.evaluator.invert(theta)
    it.reweight(7)
    rhs = np.random.default_rng(1).normal(size=(1, it.dense.Z.shape[1]))
    b = np.hstack(it.evaluator.solve(theta, *split(it.dense, rhs))[:2])
    np.testing.assert_allclose(b, rhs @ it.dense.covariance(theta), atol=1e-10)


@models
@criteria
def test_reloading_other_weights_gives_the_bits_of_a_fresh_plan(levels, widths, engine, reml):
    given = problem(levels, widths)
    objective, _ = both(given, reml, engine)
    weighted = problem(levels, widths, weighted=True)
    fresh, dense = both(weighted, reml, engine)
    objective.evaluator.derivatives(dense.random_theta(1))
    objective.load(fresh.cross)
    for seed in range(2):
        theta = dense.random_theta(seed)
        for a, b in zip(objective.derivatives(theta), fresh.derivatives(theta), strict=True):
            np.testing.assert_array_equal(a, b)


def test_values_of_other_data_are_refused():
    objective, _ = both(problem((13, 7), (1, 1)))
    with pytest.raises(ModelError, match="other levels occur together"):
        objective.load(both(problem((13, 7), (1, 1), seed=1))[0].cross)
    with pytest.raises(ValueError, match="do not belong"):
        objective.evaluator.load(both(problem((13, 8), (1, 1)))[0].evaluator.values)
    with pytest.raises(ValueError, match="no values have been loaded"):
        objective.plan.evaluator(True).value(np.ones(2))


def test_a_fixed_scale_has_no_dense_columns():
    it = Working((13, 7), (1, 1), "dense")
    with pytest.raises(ValueError, match="traces"):
        it.evaluator.derivatives(np.ones(2))
    with pytest.raises(ValueError, match="fixed scale"):
        both(problem((13, 7), (1, 1)))[0].evaluator.traces(np.ones(2))
