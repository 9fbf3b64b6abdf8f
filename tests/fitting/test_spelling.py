"""What users of other packages type is answered with the name it has here; warnings point at the line that asked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fastlmm_core
from fastlmm_core import Control, FastLMMError, LmerResult, RankWarning, SpellingError, lmer

FORMULA = "Reaction ~ Days + (Days | Subject)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"REML": False}, "reml="),
        ({"family": "poisson"}, "glmer"),
        ({"groups": "Subject"}, r"\(1 \| group\)"),
        ({"re_formula": "~Days"}, "part of the formula"),
        ({"devFunOnly": True}, "objective_only="),
        ({"weigths": "w"}, "did you mean weights="),
        ({"quite_else": 1}, "there are contrasts, control"),
    ],
)
def test_arguments_of_others(sleepstudy: pd.DataFrame, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpellingError, match=message):
        lmer(FORMULA, sleepstudy, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: lmer(FORMULA), "needs data"),
        (lambda data: lmer(data=data), "needs formula"),
        (lambda data: lmer(FORMULA, data, False), "by position"),
        (lambda data: lmer(None, data), "must be a string"),
        (lambda data: lmer(data, FORMULA), "it comes first"),
        (lambda data: lmer(FORMULA, None), "cannot read a table from NoneType"),
        (lambda data: lmer(FORMULA, 3), "cannot read a table from int"),
        (lambda data: lmer(FORMULA, data, reml="ML"), "reml must be True or False"),
        (lambda data: lmer(FORMULA, data, control={"tol": 1}), "control must be a Control"),
        (lambda data: lmer(FORMULA, data, na_action="na.exclude"), "na.exclude"),
        (lambda data: lmer(FORMULA, data, start="a"), "start"),
        (lambda data: lmer(FORMULA, data, verbose="yes"), "verbose"),
    ],
)
def test_wrong_types_are_errors_of_ours(sleepstudy: pd.DataFrame, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(FastLMMError, match=message):
        call(sleepstudy)


@pytest.mark.parametrize(
    ("name", "message"),
    [("VarCorr", r"var_corr\(\)"), ("logLik", "llf"), ("confint", r"conf_int\(\)"), ("vcov", r"cov_params\(\)")],
)
def test_accessors_of_others(slopes: LmerResult, name: str, message: str) -> None:
    with pytest.raises(SpellingError, match=message):
        getattr(slopes, name)
    assert not hasattr(slopes, name)
    with pytest.raises(AttributeError, match=message):
        getattr(fastlmm_core, name)


def test_properties_that_are_called(slopes: LmerResult) -> None:
    assert (slopes.nobs, type(slopes.fixef + 1), round(slopes.aic, 2)) == (180, pd.Series, 1755.63)
    for figure in (slopes.nobs, slopes.fixef, slopes.aic, slopes.bic, slopes.llf, slopes.sigma):
        with pytest.raises(SpellingError, match="parentheses"):
            figure()
    with pytest.raises(SpellingError, match=r"random_effects\['Subject'\]"):
        slopes.ranef("Subject")  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        slopes.nonsense  # type: ignore[attr-defined] # noqa: B018


def test_warnings_point_at_the_line_that_asked(sleepstudy: pd.DataFrame, slopes: LmerResult) -> None:
    data = sleepstudy.assign(twice=2 * sleepstudy.Days)
    formula = "Reaction ~ Days + twice + (1 | Subject)"
    calls = [
        lambda: lmer(formula, data),
        functools.partial(lmer, formula, data),
        lambda: [lmer(formula, data) for _ in range(1)],
    ]
    for call in calls:
        with pytest.warns(RankWarning) as caught:
            call()
        assert caught[0].filename == __file__
    ml = slopes.refit_ml()
    for ask in (ml.coef_table, ml.anova, ml.summary):
        with pytest.warns(fastlmm_core.FastLMMWarning, match="REML") as caught:
            ask(ddf="kenward-roger")
        assert caught[0].filename == __file__


def test_observation_level_terms_with_known_weights() -> None:
    rng = np.random.default_rng(1)
    precision = rng.uniform(1.0, 400.0, 60)
    data = pd.DataFrame({"study": range(60), "w": precision})
    data["y"] = rng.normal(size=60) * 0.5 + rng.normal(size=60) / np.sqrt(precision)
    with pytest.raises(FastLMMError, match=r"Control\(check_levels=False\)"):
        lmer("y ~ 1 + (1 | study)", data, weights="w")
    fit = lmer("y ~ 1 + (1 | study)", data, weights="w", control=Control(check_levels=False), reml=False)

    def deviance(log_parts: np.ndarray) -> float:
        variance = np.exp(log_parts[0]) + np.exp(log_parts[1]) / precision
        mean = (data.y / variance).sum() / (1 / variance).sum()
        return float(np.log(2 * np.pi * variance).sum() + ((data.y - mean) ** 2 / variance).sum())

    from scipy.optimize import minimize

    found = minimize(deviance, [np.log(0.25), 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
    assert fit.criterion == pytest.approx(found.fun, abs=1e-6)


def test_coef_adds_an_interaction_written_in_two_orders() -> None:
    rng = np.random.default_rng(2)
    data = pd.DataFrame([(a, b, s) for a in range(4) for b in range(4) for s in range(8)], columns=["a", "b", "s"])
    slopes = rng.normal(size=(8, 4))
    data["y"] = (np.column_stack([np.ones(128), data.a, data.b, data.a * data.b]) * slopes[data.s]).sum(axis=1)
    data["y"] += rng.normal(size=128)
    fit = lmer("y ~ b * a + (a * b || s)", data)
    table = fit.coef()["s"]
    assert list(table) == ["Intercept", "b", "a", "b:a"]
    X = np.column_stack([np.ones(128), data.b, data.a, data.a * data.b])
    np.testing.assert_allclose((X * table.to_numpy()[data.s]).sum(axis=1), fit.fittedvalues, rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda fit: fit.conf_int(levle=0.9), r"conf_int\(\) has no argument levle=: did you mean level="),
        (lambda fit: fit.tidy(conf_level=0.9), r"tidy\(\) has no argument conf_level=: it is level="),
        (lambda fit: fit.simulate(nsim=3), r"simulate\(\) has no argument nsim=: it is n="),
        (lambda fit: fit.predict(re_formula="none"), r"predict\(\) has no argument re_formula=: it is re_form="),
        (lambda fit: fit.predict(None, "none"), r"predict\(\) takes newdata by position, 2 were given"),
        (lambda fit: fit.var_corr(3), r"var_corr\(\) takes nothing by position, 1 were given$"),
        (lambda fit: fit.hatvalues(infl=1), r"hatvalues\(\) has no argument infl=: it takes none"),
        (lambda fit: fit.refit(), r"refit\(\) needs new_y as well"),
        (lambda fit: fastlmm_core.compare(fit, fit, tol=1), r"compare\(\) has no argument tol=: there are refit"),
    ],
)
def test_arguments_that_a_method_does_not_have(slopes: LmerResult, call: Callable[[Any], Any], answer: str) -> None:
    with pytest.raises(SpellingError, match=answer):
        call(slopes)


def test_methods_that_answer_keep_their_signature_and_text() -> None:
    import inspect

    assert list(inspect.signature(LmerResult.hatvalues).parameters) == ["self"]
    assert "level" in inspect.signature(LmerResult.conf_int).parameters
    assert LmerResult.conf_int.__doc__


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.conf_int(parm=3), "by name"),
        (lambda m: m.emmeans(3), "names of columns"),
        (lambda m: m.bootstrap("a"), "n must be a whole number, not 'a'"),
        (lambda m: m.simulate(1.5), "n must be a whole number, not 1.5"),
        (lambda m: m.simulate(0), "n must be at least 1"),
        (lambda m: m.augment(3), "cannot read a table from int"),
        (lambda m: m.save(3), "to a path"),
        (lambda m: m.update(rml=True), "update.. takes arguments of lmer, not 'rml'"),
        (lambda m: m.refit(m.design.y[:3]), "the fit used 180 rows"),
        (lambda m: m.refit(pd.Series(m.design.y, index=range(500, 680))), "^the index of new_y differs"),
    ],
)
def test_wrong_arguments_of_methods_are_errors_of_ours(
    sleepstudy: pd.DataFrame, ask: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(FastLMMError, match=message):
        ask(lmer(FORMULA, sleepstudy))
