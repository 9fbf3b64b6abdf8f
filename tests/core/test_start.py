"""Moment estimates to start from."""

import numpy as np
import pytest

import problems
from fastlmm_core.core import Term, cross_products, fit, objective
from fastlmm_core.core.start import START_RANGE, moment_start


@pytest.mark.parametrize("name", list(problems.REGISTRY))
def test_every_start_is_an_ordinary_point(name):
    """Finite, of full rank, in range, and one the criterion has a value and a gradient at."""
    problem = problems.build(name)
    model = problem.objective()
    conditioned = moment_start(model.cross)
    assert conditioned.shape == (problem.n_theta,)
    assert np.isfinite(conditioned).all()
    low, high = START_RANGE
    index = model.cross.theta_index
    for g, group in enumerate(model.cross.groups):
        factor = np.zeros((group.n_columns, group.n_columns))
        mine = index[index[:, 0] == g]
        factor[mine[:, 1], mine[:, 2]] = conditioned[index[:, 0] == g]
        assert (factor.diagonal() > 0).all()
        if len(group.terms) == 1 and problem.terms[group.terms[0]].cov == "us":
            sizes = np.linalg.svd(factor, compute_uv=False)
            assert low * (1 - 1e-9) <= sizes[-1] <= sizes[0] <= high * (1 + 1e-9)
    value, gradient, _ = model.derivatives(model.start)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(model.start, model.to_user(conditioned))


def simulated(q, r, sd, seed):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(q), r)
    return rng.normal(scale=sd, size=q)[codes] + rng.normal(size=q * r), codes


@pytest.mark.parametrize("sd", [0.3, 1.0, 3.0])
def test_near_the_estimate_where_there_is_much_data(sd):
    y, codes = simulated(800, 10, sd, 1)
    X = np.ones((len(y), 1))
    start = objective(y, X, [Term(codes)]).start
    assert start[0] == pytest.approx(fit(y, X, [Term(codes)]).theta[0], rel=0.1)


def test_extremes_are_cut_off():
    """A start at zero would be a stationary point; one far out would be flat."""
    y, codes = simulated(300, 10, 0.0, 2)
    X = np.ones((len(y), 1))
    assert moment_start(cross_products(y, X, [Term(codes)]))[0] == pytest.approx(START_RANGE[0])
    y, codes = simulated(300, 10, 1e3, 2)
    assert 3.0 < moment_start(cross_products(y, X, [Term(codes)]))[0] <= START_RANGE[1]


def test_the_units_of_y_do_not_matter():
    problem = problems.build("mixed_weights")
    theta = problem.objective().start
    for scale in (1e-100, 1e9):
        scaled = problem.but(y=problem.y * scale, offset=problem.offset * scale)
        np.testing.assert_allclose(scaled.objective().start, theta, rtol=1e-6, atol=1e-9)
