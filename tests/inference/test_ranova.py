"""Tests of random effects against lmerTest's `ranova`."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastlmm_core import exact_test, lmer, load_dataset
from fastlmm_core.core import Model
from fastlmm_core.errors import DataError
from unbalanced_cake import unbalanced_cake


def test_terms_are_reduced_or_dropped() -> None:
    data = load_dataset("sleepstudy")
    fit = lmer("Reaction ~ Days + (Days | Subject)", data)
    table = fit.ranova()
    assert list(table.index) == ["<none>", "Days in (1 + Days | Subject)"]
    intercepts = lmer("Reaction ~ Days + (1 | Subject)", data)
    row = table.iloc[1]
    np.testing.assert_allclose(row["llf"], intercepts.llf, rtol=1e-9)
    assert row["lrt"] == pytest.approx(42.8371, abs=1e-3)  # lmerTest
    assert row["df"] == 2
    assert row["p"] == pytest.approx(stats.chi2.sf(row["lrt"], 2))
    assert row["p_mixture"] == pytest.approx((stats.chi2.sf(row["lrt"], 1) + stats.chi2.sf(row["lrt"], 2)) / 2)
    assert "Stram and Lee" in table.attrs["notes"][0]

    whole = fit.ranova(reduce_terms=False).iloc[1]
    assert whole.name == "(1 + Days | Subject)"
    assert whole["df"] == 3
    assert np.isnan(whole["p_mixture"])


@pytest.mark.parametrize("reml", [True, False])
def test_the_last_term_leaves_a_linear_model(reml: bool) -> None:
    data = load_dataset("Dyestuff")
    fit = lmer("Yield ~ 1 + (1 | Batch)", data, reml=reml)
    y = data["Yield"].to_numpy(float)
    nu = len(y) - reml
    rss = np.sum((y - y.mean()) ** 2)
    deviance = nu * (1 + np.log(2 * np.pi * rss / nu)) + (np.log(len(y)) if reml else 0.0)
    row = fit.ranova().loc["(1 | Batch)"]
    assert -2 * row["llf"] == pytest.approx(deviance)
    assert row["p_mixture"] == pytest.approx(row["p"] / 2)


def test_a_variance_of_zero_is_no_evidence() -> None:
    row = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2")).ranova().loc["(1 | Batch)"]
    assert row["lrt"] == pytest.approx(0.0, abs=1e-9)
    assert row["p"] == pytest.approx(1.0, abs=1e-3)


def test_several_terms() -> None:
    fit = lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", load_dataset("Penicillin"))
    table = fit.ranova()
    assert list(table.index) == ["<none>", "(1 | plate)", "(1 | sample)"]
    alone = lmer("diameter ~ 1 + (1 | sample)", load_dataset("Penicillin"))
    assert table.loc["(1 | plate)", "llf"] == pytest.approx(alone.llf)


def test_dummies_become_an_intercept() -> None:
    # lmerTest: logLik -576.88393, then -584.15209 with 5 degrees of freedom less
    table = lmer("angle ~ recipe * temperature + (0 + recipe | replicate)", unbalanced_cake()).ranova()
    assert list(table.index) == ["<none>", "recipe in (0 + recipe | replicate)"]
    np.testing.assert_allclose(table["llf"], [-576.8839324, -584.1520913], atol=1e-4)
    assert table["df"].iloc[1] == 5


def test_the_intercept_stays_and_marginality_holds() -> None:
    data = load_dataset("sleepstudy").assign(late=lambda d: (d["Days"] > 4).astype(float))
    table = lmer("Reaction ~ Days + (Days * late | Subject)", data).ranova()
    assert list(table.index)[1:] == ["Days:late in (1 + Days + late + Days:late | Subject)"]


def test_a_reduced_model_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", load_dataset("Penicillin"))
    fits: list[int] = []
    plain = Model.fit

    def counted(self: Model, *args: object, **options: object) -> object:
        fits.append(1)
        return plain(self, *args, **options)

    monkeypatch.setattr(Model, "fit", counted)
    table = fit.ranova(test="exact", n=500, seed=1)
    assert len(fits) == 2
    alone = [exact_test(fit, term, n=500, seed=1) for term in (0, 1)]
    assert table["p_exact"].tolist()[1:] == [test.p for test in alone]
    np.testing.assert_allclose(table["lrt"].iloc[1:], [test.lrt for test in alone], rtol=1e-12)
    with pytest.raises(DataError, match="seed must be"):
        fit.ranova(test="exact", n=500, seed=-1)
