"""Transformations of responses, recognised in formulas, against difference quotients."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import ModelError, glmer, lmer
from fastlmm_core.inference.transformations import of_response


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("log(y)", np.log),
        ("np.log2(y)", np.log2),
        ("log(y + 1)", np.log1p),
        ("sqrt(y)", np.sqrt),
        ("log(total.fruits + 1)", np.log1p),
        ("np.sqrt(`fruits of the plant`)", np.sqrt),
        ("np.log(y.rel / (1 - y.rel))", lambda y: np.log(y / (1 - y))),
        ("np.log(y / (1 - y))", lambda y: np.log(y / (1 - y))),
        ("logit(y)", lambda y: np.log(y / (1 - y))),
        ("np.arcsin(np.sqrt(y))", lambda y: np.arcsin(np.sqrt(y))),
        ("asin(sqrt(y))", lambda y: np.arcsin(np.sqrt(y))),
        ("1 / y", lambda y: 1 / y),
        ("I(1 / y)", lambda y: 1 / y),
        ("y ** 0.5", np.sqrt),
        ("I(y ** -2)", lambda y: y**-2.0),
    ],
)
def test_inverses_and_their_derivatives(text: str, forward: object) -> None:
    h = pickle.loads(pickle.dumps(of_response(text)))
    y = np.array([0.2, 0.4, 0.7])
    eta = np.asarray(forward(y))
    np.testing.assert_allclose(h.back(eta), y, rtol=1e-12)
    step = 1e-6
    for f, slope in ((h.inverse, h.first), (h.first, h.second), (h.second, h.third)):
        np.testing.assert_allclose((f(eta + step) - f(eta - step)) / (2 * step), slope(eta), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("text", ["np.sin(y)", "log(y / (2 - y))", "y ** k", "log(y) + 1"])
def test_others_are_not_guessed(text: str) -> None:
    with pytest.raises(ModelError, match="pass a pair"):
        of_response(text)


def test_limits_of_a_falling_transformation_are_in_order() -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(range(10), 8), "a": np.tile(list("ab"), 40), "y": rng.gamma(20.0, 0.1, 80)})
    table = lmer("I(1 / y) ~ a + (1 | g)", data).emmeans("a", scale="response").to_frame()
    assert (table["lower"] < table["estimate"]).all()
    assert (table["estimate"] < table["upper"]).all()


@pytest.mark.parametrize(
    ("text", "eta", "ends", "limits"),
    [
        ("1 / y", 0.5, (-0.5, 1.5), (1 / 1.5, np.inf)),
        ("1 / y", -0.5, (-1.5, 0.5), (-np.inf, -1 / 1.5)),
        ("sqrt(y)", 0.5, (-1.0, 2.0), (0.0, 4.0)),
        ("sqrt(y)", -0.5, (-2.0, 1.0), (0.0, 4.0)),
        ("I(y ** 2)", 1.0, (-3.0, 4.0), (0.0, 2.0)),
        ("arcsin(sqrt(y))", 1.2, (0.5, 1.9), (np.sin(0.5) ** 2, 1.0)),
        ("arcsin(sqrt(y))", 0.2, (-0.9, 1.3), (0.0, np.sin(1.3) ** 2)),
        ("log(y)", 0.2, (-0.9, 1.3), (np.exp(-0.9), np.exp(1.3))),
    ],
)
def test_an_interval_ends_where_the_response_turns(
    text: str, eta: float, ends: tuple[float, float], limits: tuple[float, float]
) -> None:
    h = of_response(text)
    found = sorted(float(h.back(h.within(np.array(eta), np.array(end)))) for end in ends)
    np.testing.assert_allclose(found, limits, rtol=1e-12)


def test_means_of_few_rows_lie_within_their_limits() -> None:
    data = pd.DataFrame({"g": [0, 0, 1, 1, 2, 2], "a": list("ababab"), "y": [0.3, 2.0, 4.0, 0.6, 1.0, 5.0]})
    for formula in ("1 / y ~ a + (1 | g)", "sqrt(y) ~ a + (1 | g)", "I(y ** 2) ~ a + (1 | g)"):
        table = lmer(formula, data).emmeans("a", scale="response").to_frame()
        assert (table["lower"] <= table["estimate"]).all()
        assert (table["estimate"] <= table["upper"]).all()


def test_predictions_by_a_root_lie_within_their_limits() -> None:
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"g": np.repeat(range(10), 6), "x": rng.normal(size=60), "y": rng.poisson(0.3, 60)})
    fit = glmer("y ~ x + (1 | g)", data, family="poisson", link="sqrt")
    low = -float(fit.params["Intercept"] / fit.params["x"])  # where the predictor is nearly zero
    new = pd.DataFrame({"g": 0, "x": [low - 0.01, low + 0.01, 0.0]})
    found = fit.predict(new, interval="confidence", re_form="none")
    assert (found["lower"] <= found["fit"]).all()
    assert (found["fit"] <= found["upper"]).all()
    eta = fit.predict(new, kind="link", interval="confidence", re_form="none")
    ends = eta[["lower", "upper"]].abs()
    crosses = eta["lower"] * eta["upper"] < 0.0
    assert crosses.tolist() == [True, True, False]
    np.testing.assert_allclose(found["upper"], ends.max(axis=1) ** 2, rtol=1e-12)
    np.testing.assert_allclose(found["lower"], np.where(crosses, 0.0, ends.min(axis=1) ** 2), rtol=1e-12)
