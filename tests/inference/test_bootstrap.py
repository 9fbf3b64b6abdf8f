from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import Control, ConvergenceWarning, LmerResult, ModelError, lmer, load_dataset
from fastlmm_core.core import ManyFits, Model
from fastlmm_core.inference.bootstrap import jackknife, reflated
from fastlmm_core.inference.parameters import parameters


@pytest.fixture(scope="module")
def fit() -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))


@pytest.mark.parametrize("kind", ["parametric", "residual"])
def test_the_same_numbers_at_any_thread_count_and_for_any_n(fit: LmerResult, kind: str) -> None:
    draws = fit.bootstrap(40, kind=kind, seed=5)  # type: ignore[arg-type]
    data = load_dataset("sleepstudy")
    for threads in (1, 2, 3):
        other = lmer("Reaction ~ Days + (Days | Subject)", data, control=Control(threads=threads))
        pd.testing.assert_frame_equal(draws, other.bootstrap(40, kind=kind, seed=5), rtol=1e-12)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(draws.head(7), fit.bootstrap(7, kind=kind, seed=5), rtol=1e-12)  # type: ignore[arg-type]
    assert list(draws.index) == list(range(1, 41))
    assert draws.index.name == "draw"
    assert not np.allclose(draws, fit.bootstrap(40, kind=kind, seed=6))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["parametric", "residual"])
def test_distribution_of_the_estimates(fit: LmerResult, kind: str) -> None:
    n = 1500
    draws = fit.bootstrap(n, kind=kind, seed=1)  # type: ignore[arg-type]
    for name in ("Intercept", "Days"):
        assert abs(draws[name].mean() - fit.params[name]) < 4.5 * fit.bse[name] / np.sqrt(n)
        np.testing.assert_allclose(draws[name].std(), fit.bse[name], rtol=0.1)
    np.testing.assert_allclose(draws["sigma"].mean(), fit.sigma, rtol=0.02)
    np.testing.assert_allclose(draws["sd_Days|Subject"].mean(), 5.92, rtol=0.08)
    assert draws["cor_Days.Intercept|Subject"].between(-1.0, 1.0).all()


def test_draws_are_the_refits_of_simulated_responses(fit: LmerResult) -> None:
    draws = fit.bootstrap(4, seed=9)
    simulated = fit.simulate(4, seed=9)
    for k in range(4):
        again = fit.refit(simulated.iloc[:, k])
        np.testing.assert_allclose(draws.iloc[k][["Intercept", "Days"]], again.params, rtol=1e-6)
        np.testing.assert_allclose(draws["sigma"].iloc[k], again.sigma, rtol=1e-5)


def test_weights_offset_and_interactions() -> None:
    data = load_dataset("Pastes").assign(w=np.tile([0.5, 2.0], 30), o=np.linspace(0.0, 1.0, 60))
    fit = lmer("strength ~ 1 + (1 | batch/cask)", data, weights="w", offset="o")
    for kind in ("parametric", "residual"):
        draws = fit.bootstrap(600, kind=kind, seed=2)  # type: ignore[arg-type]
        assert abs(draws["Intercept"].mean() - fit.params.iloc[0]) < 5 * fit.bse.iloc[0] / np.sqrt(600)
        np.testing.assert_allclose(draws["sigma"].mean(), fit.sigma, rtol=0.05)


def test_statistics(fit: LmerResult) -> None:
    draws = fit.bootstrap(3, seed=5)
    by_name = fit.bootstrap(3, seed=5, statistic=lambda r: {"sigma": r.sigma, "aic": r.aic})
    assert list(by_name.columns) == ["sigma", "aic"]
    np.testing.assert_allclose(by_name["sigma"], draws["sigma"], rtol=1e-5)
    params = fit.bootstrap(3, seed=5, statistic=lambda r: r.params)
    np.testing.assert_allclose(params, draws[["Intercept", "Days"]], rtol=1e-6)
    assert list(fit.bootstrap(2, seed=5, statistic=lambda r: r.sigma).columns) == ["statistic"]
    assert list(fit.bootstrap(2, seed=5, statistic=lambda r: r.theta.to_numpy()[:2]).columns) == [
        "statistic_0",
        "statistic_1",
    ]


def test_refusals_and_progress(fit: LmerResult, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="at least 1"):
        fit.bootstrap(0)
    with pytest.raises(ModelError, match="'cases'"):
        fit.bootstrap(3, kind="cases")  # type: ignore[arg-type]
    fit.bootstrap(3, seed=1)
    assert capfd.readouterr() == ("", "")
    fit.bootstrap(3, seed=1, progress=True)
    assert "bootstrap" in capfd.readouterr().err


def test_fits_that_did_not_converge_are_counted(fit: LmerResult, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Model.fit_many

    def unlucky(self: Model, *args: object, **kwargs: object) -> ManyFits:
        found = made(self, *args, **kwargs)  # type: ignore[arg-type]
        return replace(found, converged=np.arange(len(found)) > 1)

    monkeypatch.setattr(Model, "fit_many", unlucky)
    with pytest.warns(ConvergenceWarning, match="2 of 5"):
        fit.bootstrap(5, seed=1)


def test_a_singular_fit_can_be_bootstrapped() -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = fit.bootstrap(300, seed=1)
        residual = fit.bootstrap(50, seed=1, kind="residual")
    share = (draws["sd_Intercept|Batch"] < 1e-3).mean()
    assert 0.4 < share < 0.8  # about two in three have no variance between batches
    assert np.isfinite(residual.to_numpy()).all()


def test_reflated_values_have_the_covariance_asked_for() -> None:
    rng = np.random.default_rng(1)
    factor = np.array([[2.0, 0.0], [0.5, 0.3]])
    out = reflated(rng.normal(size=(12, 2)) @ np.diag([1.0, 0.1]) + 3.0, factor)
    np.testing.assert_allclose(out.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(out.T @ out / 12, factor @ factor.T, rtol=1e-10)
    still = reflated(np.zeros((5, 1)), np.array([[0.0]]))
    np.testing.assert_array_equal(still, 0.0)


def test_jackknife_leaves_out_the_levels_of_the_outer_factor() -> None:
    data = load_dataset("Pastes")
    fit = lmer("strength ~ 1 + (1 | batch/cask)", data)
    found = jackknife(fit)
    assert found.shape == (10, len(parameters(fit.design)))
    without = lmer("strength ~ 1 + (1 | batch/cask)", data, subset=data.batch != "B")
    np.testing.assert_allclose(found[1, -1], without.params.iloc[0], rtol=1e-8)
    np.testing.assert_allclose(found[1, -2], without.sigma, rtol=1e-5)
    two = lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", load_dataset("Penicillin").query("sample in ['A', 'B']"))
    with pytest.raises(ModelError, match="2 levels"):
        jackknife(two)
