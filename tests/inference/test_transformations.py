"""Transformations of responses, recognised in formulas, against difference quotients."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import ModelError, lmer
from fastlmm_core.inference.transformations import of_response


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("log(y)", np.log),
        ("np.log2(y)", np.log2),
        ("log(y + 1)", np.log1p),
        ("sqrt(y)", np.sqrt),
        ("np.log(y / (1 - y))", lambda y: np.log(y / (1 - y))),
        ("logit(y)", lambda y: np.log(y / (1 - y))),
        ("np.arcsin(np.sqrt(y))", lambda y: np.arcsin(np.sqrt(y))),
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
