"""Simulated null distributions of likelihood ratios: pbkrtest's and RLRsim's figures, and the definitions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fastlmm_core import (
    ConvergenceWarning,
    DataError,
    FastLMMWarning,
    LmerResult,
    ModelError,
    anova,
    bootstrap_test,
    exact_test,
    glmer,
    lmer,
    load_dataset,
)
from fastlmm_core.inference.exact_ratio import exact_draws


def beets() -> pd.DataFrame:
    """The split-plot experiment of pbkrtest (Halekoh and Hojsgaard 2014), with responses of its own."""
    rng = np.random.default_rng(3)
    data = pd.DataFrame([(b, h, s) for b in "123" for h in "xy" for s in "abcde"], columns=["block", "harvest", "sow"])
    plots = rng.normal(size=6)[(data.block.astype(int) - 1) * 2 + (data.harvest == "y")]
    return data.assign(sugar=17.0 + 0.3 * (data.harvest == "y") + 0.1 * plots + 0.1 * rng.normal(size=30))


@pytest.fixture(scope="module")
def pair() -> tuple[LmerResult, LmerResult]:
    data = beets()
    return (
        lmer("sugar ~ block + sow + (1 | block:harvest)", data, reml=False),
        lmer("sugar ~ block + sow + harvest + (1 | block:harvest)", data, reml=False),
    )


def test_statistics_are_those_of_single_fits(pair: tuple[LmerResult, LmerResult]) -> None:
    small, large = pair
    test = bootstrap_test(small, large, n=20, seed=5)
    drawn = small.simulate(20, seed=5)
    expected = [small.refit(drawn[c]).criterion - large.refit(drawn[c]).criterion for c in drawn]
    np.testing.assert_allclose(test.draws, np.maximum(0.0, expected), atol=1e-7)
    assert test.lrt == pytest.approx(small.criterion - large.criterion)
    assert test.p == (1 + np.count_nonzero(test.draws >= test.lrt)) / 21
    assert test.p_chi2 == pytest.approx(stats.chi2.sf(test.lrt, 1))


def test_small_samples_are_not_chi_squared(pair: tuple[LmerResult, LmerResult]) -> None:
    """Six whole plots: the mean of the statistic is about three, as for pbkrtest's beets (3.08)."""
    test = bootstrap_test(*pair, n=4000, seed=1)
    assert 2.4 < test.draws.mean() < 3.6
    assert test.p > 1.5 * test.p_chi2
    assert abs(test.p_bartlett - test.p) < 0.1
    assert test.n_failed == 0


def test_sequential_p_value(pair: tuple[LmerResult, LmerResult]) -> None:
    small, _ = pair
    data = beets()
    reduced = lmer("sugar ~ block + (1 | block:harvest)", data, reml=False)
    whole = bootstrap_test(reduced, small, n=3000, seed=2)
    some = bootstrap_test(reduced, small, n=3000, seed=2, stop=20)
    assert some.n < whole.n
    assert np.count_nonzero(some.draws >= some.lrt) == 20
    assert some.p == pytest.approx(20 / some.n)
    np.testing.assert_allclose(some.draws, whole.draws[: len(some.draws)], atol=1e-7)


def test_thread_count_does_not_matter(pair: tuple[LmerResult, LmerResult]) -> None:
    one, two = (bootstrap_test(*pair, n=300, seed=4, threads=t) for t in (1, 2))
    np.testing.assert_array_equal(one.draws, two.draws)


def test_draws_that_fail_are_counted(pair: tuple[LmerResult, LmerResult]) -> None:
    from fastlmm_core import Control

    data = beets()
    starved = lmer("sugar ~ block + sow + harvest + (1 | block:harvest)", data, reml=False)
    object.__setattr__(starved.options, "control", Control(max_evaluations=4))
    with pytest.warns(ConvergenceWarning, match="draws could not be fitted"):
        test = bootstrap_test(pair[0], starved, n=50, seed=1)
    assert test.n_failed + len(test.draws) == test.n == 50
    assert "failed" in repr(test)


def test_table_of_models_with_bootstrap(pair: tuple[LmerResult, LmerResult]) -> None:
    table = anova(*pair, test="bootstrap", n=200, seed=1)
    assert np.isnan(table["p_bootstrap"].iloc[0])
    assert table["p_bootstrap"].iloc[1] == bootstrap_test(*pair, n=200, seed=1).p
    with pytest.raises(ModelError, match="bootstrap"):
        anova(*pair, test="boot")


def test_printed_page(pair: tuple[LmerResult, LmerResult]) -> None:
    page = repr(bootstrap_test(*pair, n=50, seed=1))
    for word in ("chi-squared", "Bartlett", "gamma", "50 draws"):
        assert word in page


def test_models_that_are_not_nested(pair: tuple[LmerResult, LmerResult]) -> None:
    small, large = pair
    data = beets().assign(other=np.arange(30) % 7)
    with pytest.raises(ModelError, match="more parameters"):
        bootstrap_test(large, large)
    with pytest.raises(ModelError, match=r"harvest.*not in the fixed part"):
        bootstrap_test(large, small)
    with pytest.raises(ModelError, match="not among the random terms"):
        bootstrap_test(lmer("sugar ~ block + (1 | other)", data), large)
    with pytest.raises(DataError, match="not the same ones"):
        bootstrap_test(lmer("sugar ~ block + sow + (1 | block:harvest)", data.iloc[:-1]), large)
    with pytest.raises(DataError, match="different weights"):
        bootstrap_test(lmer("sugar ~ block + sow + (1 | block:harvest)", data, weights=np.arange(1.0, 31.0)), large)


def test_rank_deficient_models_are_nested() -> None:
    data = beets().assign(twice=lambda d: (d.harvest == "y") * 2.0)
    with pytest.warns(FastLMMWarning):
        large = lmer("sugar ~ harvest + twice + sow + (1 | block)", data)
    assert bootstrap_test(lmer("sugar ~ harvest + (1 | block)", data), large, n=20, seed=1).df == 4


@pytest.mark.parametrize(
    ("formula", "name", "lrt", "p"),  # RLRsim 3.1-8, 100,000 draws
    [("Yield ~ 1 + (1 | Batch)", "Dyestuff", 6.36895531362114, 0.00448)],
)
def test_exact_distribution_is_rlrsims(formula: str, name: str, lrt: float, p: float) -> None:
    test = exact_test(lmer(formula, load_dataset(name)), "(1 | Batch)", n=50_000, seed=1)
    assert test.lrt == pytest.approx(lrt, rel=1e-6)
    assert abs(test.p - p) < 5 * np.hypot(test.mcse, 0.0002)


def test_statistic_of_zero_is_no_evidence() -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2"))
    assert exact_test(fit, 0, n=2000, seed=1).p == 1.0


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_exact_distribution_is_the_bootstraps(reml: bool, weighted: bool) -> None:
    data = beets().assign(x=np.linspace(0.0, 1.0, 30) ** 2, w=np.linspace(0.5, 2.0, 30))
    fit = lmer("sugar ~ harvest + (0 + x | block)", data, reml=reml, weights="w" if weighted else None)
    exact = exact_draws(fit, 0, 20_000, 1)
    table = fit.ranova(test="bootstrap", n=4000, seed=1)
    p = float(np.mean(exact >= table["lrt"].iloc[1] - 1e-9))
    assert abs(table["p_bootstrap"].iloc[1] - p) < 4 * np.sqrt(max(p * (1 - p), 1e-4) / 4000)


def test_tables_of_random_effects(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    table = slopes.ranova(test="bootstrap", n=100, seed=1)
    assert table["p_bootstrap"].iloc[1] == pytest.approx(1 / 101)
    two = lmer("Reaction ~ Days + (1 | Subject) + (0 + Days | Subject)", sleepstudy)
    exact = two.ranova(test="exact", n=2000, seed=1)
    assert (exact["p_exact"].iloc[1:] == 0.0).all()
    assert any("Greven" in note for note in exact.attrs["notes"])
    assert np.isnan(slopes.ranova(test="exact", n=100)["p_exact"].iloc[1])
    with pytest.raises(ModelError, match="chisq"):
        slopes.ranova(test="lrt")


def test_terms_that_have_no_exact_distribution(slopes: LmerResult) -> None:
    with pytest.raises(ModelError, match="2 effects"):
        exact_test(slopes, 0)
    with pytest.raises(ModelError, match=r"it has \(Intercept"):
        exact_test(slopes, "(1 | Batch)")
    with pytest.raises(ModelError, match="no random term 3"):
        exact_test(slopes, 3)


def test_structured_models_are_refused(sleepstudy: pd.DataFrame) -> None:
    plain = lmer("Reaction ~ Days + (1 | Subject)", sleepstudy)
    structured = lmer("Reaction ~ Days", sleepstudy, residual="ar1(Days | Subject)")
    with pytest.raises(ModelError, match="residual structure"):
        bootstrap_test(plain, structured)


def test_generalised_models() -> None:
    data = load_dataset("cbpp")
    large = glmer("incidence ~ period + (1 | herd)", data, "poisson", exposure="size")
    small = large.update(". ~ . - period")
    test = bootstrap_test(small, large, n=40, seed=1)
    assert test.lrt == pytest.approx(small.criterion - large.criterion)
    assert (test.df, test.n_failed, len(test.draws)) == (3, 0, 40)
    assert test.p == pytest.approx(1 / 41)
    assert 1.0 < test.draws.mean() < 6.0  # chi-squared of three, nearly
    assert anova(small, large, test="bootstrap", n=40, seed=1)["p_bootstrap"].iloc[1] == test.p
    with pytest.raises(ModelError, match=r"period.*not in the fixed part"):
        bootstrap_test(large, small)
    zeros = [glmer("incidence ~ 1 + (1 | herd)", data, "poisson", zero=zero) for zero in ("~ 1", "~ period")]
    assert bootstrap_test(*zeros, n=3, seed=1).df == 3
    with pytest.raises(ModelError, match="nested"):
        bootstrap_test(*zeros[::-1], n=3)
    with pytest.raises(ModelError, match="fits of one kind"):
        bootstrap_test(lmer("incidence ~ 1 + (1 | herd)", data), small)


def test_a_bootstrap_without_variation_is_still_called_one() -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(np.arange(12), 6), "y": rng.poisson(2.0, 72) * (rng.random(72) < 0.7)})
    counts, zeros = (glmer("y ~ 1 + (1 | g)", data, "poisson", zero=zero) for zero in (None, "~ 1"))
    test = bootstrap_test(counts, zeros, n=2, seed=1)
    assert "bootstrap" in repr(test)
    assert "exact" not in repr(test)
    with pytest.raises(ModelError, match="linear models"):
        exact_test(counts, "g")
