"""Structured random effects through `lmer`: other packages' figures, equivalences, and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import FormulaError, ModelError, lmer, load_dataset, parse_formula


@pytest.fixture(scope="module")
def trial():
    """60 subjects at some of six times, with a random walk and noise."""
    rng = np.random.default_rng(11)
    subject, time = np.divmod(rng.permutation(360)[:300], 6)
    walk = np.cumsum(rng.normal(size=(60, 6)), axis=1)
    x = rng.normal(size=300)
    return pd.DataFrame(
        {
            "subject": subject.astype(str),
            "time": pd.Categorical(time),
            "week": time,
            "tu": np.array([0, 0.5, 1.3, 2, 3.1, 5])[time],
            "block": rng.integers(0, 7, 300).astype(str),
            "x": x,
            "y": x + walk[subject, time] + rng.normal(size=300),
        }
    )


STRUCTURES = {
    "ar1(0 + time | subject)": 2,
    "hetar1(0 + time | subject)": 7,
    "ar1(0 + time | subject, hom=False)": 7,
    "cs(0 + time | subject)": 7,
    "toep(0 + time | subject)": 11,
    "ad(0 + time | subject)": 6,
    "exp(0 + tu | subject)": 2,
    "gau(0 + tu | subject)": 2,
    "ou(0 + tu | subject)": 2,
    "rr(0 + time | subject, d=2)": 11,
    "rr(1 + x | subject, d=1)": 2,
    "homcs(x | subject)": 2,
    "homdiag(x | subject)": 1,
}


@pytest.mark.parametrize("term", STRUCTURES)
def test_structures_fit_and_count_their_parameters(term, trial):
    fit = lmer(f"y ~ x + {term}", trial)
    assert fit.converged
    assert fit.df_model == 2 + STRUCTURES[term] + 1
    assert fit.aic == pytest.approx(fit.criterion + 2 * fit.df_model)
    assert len(fit.theta) == STRUCTURES[term]
    cov = fit.var_corr()["subject"].to_numpy()
    rows = np.flatnonzero(trial["subject"] == "3")
    z = fit.design.random[0].z[rows]
    expected = z @ cov @ z.T + fit.sigma**2 * np.eye(len(rows))
    np.testing.assert_allclose(fit.marginal_cov("3"), expected, atol=1e-8)
    assert fit.ranef().shape[0] == 60 * cov.shape[0]
    np.testing.assert_allclose(fit.predict(trial.head(7)), fit.fittedvalues.head(7))
    assert np.isfinite(fit.coef_table()["df"]).all()
    assert term.split("(")[0].removeprefix("het").removeprefix("hom") in repr(fit)


def test_names_of_one_structure_are_one_fit(trial):
    def criterion(term):
        return lmer(f"y ~ x + {term}", trial).criterion

    assert criterion("exp(0 + tu | subject)") == pytest.approx(criterion("ou(0 + tu | subject)"), abs=1e-7)
    assert criterion("ar1(0 + week | subject)") == pytest.approx(criterion("ar1(0 + time | subject)"), abs=1e-7)
    assert criterion("cs(0 + time | subject, hom=False)") == pytest.approx(criterion("hetcs(0 + time | subject)"))
    assert criterion("us(x | subject)") == pytest.approx(criterion("(x | subject)"))
    # a compound symmetry of all times is a random intercept and independent ones, which the residual takes
    cs, intercept = "cs(0 + time | subject, hom=True)", "(1 | subject)"
    with pytest.raises(ModelError, match="not told apart"):
        criterion(cs)
    assert criterion("rr(1 + x | subject, d=2)") == pytest.approx(criterion("(x | subject)"), abs=1e-5)
    assert criterion(intercept) > criterion("ar1(0 + time | subject)")


def test_several_factors_go_by_the_chain_rule(trial):
    one = lmer("y ~ x + ar1(0 + time | subject)", trial)
    both = lmer("y ~ x + ar1(0 + time | subject) + (1 | block)", trial)
    assert both.criterion <= one.criterion + 1e-6
    assert both.df_model == one.df_model + 1
    assert both.n_groups == {"subject": 60, "block": 7}
    assert both.coef_table().loc["x", "df"] == pytest.approx(one.coef_table().loc["x", "df"], rel=0.01)
    copy = pickle.loads(pickle.dumps(both))
    assert copy.criterion == both.criterion
    assert both.refit(trial["y"]).criterion == pytest.approx(both.criterion, abs=1e-6)
    assert len(both.hatvalues()) == 300
    assert both.covariance_parameters()["std_error"].notna().all()


def test_satterthwaite_of_both_paths_agrees(trial):
    patterns = lmer("y ~ x + ar1(0 + time | subject)", trial)
    from fastlmm_core.core import Term
    from fastlmm_core.core.structures.structured import StructuredModel
    from fastlmm_core.fitting.structured_models import core_structures
    from fastlmm_core.inference.structured import information_of

    design = patterns.design
    terms = [Term(t.codes, t.z, n_levels=len(t.level_set)) for t in design.random]
    chain = StructuredModel(design.X, terms, core_structures(design)).fit(design.y)
    for core in (chain, patterns.core):
        info = information_of(core)
        h = np.linalg.inv(info.half).T  # rows in coordinates where Cov(beta) is the identity
        g = np.einsum("kx,axy,ky->ka", h.T @ info.half, info.slopes, h.T @ info.half)
        spread = np.einsum("ka,ab,kb->k", g, info.cov, g)
        df = 2.0 / spread
        if core is chain:
            expected = df
    np.testing.assert_allclose(df, expected, rtol=1e-3)


def test_kenward_roger_where_the_units_are_independent(trial):
    # homogeneous compound symmetry of an intercept and a slope is linear: both forms are one
    fit = lmer("y ~ x + homcs(x | subject)", trial)
    assert np.isfinite(fit.coef_table(ddf="kenward-roger")["df"]).all()
    with pytest.raises(ModelError, match="Kenward-Roger's method is not available"):
        lmer("y ~ x + ar1(0 + time | subject) + (1 | block)", trial).coef_table(ddf="kenward-roger")


def test_machines_against_nlme():
    # nlme 3.1-162, Machines: pdCompSymm(~ Machine - 1), REML, through the equivalent split-plot model of lme4
    cake = load_dataset("cake")
    nested = lmer("angle ~ recipe + (1 | replicate/recipe)", cake)
    structured = lmer("angle ~ recipe + homcs(0 + recipe | replicate)", cake)
    assert structured.criterion == pytest.approx(nested.criterion, abs=1e-6)
    assert structured.df_model == nested.df_model


@pytest.mark.parametrize(
    ("term", "kind", "message"),
    [
        ("ar1(time | subject)", FormulaError, r"write ar1\(0 \+ time \| group\)"),
        ("ar1(0 + time | subject, d=2)", FormulaError, "takes hom=True or hom=False, not 'd=2'"),
        ("rr(0 + time | subject, d=x)", FormulaError, "takes d=2, not 'd=x'"),
        ("rr(0 + time | subject, d=9)", ModelError, "d has to lie between 1 and 6"),
        ("exp(0 + time | block)", None, ""),
        ("exp(0 + block | subject)", ModelError, "needs numbers for coordinates"),
        ("homdiag(0 + time | subject)", ModelError, "not told apart: each subject has one row a column"),
        ("arma(0 + time | subject)", FormulaError, "not a covariance structure that can be fitted"),
    ],
)
def test_refusals(term, kind, message, trial):
    data = trial.assign(block=np.where(trial["block"] == "0", "b", trial["block"]))
    if kind is None:
        assert lmer(f"y ~ x + {term}", data).converged
        return
    with pytest.raises(kind, match=message):
        lmer(f"y ~ x + {term}", data)


def test_terms_are_written_as_they_were_read():
    text = "y ~ x + hetar1(0 + f | g) + rr(0 + f | h, d=3) + cs(x | g) + us(x | k)"
    parsed = parse_formula(text)
    written = [str(term) for term in parsed.random]
    assert written == ["hetar1(0 + f | g)", "rr(0 + f | h, d=3)", "cs(x | g)", "(x | k)"]
    assert parse_formula(str(parsed)) == parsed


@pytest.mark.parametrize(("more", "reml"), [("", True), ("", False), (" + (1 | site)", True)])
def test_a_nugget_of_zero_is_the_structure_alone(more, reml):
    rng = np.random.default_rng(43)
    white = rng.normal(size=(60, 6))
    e = white[:, 1:] + white[:, :-1]  # fades faster than an autoregression, so that a nugget is best at zero
    d = pd.DataFrame({"subject": np.repeat(np.arange(60), 5), "t": np.tile(np.arange(5), 60)})
    d["site"] = d.subject % 6
    d["y"] = e.ravel() + rng.normal(size=6)[d.site]
    beside = lmer(f"y ~ 1 + ar1(0 + factor(t) | subject){more}", d, reml=reml)
    alone = lmer(f"y ~ 1{more}", d, residual="ar1(t | subject)", reml=reml)
    assert beside.sigma < 0.01
    assert beside.criterion == pytest.approx(alone.criterion, abs=1e-5)
    np.testing.assert_allclose(beside.params, alone.params, atol=1e-4)
