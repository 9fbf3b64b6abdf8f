"""Criteria of the iterative engine side by side, and inputs at which it must not answer silently."""

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import anova, compare, lmer
from fastlmm_core.core import Control, Model, Term
from fastlmm_core.core.iterative import IterativeFit, choice
from fastlmm_core.errors import ConvergenceWarning, MemoryLimitError, ModelError, MonteCarloWarning, NumericalError

ITERATIVE = Control(engine="iterative")
FORMULA = "y ~ x + (x | u) + (x || i) + (1 | k)"


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    n = 3000
    codes = {name: rng.integers(0, q, n) for name, q in (("u", 200), ("i", 90), ("k", 70))}
    x, noise = rng.normal(size=(2, n))
    y = 1.0 + 0.3 * x + rng.normal(size=200)[codes["u"]] + 0.4 * rng.normal(size=200)[codes["u"]] * x
    y += 0.7 * rng.normal(size=90)[codes["i"]] + 0.3 * rng.normal(size=90)[codes["i"]] * x
    y += 0.5 * rng.normal(size=70)[codes["k"]] + rng.normal(size=n)
    return pd.DataFrame({**codes, "x": x, "noise": noise, "y": y})


@pytest.fixture(scope="module")
def fits(data):
    """Of one model, whose criterion has an error of about a tenth: an exact one and three by probes."""
    seeds = [Control(engine="iterative", seed=seed) for seed in (0, 1)]
    return [lmer(FORMULA, data, reml=False, control=control) for control in (None, *seeds)]


def test_differences_that_drown_in_the_error_are_refused(fits):
    exact, one, other = fits
    assert abs(exact.criterion - one.criterion) < 4.0 * one.monte_carlo.criterion_se
    for pair in ((exact, one), (one, other)):
        with pytest.raises(ModelError, match=r"Monte Carlo error of .*: fit both by one engine, with the same"):
            compare(*pair)
        with pytest.raises(ModelError, match="the criteria differ by"):
            anova(*pair)


def test_a_difference_that_does_not_is_taken(fits, data):
    exact, one, _ = fits
    smaller = lmer("y ~ 1 + (x | u) + (x || i) + (1 | k)", data, reml=False)
    for pair in ((smaller, one), (smaller, exact)):
        assert anova(*pair)["chisq"].iloc[1] == pytest.approx(smaller.criterion - pair[1].criterion)
    assert len(compare(smaller, one)) == 2


def test_the_same_probes_warn(fits, data):
    # Py is the conditional residual over sigma^2: a column orthogonal to it has a likelihood ratio of next to nothing
    rest = fits[0].resid.to_numpy()
    other = np.random.default_rng(9).normal(size=len(data))
    data = data.assign(noise=data.noise - other * (data.noise @ rest) / (other @ rest))
    larger = lmer("y ~ x + noise + (x | u) + (x || i) + (1 | k)", data, reml=False, control=ITERATIVE)
    smaller = lmer(FORMULA, data, reml=False, control=ITERATIVE)
    error = larger.monte_carlo.criterion_se
    assert abs(smaller.criterion - larger.criterion) < 4.0 * error
    with pytest.warns(MonteCarloWarning, match="is small beside the Monte Carlo error of the criterion"):
        anova(smaller, larger)
    with pytest.warns(MonteCarloWarning, match="its p-value says little"):
        larger.drop1(test="chisq")


def arrays(n=1500, q=(150, 60)):
    rng = np.random.default_rng(8)
    codes = [rng.integers(0, k, n) for k in q]
    effects = [rng.normal(size=k)[c] for k, c in zip(q, codes, strict=True)]
    return effects, rng.normal(size=n), np.ones((n, 1)), [Term(c, n_levels=k) for k, c in zip(q, codes, strict=True)]


def test_residuals_too_small_for_the_sums_are_refused():
    effects, noise, X, terms = arrays()
    model = Model(X, terms, control=ITERATIVE)
    with pytest.raises(NumericalError, match="residuals are too small beside the random effects"):
        model.fit(1e3 * sum(effects) + 1e-3 * noise)


def test_one_response_of_many_that_cannot_be_fitted_is_nan():
    effects, noise, X, terms = arrays()
    y = sum(effects) + noise
    model = Model(X, terms, control=ITERATIVE)
    with pytest.warns(ConvergenceWarning, match="1 of 3 responses could not be fitted, the first of them row 0"):
        found = model.fit_many([np.ones_like(y), y, 2.0 * y])
    assert np.isnan(found.theta[0]).all()
    assert not found.converged[0]
    np.testing.assert_array_equal(found.theta[1], model.fit(y).theta)
    np.testing.assert_allclose(found.sigma[2], 2.0 * found.sigma[1], rtol=1e-4)


def test_many_responses_go_where_one_goes(monkeypatch):
    effects, noise, X, terms = arrays()
    y = sum(effects) + noise
    monkeypatch.setattr(choice, "SMALL", 10)
    monkeypatch.setattr(choice, "REACH", 0.0)
    assert isinstance(Model(X, terms).fit(y), IterativeFit)
    model = Model(X, terms)
    np.testing.assert_array_equal(model.fit_many([y]).theta[0], model.fit(y).theta)
    with pytest.raises(ModelError, match="information=True"):
        Model(X, terms).fit_many([y], information=True)


def test_estimates_at_a_theta_say_what_they_need(monkeypatch):
    effects, noise, X, terms = arrays()
    y, small = sum(effects) + noise, Control(memory_limit=20_000)
    monkeypatch.setattr(choice, "SMALL", 10)
    words = (
        r"^estimates at a given theta need a factor, and the dense factor of 60 random effects would take .* GiB can "
        r"be used: `fit` takes the iterative engine here, which has none; raise Control\(memory_limit=...\) if the "
        r"machine has more, or fit, with start=theta$"
    )
    with pytest.raises(MemoryLimitError, match=words):
        Model(X, terms, control=small).at(y, [1.0, 1.0])
    with pytest.raises(ModelError, match=r"the iterative engine .* has no factor to evaluate a criterion with: use"):
        Model(X, terms, control=ITERATIVE).at(y, [1.0, 1.0])
    monkeypatch.setattr(choice, "SMALL", 60)  # `fit` refuses it, too
    with pytest.raises(MemoryLimitError, match=r"^the dense factor of 60 random effects"):
        Model(X, terms, control=small).at(y, [1.0, 1.0])
