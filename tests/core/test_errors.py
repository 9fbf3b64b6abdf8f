"""What cannot be fitted is refused with the package's errors, and the message says how much and where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import problems
from fastlmm_core.core import Control, Term, fit, objective
from fastlmm_core.errors import DataError, FastLMMError, ModelError
from problems import Problem, ProblemTerm


@pytest.fixture
def problem():
    return problems.build("slope")


def spoiled(array, value, times):
    """A copy with `times` of its entries replaced."""
    out = np.array(array, dtype=float)
    out.flat[np.arange(times) * (out.size // times)] = value
    return out


def refused(problem, error, match, **options):
    """Both entries refuse it in the same words."""
    for entry in (fit, objective):
        with pytest.raises(error, match=match):
            entry(problem.y, problem.X, problem.core_terms(), weights=problem.weights, offset=problem.offset, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
class TestNotFinite:
    def test_y(self, problem, value):
        refused(problem.but(y=spoiled(problem.y, value, 3)), DataError, r"\by\b.*\b3\b|\b3\b.*\by\b")

    def test_X(self, problem, value):
        refused(problem.but(X=spoiled(problem.X, value, 2)), DataError, r"\bX\b.*\b2\b|\b2\b.*\bX\b")

    def test_z(self, problem, value):
        term = problem.terms[0]
        bad = problem.but(terms=(replace(term, z=spoiled(term.z, value, 4)),))
        with pytest.raises(DataError, match=r"\b4\b"):
            fit(bad.y, bad.X, bad.core_terms())

    def test_weights(self, problem, value):
        bad = spoiled(np.ones(len(problem.y)), value, 5)
        refused(problem.but(weights=bad), DataError, r"weights.*\b5\b|\b5\b.*weights")

    def test_offset(self, problem, value):
        bad = spoiled(np.ones(len(problem.y)), value, 2)
        refused(problem.but(offset=bad), DataError, r"offset.*\b2\b|\b2\b.*offset")


class TestLengths:
    def test_X(self, problem):
        refused(problem.but(X=problem.X[:-1]), DataError, r"\b79\b.*\b80\b|\b80\b.*\b79\b")

    def test_weights(self, problem):
        refused(problem.but(weights=np.ones(7)), DataError, r"\b7\b.*\b80\b|\b80\b.*\b7\b")

    def test_offset(self, problem):
        refused(problem.but(offset=np.ones(81)), DataError, r"\b81\b.*\b80\b|\b80\b.*\b81\b")

    def test_codes(self, problem):
        terms = [Term(problem.terms[0].codes[:-2])]
        with pytest.raises(DataError, match=r"\b78\b.*\b80\b|\b80\b.*\b78\b"):
            fit(problem.y, problem.X, terms)

    def test_z(self, problem):
        with pytest.raises(DataError, match=r"\b79\b.*\b80\b|\b80\b.*\b79\b"):
            fit(problem.y, problem.X, [Term(problem.terms[0].codes, z=problem.terms[0].z[:-1])])

    def test_empty(self):
        with pytest.raises(FastLMMError):
            fit(np.zeros(0), np.zeros((0, 1)), [Term(np.zeros(0, dtype=np.int32))])

    def test_start(self, problem):
        with pytest.raises(FastLMMError, match=r"\b2\b.*\b3\b|\b3\b.*\b2\b"):
            fit(problem.y, problem.X, problem.core_terms(), start=np.ones(2))

    def test_theta(self, problem):
        f = problem.objective()
        for call in (f, f.gradient, f.hessian):
            with pytest.raises(FastLMMError, match=r"\b4\b.*\b3\b|\b3\b.*\b4\b"):
                call(np.ones(4))


class TestValues:
    def test_negative_weights(self, problem):
        bad = spoiled(np.ones(len(problem.y)), -1.0, 2)
        refused(problem.but(weights=bad), DataError, r"weights.*\b2\b|\b2\b.*weights")

    def test_zero_weights(self, problem):
        refused(problem.but(weights=np.zeros(len(problem.y))), DataError, "weight")

    def test_y_whose_squares_overflow(self, problem):
        refused(problem.but(y=problem.y * 1e170), DataError, r"y has values up to .*e\+170, whose squares overflow")

    def test_constant_y(self, problem):
        with pytest.raises(FastLMMError, match="constant"):
            problem.but(y=np.full(len(problem.y), 3.25)).fit()

    def test_negative_code(self, problem):
        codes = problem.terms[0].codes.copy()
        codes[5] = -1
        with pytest.raises(DataError, match=r"-1|negative"):
            fit(problem.y, problem.X, [Term(codes)])

    def test_code_beyond_the_levels(self, problem):
        with pytest.raises(DataError, match=r"\b9\b.*\b3\b"):
            fit(problem.y, problem.X, [Term(problem.terms[0].codes, n_levels=4)])

    def test_fractional_codes(self, problem):
        with pytest.raises(DataError, match="integer"):
            fit(problem.y, problem.X, [Term(problem.terms[0].codes + 0.5)])

    def test_text(self, problem):
        with pytest.raises(DataError):
            fit(np.array(["a"] * len(problem.y)), problem.X, problem.core_terms())

    def test_theta_not_finite(self, problem):
        f = problem.objective()
        for call in (f, f.gradient, f.hessian):
            with pytest.raises(FastLMMError):
                call(np.array([1.0, np.nan, 1.0]))


class TestModels:
    def test_no_term(self, problem):
        refused(problem.but(terms=()), ModelError, "random|term")

    def test_no_degrees_of_freedom(self):
        rng = np.random.default_rng(0)
        codes = problems.all_levels(rng, 12, 4)
        full = Problem(rng.normal(size=12), rng.normal(size=(12, 12)), (ProblemTerm(codes),))
        refused(full, ModelError, r"\b12\b", reml=True)

    def test_unknown_covariance(self, problem):
        with pytest.raises(ModelError, match="toeplitz"):
            fit(problem.y, problem.X, [Term(problem.terms[0].codes, cov="toeplitz")])

    def test_unknown_engine(self, problem):
        with pytest.raises(ModelError, match="quantum"):
            fit(problem.y, problem.X, problem.core_terms(), control=Control(engine="quantum"))


def test_a_refusal_leaves_nothing_behind(problem):
    before = problem.fit()
    with pytest.raises(DataError):
        problem.but(y=spoiled(problem.y, np.nan, 1)).fit()
    after = problem.fit()
    assert after.criterion == before.criterion
    np.testing.assert_array_equal(after.theta, before.theta)
