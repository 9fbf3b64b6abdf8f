"""Families with an array of parameters: rows against densities, derivatives against differences, draws."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.families import Hurdle, Ordinal, Poisson, ZeroInflated, as_family
from oracle_glmm import differences, row_density

RNG = np.random.default_rng(5)
ZERO = np.column_stack([np.ones(40), RNG.normal(size=40)])
COUNTS = {"poisson": [], "negativebinomial": [0.4], "negativebinomial1": [0.4]}
POSITIVE = {"truncated_poisson": [], "truncated_nbinom2": [0.4], "truncated_nbinom1": [0.4]}
CASES = {
    **{f"zi-{name}": (ZeroInflated(as_family(name), ZERO), [-0.4, 0.7, *own]) for name, own in COUNTS.items()},
    **{f"hurdle-{name}": (Hurdle(as_family(name), ZERO), [-0.4, 0.7, *own]) for name, own in POSITIVE.items()},
    "zi-constant": (ZeroInflated(Poisson()), [-0.4]),
    **{f"ordinal-{link}": (Ordinal(link, levels=4), [-1.0, 0.2, 1.1]) for link in Ordinal.links},
}


def rows_of(name):
    """Family, y, eta, m and rho of 40 rows, whatever the family can show among them."""
    family, rho = CASES[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    eta, m = rng.uniform(-1.5, 1.5, 40), rng.integers(1, 5, 40).astype(float)
    y = family.simulate(rng, family.mean(eta), m, np.array(rho))
    assert len(np.unique(y)) >= 3
    return family, y, eta, m, np.array(rho)


@pytest.mark.parametrize("name", CASES)
def test_log_densities(name):
    family, y, eta, m, rho = rows_of(name)
    assert_allclose(family.loglik(y, eta, m, rho), row_density(family, y, eta, m, rho).sum(), rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_differences(name):
    family, y, eta, m, rho = rows_of(name)
    at = family.row(y, eta, m, rho)
    close = {"rtol": 2e-9, "atol": 2e-9}
    for i in range(0, 40, 3):

        def along_eta(field, i=i):
            def f(x):
                moved = eta.copy()
                moved[i] = x[0]
                return getattr(family.row(y, moved, m, rho), field)[i]

            return differences(f, eta[i : i + 1])[0]

        assert_allclose(at.s[i], along_eta("l"), **close)
        assert_allclose(at.w[i], -along_eta("s"), **close)
        assert_allclose(at.k[i], along_eta("w"), **close)
        assert_allclose(at.sr[:, i], differences(lambda x, i=i: family.row(y, eta, m, x).s[i], rho), **close)
        assert_allclose(at.wr[:, i], differences(lambda x, i=i: family.row(y, eta, m, x).w[i], rho), **close)
    assert_allclose(at.lr, differences(lambda x: family.row(y, eta, m, x).l.sum(), rho), **close)
    for j in range(len(rho)):
        second = differences(lambda x, j=j: family.row(y, eta, m, x).lr[j], rho)
        assert_allclose(at.lrr[j], second, **close)
    none = np.empty(0)
    _, first, second = family.constant(y, m, none, rho)
    assert_allclose(first, differences(lambda x: family.constant(y, m, none, x)[0], rho), **close)
    assert (at.we > 0).all()


@pytest.mark.parametrize("name", [name for name in CASES if "1" not in name and "ordinal" not in name])
def test_expected_weights_are_the_scores_squares_mean(name):
    """The Fisher information over all counts that matter, where the counts' own has a closed form."""
    family, _, eta, m, rho = rows_of(name)
    total = np.zeros(40)
    for value in range(400):
        at = family.row(np.full(40, float(value)), eta, np.ones(40), rho)
        l = row_density(family, np.full(40, float(value)), eta, np.ones(40), rho)
        total += np.exp(l) * at.s**2
    assert_allclose(family.row(np.ones(40), eta, m, rho).we, m * total, rtol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_draws_have_the_families_moments(name):
    family, _, eta, _, rho = rows_of(name)
    one = np.ones(40)
    rng = np.random.default_rng(3)
    draws = np.array([family.simulate(rng, family.mean(eta), one, rho) for _ in range(4000)])
    if name.startswith("ordinal"):
        p = family.probabilities(eta, rho)
        assert_allclose(p.sum(axis=1), 1.0, rtol=1e-12)
        for k in range(4):
            assert (np.abs((draws == k).mean(axis=0) - p[:, k]) < 5 * np.sqrt(p[:, k] / 4000)).all()
        return
    mean, variance = family.response_mean(family.mean(eta), rho), family.variance(family.mean(eta), one, rho)
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * np.sqrt(variance / 4000)).all()
    assert_allclose(draws.var(axis=0), variance, rtol=0.35)


@pytest.mark.parametrize("link", Ordinal.links)
def test_categories_far_out_keep_their_digits(link):
    family, rho = Ordinal(link, levels=3), np.array([-1.0, 1.0])
    eta = np.array([-25.0, -8.0, 8.0, 25.0]) if link != "cloglog" else np.array([-5.0, -2.0, 8.0, 25.0])
    for k in (0.0, 1.0, 2.0):
        at = family.row(np.full(4, k), eta, np.ones(4), rho)
        assert all(np.isfinite(v).all() for v in at)
        for i in range(4):
            slope = differences(lambda x, k=k: family.row(np.full(1, k), x, np.ones(1), rho).l[0], eta[i : i + 1])[0]
            assert_allclose(at.s[i], slope, rtol=1e-6, atol=1e-12)
        assert (at.w >= 0).all()


def test_thresholds_out_of_order_have_no_likelihood():
    family = Ordinal(levels=3)
    assert np.isnan(family.row(np.ones(2), np.zeros(2), np.ones(2), np.array([1.0, -1.0])).l).all()


def test_refusals():
    with pytest.raises(ModelError, match="three or more levels, not 2"):
        Ordinal(levels=["no", "yes"])
    with pytest.raises(DataError, match="no row has the level 'b', 'd'"):
        Ordinal(levels=list("abcd")).check(np.array([0.0, 2.0]), np.ones(2))
    with pytest.raises(ModelError, match="needs one of the families 'poisson'"):
        ZeroInflated(as_family("gamma", "log"))
    with pytest.raises(ModelError, match="none of the 3 counts is zero"):
        ZeroInflated(Poisson()).check(np.ones(3), np.ones(3))
    with pytest.raises(ModelError, match="depend on each other"):
        ZeroInflated(Poisson(), np.ones((5, 2)))
