"""Calls that a new user makes: each is one error of this package that names what is wrong, and what may be meant."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import fastlmm_core
from fastlmm_core import (
    Control,
    anova,
    bootstrap_test,
    exact_test,
    glmer,
    lmer,
    lmer_many,
    load,
    load_dataset,
    pedigree,
    power,
)
from fastlmm_core.errors import FastLMMError

CALLS = [
    # columns
    ("lmer('Reaction ~ Day + (Days | Subject)', d)", "there is no column 'Day': did you mean 'Days'?"),
    ("lmer('Raction ~ Days + (Days | Subject)', d)", "did you mean 'Reaction'?"),
    ("lmer('Reaction ~ Days + (Days | subject)', d)", "did you mean 'Subject'?"),
    ("lmer('Reaction ~ Days + (1 | Nope)', d)", "the data have 'Reaction', 'Days', 'Subject'"),
    ("lmer(f, d, weights='wt')", "there is no column 'wt'"),
    ("lmer(f, d, subset='Dayz < 3')", "did you mean 'Days'?"),
    ("lmer(f, d, offset='off')", "there is no column 'off'"),
    ("lmer('Reaction ~ Days', d, residual='ar1(Dayz | Subject)')", "did you mean 'Days'?"),
    ("glmer('cbind(incidence, sise) ~ period + (1 | herd)', c, 'binomial')", "did you mean 'size'?"),
    ("glmer(h, c, 'poisson', zero='~ perid')", "did you mean 'period'"),
    ("pedigree(d, 'id', 'sire', 'dam')", "there is no column 'id'"),
    # formulas
    ("lmer('Reaction ~ Days + (Days | Subject', d)", "'(' at position 18"),
    ("lmer('Reaction ~ Days + Days | Subject', d)", "a bar without parentheses"),
    ("lmer('Reaction ~ Days + (Days ||| Subject)', d)", "more than one bar"),
    ("lmer('Reaction = Days + (1 | Subject)', d)", "no `~` found"),
    ("lmer('~ Days + (1 | Subject)', d)", "the response is missing"),
    ("lmer('Reaction ~ Days', d)", "no random-effect term"),
    ("lmer('', d)", "no `~` found"),
    ("lmer(d, f)", "it comes first, the data second"),
    ("lmer('Reaction ~ foo(Days) + (1 | Subject)', d)", "calls foo, which is neither"),
    ("lmer('Reaction ~ Days ** + (1 | Subject)', d)", "cannot read 'Days **'"),
    ("lmer('Reaction ~ Days + arr1(0 + Days | Subject)', d)", "arr1 is none of the covariance structures"),
    ("lmer('Reaction ~ log(Days) + (1 | Subject)', d)", "infinite or undefined values in the fixed part: log(Days)"),
    # data
    ("lmer(f)", "lmer() needs data as well"),
    ("lmer(f, d.to_numpy())", "cannot read a table from ndarray"),
    ("lmer(f, d.to_dict('records'))", "cannot read a table from list"),
    ("lmer(f, 5)", "cannot read a table from int"),
    ("lmer(f, 'nofile.parquet')", "there is no such file: nofile.parquet"),
    ("lmer(f, d.iloc[:0])", "the data have no rows"),
    ("lmer(f, d.assign(Reaction='x'))", "the response Reaction is categorical"),
    ("lmer(f, d.assign(Reaction=np.nan))", "no row is complete"),
    ("lmer(f, d.assign(Subject=1))", "Subject has only 1"),
    ("lmer(f, d.assign(Subject=range(180)))", "180 levels for 180 rows"),
    ("lmer(f, pl.from_pandas(d).drop('Days'))", "there is no column 'Days'"),
    ("lmer(f, pa.Table.from_pandas(d).drop_columns(['Days']))", "there is no column 'Days'"),
    ("load_dataset('sleep')", "did you mean sleepstudy?"),
    ("load('nofile')", "there is no such file: nofile"),
    # arguments
    ("lmer(f, d, REML=False)", "it is reml="),
    ("lmer(f, d, reml='no')", "reml must be True or False"),
    ("lmer(f, d, weights=[1, 2])", "weights has 2 values, the data have 180 rows"),
    ("lmer(f, d, na_action='omit')", "na_action must be"),
    ("lmer(f, d, control={'tol': 1})", "control must be a Control"),
    ("lmer(f, d, control=Control(engine='spars'))", "engine 'spars' does not exist: did you mean 'sparse'?"),
    ("lmer(f, d, start=[1])", "start has 1 values, but the random terms have 3"),
    ("lmer(f, d, family='poisson')", "it is an argument of glmer()"),
    ("lmer(f, d, contrasts={'Day': 'sum'})", "contrasts are given for 'Day'"),
    ("lmer('Reaction ~ Days', d, residual='ar2(Days | Subject)')", "'ar2' does not exist: did you mean 'ar1'?"),
    ("lmer('Reaction ~ Days', d, residual=5)", "residual is written as"),
    ("lmer(f, d, dispersion='Days')", "dispersion is written as"),
    ("lmer(f, d, relmat={'subject': np.eye(18)})", "the grouping factors are Subject"),
    ("glmer(h, c, 'binomail')", "family 'binomail' does not exist: did you mean 'binomial'?"),
    ("glmer(h, c, 'binomial')", "incidence has counts above one"),
    ("glmer(h, c, 'poisson', link='logg')", "link 'logg' does not exist: did you mean 'log'?"),
    ("glmer(h, c, 'poisson', link='logit')", "the poisson family has no logit link"),
    ("glmer(h, c, 'gamma')", "gamma responses must be positive: 22 of 56"),
    ("glmer(h, c, 'poisson', n_agq='5')", "not '5'"),
    ("glmer('incidence ~ period', c, 'poisson')", "no random-effect term"),
    ("lmer_many('~ Days + (1 | Subject)', d, np.ones((3, 5)))", "the responses have 5 values each"),
    # new rows
    ("m.predict(d.drop(columns='Days'))", "there is no column 'Days'"),
    ("m.predict(d.rename(columns={'Days': 'days'}))", "did you mean 'days'?"),
    ("m.predict(d.drop(columns='Subject'))", 're_form="none" leaves the random effects out'),
    ("m.predict(d.assign(Subject='999'))", "allow_new_levels=True"),
    ("m.predict(d.assign(Days='x'))", "Days is numeric in the model but not in the new data"),
    ("m.predict(d, re_form=None)", "would be read in opposite ways"),
    ("m.predict(d, re_form='(Days | subject)')", "the model's random effects are (Intercept + Days | Subject)"),
    ("m.predict(d, re_form='fixed')", "re_form must be"),
    ("m.predict(d, interval='predict')", "did you mean 'prediction'?"),
    ("m.predict(d, interval='confidence', level=95)", "level must lie between 0 and 1"),
    ("m.predict(5)", "cannot read a table from int"),
    ("g.predict(c.assign(period='9'))", "period has levels in the new data that the model was not fitted to: '9'"),
    ("g.predict(c, kind='resp')", "not 'resp'"),
    # after the fit
    ("m.coef_table(ddf='kenward')", "did you mean 'kenward-roger'?"),
    ("m.summary(ddf='satterthwait')", "did you mean 'satterthwaite'?"),
    ("m.coef_table(cov_type='CR9')", "cov_type 'CR9' does not exist: did you mean 'CR"),
    ("m.anova(type=4)", "anova type 4 does not exist"),
    ("m.t_test('Day = 0')", "there is no coefficient 'Day', but 'Days'"),
    ("m.t_test([1, 2, 3])", "there are 2 coefficients"),
    ("m.conf_int(method='prof')", "not 'prof'"),
    ("m.conf_int(parm='Day')", "the model has no parameter 'Day'; there is Days"),
    ("m.emmeans('Day')", "did you mean 'Days'?"),
    ("m.emmeans('Subject')", "Subject is a grouping factor"),
    ("m.residuals('pearsn')", "'pearsn' do not exist"),
    ("m.influence('subject')", "'subject' is not a grouping factor"),
    ("m.simulate(-1)", "n must be at least 1"),
    ("m.refit([1, 2])", "the fit used 180 rows"),
    ("m.ranova(test='bootstrap', n=0)", "n must be at least 1"),
    ("m.bootstrap(1, statistic=lambda fit: None)", "statistic has to give numbers"),
    ("bootstrap_test(m, m, nsim=5)", "has no argument nsim=: it is n="),
    ("exact_test(m)", "exact_test() needs term as well"),
    ("power(m, 'Days', nsim=5)", "has no argument nsim=: it is n="),
    ("m.plot.efects('Days')", "did you mean effects?"),
    ("m.summry()", "did you mean summary?"),
    ("m.logLik", "it is llf"),
    ("anova(m)", "anova compares at least two models"),
    ("anova(m, 5)", "fitted models are compared, not int"),
    ("anova(m, lmer('Reaction ~ 1 + (1 | Subject)', d[:100]))", "180 and 100 rows"),
]


@pytest.fixture(scope="module")
def names():
    d, c = load_dataset("sleepstudy"), load_dataset("cbpp")
    f, h = "Reaction ~ Days + (Days | Subject)", "incidence ~ period + (1 | herd)"
    known = {"d": d, "c": c, "f": f, "h": h, "m": lmer(f, d)}
    known["g"] = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", c, "binomial")
    modules = {"np": np, "pd": pd, "pl": pl, "pa": pa, "fastlmm_core": fastlmm_core, "Control": Control}
    calls = (lmer, glmer, load, load_dataset, anova, lmer_many, pedigree, bootstrap_test, exact_test, power)
    return known | modules | {call.__name__: call for call in calls}


@pytest.mark.parametrize(("call", "words"), CALLS, ids=[call for call, _ in CALLS])
def test_a_mistake_is_one_clear_error(call, words, names):
    with pytest.raises(FastLMMError) as caught:
        eval(call, dict(names))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", ["d.to_dict('list')", "pl.from_pandas(d)", "pl.from_pandas(d).lazy()"])
def test_tables_of_every_kind_are_one_model(table, names):
    fit = lmer(names["f"], eval(table, dict(names)))
    assert fit.criterion == pytest.approx(names["m"].criterion, rel=1e-12)
