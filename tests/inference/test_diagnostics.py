from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import Control, ConvergenceWarning, LmerResult, ModelError, is_singular, lmer, load_dataset


@pytest.fixture(scope="module")
def weighted() -> LmerResult:
    data = load_dataset("sleepstudy").assign(w=np.tile([0.5, 1.0, 2.0], 60), off=np.linspace(0.0, 9.0, 180))
    data.loc[[3, 40], "Reaction"] = np.nan
    data.index = [f"row{i}" for i in range(180)]
    return lmer("Reaction ~ Days + (Days | Subject)", data, weights="w", offset="off")


@pytest.fixture(scope="module")
def slopes() -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))


@pytest.fixture(scope="module")
def singular() -> LmerResult:
    return lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2"))


def test_kinds_of_residuals(weighted: LmerResult) -> None:
    design, h = weighted.design, weighted.hatvalues()
    plain = weighted.residuals()
    pd.testing.assert_series_equal(plain, weighted.resid, check_names=False)
    pd.testing.assert_series_equal(weighted.residuals("conditional"), plain)
    assert plain.index[0] == "row0"
    assert "row3" not in plain.index
    marginal = design.y - design.X @ weighted.params - design.offset
    np.testing.assert_allclose(weighted.residuals("marginal"), marginal)
    pearson = weighted.residuals("pearson")
    np.testing.assert_allclose(pearson, np.sqrt(design.weights) * plain)
    np.testing.assert_allclose(weighted.residuals("scaled"), pearson / weighted.sigma)
    student = weighted.residuals("studentized")
    np.testing.assert_allclose(student, pearson / weighted.sigma / np.sqrt(1 - h))
    # deleted: sigma from the other rows, as `influence` has it
    sigma = weighted.influence().sigma
    np.testing.assert_allclose(weighted.residuals("deleted"), student * weighted.sigma / sigma, rtol=1e-9)
    np.testing.assert_array_equal(weighted.residuals("deviance"), pearson)
    np.testing.assert_array_equal(weighted.residuals("working"), plain)
    with pytest.raises(ModelError, match="'partial' do not exist"):
        weighted.residuals("partial")


def test_a_row_that_nothing_contradicts() -> None:
    data = load_dataset("sleepstudy").assign(alone=lambda d: np.arange(len(d)) == 7)
    fit = lmer("Reaction ~ Days + alone + (1 | Subject)", data)
    assert fit.hatvalues()[7] == pytest.approx(1.0)
    for values in (fit.cooks_distance(), fit.residuals("studentized"), fit.residuals("deleted")):
        assert np.flatnonzero(values.isna()).tolist() == [7]
        assert np.isfinite(values.drop(7)).all()


def test_principal_components_as_lme4(slopes: LmerResult) -> None:
    table = slopes.re_pca()["Subject"]
    np.testing.assert_allclose(table["sd"], [0.966867972252, 0.230879814201], rtol=1e-3)
    np.testing.assert_allclose(table["proportion"], [0.94605, 0.05395], atol=1e-4)
    np.testing.assert_allclose(
        np.abs(table[["Intercept", "Days"]]), [[0.99986, 0.01664], [0.01664, 0.99986]], atol=1e-3
    )
    rotation = table[["Intercept", "Days"]].to_numpy().T
    cov = slopes.var_corr()["Subject"].to_numpy() / slopes.sigma**2
    np.testing.assert_allclose(rotation * table["sd"].to_numpy() ** 2 @ rotation.T, cov)


def test_principal_components_of_several_terms() -> None:
    data = load_dataset("sleepstudy")
    table = lmer("Reaction ~ Days + (Days || Subject)", data).re_pca()["Subject"]
    assert list(table.columns) == ["sd", "proportion", "cumulative", "Subject.Intercept", "Subject.1.Days"]
    assert table["cumulative"].iloc[-1] == pytest.approx(1.0)


def test_principal_components_of_nothing(singular: LmerResult) -> None:
    table = singular.re_pca()["Batch"]
    assert table["sd"].iloc[0] == 0.0
    assert np.isnan(table["proportion"].iloc[0])


def test_singularity_by_tolerance(slopes: LmerResult, singular: LmerResult) -> None:
    assert is_singular(singular)
    assert not is_singular(slopes)
    assert not is_singular(slopes, tol=0.4)
    assert is_singular(slopes, tol=0.42)  # the smallest singular value, of orthonormal columns, is 0.412
    assert slopes.is_singular is False


def test_report_of_a_good_fit(slopes: LmerResult) -> None:
    report = slopes.convergence_report()
    assert report.ok
    assert report.converged
    assert report.boundary == ()
    assert report.advice == ()
    assert report.promise < 1e-8
    assert 1.0 <= report.condition < 100.0
    assert list(report.gradient.index) == list(slopes.theta.index)
    assert "Converged" in str(report)
    assert "condition" in repr(report)


def test_report_of_a_singular_fit(singular: LmerResult) -> None:
    report = singular.convergence_report()
    assert report.ok
    assert report.boundary == ("Batch.Intercept",)
    assert "singular" in str(report)


def test_report_of_a_singular_slope() -> None:
    rng = np.random.default_rng(2)
    g, x = np.repeat(np.arange(10), 8), np.tile(np.arange(8.0), 10)
    y = x + rng.normal(size=10)[g] + rng.normal(size=80)
    fit = lmer("y ~ x + (x | g)", {"y": y, "x": x, "g": g.astype(str)})
    assert fit.is_singular
    assert any("re_pca" in text for text in fit.convergence_report().advice)


def test_report_of_an_unfinished_fit() -> None:
    control = Control(max_evaluations=1)
    with pytest.warns(ConvergenceWarning):
        fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"), control=control, start=[3, 0, 3])
    report = fit.convergence_report()
    assert not report.ok
    assert not report.converged
    assert report.promise > 1.0
    assert "max_evaluations" in str(report)
