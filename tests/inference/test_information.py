"""Satterthwaite's pieces against dense algebra."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import ddf_oracle
import oracle
from fastlmm_core.core.slopes import positive_inverse
from fastlmm_core.inference import information
from fastlmm_core.inference.ddf import Satterthwaite
from fastlmm_core.inference.information import observed_hessian, variance_information
from problems import REGISTRY, Problem, build, random_problem


def method(problem: Problem, reml: bool) -> tuple[Satterthwaite, oracle.Evaluation]:
    core = problem.fit(reml=reml)
    kept = ~np.isnan(core.beta)
    cov = core.cov_beta[np.ix_(kept, kept)]
    found = Satterthwaite("satterthwaite", core.beta[kept], cov, core.sigma, (), variance_information(core))
    return found, oracle.evaluate(problem, core.theta, reml=reml)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("which", [*sorted(REGISTRY), *range(8)])
def test_single_rows_and_joint_tests(which: str | int, reml: bool) -> None:
    problem = build(which) if isinstance(which, str) else random_problem(which)
    ours, ev = method(problem, reml)
    p = len(ours.beta)
    if p == 0:
        assert ours.df(np.zeros((0, 0))).shape == (0,)
        return
    rng = np.random.default_rng(0)
    rows = np.vstack([np.eye(p), rng.normal(size=(2, p))])
    df = ours.df(rows)
    assert (df > 0).all()
    if ours.information.n_dropped:  # the data do not determine every parameter: the oracle's inverse does not exist
        return
    np.testing.assert_allclose(df, ddf_oracle.satterthwaite(ev, rows), rtol=1e-8)
    if p > 1:
        F, den_df = ddf_oracle.satterthwaite_f(ev, rows[: min(p, 3)])
        test = ours.f_test(rows[: min(p, 3)])
        np.testing.assert_allclose([test.F, test.den_df], [F, den_df], rtol=1e-7)


def test_two_point_differences_for_wide_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("crossed_three").fit().objective()
    theta = np.full(model.n_theta, 0.7)
    exact = observed_hessian(model, theta)
    monkeypatch.setattr(information, "WIDE_TAIL", 0)
    coarse = observed_hessian(model, theta)
    assert 0 < np.abs(coarse - exact).max() < 1e-5 * np.abs(exact).max()


def test_inverse_leaves_out_what_has_no_curvature() -> None:
    inverse, dropped = positive_inverse(np.diag([4.0, 1e-30, 2e8]))
    assert dropped == 1
    np.testing.assert_allclose(np.diag(inverse), [0.25, 0.0, 5e-9], atol=1e-20)


def test_a_direction_without_information_counts_as_known() -> None:
    problem = build("intercept")
    twice = replace(problem, terms=(problem.terms[0], problem.terms[0]))
    one, _ = method(problem, True)
    two, _ = method(twice, True)
    assert two.information.n_dropped + len(two.information.cov) - len(one.information.cov) >= 1
    np.testing.assert_allclose(two.df(np.eye(len(two.beta))), one.df(np.eye(len(one.beta))), rtol=1e-3)


def test_computed_once() -> None:
    core = build("intercept").fit()
    assert variance_information(core) is variance_information(core)
