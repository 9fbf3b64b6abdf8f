"""Starts from moments are close to the optimum, and exist where visits hardly overlap."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core.core import Term
from fastlmm_core.core.residuals import PatternModel, Residual
from fastlmm_core.core.residuals.start import defined_start, nearest_factor, pattern_start
from fastlmm_core.core.structures.covariances import Structure
from fastlmm_core.errors import NumericalError


def test_complete_data_start_at_the_optimum():
    rng = np.random.default_rng(0)
    subject, visit = np.repeat(np.arange(50), 4), np.tile(np.arange(4), 50)
    y = np.cumsum(rng.normal(size=(50, 4)), axis=1).ravel()
    X = np.eye(4)[visit]  # a mean a visit: the covariance of the residuals is the maximum-likelihood estimate
    model = PatternModel(X, Residual(subject, "us", visit, 4, False), reml=False)
    rest = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    np.testing.assert_allclose(pattern_start(model.model, model.residual, rest), model.fit(y).theta, atol=1e-6)
    assert len(model.fit(y).evaluations) <= 2


def test_products_that_do_not_fit_together_are_shrunk():
    bad = np.array([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])
    L = nearest_factor(bad)
    np.testing.assert_allclose(np.diag(L @ L.T), 1.0)
    assert np.linalg.eigvalsh(L @ L.T)[0] > 0


def test_one_variance_for_columns_of_different_units_is_looked_for_at_several_sizes():
    rng = np.random.default_rng(1)
    group, time = np.repeat(np.arange(16), 11), np.tile(np.arange(0.0, 66.0, 6.0), 16)
    z = np.column_stack([np.ones(176), time])
    y = 400.0 + 40.0 * rng.normal(size=16)[group] + time + rng.normal(size=176)
    structure = [Structure("diag", hom=True)]
    model = PatternModel(z, Residual(np.arange(176)), [Term(group, z)], structures=structure)
    best = model.fit(y)
    small = model.fit(y, start=np.array([1e-2]))
    assert best.criterion < small.criterion - 100.0 or np.isclose(best.criterion, small.criterion)
    assert best.sigma < 5.0


def test_close_places_start_where_the_covariance_is_positive_definite():
    rng = np.random.default_rng(2)
    at = np.linspace(0.0, 1.0, 60)[:, None]
    places = np.zeros(60, np.int64), "gau", np.arange(60), 60, True, at
    y = np.sin(6.0 * at[:, 0]) + 0.3 * rng.normal(size=60)
    model = PatternModel(np.ones((60, 1)), Residual(*places))
    criterion = model.prepare(y)[0]
    with pytest.raises(NumericalError, match="not positive definite"):
        criterion(model.model.start())
    assert np.isfinite(criterion(defined_start(criterion, model.model.start())).value)
    found = PatternModel(np.ones((60, 1)), Residual(*places, nugget=True)).fit(y)
    assert found.converged
    assert 0.01 < found.model.model.shape.natural(found.theta).values[1] < 0.9
