"""Generalised fits to tables that ask too much: two optima, separation, means at their limits."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from fastlmm_core import BoundaryWarning, Control, DataError, GlmerResult, NumericalError, glmer
from fastlmm_core.core.glmm.laplace import solved
from fastlmm_core.families import Binomial, Gamma, Gaussian, InverseGaussian, Poisson
from fastlmm_core.fitting.generalised import settled


def test_overdispersion_in_place_of_effects_can_be_a_local_optimum() -> None:
    """glmmTMB's log-likelihood of the truncated Poisson, -15.13816769, is what the family has at its limit."""
    data = pd.DataFrame({"g": list("12244566"), "f": list("rrrrprrr"), "y": [1, 3, 4, 10, 10, 2, 1, 1]})
    with pytest.warns(match="at its limit of zero"):
        fit = glmer("y ~ f + (1 | g)", data, "truncated_nbinom1")
    assert fit.llf == pytest.approx(-15.13816769, abs=1e-6)
    assert fit.var_corr().to_frame().vcov[0] == pytest.approx(1.6465, rel=1e-3)
    plain = glmer("y ~ f + (1 | g)", data, "truncated_poisson")
    assert fit.llf >= plain.llf - 1e-6


@pytest.fixture(scope="module")
def separated() -> GlmerResult:
    """More parameters than these counts can carry: coefficients run to infinity, and derivatives with them."""
    x = [-0.0026, -0.0215, 0.1674, -0.0221, -0.117, 0.0781, -0.1296, 0.1079, -0.1694, -0.0479, -0.0762, 0.186, 0.1275]
    data = pd.DataFrame(
        {"x": [*x, 0.0935, -0.0622, 0.1415], "f": list("rqqpqrrrqrrppqqr"), "g": np.repeat(range(4), 4)}
    )
    data["y"] = [4, 1, 0, 0, 2, 1, 1, 1, 0, 0, 1, 2, 0, 2, 2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        return glmer("y ~ x * f + (1 | g)", data, "poisson", zero="~ f")


def test_a_fit_without_derivatives_has_its_page(separated: GlmerResult) -> None:
    assert np.isfinite(separated.llf)
    report = separated.convergence_report()
    for text in (str(separated.summary()), str(report), repr(separated)):
        assert text
    if separated.bse.isna().all():
        assert "a coefficient may run to infinity" in str(report)
    assert separated.coef_table().shape[0] == 6
    assert separated.conf_int().index[-6:].tolist() == list(separated.params.index)


def binary(x: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"x": x, "y": (x > 0).astype(int), "g": np.repeat(range(12), 10)})


@pytest.mark.parametrize("kind", ["pearson", "deviance"])
def test_residuals_of_means_at_their_limits_are_zero(kind: str) -> None:
    data = binary(np.random.default_rng(0).normal(size=120))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        fit = glmer("y ~ x + (1 | g)", data)
        residuals = fit.residuals(kind)
    assert np.isfinite(residuals).all()
    assert residuals.abs().max() < 0.1


def test_a_first_look_that_the_responses_say_nothing_to_is_refused_in_a_sentence() -> None:
    with pytest.raises(NumericalError, match="infinity"):
        solved(np.zeros((2, 2)), np.eye(2))


def test_a_column_of_lists_is_named() -> None:
    data = binary(np.random.default_rng(0).normal(size=120))
    data["g"] = [[1]] * 120
    with pytest.raises(DataError, match="column 'g' holds list values"):
        glmer("y ~ x + (1 | g)", data)


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_the_profile_of_a_correlation_of_one(seed: int) -> None:
    """Against the deviance minimised with the correlation held, in coordinates of its own."""
    rng = np.random.default_rng(seed)
    data = pd.DataFrame({"x": rng.normal(size=200), "g": np.repeat(range(20), 10)})
    u = rng.normal(size=20)[data.g]
    data["y"] = rng.poisson(np.exp(0.3 + 0.4 * data.x + u * (0.6 + 0.4 * data.x)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fit = glmer("y ~ x + (x | g)", data, "poisson")
    correlation = fit.var_corr().to_frame().sdcor[2]
    assert abs(correlation) == pytest.approx(1.0)
    curve = fit.profile("cor_x.Intercept|g")["cor_x.Intercept|g"]
    assert len(curve.coordinate) > 2
    rise = np.diff(curve.zeta)
    assert (rise >= 0).all()
    objective = glmer("y ~ x + (x | g)", data, "poisson", objective_only=True)
    at = len(curve.coordinate) // 2
    r = np.sin(curve.coordinate[at])

    def held(p: np.ndarray) -> float:
        a, b = np.exp(p[:2])
        return objective([a, r * b, np.sqrt(1 - r**2) * b, *p[2:]])

    sd = fit.var_corr().to_frame().sdcor
    best = min(
        minimize(held, [np.log(sd[0]), np.log(start), *fit.params], method="Nelder-Mead", options={"maxfev": 2000}).fun
        for start in (sd[1], 0.01)
    )
    assert curve.zeta[at] ** 2 == pytest.approx(best - fit.criterion, abs=2e-3)


def test_a_start_that_runs_to_infinity() -> None:
    """glmmTMB finds a log-likelihood of -27.815584633."""
    data = pd.DataFrame(
        {
            "g": [0, 1, 1, 2, 3, 3, 4, 4, 5, 5, 5, 7, 7, 7],
            "h": list("yuwxuuxuywyuuu"),
            "y": [2, 1, 1, 1, 3, 3, 2, 1, 1, 2, 2, 24, 1, 10],
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fit = glmer("y ~ 1 + (1 | g) + (1 | h)", data, "truncated_nbinom1")
    assert fit.llf == pytest.approx(-27.815584633, abs=1e-5)


def test_ordered_categories_start_without_a_word() -> None:
    data = pd.DataFrame(
        {"g": np.repeat(range(8), 4), "y": np.tile([0, 1, 2, 2, 1, 0, 0, 1], 4), "x": np.arange(32) % 5}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        fit = glmer("y ~ x + (1 | g)", data, "ordinal", link="cloglog")
    alpha, beta = fit.family_params.estimate.to_numpy(), fit.params["x"]
    below = -np.expm1(-np.exp(alpha - beta * 3))  # P(y <= k) as documented, polr and clm; clmm calls it loglog
    p = fit.predict(pd.DataFrame({"x": [3], "g": [99]}), kind="population").to_numpy()[0]
    np.testing.assert_allclose(np.cumsum(p)[:2], below, rtol=1e-9)


def test_a_limit_excuses_no_slope() -> None:
    rng = np.random.default_rng(5)
    data = {"g": np.repeat(np.arange(12), 6), "x": rng.normal(size=72)}
    data["y"] = rng.binomial(6, 0.4, 72)
    with pytest.warns(BoundaryWarning, match="at its limit of zero"):
        core = glmer("y ~ x + (1 | g)", data, "negativebinomial").core
    assert settled(replace(core, converged=False)).converged
    beside = core.psi + 0.3 * (np.arange(len(core.psi)) == 1)
    assert not settled(replace(core, converged=False, psi=beside)).converged


def two_modes(name: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Few rows a level with large effects, whose likelihoods in them have two summits."""
    rng = np.random.default_rng({"cauchit": 1, "gaussian": 4, "inflated": 2}[name])
    g = np.repeat(np.arange(10), 6)
    effects, x = 3 * rng.choice([-1, 1], 10) + rng.normal(size=10), rng.normal(size=60)
    eta = effects[g] + x
    mu = np.exp(np.clip(eta, -5, 3))
    match name:
        case "cauchit":
            y, options = rng.random(60) < 0.5 + np.arctan(3 * eta) / np.pi, {"family": "binomial", "link": "cauchit"}
        case "gaussian":
            y, options = mu + 2 * rng.normal(size=60), {"family": "gaussian", "link": "log"}
        case _:
            y, options = np.where(rng.random(60) < 0.5, 0, rng.poisson(mu)), {"family": "poisson", "zero": "~ 1"}
    return pd.DataFrame({"y": y.astype(float), "x": x, "g": g}), options


@pytest.mark.parametrize("name", ["cauchit", "gaussian", "inflated"])
@pytest.mark.filterwarnings("ignore")
def test_a_refit_is_a_new_fit_where_rows_have_several_modes(name: str) -> None:
    data, options = two_modes(name)
    fit = glmer("y ~ x + (1 | g)", data, **options, control=Control(max_evaluations=12))  # far enough to differ
    assert fit.core.again is None
    again = fit.refit(data["y"])
    assert again.criterion == fit.criterion
    assert np.array_equal(again.theta, fit.theta)
    assert np.array_equal(again.ranef()["condval"], fit.ranef()["condval"])


def test_concave_rows_have_weights_that_are_not_negative() -> None:
    """`concave_links` of every family, at responses and predictors of all sizes."""
    eta = np.linspace(-6.0, 6.0, 61)
    for family in (kind(link) for kind in (Binomial, Poisson, Gamma, InverseGaussian, Gaussian) for link in kind.links):
        positive = family.mean(np.array([-1.0]))[0] <= 0 or family.link.name in ("inverse", "sqrt")
        at = np.abs(eta) + 0.01 if positive else eta
        if family.name == "binomial" and family.link.name in ("log", "identity"):
            at = -np.abs(eta) - 0.01 if family.link.name == "log" else np.linspace(0.01, 0.99, 61)
        convex = 0.0
        for y in (0.0, 1.0) if family.name == "binomial" else (0.5, 1.0, 7.0):
            convex = min(convex, float(family.row(np.full(61, y), at, np.ones(61), 0.3).w.min()))
        if family.name == "poisson" and family.link.name == "sqrt":
            continue  # concave on either side of zero, but there are two
        assert family.one_mode == (convex > -1e-10), family
