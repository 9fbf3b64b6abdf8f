from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import Control, LmerResult, lmer, load_dataset

# lme4 1.1-31: hatvalues(), cooks.distance(), rstudent() of rows 1, 2, 60 and 180
ROWS = [0, 1, 59, 179]


@pytest.fixture(scope="module")
def sleepstudy() -> pd.DataFrame:
    return load_dataset("sleepstudy").assign(w=np.tile([0.5, 1.0, 2.0], 60))


@pytest.fixture(scope="module")
def slopes(sleepstudy: pd.DataFrame) -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", sleepstudy)


@pytest.fixture(scope="module")
def weighted(sleepstudy: pd.DataFrame) -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", sleepstudy, weights="w")


def test_slopes_as_lme4(slopes: LmerResult) -> None:
    hat = [0.229304037740, 0.169729993799, 0.293177188099, 0.293177188099]
    cook = [0.00496313251482, 0.04020620185561, 4.33216370346492, 0.01286061600290]
    student = [-0.182653763074, -0.627179564318, -4.570435860714, -0.249021058325]
    np.testing.assert_allclose(slopes.hatvalues().iloc[ROWS], hat, rtol=1e-4)
    np.testing.assert_allclose(slopes.cooks_distance().iloc[ROWS], cook, rtol=1e-4)
    np.testing.assert_allclose(slopes.residuals("studentized").iloc[ROWS], student, rtol=1e-4)


def test_weights_as_lme4(weighted: LmerResult) -> None:
    hat = [0.0932669334034, 0.1383694100662, 0.4243390878474, 0.4243390878474]
    cook = [7.04685175535e-04, 2.50362406006e-02, 1.29189588909e01, 5.21642351934e-02]
    np.testing.assert_allclose(weighted.hatvalues().iloc[ROWS], hat, rtol=1e-4)
    np.testing.assert_allclose(weighted.cooks_distance().iloc[ROWS], cook, rtol=1e-3)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_crossed_as_lme4(engine: str) -> None:
    data = load_dataset("Penicillin")
    fit = lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", data, control=Control(engine=engine))
    np.testing.assert_allclose(fit.hatvalues().iloc[[0, 1, 99]], 0.190780273372, rtol=1e-5)
    assert fit.hatvalues().sum() == pytest.approx(27.4723593656, rel=1e-5)


def test_leverage_is_the_derivative_of_the_fitted_value(weighted: LmerResult) -> None:
    """At fixed theta: refitting a shifted response without moving theta."""
    from fastlmm_core.core import Objective, cross_products
    from fastlmm_core.fitting.fit import core_terms

    design, core = weighted.design, weighted.core
    i = 17
    fitted = []
    for shift in (0.0, 10.0):
        y = design.y + shift * (np.arange(len(design.y)) == i)
        cross = cross_products(y, design.X, core_terms(design), weights=design.weights)
        model = Objective(cross, core.reml)
        gamma, b, _, _, _ = model.evaluator.modes(model.to_conditioned(core.theta))
        c = cross.conditioning
        beta = c.shift + np.linalg.solve(c.r[:2, :2], c.r[:2, -1] + c.y_scale * gamma)
        modes = c.y_scale * b @ cross.transforms[0].T
        fitted.append(design.X[i] @ beta + design.random[0].z[i] @ modes[design.random[0].codes[i]])
    assert (fitted[1] - fitted[0]) / 10.0 == pytest.approx(weighted.hatvalues().iloc[i], rel=1e-9)


def test_no_random_variance_is_ordinary_regression() -> None:
    data = load_dataset("Dyestuff2")
    fit = lmer("Yield ~ 1 + (1 | Batch)", data)
    assert fit.is_singular
    np.testing.assert_allclose(fit.hatvalues(), 1.0 / 30.0, rtol=1e-10)


def test_dependent_column_changes_nothing(sleepstudy: pd.DataFrame, slopes: LmerResult) -> None:
    from fastlmm_core import RankWarning

    with pytest.warns(RankWarning):
        fit = lmer("Reaction ~ Days + twice + (Days | Subject)", sleepstudy.assign(twice=2 * sleepstudy.Days))
    np.testing.assert_allclose(fit.hatvalues(), slopes.hatvalues(), rtol=1e-6)
    assert fit.influence("Subject").params["twice"].isna().all()


def test_the_callers_copy_is_his_own(slopes: LmerResult) -> None:
    copy = slopes.hatvalues()
    copy.iloc[:] = 0.0
    assert (slopes.hatvalues() > 0).all()
