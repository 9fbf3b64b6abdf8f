"""The largest of correlated t statistics against independent integrals, and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, special, stats

from fastlmm_core.inference.contrast_matrices import contrast_matrix
from fastlmm_core.inference.largest import ERROR, Largest, one_factor
from fastlmm_core.inference.studentized_range import range_sf


@pytest.mark.parametrize("k", [2, 3, 5])
def test_largest_of_all_pairs_is_the_range(k: int) -> None:
    C = contrast_matrix("pairwise", list("abcde"[:k])).coefficients
    largest = Largest(C @ C.T)
    t, df = np.array([1.0, 2.0, 3.5]), np.array([4.5, 11.0, np.inf])
    tolerance = 1e-7 if k <= 3 else 5 * largest.error
    np.testing.assert_allclose(largest.sf(t, df), range_sf(np.sqrt(2.0) * t, k, df), atol=tolerance)


def test_largest_is_dunnetts() -> None:
    C = contrast_matrix("trt_vs_ctrl", list("abcd")).coefficients
    exact = stats.dunnett(  # its p-values come from the same distribution
        *[np.array(s) for s in ([1.0, 2.0, 3.0], [2.0, 2.5, 4.5], [3.0, 4.0, 5.5])], control=np.array([0.5, 1.0, 2.0])
    )
    p = Largest(C @ C.T).sf(np.abs(exact.statistic), np.full(3, 8.0))
    np.testing.assert_allclose(p, exact.pvalue, atol=1e-3)


@pytest.mark.parametrize("t", [-1.0, 0.5, 2.0])
def test_one_sided_largest(t: float) -> None:
    cov = np.array([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]])
    exact = 1 - stats.multivariate_t.cdf([t] * 3, shape=cov, df=8, maxpts=200_000, random_state=1)
    assert Largest(cov, 1).sf(np.array([t]), np.array([8.0]))[0] == pytest.approx(exact, abs=5e-4)


def one_factor_tail(t: float, loadings: np.ndarray, df: float, side: int) -> float:
    """Dunnett's double integral, by the trapezoidal rule on a fine grid."""
    s = np.sqrt(1.0 - loadings**2)
    z, scale = np.linspace(-9, 9, 3001), np.linspace(1e-4, 4, 601)
    w = t * scale[:, None]
    inside = np.ones((len(scale), len(z)))
    for loading, size in zip(loadings, s, strict=True):
        below = special.ndtr((w - loading * z) / size)
        inside *= below if side else below - special.ndtr((-w - loading * z) / size)
    given = integrate.trapezoid(stats.norm.pdf(z) * inside, z, axis=1)
    return float(1.0 - integrate.trapezoid(stats.chi.pdf(scale * np.sqrt(df), df) * np.sqrt(df) * given, scale))


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    "loadings", [[0.7, 0.7, 0.7, 0.7], [0.9, -0.5, 0.3, 0.0], [0.995, 0.2, 0.6, 0.99]], ids=["equal", "mixed", "steep"]
)
def test_one_factor_is_integrated(loadings: list[float], side: int) -> None:
    at = np.array(loadings)
    cov = np.outer(at, at)
    np.fill_diagonal(cov, 1.0)
    scale = np.array([1.0, 3.0, 0.1, 1e3])
    largest = Largest(cov * np.outer(scale, scale), side)
    assert largest.error == 0.0
    t, df = np.array([0.5, 2.1, 3.0]), np.array([5.5, 11.0, 40.0])
    expected = [one_factor_tail(a, at, b, side) for a, b in zip(t, df, strict=True)]
    np.testing.assert_allclose(largest.sf(t, df), expected, atol=2e-9)
    np.testing.assert_allclose(largest.sf(largest.quantile(0.95, df), df), 0.05, atol=1e-9)


@pytest.mark.parametrize("side", [0, 1])
def test_nearly_one_factor_is_sampled_beside_it(side: int) -> None:
    rng = np.random.default_rng(3)
    means = np.diag(rng.uniform(0.9, 1.1, 9)) + 0.02 * np.cov(rng.normal(size=(9, 30)))
    C = contrast_matrix("trt_vs_ctrl", list("abcdefghi")).coefficients
    cov = C @ means @ C.T
    largest = Largest(cov, side)
    assert 0.0 < largest.error <= ERROR
    u = rng.multivariate_normal(np.zeros(8), cov / np.sqrt(np.outer(np.diag(cov), np.diag(cov))), size=400_000)
    u /= np.sqrt(rng.chisquare(12.5, size=(400_000, 1)) / 12.5)
    top = u.max(axis=1) if side else np.abs(u).max(axis=1)
    for t in (0.2, 1.5, 2.5, 3.5):
        tail = np.mean(top >= t)
        assert largest.sf(np.array([t]), np.array([12.5]))[0] == pytest.approx(tail, abs=2.5e-3 * 2 * tail**0.5)


def test_loadings_of_one_factor() -> None:
    at = np.array([0.9, -0.4, 0.1, 0.6])
    cov = np.outer(at, at)
    np.fill_diagonal(cov, 1.0)
    np.testing.assert_allclose(np.abs(one_factor(cov)), np.abs(at), atol=1e-12)
    np.testing.assert_array_equal(one_factor(np.eye(4)), 0.0)
