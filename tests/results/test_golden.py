"""`lmer` from formula and table to every figure, against lme4's."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import lmer, load_dataset
from golden_models import FOLDER, SMALL, golden

LARGE = sorted(path.stem for path in FOLDER.glob("insteval*.json"))


def table(name: str) -> pd.DataFrame:
    if name != "sleepstudy_w":
        return load_dataset(name)
    return load_dataset("sleepstudy").assign(**{key: np.array(v) for key, v in golden("sleepstudy_w").items()})


def arguments(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    out = dict(figures["arguments"])
    if name == "cake_factors":  # fitted to temperature as an unordered factor
        out["contrasts"] = {"temperature": "treatment"}
    return out


def plain(name: str | None) -> str | None:
    """R's and formulaic's names of one column in one spelling."""
    if name is None:
        return None
    return re.sub(r"\[T?\.?([^\]]*)\]", r"\1", name).replace("(Intercept)", "Intercept")


def group_and_level(group: str, level: Any) -> tuple[str, str]:
    """An interaction's parts in alphabetical order: `a:b` and `b:a` are one grouping factor."""
    parts, bits = re.sub(r"\.\d+$", "", group).split(":"), str(level).split(":")
    if len(parts) != len(bits):
        return ":".join(sorted(parts)), str(level)
    order = sorted(range(len(parts)), key=parts.__getitem__)
    return ":".join(parts[i] for i in order), ":".join(bits[i] for i in order)


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_lme4s_figures(name: str) -> None:
    figures = golden(name)
    fit = lmer(figures["py_formula"], table(figures["data"]), reml=figures["REML"], **arguments(name, figures))
    criterion, sigma = figures["criterion"], figures["sigma"]
    se = np.array(list(figures["se"].values()))
    assert -max(2e-3, 1e-7 * abs(criterion)) < fit.criterion - criterion < 1e-5
    np.testing.assert_allclose(fit.params / se, np.array(list(figures["beta"].values())) / se, atol=1e-4, rtol=0)
    np.testing.assert_allclose(fit.bse, se, rtol=5e-4)
    np.testing.assert_allclose(fit.sigma, sigma, rtol=2e-4)
    np.testing.assert_allclose(fit.llf, figures["logLik"], rtol=1e-7, atol=1e-3)
    np.testing.assert_allclose([fit.aic, fit.bic], [figures["AIC"], figures["BIC"]], rtol=1e-7, atol=4e-3)
    np.testing.assert_allclose(fit.fittedvalues[:20], figures["fitted_head"], rtol=1e-3, atol=1e-4 * sigma)
    np.testing.assert_allclose(fit.resid[:20], figures["resid_head"], rtol=1e-3, atol=1e-3 * sigma)
    assert fit.is_singular == figures["singular"]
    assert fit.nobs == figures["nobs"]
    assert fit.df_model == figures["df"]
    assert {group_and_level(g, "")[0]: q for g, q in fit.n_groups.items()} == {
        group_and_level(g, "")[0]: q for g, q in figures["ngrps"].items()
    }

    ours = {
        (group_and_level(r.grp, "")[0], plain(r.var1), plain(r.var2)): r for r in fit.var_corr().to_frame().itertuples()
    }
    total = sum(row["vcov"] for row in figures["varcorr"] if not row["var2"])
    assert len(ours) == len(figures["varcorr"])
    for row in figures["varcorr"]:
        mine = ours[group_and_level(row["grp"], "")[0], plain(row["var1"]), plain(row["var2"])]
        np.testing.assert_allclose(mine.vcov, row["vcov"], rtol=1e-3, atol=1e-5 * total)

    frame = fit.ranef()
    modes = {
        (*group_and_level(g, level), plain(term)): (value, sd)
        for g, level, term, value, sd in zip(
            frame.grpvar, frame.grp, frame.term, frame.condval, frame.condsd, strict=True
        )
    }
    theirs = figures["ranef"]
    mine_all = np.array(
        [
            modes[*group_and_level(g, level), plain(term)]
            for g, level, term in zip(theirs["grpvar"], theirs["grp"], theirs["term"], strict=True)
        ]
    )
    sds = np.array(theirs["condsd"], dtype=float)
    tolerance = 5e-3 * (np.nanmax(np.abs(sds)) or 1.0)
    np.testing.assert_allclose(mine_all[:, 0], theirs["condval"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(mine_all[:, 1], np.nan_to_num(sds), rtol=0, atol=tolerance)
