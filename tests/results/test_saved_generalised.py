"""Generalised fits in files whose families have several parameters."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from pandas.testing import assert_frame_equal, assert_series_equal

from fastlmm_core import glmer, load, load_dataset
from fastlmm_core.errors import ModelError, NotSavedError
from fastlmm_core.families import Poisson, ZeroInflated

MODELS = {
    "inflated": ("TICKS ~ YEAR + (1 | BROOD)", {"family": "poisson", "zero": "~ 1"}),
    "inflated, a covariate": ("TICKS ~ YEAR + (1 | BROOD)", {"family": "negativebinomial", "zero": "~ h + YEAR"}),
    "hurdle, two factors": ("TICKS ~ h + (1 | BROOD) + (1 | LOCATION)", {"family": "truncated_nbinom2", "zero": "~ h"}),
    "ordinal": ("some ~ h + (1 | BROOD)", {"family": "ordinal", "link": "probit"}),
}


@pytest.fixture(scope="module")
def ticks():
    table = load_dataset("grouseticks")
    height = (table["HEIGHT"] - table["HEIGHT"].mean()) / 50.0
    return table.assign(h=height, some=np.digitize(table["TICKS"], [1, 4, 12]))


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_fit_is_the_fit(name, ticks, tmp_path):
    formula, options = MODELS[name]
    fit = glmer(formula, ticks, **options)
    fit.save(tmp_path / "fit", data=True)
    found = load(tmp_path / "fit")
    assert found.criterion == fit.criterion
    assert found.core.family.names == fit.core.family.names
    assert_series_equal(found.params, fit.params)
    assert_frame_equal(found.ranef(), fit.ranef(), rtol=1e-6)
    assert_allclose(found.bse, fit.bse, rtol=1e-5)
    assert_frame_equal(found.family_params, fit.family_params, rtol=1e-4)
    rows = ticks.iloc[[3, 200, 7]]
    kinds = ["link", "response"] + (["zprob"] if "zero" in options else [])
    for kind in kinds:
        ours, theirs = fit.predict(rows, kind=kind), found.predict(rows, kind=kind)
        assert_allclose(np.asarray(theirs, float), np.asarray(ours, float), rtol=1e-6)
    assert_allclose(found.refit(found.design.y).criterion, fit.criterion, atol=1e-6)
    assert str(found.summary()) == str(fit.summary())


PLAIN = {
    "trials": ("cbpp", "cbind(incidence, size - incidence) ~ period + (1 | herd)", {"family": "binomial"}),
    "counts": ("grouseticks", "TICKS ~ YEAR + (1 | BROOD) + (1 | LOCATION)", {"family": "negativebinomial"}),
    "slopes": ("sleepstudy", "Reaction ~ Days + (Days | Subject)", {"family": "gamma", "link": "log"}),
    "quadrature": ("cbpp", "cbind(incidence, size - incidence) ~ 1 + (1 | herd)", {"family": "binomial", "n_agq": 7}),
    "rank": (
        "cbpp",
        "cbind(incidence, size - incidence) ~ period + I(period == '2') + (1 | herd)",
        {"family": "binomial"},
    ),
}


def same_without_rows(fit, rows, kinds, tmp_path):
    fit.save(tmp_path / "small")
    found = load(tmp_path / "small")
    for name in ("params", "bse", "theta", "zvalues", "pvalues"):
        assert_series_equal(getattr(found, name), getattr(fit, name))
    for name in ("llf", "aic", "bic", "df_model", "n_groups", "sigma", "scale", "converged", "notes", "aicc"):
        assert getattr(found, name) == getattr(fit, name)
    assert_frame_equal(
        found.coef_table(exp=fit.family.link.name in ("log", "logit")),
        fit.coef_table(exp=fit.family.link.name in ("log", "logit")),
    )
    assert_frame_equal(found.cov_params(full=True), fit.cov_params(full=True))
    assert_frame_equal(found.family_params, fit.family_params)
    assert_frame_equal(found.ranef(), fit.ranef())
    assert_frame_equal(found.t_test(np.eye(len(fit.params))), fit.t_test(np.eye(len(fit.params))))
    assert str(found.summary()) == str(fit.summary())
    for kind in kinds:
        ours, theirs = fit.predict(rows, kind=kind), found.predict(rows, kind=kind)
        assert_allclose(np.asarray(theirs, float), np.asarray(ours, float), rtol=1e-12)
    for kind in {"population", "marginal"} & set(kinds) if not fit.family.vector else ():
        ours = fit.predict(rows, kind=kind, interval="confidence")
        assert_frame_equal(found.predict(rows, kind=kind, interval="confidence"), ours)
    for ask in (
        lambda: found.predict(rows, kind="link", interval="confidence"),
        lambda: found.predict(),
        lambda: found.residuals(),
        lambda: found.profile(),
        lambda: found.simulate(),
        lambda: found.deviance,
        lambda: found.dispersion(),
    ):
        with pytest.raises(NotSavedError, match="save the fit with data=True"):
            ask()
    found.save(tmp_path / "again")
    assert str(load(tmp_path / "again").summary()) == str(fit.summary())


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.filterwarnings("ignore:the fixed-effects columns:fastlmm_core.errors.RankWarning")
def test_a_fit_without_its_rows(name, tmp_path):
    table, formula, options = PLAIN[name]
    data = load_dataset(table)
    fit = glmer(formula, data, **options)
    same_without_rows(fit, data.iloc[[0, 5, 17]], ("link", "response", "population", "marginal"), tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_families_of_several_parameters_without_rows(name, ticks, tmp_path):
    formula, options = MODELS[name]
    kinds = ("response",) if name == "ordinal" else ("link", "response", "conditional", "zprob")
    same_without_rows(glmer(formula, ticks, **options), ticks.iloc[[3, 200, 7]], kinds, tmp_path)


def test_a_file_without_rows_does_not_grow_with_them(tmp_path):
    data = load_dataset("cbpp")
    many = pd.concat([data] * 200, ignore_index=True).assign(x=np.random.default_rng(1).normal(size=200 * len(data)))
    fit = glmer("cbind(incidence, size - incidence) ~ period + x + (1 | herd)", many, family="binomial")
    fit.save(tmp_path / "small")
    assert (tmp_path / "small").stat().st_size < 12_000
    assert_series_equal(load(tmp_path / "small").predict(many[:5]), fit.predict(many[:5]))


def test_random_effects_of_zeros_need_the_rows(ticks, tmp_path):
    fit = glmer("TICKS ~ 1 + (1 | BROOD)", ticks[:120], family="poisson", zero="~ 1 + (1 | LOCATION)")
    with pytest.raises(ModelError, match="part for zeros has random effects is saved with data=True only"):
        fit.save(tmp_path / "fit")


@pytest.mark.parametrize("of", ["columns", "offset"])
def test_arrays_of_zeros_need_the_rows(of, ticks, tmp_path):
    rows = ticks[:120]
    x = rows["h"].to_numpy()
    family = ZeroInflated(Poisson(), x[:, None] - x.mean()) if of == "columns" else ZeroInflated(Poisson(), offset=x)
    fit = glmer("TICKS ~ 1 + (1 | BROOD)", rows, family=family)
    with pytest.raises(ModelError, match="part for zeros was an array is saved with data=True only"):
        fit.save(tmp_path / "fit")
    fit.save(tmp_path / "fit", data=True)
    assert_series_equal(load(tmp_path / "fit").predict(), fit.predict())
