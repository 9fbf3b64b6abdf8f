"""Rows of every family and link: log densities against SciPy's, derivatives against differences, tails, moments."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.families import FAMILIES, Binomial, Link, NegativeBinomial, as_family
from oracle_glmm import TRUNCATED, inverse_link, log_density

PAIRS = [(name, link) for name, family in FAMILIES.items() for link in family.links]
RHO = 0.4
ONLY_NEAR = ("negativebinomial1", "truncated_nbinom1", "beta")  # no closed form of the expected weight
COUNTS = ("poisson", "negativebinomial", "negativebinomial1", *TRUNCATED)


def rows_for(name, link, n=40):
    """Family, y, eta and m of n rows whose means lie inside the support, however the link maps."""
    rng = np.random.default_rng(sum(map(ord, name + link)))
    family = as_family(name, link)
    eta = rng.uniform(-1.5, 1.5, n)
    if link in ("identity", "inverse", "sqrt"):
        eta = rng.uniform(0.15, 0.85, n) if name in ("binomial", "beta") else rng.uniform(0.5, 3.0, n)
    if link == "log" and name == "binomial":
        eta = -rng.uniform(0.2, 2.0, n)
    m = rng.integers(1, 7, n).astype(float)
    y = family.simulate(rng, family.mean(eta), m, RHO)
    return family, np.clip(y, 1e-3, 1 - 1e-3) if name == "beta" else y, eta, m


def six_point(f, h):
    """First derivative at zero by central differences."""
    d = [f(k * h) - f(-k * h) for k in (1, 2, 3)]
    return (45 * d[0] - 9 * d[1] + d[2]) / (60 * h)


@pytest.mark.parametrize(("name", "link"), PAIRS)
def test_log_density_is_scipys(name, link):
    family, y, eta, m = rows_for(name, link)
    expected = log_density(name, y, inverse_link(link, eta), m, RHO).sum()
    assert_allclose(family.loglik(y, eta, m, RHO), expected, rtol=1e-12)
    twice = family.row(y, eta, m, RHO).l.sum() * 2 + family.constant(y, m, np.full(len(y), 2.0), RHO)[0]
    assert_allclose(twice, 2 * expected, rtol=1e-12)


@pytest.mark.parametrize(("name", "link"), PAIRS)
def test_derivatives_are_those_of_differences(name, link):
    family, y, eta, m = rows_for(name, link)
    at = family.row(y, eta, m, RHO)
    h = 2e-3

    def along_eta(field):
        return six_point(lambda t: getattr(family.row(y, eta + t, m, RHO), field), h)

    def along_rho(field):
        return six_point(lambda t: getattr(family.row(y, eta, m, RHO + t), field), h)

    close = {"rtol": 1e-8, "atol": 1e-8}
    assert_allclose(at.s, along_eta("l"), **close)
    assert_allclose(at.w, -along_eta("s"), **close)
    assert_allclose(at.k, along_eta("w"), **close)
    assert_allclose(at.ke, along_eta("we"), **close)
    assert_allclose(at.lr, along_rho("l"), **close)
    assert_allclose(at.sr, along_rho("s"), **close)
    assert_allclose(at.wr, along_rho("w"), **close)
    assert_allclose(at.wer, along_rho("we"), **close)
    assert_allclose(at.lrr, along_rho("lr"), **close)
    none = np.empty(0)
    _, first, second = family.constant(y, m, none, RHO)
    assert_allclose(first, six_point(lambda t: family.constant(y, m, none, RHO + t)[0], h), **close)
    assert_allclose(second, six_point(lambda t: family.constant(y, m, none, RHO + t)[1], h), **close)


@pytest.mark.parametrize(("name", "link"), [p for p in PAIRS if p[0] not in ONLY_NEAR])
def test_expected_weights_are_the_mean_of_observed_ones(name, link):
    family, _, eta, m = rows_for(name, link)
    mean = family.response_mean(inverse_link(link, eta), RHO)
    at_mean = family.row(mean * (m if name == "binomial" else 1.0), eta, m, RHO)
    assert_allclose(at_mean.we, at_mean.w, rtol=1e-9)  # w is linear in y


@pytest.mark.parametrize("link", ["logit", "probit", "cloglog", "cauchit"])
def test_tails_keep_their_digits(link):
    """Far out rows stay finite, and their slopes go on agreeing with differences."""
    family = Binomial(link)
    eta = np.array([-30.0, -12.0, -6.0, 3.0]) if link == "cloglog" else np.array([-30.0, -9.0, 9.0, 30.0])
    one = np.ones(4)
    for y in (0.0 * one, one):
        at = family.row(y, eta, one, 0.0)
        assert all(np.isfinite(v).all() for v in at)
        slope = six_point(lambda t, y=y: family.row(y, eta + t, one, 0.0).l, 1e-2)
        assert_allclose(at.s, slope, rtol=1e-7, atol=1e-11)


def test_large_counts_and_large_sizes():
    """Sums and log-gamma functions meet; size to infinity is Poisson's limit."""
    y, eta, m = np.array([63.0, 64.0, 65.0, 900.0]), np.full(4, 4.0), np.ones(4)
    for family in (as_family("negativebinomial"), as_family("negativebinomial1")):
        expected = log_density(family.name, y, np.exp(eta), m, 0.3).sum()
        assert_allclose(family.loglik(y, eta, m, 0.3), expected, rtol=1e-12)
    family = as_family("negativebinomial")
    middle = six_point(lambda t: family.constant(y, m, np.empty(0), np.log(990.0) + t)[0], 1e-3)
    assert_allclose(family.constant(y, m, np.empty(0), np.log(990.0))[1], middle, rtol=1e-8)
    beyond = six_point(lambda t: family.constant(y, m, np.empty(0), np.log(2000.0) + t)[0], 1e-3)
    assert_allclose(family.constant(y, m, np.empty(0), np.log(2000.0))[1], beyond, rtol=1e-8)
    beyond = six_point(lambda t: family.constant(y, m, np.empty(0), np.log(2000.0) + t)[1], 1e-3)
    assert_allclose(family.constant(y, m, np.empty(0), np.log(2000.0))[2], beyond, rtol=1e-8)
    limit = NegativeBinomial(alpha=1e-12)
    poisson = as_family("poisson").loglik(y, eta, m, 0.0)
    assert_allclose(limit.loglik(y, eta, m, limit.fixed_rho), poisson, rtol=1e-7)


@pytest.mark.parametrize("name", TRUNCATED)
def test_small_means_without_zeros_keep_their_digits(name):
    """Where nearly every count would be zero the family has a limit, and no digits are lost on the way there."""
    family, m, y = as_family(name), np.ones(5), np.ones(5)
    eta = np.array([-30.0, -15.0, -8.0, -4.0, 8.0])
    at = family.row(y, eta, m, RHO)
    assert all(np.isfinite(v).all() for v in at)
    share = np.exp(RHO) / (1 + np.exp(RHO))  # NB1's limit is Fisher's logarithmic series, the others' is the number one
    limit = stats.logser(share).pmf(1) if name == "truncated_nbinom1" else 1.0
    assert_allclose(at.l[:2] + family.constant(y[:1], m[:1], np.empty(0), RHO)[0], np.log(limit), atol=1e-6)
    assert (at.w > 0).all()
    for field, of, sign in (("s", "l", 1), ("w", "s", -1), ("k", "w", 1), ("sr", "s", 0), ("wr", "w", 0)):
        step = (lambda t: (eta + t, RHO)) if sign else (lambda t: (eta, RHO + t))
        slope = (sign or 1) * six_point(
            lambda t, of=of, step=step: getattr(family.row(y, step(t)[0], m, step(t)[1]), of), 2e-3
        )
        assert_allclose(getattr(at, field)[1:4], slope[1:4], rtol=1e-6, atol=1e-11)  # the differences round
    small = family.simulate(np.random.default_rng(0), np.exp(eta), m, RHO)
    assert (small >= 1.0).all()
    assert_allclose(
        family.response_mean(np.exp(eta[:2]), RHO), stats.logser(share).mean() if limit < 1 else 1.0, rtol=1e-5
    )


@pytest.mark.parametrize(("name", "link"), PAIRS)
def test_simulated_moments(name, link):
    family, _, eta, m = rows_for(name, link, 3)
    rng = np.random.default_rng(7)
    mu = family.mean(eta)
    draws = np.array([family.simulate(rng, mu, m, -1.0) for _ in range(20_000)])
    if name == "binomial":
        draws /= m
    se = np.sqrt(draws.var(0) / len(draws))
    assert (np.abs(draws.mean(0) - family.response_mean(mu, -1.0)) < 5 * se).all()
    if name in (*COUNTS, "beta"):
        m = np.ones(3)  # counts rows there
    assert_allclose(draws.var(0), family.variance(mu, m, -1.0), rtol=0.15)


@pytest.mark.parametrize("name", ["logit", "probit", "cloglog", "cauchit", "log", "identity", "inverse", "sqrt"])
def test_links_are_inverses(name):
    link = Link(name)
    mu = np.array([0.1, 0.5, 0.83])
    assert_allclose(link.inverse(link(mu)), mu, rtol=1e-12)


def test_refusals():
    ones = np.ones(3)
    with pytest.raises(ModelError, match="no probit link"):
        as_family("poisson", "probit")
    with pytest.raises(ModelError, match="does not exist"):
        as_family("weibull")
    with pytest.raises(ModelError, match="give either"):
        as_family(Binomial("logit"), "probit")
    with pytest.raises(ModelError, match="alpha must be positive"):
        NegativeBinomial(alpha=0.0)
    with pytest.raises(DataError, match="0 or 1: 1 of 3 rows are not, the first is row 2"):
        as_family("binomial").check(np.array([0.0, 1.0, 2.0]), ones)
    with pytest.raises(DataError, match="must not exceed"):
        as_family("binomial").check(np.array([0.0, 1.0, 3.0]), 2 * ones)
    with pytest.raises(DataError, match="above zero: 2 of 3 rows are not, the first is row 0"):
        as_family("truncated_poisson").check(np.array([0.0, 1.0, 1.5]), ones)
    with pytest.raises(DataError, match="positive"):
        as_family("gamma").check(np.array([1.0, 0.0, 2.0]), ones)


@pytest.mark.parametrize("name", ["negativebinomial", "negativebinomial1"])
@pytest.mark.parametrize("minus_log_alpha", [9.0, 14.0, 17.9, 25.0])
def test_rows_go_over_into_poisson_ones_without_loss(name, minus_log_alpha):
    """Their distance from Poisson rows is of alpha's order, also where log-gammas of 1e9 take part."""
    y = np.array([0.0, 1.0, 3.0, 20.0, 150.0, 4000.0])
    eta, m, alpha = np.log(y + 0.7), np.ones(6), np.exp(-minus_log_alpha)
    rho = minus_log_alpha if name == "negativebinomial" else -minus_log_alpha
    family, poisson = as_family(name), as_family("poisson")
    here, there = family.row(y, eta, m, rho), poisson.row(y, eta, m, 0.0)
    size = alpha * (1.0 + y) ** (3 if name == "negativebinomial" else 1) + 1e-13 * (1.0 + y)
    for field in ("s", "w", "k"):
        assert (np.abs(getattr(here, field) - getattr(there, field)) < 10 * size).all()
    assert (np.abs(here.lr) < 10 * size).all()
    constants = [f.constant(y, m, np.empty(0), r)[0] for f, r in ((family, rho), (poisson, 0.0))]
    assert abs(here.l.sum() + constants[0] - there.l.sum() - constants[1]) < 10 * size.sum() + 1e-9
