"""Fits of every family and link against glmmTMB's Laplace figures, and lme4's with quadrature."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from fastlmm_core import glmer, load_dataset
from fastlmm_core.errors import ModelError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "glmer" / "held_back.json").read_text())


def table(name):
    """The rows, as R had them."""
    if name == "sim":
        return pd.DataFrame(GOLDEN["sim"]).astype({"g": str, "h": str})
    data = load_dataset(name)
    if name == "cbpp":
        return data.assign(p=data["incidence"] / data["size"])
    return data.assign(ch=(data["HEIGHT"] - data["HEIGHT"].mean()) / 100)


@pytest.mark.parametrize("key", GOLDEN["fits"])
def test_figures_of_other_packages(key):
    golden = GOLDEN["fits"][key]
    data = table(golden["data"])
    fit = glmer(golden["formula"], data, golden["family"], link=golden["link"], **golden["arguments"])
    assert fit.converged
    if "n_agq" not in golden["arguments"]:  # lme4's is relative to the saturated model there
        assert_allclose(fit.criterion, golden["criterion"], rtol=0, atol=1e-5)
    se = np.array(golden["se"])
    assert_allclose(fit.params / se, golden["beta"] / se, rtol=0, atol=3e-4)
    assert_allclose(fit.bse, se, rtol=3e-4)
    spread = fit.var_corr().to_frame()
    pair = spread["var2"].notna()
    sds = spread[~pair & (spread["grp"] != "Residual")]["sdcor"]
    assert_allclose(sorted(sds), golden["sd"], rtol=2e-4, atol=2e-6)
    assert_allclose(sorted(spread[pair]["sdcor"]), golden["corr"], atol=1e-4)
    if "parameter" in golden:
        assert_allclose(fit.family_params["estimate"], golden["parameter"], rtol=2e-5)
    assert_allclose(fit.fittedvalues[:12], golden["fitted"], rtol=1e-4)


@pytest.mark.parametrize("family", ["poisson", "gamma"])
def test_drawn_means_outside_the_support_are_an_error(family):
    """Random effects are normal: with a link that is no logarithm they reach where there are no means."""
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(10), 12)
    mean = np.repeat(np.linspace(0.1, 0.9, 10), 12)
    draw = {"poisson": rng.poisson(5 * mean), "gamma": rng.gamma(5, mean / 5)}
    data = pd.DataFrame({"y": draw[family].astype(float), "g": g})
    fit = glmer("y ~ 1 + (1 | g)", data, family, link="identity")
    with pytest.raises(ModelError, match=f"means drawn are outside the {family} family's support"):
        fit.simulate(50, seed=1)
    with pytest.raises(ModelError, match="means drawn are outside"):
        fit.bootstrap(50, seed=1)
    assert np.isfinite(fit.simulate(5, seed=1, re_form="all").to_numpy()).all()
