"""`sparse(firm)`: the fit of dummies, without their columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import Control, FormulaError, MemoryLimitError, ModelError, lmer


@pytest.fixture(scope="module")
def pay():
    rng = np.random.default_rng(5)
    firm, year, worker = rng.integers(0, 15, 400), rng.integers(0, 6, 400), rng.integers(0, 60, 400)
    x = rng.normal(size=400)
    y = x + rng.normal(size=15)[firm] + 0.3 * year + rng.normal(size=60)[worker] + rng.normal(size=400)
    frame = pd.DataFrame({"y": y, "x": x, "firm": firm.astype(str), "year": year.astype(str)})
    return frame.assign(worker=worker.astype(str), size=np.round(rng.normal(size=15), 3)[firm])


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(
    ("fixed", "dummies"), [("sparse(firm)", "firm"), ("sparse(firm) + sparse(year)", "firm + year")]
)
def test_it_is_the_fit_of_dummies(fixed, dummies, reml, pay):
    fit = lmer(f"y ~ x + {fixed} + (1 | worker)", pay, reml=reml)
    other = lmer(f"y ~ x + {dummies} + (1 | worker)", pay, reml=reml)
    assert fit.criterion == pytest.approx(other.criterion, abs=1e-6)
    assert fit.df_model == other.df_model
    for name in ("Intercept", "x"):
        assert fit.params[name] == pytest.approx(other.params[name], abs=1e-5)
        assert fit.bse[name] == pytest.approx(other.bse[name], rel=1e-4)
    assert fit.coef_table().loc["x", "df"] == pytest.approx(other.coef_table().loc["x", "df"], rel=1e-3)
    np.testing.assert_allclose(fit.fittedvalues, other.fittedvalues, atol=1e-4)
    found = fit.sparse_coef("firm", se=True)
    assert found.loc["0", "estimate"] == 0.0
    for level in ("3", "14"):
        assert found.loc[level, "estimate"] == pytest.approx(other.params[f"firm[T.{level}]"], abs=1e-4)
        assert found.loc[level, "std_error"] == pytest.approx(other.bse[f"firm[T.{level}]"], rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"residual": "ar1(wave | worker)"}], ids=["independent", "ar1"])
def test_its_rows_are_predicted_with_the_sparse_part(options, pay):
    pay = pay.assign(wave=pay.groupby("worker").cumcount())
    random = "" if options else " + (1 | worker)"
    fit = lmer(f"y ~ x + sparse(firm){random}", pay, **options)
    other = lmer(f"y ~ x + firm{random}", pay, **options)
    assert np.std(other.predict(re_form="none") - fit.params["x"] * pay.x) > 0.5
    for ask in (
        lambda f: f.predict(),
        lambda f: f.predict(re_form="none"),
        lambda f: f.residuals("marginal"),
        lambda f: f.augment()[".fixed"],
        lambda f: f.r2(),
        *([lambda f: f.predict(residual="conditional")] if options else []),
    ):
        np.testing.assert_allclose(ask(fit), ask(other), atol=1e-4)


def test_a_column_that_the_levels_determine_is_dropped(pay):
    with pytest.warns(match="size"):
        fit = lmer("y ~ x + size + sparse(firm) + (1 | worker)", pay)
    assert np.isnan(fit.params["size"])


def test_disconnected_parts_have_a_reference_each(pay):
    apart = pay.assign(year=np.where(pay["firm"].astype(int) < 7, "a" + pay["year"], "b" + pay["year"]))
    with pytest.warns(match=r"sparse\(year\): 2 disconnected parts"):
        fit = lmer("y ~ x + sparse(firm) + sparse(year) + (1 | worker)", apart)
    with pytest.warns(match="depend linearly"):
        other = lmer("y ~ x + firm + year + (1 | worker)", apart)
    assert fit.df_model == other.df_model
    assert fit.params["x"] == pytest.approx(other.params["x"], abs=1e-5)


def test_what_is_refused(pay):
    fit = lmer("y ~ x + sparse(firm) + (1 | worker)", pay)
    for call in (lambda: fit.predict(pay.head()), lambda: fit.emmeans("x")):
        with pytest.raises(ModelError, match=r"beside sparse\(\) effects is not available"):
            call()
    with pytest.raises(FormulaError, match="takes the name of a column"):
        lmer("y ~ sparse(log(x)) + (1 | worker)", pay)
    with pytest.raises(ModelError, match="no sparse"):
        fit.sparse_coef("year")
    with pytest.raises(ModelError, match="at most two"):
        lmer("y ~ sparse(firm) + sparse(year) + sparse(size) + (1 | worker)", pay)


def test_robust_covariances_are_refused(pay):
    fit = lmer("y ~ x + sparse(firm) + (1 | worker)", pay)
    for kind in ("CR0", "CR2"):
        with pytest.raises(ModelError, match=r"not available beside sparse\(\) effects"):
            fit.coef_table(cov_type=kind)


def test_levels_that_meet_too_widely_say_so_before_the_memory_is_gone():
    rng = np.random.default_rng(0)
    worker, firm = np.repeat(np.arange(6_000), 3), rng.integers(0, 1_000, 18_000)
    data = pd.DataFrame({"y": rng.normal(size=18_000), "worker": worker, "firm": firm})
    with pytest.raises(MemoryLimitError, match=r"the factor of 6,999 equations would take .* meet too widely"):
        lmer("y ~ sparse(firm) + (1 | worker)", data, control=Control(engine="sparse", memory_limit=2**22))
    fit = lmer("y ~ sparse(firm) + (1 | worker)", data, control=Control(memory_limit=2**22))
    assert "the factor of 6,999 equations would take" in str(fit.engine_report())
