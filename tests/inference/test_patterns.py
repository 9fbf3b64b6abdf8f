"""Satterthwaite, Kenward-Roger and sandwich covariances with residual structures, against SAS and definitions."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core import lmer, load_dataset
from fastlmm_core.core.residuals import PatternModel
from fastlmm_core.inference.ddf import ddf_method
from fastlmm_core.inference.patterns import pattern_information

# PROC MIXED, model FEV1 = ARMCD, REPEATED AVISIT / SUBJECT = USUBJID: DDFM=KR and DDFM=KR(LINEAR), se and df of the
# arms' difference, as openpharma/mmrm quotes them; SAS stops 1e-6 above the minimum for some, hence the tolerance
SAS = {
    "us": ((0.661243822703, 160.7332664), (0.661243822703, 160.7332664)),
    "toep": ((0.878398055196, 160.0274083), (0.878398055196, 160.0274083)),
    "toeph": ((0.725438288538, 180.0627301), (0.725373245184, 180.0627301)),
    "ar1": ((0.958654396622, 188.4693489), (0.960581423052, 188.4693489)),
    "ar1h": ((0.759031609963, 188.2253391), (0.759248075469, 188.2253391)),
    "adh": ((0.661720173500, 162.3933853), (0.661585507589, 162.3933853)),
    "cs": ((0.7964696053595, 177.0384859), (0.7964696053595, 177.0384859)),
    "csh": ((0.674148060119, 190.7377013), (0.674038581832, 190.7377013)),
}


def fev(residual="us(AVISIT | USUBJID)", formula="FEV1 ~ ARMCD", **options):
    return lmer(formula, load_dataset("fev"), residual=residual, **options)


@pytest.mark.parametrize("kind", SAS)
def test_kenward_roger_is_that_of_sas(kind):
    fit = fev(f"{kind}(AVISIT | USUBJID)")
    for ddf, expected in zip(("kenward-roger", "kenward-roger-linear"), SAS[kind], strict=True):
        found = fit.coef_table(ddf=ddf).loc["ARMCD[T.TRT]"]
        np.testing.assert_allclose([found["std_error"], found["df"]], expected, rtol=5e-4)


def test_satterthwaite_is_that_of_sas():
    # PROC MIXED, intercept only, REML, DDFM=SATTERTH: as printed, though SAS stops 5e-6 above the minimum under TYPE=UN
    for kind, *expected in (("us", 42.8338, 0.3509, 171), ("ar1", 42.3255, 0.5013, 188), ("cs", 42.2896, 0.4285, 187)):
        found = fev(f"{kind}(AVISIT | USUBJID)", "FEV1 ~ 1").coef_table().loc["Intercept"]
        np.testing.assert_allclose(found[["estimate", "std_error"]], expected[:2], atol=1e-3)
        assert round(found["df"]) == expected[2]


def test_satterthwaite_with_weights_is_that_of_mmrm():
    # mmrm 0.3.18. PROC MIXED prints 519, 492, 506: the slopes of V that it takes then lack the weights (dense matrices
    # with dV/dphi_a = R_a give 518.8, 491.8, 505.9), so that its figures move with the weights' unit
    mmrm = {"RACE[T.Black or African American]": 186.61978, "RACE[T.White]": 177.73660, "SEX[T.Female]": 186.60027}
    found = fev(formula="FEV1 ~ RACE + SEX + ARMCD * AVISIT", weights="WEIGHT").coef_table()["df"]
    np.testing.assert_allclose(found[list(mmrm)], list(mmrm.values()), rtol=2e-5)


@pytest.mark.parametrize("residual", ["us(AVISIT | USUBJID)", "ar1h(AVISIT | ARMCD / USUBJID)"])
@pytest.mark.parametrize("reml", [True, False])
def test_observed_information_and_its_slopes_are_those_of_differences(residual, reml):
    fit = fev(residual, reml=reml, dispersion="~ SEX").core
    model: PatternModel = fit.model
    criterion, _ = model.prepare(fit.response)
    info = pattern_information(fit)
    r, nu, h = len(fit.theta), fit.point.nu, 1e-5

    def unprofiled(phi):
        """Gradient in (phi, log s) of log-determinants + nu log s + r^2 / s, at s of the optimum."""
        at = criterion(phi)
        s = fit.point.r2 / nu
        profiled = at.gradient - nu * at.r2_slopes / at.r2
        return np.append(profiled + at.r2_slopes / s, nu - at.r2 / s), s * at.Phi

    root = np.linalg.cholesky(fit.point.Phi) * np.sqrt(fit.point.r2 / nu)
    for a, step in enumerate(h * np.eye(r)):
        (up, cov_up), (down, cov_down) = unprofiled(fit.point.phi + step), unprofiled(fit.point.phi - step)
        np.testing.assert_allclose(info.hessian[a], (up - down) / (2 * h), atol=1e-6 * np.abs(info.hessian).max())
        moved = root @ info.slopes[a] @ root.T
        np.testing.assert_allclose(moved, (cov_up - cov_down) / (2 * h), atol=1e-6 * np.abs(cov_up).max())
    assert info.hessian[r, r] == pytest.approx(nu)


def test_several_rows_at_once_and_anova():
    fit = fev(formula="FEV1 ~ SEX + ARMCD * AVISIT")
    table = fit.anova(ddf="kenward-roger")
    assert list(table["num_df"]) == [1, 1, 3, 3]
    single = fit.coef_table(ddf="kenward-roger").loc["SEX[T.Female]"]
    assert table.loc["SEX", "F"] == pytest.approx(single["t"] ** 2)
    assert table.loc["SEX", "den_df"] == pytest.approx(single["df"])
    assert np.isfinite(fit.anova()["den_df"]).all()
    assert fit.f_test("ARMCD[T.TRT] = 0, SEX[T.Female] = 0", ddf="satterthwaite").num_df == 2


def test_kenward_roger_of_an_ml_fit_is_that_of_its_reml_fit():
    with pytest.warns(match="refitted by REML"):
        found = ddf_method(fev(reml=False), "kenward-roger-linear")
    np.testing.assert_allclose(found.cov, ddf_method(fev(), "kenward-roger-linear").cov, rtol=1e-6)
