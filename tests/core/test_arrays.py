"""A model's arrays as one value: cut by rows, terms and columns they are the model of the arrays cut by hand."""

from __future__ import annotations

import numpy as np
import pytest

import problems
from fastlmm_core.core import ModelArrays, Term, fit, objective


def arrays_of(name: str) -> tuple[ModelArrays, problems.Problem]:
    problem = problems.build(name)
    return ModelArrays(problem.X, tuple(problem.core_terms()), problem.weights, problem.offset), problem


@pytest.mark.parametrize("name", ["slope", "crossed_weights", "mixed_weights", "shared_codes"])
@pytest.mark.parametrize("reml", [True, False])
def test_it_is_the_model_of_its_arrays(name: str, reml: bool) -> None:
    arrays, problem = arrays_of(name)
    expected, got = problem.fit(reml), arrays.model(reml).fit(problem.y)
    for figure in ("theta", "beta", "sigma", "criterion"):
        np.testing.assert_array_equal(getattr(got, figure), getattr(expected, figure))
    theta = expected.theta
    assert arrays.objective(problem.y, reml)(theta) == problem.objective(reml)(theta)


@pytest.mark.parametrize("name", ["slope", "crossed_weights", "mixed_weights", "shared_codes"])
def test_rows(name: str) -> None:
    arrays, problem = arrays_of(name)
    rng = np.random.default_rng(0)
    keep = rng.uniform(size=len(problem.y)) < 0.8
    for chosen in (keep, np.flatnonzero(keep)):
        cut = arrays.rows(chosen)
        expected = problem.rows(np.flatnonzero(keep))
        ones = np.ones(problem.n_theta)
        assert cut.objective(problem.y[keep])(ones) == expected.objective()(ones)
    for k, term in enumerate(cut.terms):
        assert term.n_levels == arrays.terms[k].n_levels
        assert term.cov == arrays.terms[k].cov
        for other, mine in zip(cut.terms, arrays.terms, strict=True):
            assert (other.codes is term.codes) == (mine.codes is arrays.terms[k].codes)


def test_columns_and_terms() -> None:
    arrays, problem = arrays_of("slope")
    p = problem.X.shape[1]
    last = slice(p - 1, p)
    given = {"weights": problem.weights, "offset": problem.offset}
    shorter = fit(problem.y, problem.X[:, : p - 1], arrays.terms, **given)
    assert arrays.without_columns(last).model().fit(problem.y).criterion == shorter.criterion
    assert arrays.with_columns(problem.X[:, : p - 1]).model().fit(problem.y).criterion == shorter.criterion
    one = [Term(arrays.terms[0].codes)]
    direct = objective(problem.y, problem.X, one, **given)
    assert arrays.with_terms(one).objective(problem.y)(np.ones(1)) == direct(np.ones(1))
    assert arrays.with_terms(one).terms == tuple(one)
