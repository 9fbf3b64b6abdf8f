"""Information of many fits: that of each fit on its own, and the kernel beneath it."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core import LmerResult, lmer, load_dataset
from fastlmm_core._native.criterion.probes import probe_many
from fastlmm_core.core import Model
from fastlmm_core.fitting.fit import model_of
from fastlmm_core.inference.ddf import ddf_method

MODELS = [
    ("Reaction ~ Days + (Days | Subject)", "sleepstudy"),
    ("diameter ~ 1 + (1 | plate) + (1 | sample)", "Penicillin"),
    ("strength ~ 1 + (1 | batch/cask)", "Pastes"),
    ("angle ~ recipe * temperature + (1 | recipe:replicate)", "cake"),
]


def fitted(formula: str, name: str) -> LmerResult:
    return lmer(formula, load_dataset(name))


@pytest.mark.parametrize(("formula", "name"), MODELS)
def test_degrees_of_freedom_are_those_of_single_fits(formula: str, name: str) -> None:
    fit = fitted(formula, name)
    Y = np.ascontiguousarray(fit.simulate(12, seed=1).to_numpy().T)
    model = model_of(fit.design, fit.options)
    assert isinstance(model, Model)
    many = model.fit_many(Y, start=fit.core.theta, information=True)
    assert many.information is not None
    rows = np.eye(fit.core.rank)
    variance, df = many.information.df(rows)
    np.testing.assert_allclose(np.sqrt(variance), many.se, rtol=1e-10)
    for k, y in enumerate(Y):
        one = fit.refit(y)
        assert many.is_singular[k] == one.is_singular
        np.testing.assert_allclose(df[k], ddf_method(one, "satterthwaite").df(rows), rtol=2e-4)


def test_threads_do_not_matter() -> None:
    fit = fitted(*MODELS[0])
    Y = np.ascontiguousarray(fit.simulate(40, seed=1).to_numpy().T)
    model = model_of(fit.design, fit.options)
    assert isinstance(model, Model)
    one, two = (model.fit_many(Y, threads=t, information=True).information for t in (1, 2))
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.cov, two.cov)
    np.testing.assert_array_equal(one.slopes, two.slopes)


@pytest.mark.parametrize(("formula", "name"), MODELS[:3])
def test_kernel_is_the_evaluator(formula: str, name: str) -> None:
    """Gradient and dense factor at each point; both are compared with dense algebra in the evaluator's own tests."""
    fit = fitted(formula, name)
    Y = np.ascontiguousarray(fit.simulate(3, seed=2).to_numpy().T)
    model = Model(fit.design.X, model_of(fit.design, fit.options).products.terms)  # type: ignore[union-attr]
    products = model.products
    found = products.responses(np.ascontiguousarray(Y.T))
    nt, p = len(fit.core.theta), products.rank
    points = 0.5 + np.random.default_rng(0).uniform(size=(3, 2, nt))
    gradient, ld, outcome = np.zeros((3, 2, nt)), np.zeros((3, 2, p + 1, p + 1)), np.zeros(3, np.int32)
    with model._workspaces.lent(products.complete(products.response(Y[0]))) as first:
        constants = np.asarray(products.constant(first.evaluator.nu, True, found.norms))
        tail = first.plan.tail_columns(found.dense)
        probe_many(first.evaluator, found.dense[0], tail, found.xty, constants, points, gradient, ld, outcome)
        with pytest.raises(ValueError, match="do not belong"):
            probe_many(first.evaluator, found.dense[0], tail, found.xty, constants, points[:2], gradient, ld, outcome)
    assert not outcome.any()
    for k, y in enumerate(Y):
        with model._workspaces.lent(products.complete(products.response(y))) as objective:
            for s in range(2):
                value, expected, _ = objective.evaluator.derivatives(points[k, s])
                np.testing.assert_allclose(gradient[k, s], expected, rtol=1e-9, atol=1e-9)
                _, _, _, factor, again = objective.evaluator.modes(points[k, s])
                np.testing.assert_allclose(np.tril(ld[k, s]), np.tril(factor), rtol=1e-9, atol=1e-12)
                assert again == pytest.approx(value)


def test_estimates_at_given_theta() -> None:
    fit = fitted(*MODELS[0])
    model = model_of(fit.design, fit.options)
    assert isinstance(model, Model)
    again = model.at(fit.design.y, fit.core.theta)
    np.testing.assert_allclose(again.beta, fit.core.beta)
    np.testing.assert_allclose(again.cov_beta, fit.core.cov_beta)
    assert again.sigma == pytest.approx(fit.sigma)
    elsewhere = model.at(fit.design.y, [1.0, 0.0, 0.2])
    np.testing.assert_allclose(elsewhere.theta, [1.0, 0.0, 0.2], atol=1e-15)
    assert elsewhere.criterion > fit.criterion
    assert not elsewhere.converged
