"""Models with residual structures through `lmer`: published figures, and that everything works or refuses."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import DataError, FormulaError, ModelError, lmer, load_dataset

GROWTH = "distance ~ age * Sex"

# -2 log L of Jennrich and Schluchter (1986), Potthoff and Roy's data, maximum likelihood
PUBLISHED = {"us": 419.477, "toep": 424.643, "ar1": 440.681, "cs": 428.639}


@pytest.fixture(scope="module")
def orthodont():
    return load_dataset("Orthodont")


@pytest.fixture(scope="module")
def fev():
    return load_dataset("fev")


@pytest.mark.parametrize("kind", PUBLISHED)
def test_jennrich_and_schluchter(kind, orthodont):
    # their mean has a parameter for each sex and age in us: the saturated model, the others a line a sex
    fit = lmer(GROWTH, orthodont, residual=f"{kind}(age | Subject)", reml=False)
    assert fit.criterion == pytest.approx(PUBLISHED[kind], abs=5e-4)


def test_nlme_gls_and_lme(orthodont):
    # nlme 3.1-162: gls corAR1 REML; lme ~ age | Subject with varIdent(~ 1 | Sex) REML
    fit = lmer(GROWTH, orthodont, residual="ar1(age | Subject)")
    assert fit.df_model == 6
    assert fit.covariance_parameters().loc["rho", "estimate"] == pytest.approx(0.624488848, abs=1e-4)
    assert fit.criterion == pytest.approx(444.587448576, abs=1e-6)
    fit = lmer(f"{GROWTH} + (age | Subject)", orthodont, dispersion="~ Sex")
    assert fit.criterion == pytest.approx(411.522479851, abs=1e-5)
    assert fit.df_model == 9
    cov = fit.var_corr()["Subject"].to_numpy()
    np.testing.assert_allclose(cov, [[3.8914, -0.1552], [-0.1552, 0.0245]], atol=1e-3)
    assert len(fit.ranef()) == 54


def test_nested_random_effects_beside_a_structure():
    # nlme 3.1-162: lme(Reaction ~ Days, random = ~ 1 | Subject/p), with varIdent(~ 1 | p), and with corAR1()
    data = load_dataset("sleepstudy").assign(p=lambda d: (d["Days"] > 4).astype(str))
    fit = lmer("Reaction ~ Days + (1 | Subject/p)", data, dispersion="~ p")
    assert fit.criterion == pytest.approx(1746.02515588, abs=1e-6)
    assert np.exp(fit.theta.iloc[0]) == pytest.approx(1.51978502, abs=1e-5)
    effects = fit.theta.iloc[1:] * fit.sigma
    np.testing.assert_allclose(effects, [22.16745, 32.99483], rtol=1e-4)
    np.testing.assert_allclose(fit.bse, [9.8267400, 1.0107291], rtol=1e-5)
    modes = fit.ranef().set_index(["grpvar", "grp"])["condval"]
    np.testing.assert_allclose(modes.loc["Subject"].loc[["308", "309"]], [32.038611, -63.355618], rtol=1e-4)
    fit = lmer("Reaction ~ Days + (1 | Subject/p)", data, residual="ar1(Days | Subject:p)")
    assert fit.criterion == pytest.approx(1741.8040774, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "criterion", "printed"),
    [("exp", 1734.18646794, [8.07337378, 0.0926820785]), ("gau", 1739.936192808, [5.69195604, 0.205654174])],
)
def test_a_nugget(kind, criterion, printed):
    # nlme 3.1-162: gls(Reaction ~ Days, correlation = corExp or corGaus(form = ~ Days | Subject, nugget = TRUE))
    fit = lmer("Reaction ~ Days", load_dataset("sleepstudy"), residual=f"{kind}(Days | Subject, nugget=True)")
    assert fit.criterion == pytest.approx(criterion, abs=1e-6)
    found = fit.covariance_parameters().loc[["range", "nugget"], "estimate"]
    np.testing.assert_allclose(found, printed, rtol=1e-4)
    assert "with a nugget" in str(fit.summary())


def test_weights_groups_and_dispersion_fit(fev):
    # mmrm 0.3.18
    formula = "FEV1 ~ RACE + SEX + ARMCD * AVISIT"
    fit = lmer(formula, fev, residual="us(AVISIT | ARMCD / USUBJID)")
    assert fit.df_model == 11 + 20
    weighted = lmer(formula, fev, residual="us(AVISIT | USUBJID)", weights="WEIGHT")
    assert weighted.criterion == pytest.approx(3475.7714, abs=2e-3)
    assert lmer(formula, fev, residual="us(AVISIT | USUBJID)").criterion == pytest.approx(3386.4498, abs=2e-3)


def test_summary_and_tables(fev):
    fit = lmer("FEV1 ~ ARMCD * AVISIT", fev, residual="us(AVISIT | USUBJID)")
    text = str(fit.summary("kenward-roger"))
    assert "unstructured of AVISIT within USUBJID (197 subjects, 537 rows, 4 visits, 15 patterns)" in text
    assert "Std.Dev." in text
    assert "<pre>" in fit.summary()._repr_html_()
    assert fit.n_groups == {"USUBJID": 197}
    assert list(fit.residual_cov().index) == ["VIS1", "VIS2", "VIS3", "VIS4"]
    table = fit.covariance_parameters()
    assert len(table) == 10
    np.testing.assert_allclose(table.loc["var VIS1", "estimate"], fit.residual_cov().loc["VIS1", "VIS1"])
    np.testing.assert_allclose(table.loc["cov VIS3, VIS2", "estimate"], fit.residual_cov().loc["VIS3", "VIS2"])
    assert len(fit.theta) == 9
    assert list(fit.fit_log.columns[3:]) == list(fit.theta.index)
    assert "StructuredResult" in repr(fit)
    one = fit.residual_cov("PT2")
    np.testing.assert_allclose(fit.marginal_cov("PT2"), one)
    assert fit.coef_table(cov_type="CR2").shape == (8, 5)


def test_standard_errors_of_printed_parameters_are_those_of_differences(fev):
    fit = lmer("FEV1 ~ ARMCD", fev, residual="ar1h(AVISIT | USUBJID)", dispersion="~ SEX")
    from fastlmm_core.core.residuals.natural import parameters_of, printed

    core, h = fit.core, 1e-6
    found = printed(parameters_of(core))

    def values(step, log_sigma=0.0):
        from dataclasses import replace

        phi = core.point.phi + step
        theta = core.model.to_user(phi)
        ratio = core.model._sigma_ratio(theta[core.model.model.of_sd])
        working = core.working * np.exp(0.5 * log_sigma)
        point = replace(core.point, phi=phi)
        moved = replace(core, point=point, theta=theta, working=working, sigma=working / ratio)
        return printed(parameters_of(moved)).values

    r = len(core.theta)
    for a, step in enumerate(h * np.eye(r)):
        np.testing.assert_allclose(found.jacobian[:, a], (values(step) - values(-step)) / (2 * h), rtol=1e-6, atol=1e-6)
    expected = (values(0.0, h) - values(0.0, -h)) / (2 * h)
    np.testing.assert_allclose(found.jacobian[:, r], expected, rtol=1e-6, atol=1e-6)


def test_residuals_are_white_under_the_model(fev):
    fit = lmer("FEV1 ~ ARMCD * AVISIT", fev, residual="us(AVISIT | USUBJID)", reml=False)
    white = fit.residuals("normalized")
    assert np.mean(np.square(white)) == pytest.approx(1.0, abs=1e-6)
    assert np.mean(np.square(fit.residuals("pearson"))) == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(fit.residuals("marginal"), fit.residuals())
    with pytest.raises(ModelError, match="residuals of kind 'odd'"):
        fit.residuals("odd")


def test_simulated_responses_have_the_marginal_covariance(orthodont):
    fit = lmer(f"{GROWTH} + (1 | Subject)", orthodont, residual="ar1(age | Subject)")
    draws = fit.simulate(4000, seed=1).to_numpy()
    rows = np.flatnonzero(orthodont["Subject"] == "M01")
    np.testing.assert_allclose(np.cov(draws[rows]), fit.marginal_cov("M01"), atol=0.6)
    again = fit.refit(draws[:, 0])
    assert again.converged
    assert again.nobs == 108


def test_refit_pickle_ml_and_prediction(orthodont):
    fit = lmer(GROWTH, orthodont, residual="csh(age | Subject)", dispersion="~ Sex")
    copy = pickle.loads(pickle.dumps(fit))
    pd.testing.assert_frame_equal(copy.coef_table(), fit.coef_table())
    assert fit.refit(orthodont["distance"]).criterion == pytest.approx(fit.criterion)
    assert not fit.refit_ml().reml
    np.testing.assert_allclose(fit.predict(orthodont.head()), fit.fittedvalues.head())
    assert fit.conf_int(ddf="kenward-roger").loc["age", "lower"] < fit.params["age"]
    assert set(fit.anova(ddf="kenward-roger").columns) >= {"F", "den_df"}
    assert fit.to_dict()["nobs"] == 108


@pytest.mark.parametrize("method", ["cooks_distance"])
def test_what_is_not_there_says_so(method, orthodont):
    fit = lmer(GROWTH, orthodont, residual="cs(age | Subject)")
    with pytest.raises(ModelError, match=f"{method} is not available for a model with a residual structure"):
        getattr(fit, method)()


def test_bootstrap_of_a_residual_structure(orthodont):
    fit = lmer(GROWTH, orthodont, residual="ar1(age | Subject)")
    draws = fit.bootstrap(40, seed=1)
    assert list(draws) == ["var Residual", "rho", *fit.params.index]
    pd.testing.assert_frame_equal(draws.head(5), fit.bootstrap(5, seed=1))
    errors = draws.std()
    np.testing.assert_allclose(errors[fit.params.index], fit.bse, rtol=0.4)
    assert errors["rho"] == pytest.approx(fit.covariance_parameters().loc["rho", "std_error"], rel=0.4)
    own = fit.bootstrap(3, seed=1, statistic=lambda again: again.covariance_parameters().loc["rho", "estimate"])
    np.testing.assert_allclose(own["statistic"], draws["rho"].head(3))
    with pytest.raises(ModelError, match='kind="residual" is not available'):
        fit.bootstrap(3, kind="residual")
    with pytest.raises(ModelError, match=r"quantiles of bootstrap\(\)"):
        fit.conf_int(method="boot")


def test_bootstrap_of_structured_effects_of_several_factors():
    data = load_dataset("sleepstudy").assign(g=lambda d: (d["Days"] % 4).astype(str))
    fit = lmer("Reaction ~ Days + ar1(0 + Days | Subject) + (1 | g)", data)
    draws = fit.bootstrap(6, seed=1)
    assert list(draws) == ["Subject.sd", "Subject.angle", "g.Intercept", "sigma", "Intercept", "Days"]
    assert draws["Days"].mean() == pytest.approx(fit.params["Days"], abs=4 * fit.bse["Days"])
    assert fit.simulate(2, seed=1).shape == (180, 2)


def test_anything_that_needs_the_equations_says_so(orthodont):
    fit = lmer(f"{GROWTH} + (1 | Subject)", orthodont, residual="ar1(age | Subject)")
    with pytest.raises(ModelError, match="not available"):
        fit.ranef_cov(beta_known=False)


def refuse(kind, match, data, formula="distance ~ age", **options):
    with pytest.raises(kind, match=match):
        lmer(formula, data, **options)


def test_errors_name_the_subject_the_visit_and_what_to_do(orthodont, fev):
    twice = pd.concat([orthodont, orthodont.iloc[[0]]])
    refuse(DataError, "subject M01 has two rows at visit '8'.*average them", twice, residual="us(age | Subject)")
    refuse(DataError, "two rows at place '8'", twice, residual="exp(age | Subject)")
    apart = orthodont[(orthodont["age"] < 14) | (orthodont["Subject"] == "M01")]
    apart = apart[(apart["age"] > 8) | (apart["Subject"] != "M01")]
    refuse(ModelError, "no subject was seen at both '8' and '14'", apart, residual="us(age | Subject)")
    moved = fev.assign(ARMCD=np.where(fev.index == 1, "PBO", fev["ARMCD"].astype(str)))
    refuse(DataError, "has rows in ARMCD", moved, "FEV1 ~ 1", residual="cs(AVISIT | ARMCD / USUBJID)")
    zero = orthodont.assign(age=orthodont["age"] - 8)
    refuse(DataError, "'age' has zeros", zero, residual="cs(age | Subject)", dispersion="~ power(age)")
    refuse(
        ModelError,
        "share a constant within Subject",
        orthodont,
        f"{GROWTH} + (1 | Subject)",
        residual="us(age | Subject)",
    )
    refuse(
        ModelError,
        "share a constant within Subject",
        orthodont,
        f"{GROWTH} + (1 | Subject) + (1 | age)",
        residual="cs(age | Subject)",
    )
    refuse(FormulaError, "'arma' does not exist", orthodont, residual="arma(age | Subject)")
    refuse(FormulaError, "is written as", orthodont, residual="age | Subject")
    refuse(FormulaError, "needs a constant", orthodont, dispersion="~ 0 + Sex")
    refuse(DataError, "there is no column 'visit'", orthodont, residual="us(visit | Subject)")
    refuse(FormulaError, "no random-effect term", orthodont)
    refuse(DataError, "needs numeric coordinates", orthodont, residual="exp(Sex | Subject)")
    refuse(
        ModelError,
        "one row",
        orthodont[orthodont["age"] == 8].assign(age=range(27)),
        "distance ~ 1",
        residual="cs(age | Subject)",
    )


def test_unequal_spacing_is_said(orthodont):
    uneven = orthodont.assign(age=orthodont["age"].replace(14, 20))
    with pytest.warns(match="age is unequally spaced"):
        lmer(GROWTH, uneven, residual="ar1(age | Subject)")


def test_coordinates_in_two_dimensions(orthodont):
    rng = np.random.default_rng(3)
    data = orthodont.assign(lon=rng.normal(size=108), lat=rng.normal(size=108))
    fit = lmer(GROWTH, data, residual="exp(lon + lat | Subject)")
    assert fit.converged
    apart = np.linalg.norm(data[["lon", "lat"]].to_numpy()[0] - data[["lon", "lat"]].to_numpy()[1])
    expected = np.exp(-apart / fit.covariance_parameters().loc["range", "estimate"])
    assert fit.residual_corr("M01").iloc[0, 1] == pytest.approx(expected)


def test_structured_effects_have_independent_residuals(fev):
    fit = lmer("FEV1 ~ ARMCD + cs(0 + AVISIT | USUBJID)", fev)
    assert fit.residual_cov().to_numpy() == pytest.approx(fit.sigma**2)
    assert fit.residual_corr().to_numpy().tolist() == [[1.0]]
    assert fit.covariance_parameters().loc["var Residual", "estimate"] == pytest.approx(fit.sigma**2)


def test_a_model_without_random_effects(fev):
    fit = lmer("FEV1 ~ ARMCD", fev, residual="cs(AVISIT | USUBJID)")
    assert list(fit.ranef().columns) == ["grpvar", "term", "grp", "condval", "condsd"]
    assert fit.ranef().empty
    with pytest.raises(ModelError, match="no random effects"):
        fit.cov_params(full=True, levels=["a"])
    with pytest.raises(DataError, match="seed must be"):
        fit.simulate(2, seed=-1)
    with pytest.raises(ModelError, match="n must be"):
        fit.simulate(-1)


@pytest.mark.parametrize("random", ["(1 | USUBJID)", "(1 | USUBJID) + (1 | SITE)"])
def test_a_dispersion_far_from_its_origin(fev, random):
    """The fit does not depend on the origin; sigma, which belongs to it, is refused where it is no number."""
    rng = np.random.default_rng(2)
    data = fev.assign(SITE=rng.integers(0, 9, len(fev)), z=rng.normal(size=len(fev)))
    fits = [lmer(f"FEV1 ~ ARMCD + {random}", data.assign(z=data.z + by), dispersion="~ z") for by in (0.0, 20.0)]
    assert fits[1].criterion == pytest.approx(fits[0].criterion, abs=1e-6)
    np.testing.assert_allclose(
        fits[1].var_corr().to_frame().sdcor[:1], fits[0].var_corr().to_frame().sdcor[:1], rtol=1e-4
    )
    with pytest.raises(ModelError, match="centre the columns"):
        lmer(f"FEV1 ~ ARMCD + {random}", data.assign(z=data.z + 1e7), dispersion="~ z")


def test_one_visit_has_no_correlations(fev):
    first = fev.dropna(subset=["FEV1"]).groupby("USUBJID").head(1)
    fit = lmer("FEV1 ~ ARMCD", first.assign(AVISIT="VIS1"), residual="us(AVISIT | USUBJID)")
    assert fit.sigma**2 == pytest.approx(fit.residual_cov().to_numpy()[0, 0])
    assert fit.residual_cov().shape == (1, 1)
