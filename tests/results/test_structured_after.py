"""What follows a fit with a covariance structure: tests of effects, influence, leverages, reports, files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import Control, ModelError, hypothetical, lmer, lmer_many, load, load_dataset
from fastlmm_core.results.structured import StructuredResult

GROWTH = "distance ~ age * Sex"


@pytest.fixture(scope="module")
def orthodont() -> pd.DataFrame:
    return load_dataset("Orthodont")


@pytest.fixture(scope="module")
def trial() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    d = pd.DataFrame({"subject": np.repeat(np.arange(30), 4), "t": np.tile(np.arange(4), 30)})
    d["item"], d["arm"] = rng.integers(0, 6, 120).astype(str), np.where(d.subject % 2, "a", "b")
    d["x"], d["w"] = rng.normal(size=120), rng.uniform(0.5, 2.0, 120)
    d["y"] = d.x + rng.normal(size=6)[d["item"].astype(int)] + rng.normal(size=30)[d.subject] + rng.normal(size=120)
    return d


MODELS = {
    "patterns": ("y ~ x * arm + (1 | subject)", {"residual": "ar1(t | subject)", "weights": "w"}),
    "groups": ("y ~ x * arm", {"residual": "us(t | arm / subject)"}),
    "dispersion": ("y ~ x + (1 | subject)", {"dispersion": "~ power(w) + arm"}),
    "crossed": ("y ~ x * arm + (1 | item)", {"residual": "ar1(t | subject)"}),
    "structured": ("y ~ x + ar1(0 + factor(t) | subject) + (1 | item)", {}),
    "related": (
        "y ~ x + (1 | item)",
        {"relmat": {"item": pd.DataFrame(0.2 + np.eye(6), list("012345"), list("012345"))}},
    ),
    "sparse": ("y ~ x + sparse(item) + (1 | subject)", {"weights": "w"}),
}


@pytest.fixture(scope="module", params=list(MODELS))
def fit(request, trial) -> StructuredResult:
    formula, options = MODELS[request.param]
    return lmer(formula, trial, **options)


def test_files(fit, trial, tmp_path):
    path = tmp_path / "fit.fastlmm"
    fit.save(path, data=True)
    again = load(path)
    assert type(again) is StructuredResult
    assert again.criterion == pytest.approx(fit.criterion, abs=1e-9)
    pd.testing.assert_series_equal(again.theta, fit.theta)
    pd.testing.assert_series_equal(again.params, fit.params)
    assert len(again.fit_log) <= 2
    assert again.update("~ . - x", data=trial).nobs == 120


def test_reports(fit):
    report = fit.convergence_report()
    assert report.ok, str(report)
    assert list(report.gradient.index) == fit._parameter_labels()
    assert np.abs(report.gradient).max() < 1e-2
    frame = fit.augment()
    np.testing.assert_allclose(frame[".fitted"], fit.predict())
    np.testing.assert_allclose(frame[".resid"], fit.residuals())
    np.testing.assert_allclose(frame[".fixed"], fit.predict(re_form="none"))


@pytest.mark.parametrize(
    ("model", "engine"),
    [("patterns", "units"), ("crossed", "equations"), ("related", "equations"), ("sparse", "equations")],
)
def test_engines_of_their_own(model, engine, trial):
    formula, options = MODELS[model]
    assert lmer(formula, trial, **options).engine_report().engine == engine
    with pytest.raises(ModelError, match="engine='cholmod' does not fit models with"):
        lmer(formula, trial, **options, control=Control(engine="cholmod"))


@pytest.mark.parametrize("rest", ["", " + (1 | item)"])
def test_structured_effects_on_the_engine_asked_for(rest, trial):
    formula = "y ~ x + ar1(0 + factor(t) | subject)" + rest
    asked, auto = lmer(formula, trial, control=Control(engine="cholmod")), lmer(formula, trial)
    assert asked.engine_report().engine == "cholmod"
    assert asked.criterion == pytest.approx(auto.criterion, abs=1e-6)
    np.testing.assert_allclose(asked.params, auto.params, atol=1e-4)


def test_each_random_term_left_out(fit, trial):
    if not fit.design.random:
        with pytest.raises(ModelError, match="ranova tests random effects"):
            fit.ranova()
        return
    found = fit.ranova()
    assert len(found) == 1 + len(fit.design.random)
    np.testing.assert_allclose(found["lrt"].iloc[1:], 2.0 * (fit.llf - found["llf"].iloc[1:]), atol=1e-6)
    with pytest.raises(ModelError, match="chisq"):
        fit.ranova(test="bootstrap")


def test_the_criterion_without_a_term(trial):
    fit = lmer("y ~ x * arm + (1 | subject) + (1 | item)", trial, residual="ar1(t | subject)")
    for term, formula in (("item", "y ~ x * arm + (1 | subject)"), ("subject", "y ~ x * arm + (1 | item)")):
        other = lmer(formula, trial, residual="ar1(t | subject)")
        assert fit.ranova().loc[term, "llf"] == pytest.approx(other.llf, abs=1e-6)
        assert fit.ranova().loc[term, "npar"] == other.df_model
    alone = lmer("y ~ x + homdiag(0 + arm | item)", trial, reml=False)
    plain = np.linalg.lstsq(np.column_stack([np.ones(120), trial.x]), trial.y, rcond=None)[1][0]
    assert alone.ranova()["llf"].iloc[1] == pytest.approx(-60.0 * (1 + np.log(2 * np.pi * plain / 120)))


def test_influence_is_a_fit_without_the_case(fit, trial):
    by = "subject" if fit.design.residual is not None and fit.design.residual.parsed is not None else "item"
    if fit.design.sparse or fit.formula.endswith("(1 | subject)"):
        by = "subject"
    found = fit.influence(by, method="refit")
    case = found.params.index[2]
    formula, options = next(o for name, o in MODELS.items() if o[0] == fit.formula)
    rest = trial[trial[by].astype(str) != str(case)]
    if "relmat" in options:
        options = {"relmat": {"item": options["relmat"]["item"]}}
    other = lmer(formula, rest, **options)
    np.testing.assert_allclose(found.params.loc[case], other.params, atol=2e-4)
    np.testing.assert_allclose(found.std_errors.loc[case], other.bse, rtol=2e-3)
    assert found.sigma.loc[case] == pytest.approx(other.sigma, rel=2e-3)
    fixed = fit.influence(by)
    assert (fixed.theta.nunique() == 1).all()
    assert fixed.cooks_distance.notna().all()
    with pytest.raises(ModelError, match="no method 'one-step'"):
        fit.influence(by, method="one-step")


def test_what_takes_a_formula_refuses_structures(trial):
    many = np.random.default_rng(0).normal(size=(2, 120))
    for formula in ("y ~ x + ar1(0 + factor(t) | subject)", "y ~ x + sparse(item) + (1 | subject)"):
        with pytest.raises(ModelError, match=r"many responses at once of a model with .* is not available"):
            lmer_many(formula, trial, many)
        with pytest.raises(ModelError, match=r"hypothetical form of a model with .* is not available"):
            hypothetical(formula, trial, params={"x": 1.0}, sd={"subject": [1.0] * (4 if "ar1" in formula else 1)})


def test_terms_are_dropped_from_the_model_as_it_is(fit, trial):
    formula, options = next(o for o in MODELS.values() if o[0] == fit.formula)
    smaller = formula.replace("x * arm", "x + arm") if "* arm" in formula else formula.replace("x + ", "1 + ")
    term = "x:arm" if "* arm" in formula else "x"
    found = fit.drop1(test="chisq").loc[term]
    without = lmer(smaller, trial, reml=False, **options)
    assert found["chisq"] == pytest.approx(without.criterion - fit.refit_ml().criterion, abs=2e-5)
    assert (found["npar"], found["df"]) == (without.df_model, 1)


def test_shares_of_variance_take_the_rows_residual_variances(trial):
    fit = lmer("y ~ x + (1 | subject)", trial, dispersion="~ arm", weights="w")
    found = fit.icc()["adjusted"]
    ratio = np.exp(2.0 * fit.theta["log_sd.arm[T.b]"])
    residual = fit.sigma**2 * np.mean(np.where(trial.arm == "b", ratio, 1.0) / trial.w)
    own = fit.covariance_parameters().loc["var Intercept | subject", "estimate"]
    assert found == pytest.approx(own / (own + residual), rel=1e-9)


@pytest.mark.parametrize("weights", [None, "age"])
def test_leverages_are_derivatives(orthodont, weights):
    options = {"residual": "ar1(age | Subject)", "weights": weights}
    fit = lmer(f"{GROWTH} + (1 | Subject)", orthodont, **options)
    y = fit.design.y.copy()
    y[5] += 1.0
    stay = {"start": fit.core.theta, "control": Control(max_evaluations=1)}
    with pytest.warns(UserWarning, match="converge"):
        moved = lmer(f"{GROWTH} + (1 | Subject)", orthodont.assign(distance=y), **options, **stay)
    assert fit.hatvalues().iloc[5] == pytest.approx(moved.fittedvalues.iloc[5] - fit.fittedvalues.iloc[5], rel=1e-9)
    plain = lmer(GROWTH, orthodont, residual="us(age | Subject)")
    assert plain.hatvalues().sum() == pytest.approx(4.0)
