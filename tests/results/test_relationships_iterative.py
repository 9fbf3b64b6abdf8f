"""Models of known relationships and sparse fixed effects without a factor, beside their exact fits."""

import pickle

import numpy as np
import pandas as pd
import pytest
from benchmarks.structures_large import animals, lattice, workers

from fastlmm_core import lmer, load
from fastlmm_core.core import Control
from fastlmm_core.errors import ModelError, MonteCarloWarning

pytestmark = pytest.mark.filterwarnings("ignore::fastlmm_core.errors.MonteCarloWarning")


def herds():
    """Two records of each of 400 animals that mate at random, in ten herds."""
    data, options = animals(0.004, None)
    rng = np.random.default_rng(1)
    data = pd.concat([data, data], ignore_index=True)
    data["herd"], data["x"] = rng.integers(0, 10, len(data)), rng.normal(size=len(data))
    data["y"] += rng.normal(size=10)[data["herd"]] + 0.5 * rng.normal(size=len(data))
    data["y"] += data["x"] * np.tile(rng.normal(size=len(data) // 2), 2)
    return data, options


CASES = {
    "herds": ("y ~ sex + (1 | animal) + (1 | herd)", herds, {}),
    "slopes": ("y ~ sex + (x | animal)", herds, {"reml": False}),
    "weights": ("y ~ sex + (x || animal)", herds, {"weights": np.linspace(0.5, 2.0, 800)}),
    "areas": ("y ~ x + (1 | area)", lambda: lattice(0.02), {}),
    "firms": ("y ~ x + sparse(firm) + (1 | worker)", lambda: workers(0.005, 0.2), {}),
    "firms-ml": ("y ~ x + sparse(firm) + (1 | worker)", lambda: workers(0.005, 0.2), {"reml": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_estimates_are_the_exact_ones_within_the_errors_claimed(case):
    formula, make, asked = CASES[case]
    data, options = make()
    exact = lmer(formula, data, **options, **asked)
    fit = lmer(formula, data, **options, **asked, control=Control(engine="iterative"))
    claimed = fit.monte_carlo
    assert fit.core.converged
    assert claimed.max_relative < 0.1
    away = np.abs(fit.core.theta - exact.core.theta)
    assert (away < 4.0 * claimed.theta_se + 1e-4 * claimed.theta_sd).all()
    assert abs(fit.criterion - exact.criterion) < 4.0 * claimed.criterion_se + 1e-6
    np.testing.assert_allclose(fit.params, exact.params, atol=0.02 * exact.bse.max())
    np.testing.assert_allclose(fit.bse, exact.bse, rtol=0.01)
    for found, modes in zip(fit.core.b, exact.core.b, strict=True):  # they follow theta, and so does its error
        np.testing.assert_allclose(found, modes, atol=0.1 * modes.std())


def test_at_the_same_parameters_beta_and_modes_are_exact():
    formula, make, _ = CASES["slopes"]
    data, options = make()
    fit = lmer(formula, data, **options, control=Control(engine="iterative")).core
    model = lmer(formula, data, **options).core.model
    rest = model.project(data["y"].to_numpy()).rest
    exact = model.solve(model.equations(rest), fit.working)
    np.testing.assert_allclose(fit.solved.beta, exact.beta, atol=1e-9)
    np.testing.assert_allclose(fit.solved.u, exact.u, atol=1e-8)
    np.testing.assert_allclose(fit.solved.D, exact.D, rtol=1e-9)
    assert fit.solved.r2 == pytest.approx(exact.r2, rel=1e-10)


@pytest.fixture(scope="module")
def both():
    """An exact fit and one without a factor."""
    formula, make, _ = CASES["herds"]
    data, options = make()
    with pytest.warns(MonteCarloWarning):
        fit = lmer(formula, data, **options, control=Control(engine="iterative", mc_error=1e-9))
    return lmer(formula, data, **options, control=Control(engine="sparse")), fit


def test_what_follows_a_fit(both):
    exact, fit = both
    values, ours = exact.breeding_values(), fit.breeding_values()
    error = ours.pop("reliability_error")
    assert (np.abs(ours["reliability"] - values["reliability"]) < 6.0 * error + 0.005).all()
    assert error.median() < 0.01
    np.testing.assert_allclose(ours["value"], values["value"], atol=0.1 * values["value"].std())
    np.testing.assert_allclose(fit.coef_table()["df"], exact.coef_table()["df"], rtol=0.2)
    assert "Monte Carlo error" in str(fit.summary())
    assert "since it was asked for" in str(fit.engine_report())
    assert "Monte Carlo" in str(fit.convergence_report())
    assert pickle.loads(pickle.dumps(fit)).criterion == fit.criterion
    with pytest.raises(ModelError, match="which has no factor"):
        fit.conf_int("profile")
    new = herds()[0].iloc[:3]
    errors = [m.predict(new, interval="confidence").iloc[:, 1] for m in both]
    np.testing.assert_allclose(errors[1], errors[0], rtol=0.05)


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    formula, make, _ = CASES["weights"]
    data, options = make()
    theta = [lmer(formula, data, **options, control=Control(engine="iterative", seed=s)).core.theta for s in (1, 1, 2)]
    assert (theta[0] == theta[1]).all()
    assert (theta[0] != theta[2]).all()


def test_auto_takes_it_where_a_factor_is_out_of_reach(monkeypatch):
    monkeypatch.setattr("fastlmm_core.core.structures.equations_fit.REACH", 0.0)
    monkeypatch.setattr("fastlmm_core.core.structures.equations_fit.SMALL", 0)
    data, options = animals(0.004, None)
    fit = lmer("y ~ sex + (1 | animal)", data, **options)
    assert "a sparse factor would take" in str(fit.engine_report())
    asked = lmer("y ~ sex + (1 | animal)", data, **options, control=Control(engine="sparse"))
    assert asked.monte_carlo is None
    structured = lmer("y ~ sex + cs(0 + factor(sex) | animal)", data, **options)  # which the search does not take
    assert structured.monte_carlo is None


def test_a_variance_of_zero_is_found():
    data, options = animals(0.004, None)
    data["y"] = np.random.default_rng(5).normal(size=len(data))
    data["y"] -= 0.8 * data["y"].groupby(data["sex"]).transform("mean")
    fits = [lmer("y ~ sex + (1 | animal)", data, **options, control=Control(engine=e)) for e in ("sparse", "iterative")]
    assert fits[0].is_singular == fits[1].is_singular
    assert fits[1].core.theta[0] == pytest.approx(fits[0].core.theta[0], abs=1e-3)


def test_a_search_begins_at_a_variance_of_zero():
    data, options = animals(0.004, None)
    control = Control(engine="iterative", mc_error=0.05)
    found, begun = (
        lmer("y ~ sex + (1 | animal)", data, **options, control=control, start=start) for start in (None, [0.0])
    )
    assert begun.core.converged
    assert begun.criterion == pytest.approx(found.criterion, abs=4.0 * found.monte_carlo.criterion_se)


def test_a_loaded_fit_has_the_figures_of_the_saved_one(tmp_path):
    data, options = animals(0.004, None)
    fit = lmer("y ~ sex + (1 | animal)", data, **options, control=Control(engine="iterative"))
    for kept in (fit, fit.refit(data["y"].to_numpy()[::-1])):
        kept.save(tmp_path / "fit", data=True)
        loaded = load(tmp_path / "fit")
        assert loaded.criterion == kept.criterion
        assert (loaded.core.theta == kept.core.theta).all()
        assert str(loaded.monte_carlo) == str(kept.monte_carlo)
    fit.save(tmp_path / "figures")
    assert "Monte Carlo error" in str(load(tmp_path / "figures").summary())


def test_a_model_without_random_effects_is_compared():
    data, options = workers(0.004, 0.2)
    tables = [
        lmer("y ~ x + sparse(firm) + (1 | worker)", data, **options, control=Control(engine=e)).ranova()
        for e in ("sparse", "iterative")
    ]
    np.testing.assert_allclose(tables[1]["lrt"].dropna(), tables[0]["lrt"].dropna(), rtol=0.02)


def test_structures_beyond_it_are_refused():
    data, options = animals(0.004, None)
    with pytest.raises(ModelError, match="without covariance structures"):
        lmer("y ~ sex + cs(0 + factor(sex) | animal)", data, **options, control=Control(engine="iterative"))
