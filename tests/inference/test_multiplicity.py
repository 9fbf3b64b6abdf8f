"""Adjusted p-values and simultaneous critical values against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastlmm_core import ModelError
from fastlmm_core.inference.contrast_matrices import contrast_matrix
from fastlmm_core.inference.letters import compact_letters
from fastlmm_core.inference.multiplicity import adjustment_name, critical_values, stepwise

P = np.array([0.01, 0.02, 0.03, 0.04, 0.5, np.nan])


@pytest.mark.parametrize(
    ("how", "expected"),  # R's p.adjust
    [
        ("bonferroni", [0.05, 0.10, 0.15, 0.20, 1.0]),
        ("holm", [0.05, 0.08, 0.09, 0.09, 0.5]),
        ("hochberg", [0.05, 0.08, 0.08, 0.08, 0.5]),
        ("hommel", [0.05, 0.06, 0.06, 0.08, 0.5]),
        ("BH", [0.05, 0.05, 0.05, 0.05, 0.5]),
        ("BY", [0.1141667, 0.1141667, 0.1141667, 0.1141667, 1.0]),
    ],
)
def test_stepwise_methods(how: str, expected: list[float]) -> None:
    np.testing.assert_allclose(stepwise(P, how), [*expected, np.nan], rtol=1e-6)
    mixed = np.random.default_rng(0).permutation(6)
    np.testing.assert_allclose(stepwise(P[mixed], how), np.array([*expected, np.nan])[mixed], rtol=1e-6)


def test_critical_values() -> None:
    df = np.array([7.0, np.inf])
    np.testing.assert_allclose(critical_values(0.95, df, "none", 3, 2), stats.t.ppf(0.975, df))
    np.testing.assert_allclose(critical_values(0.95, df, "holm", 3, 1), stats.t.ppf(1 - 0.05 / 3, df))
    np.testing.assert_allclose(critical_values(0.95, df, "BH", 3, 2), stats.t.ppf(0.975, df))
    np.testing.assert_allclose(critical_values(0.95, df, "sidak", 3, 2), stats.t.ppf((1 + 0.95 ** (1 / 3)) / 2, df))
    expected = [np.sqrt(2 * stats.f.ppf(0.95, 2, 7)), np.sqrt(stats.chi2.ppf(0.95, 2))]
    np.testing.assert_allclose(critical_values(0.95, df, "scheffe", 3, 2, rank=2), expected)


def test_letters_of_overlapping_groups() -> None:
    assert compact_letters(3, [(0, 2)], [0, 1, 2]) == ["a", "ab", "b"]
    assert compact_letters(3, [], [0, 1, 2]) == ["a", "a", "a"]
    assert compact_letters(2, [(0, 1)], [1, 0]) == ["b", "a"]


def test_polynomials_are_emmeans() -> None:
    found = contrast_matrix("poly", list("abcdefg"))
    np.testing.assert_array_equal(found.coefficients[3], [3, -7, 1, 6, 1, -7, 3])
    np.testing.assert_array_equal(found.coefficients[5], [1, -6, 15, -20, 15, -6, 1])
    assert found.names == ("linear", "quadratic", "cubic", "quartic", "degree 5", "degree 6")


@pytest.mark.parametrize(
    "method", ["pairwise", "trt_vs_ctrl", "consec", "mean_chg", "poly", "helmert", "eff", "del_eff"]
)
def test_contrasts_sum_to_zero(method: str) -> None:
    for reverse in (False, True):
        found = contrast_matrix(method, list("abcd"), reverse=reverse)
        np.testing.assert_allclose(found.coefficients.sum(axis=1), 0.0, atol=1e-12)
        assert len(found.names) == len(found.coefficients)
    forward, backward = (contrast_matrix(method, list("abcd"), reverse=r).coefficients for r in (False, True))
    if method != "pairwise":  # whose pairs come in another order
        np.testing.assert_allclose(forward, -backward)


def test_names_with_operators_are_bracketed() -> None:
    assert contrast_matrix("pairwise", ["a-b", "c"]).names == ("(a-b) - c",)
    assert contrast_matrix(lambda levels: {"d": [1, -1]}, ["a", "b"]).names == ("d",)
    assert contrast_matrix([[1, -0.5, -0.5]], ["a", "b", "c"]).names == ("a - 0.5 b - 0.5 c",)


def test_unknown_adjustment() -> None:
    assert adjustment_name("dunnett") == "mvt"
    assert [adjustment_name(name) for name in ("Tukey", "BH", "fdr", "None")] == ["tukey", "BH", "BH", "none"]
    with pytest.raises(ModelError, match="'tukey'"):
        adjustment_name("tuckey")
