"""Weights that change, against the criterion of a model made anew with them."""

from __future__ import annotations

import numpy as np
import pytest

import problems
from fastlmm_core.core.control import Control
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.reweighting import Reweighting
from fastlmm_core.errors import DataError

NAMES = ["intercept", "slope", "nested", "crossed", "crossed_weights", "mixed_weights", "no_X", "deficient_X"]


@pytest.mark.filterwarnings("ignore:.*set aside")
@pytest.mark.parametrize("engine", ["dense", "sparse", "cholmod"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
def test_it_is_the_criterion_with_those_weights(name: str, engine: str, reml: bool) -> None:
    problem = problems.build(name)
    design = DesignProducts(problem.X, problem.core_terms(), offset=problem.offset)
    many = Reweighting(design, problem.y, reml, Control(engine, threads=1))
    rng = np.random.default_rng(0)
    for scale in (1.0, 0.01, 300.0):
        w = scale * rng.uniform(0.2, 3.0, len(problem.y))
        many.reweight(w)
        one = problem.but(weights=w).objective(reml, engine, threads=1)
        for theta in list(problems.thetas(problem).values())[:3]:
            theta = theta / np.sqrt(scale)
            for got, expected in zip(many.derivatives(theta), one.derivatives(theta), strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8 * max(1.0, np.abs(expected).max()))
            assert many(theta) == pytest.approx(one(theta), rel=1e-11)


def test_weights_that_are_none() -> None:
    problem = problems.build("slope")
    many = Reweighting(DesignProducts(problem.X, problem.core_terms()), problem.y)
    with pytest.raises(DataError, match="but there are"):
        many.reweight(np.ones(3))
    w = np.ones(len(problem.y))
    w[4] = 0.0
    with pytest.raises(DataError, match="1 of"):
        many.reweight(w)
    w[4] = np.nan
    with pytest.raises(DataError):
        many.reweight(w)
    with pytest.raises(DataError, match="covariance parameter"):
        many(np.ones(7))
    with pytest.raises(DataError, match="without them"):
        Reweighting(DesignProducts(problem.X, problem.core_terms(), weights=np.ones(len(w))), problem.y)
