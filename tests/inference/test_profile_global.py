"""Profiles are of the global minimum: against brute force, and against the models that boundary faces are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import ConvergenceWarning, LmerResult, lmer, load_dataset
from profile_oracle import CUT, PARAMETERS, check


@pytest.mark.parametrize("seed", range(4))
def test_limits_are_those_of_brute_force(seed: int) -> None:
    """Random slopes over an uncentred covariate; `python tests/profile_oracle.py 0 200` tries more of them."""
    assert check(seed, PARAMETERS[seed % 2 :: 2]) == []


def uncentred(seed: int) -> pd.DataFrame:
    """Slopes that hardly vary, over a covariate that is nowhere near zero."""
    rng = np.random.default_rng(seed)
    g, x = np.repeat(np.arange(20), 4), np.tile([8.0, 10.0, 12.0, 14.0], 20)
    y = 16.0 + 0.7 * x + rng.normal(0, 1.5, 20)[g] + rng.normal(0, 0.12, 20)[g] * (x - 11.0) + rng.normal(0, 1.3, 80)
    return pd.DataFrame({"y": y.round(1), "x": x, "g": g})


def without(data: pd.DataFrame, formula: str) -> float:
    return lmer(formula, data, reml=False).criterion


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_a_correlation_is_free_where_the_slope_is_not_needed(seed: int) -> None:
    data = uncentred(seed)
    fit = lmer("y ~ x + (x | g)", data, reml=False)
    plateau = min(without(data, "y ~ x + (1 | g)"), without(data, "y ~ x + (0 + x | g)")) - fit.criterion
    curve = fit.profile("cor_x.Intercept|g", level=0.95)["cor_x.Intercept|g"]
    limits = curve.value_at(-(CUT**0.5)), curve.value_at(CUT**0.5)
    if plateau < CUT - 1e-3:
        assert limits == (-1.0, 1.0)
        assert np.abs(curve.zeta).max() <= np.sqrt(plateau) + 1e-4
        inside = curve.zeta_at(np.linspace(-0.999, 0.999, 400))
        assert np.abs(inside).max() <= np.sqrt(plateau) + 1e-2  # interpolated
    elif plateau > CUT + 1e-3:
        assert limits != (-1.0, 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_no_profile_rises_above_a_model_in_which_its_parameter_is_free(seed: int) -> None:
    """Two terms, one of three columns: each correlation against the models without one of its effects."""
    rng = np.random.default_rng(seed)
    n = 96
    g, h = np.repeat(np.arange(12), 8), np.tile(np.arange(8), 12)
    x, z = rng.normal(5.0, 1.0, n), rng.normal(size=n)
    y = (
        x
        + rng.normal(size=12)[g]
        + 0.15 * rng.normal(size=12)[g] * x
        + 0.3 * rng.normal(size=8)[h]
        + rng.normal(size=n)
    )
    data = pd.DataFrame({"y": y, "x": x, "z": z, "g": g, "h": h})
    fit = lmer("y ~ x + z + (x + z | g) + (1 | h)", data, reml=False)
    less = {
        "Intercept": without(data, "y ~ x + z + (0 + x + z | g) + (1 | h)"),
        "x": without(data, "y ~ x + z + (z | g) + (1 | h)"),
        "z": without(data, "y ~ x + z + (x | g) + (1 | h)"),
    }
    profile = fit.profile("theta_", level=0.95)
    for curve in profile:
        assert curve.zeta.size
        if curve.kind != "cor":
            continue
        pair = curve.name.removeprefix("cor_").removesuffix("|g").split(".")
        free = max(0.0, min(less[effect] for effect in pair) - profile.deviance)
        assert np.max(curve.zeta**2) <= max(free, CUT + 0.5) + 1e-4
        if free < CUT - 1e-3:
            assert (curve.value_at(-(CUT**0.5)), curve.value_at(CUT**0.5)) == (-1.0, 1.0)


def stuck(fit: LmerResult, theta: np.ndarray) -> LmerResult:
    """The fit as if its optimiser had ended elsewhere."""
    return replace(fit, core=replace(fit.core, theta=theta, criterion=fit.core.objective()(theta)))


@pytest.mark.parametrize("which", ["sd_Intercept|Subject", "cor_Days.Intercept|Subject", "sigma", "Days"])
def test_a_lower_optimum_restarts_the_profile(which: str) -> None:
    fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"), reml=False)
    with pytest.warns(ConvergenceWarning, match="below the fit's"):
        found = stuck(fit, fit.core.theta * np.array([1.2, 0.0, 0.5])).profile(which, level=0.95)
    right = fit.profile(which, level=0.95)
    np.testing.assert_allclose(found.deviance, right.deviance, rtol=1e-10)
    np.testing.assert_allclose(found.conf_int(), right.conf_int(), rtol=1e-4)
    assert found[which].estimate == pytest.approx(right[which].estimate, rel=1e-4)


def test_a_place_that_is_no_optimum_is_left_though_its_slopes_vanish() -> None:
    """At a variance of zero the criterion is level in it: a fit that ended there has a lower one beside it."""
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"), reml=False)
    with pytest.warns(ConvergenceWarning, match="below the fit's"):
        found = stuck(fit, np.zeros(1)).profile(level=0.95)
    np.testing.assert_allclose(found.conf_int(), fit.conf_int("profile"), rtol=1e-4)
