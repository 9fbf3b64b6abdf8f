from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import LmerResult, lmer, load_dataset
from fastlmm_core.fitting import ranef as module


def made_term(group: str, columns: tuple[str, ...], levels: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(group=group, grp=group, columns=columns, levels=levels, level_set=levels)


def test_tidy_frame(slopes: LmerResult) -> None:
    frame = slopes.ranef()
    assert list(frame.columns) == ["grpvar", "term", "grp", "condval", "condsd"]
    assert len(frame) == 36
    # lme4's figures
    row = frame[(frame.grp == "309") & (frame.term == "Days")].iloc[0]
    assert row.condval == pytest.approx(-8.619, abs=2e-3)
    first = frame.iloc[0]
    assert (first.grpvar, first.term, first.grp) == ("Subject", "Intercept", "308")
    assert first.condval == pytest.approx(2.2586, abs=2e-3)
    assert first.condsd == pytest.approx(12.0709, abs=2e-3)


def test_without_deviations(slopes: LmerResult) -> None:
    frame = slopes.ranef(condsd=False)
    assert list(frame.columns) == ["grpvar", "term", "grp", "condval"]
    pd.testing.assert_frame_equal(frame, slopes.ranef().drop(columns="condsd"))


def test_terms_on_one_group_stand_together(zerocorr: LmerResult) -> None:
    frame = zerocorr.ranef()
    assert set(frame.grpvar) == {"Subject"}
    assert list(frame.term.unique()) == ["Intercept", "Days"]
    assert list(zerocorr.random_effects["Subject"].columns) == ["Intercept", "Days"]


def test_wide_and_tidy_agree(crossed: LmerResult) -> None:
    tidy = crossed.ranef()
    assert list(crossed.random_effects) == ["plate", "sample"]
    for group, wide in crossed.random_effects.items():
        assert wide.index.name == group
        np.testing.assert_array_equal(wide["Intercept"], tidy.loc[tidy.grpvar == group, "condval"])
        assert list(wide.index) == list(tidy.loc[tidy.grpvar == group, "grp"])


def test_group_counts(crossed: LmerResult) -> None:
    assert crossed.n_groups == {"plate": 24, "sample": 6}


def test_coefficients_of_a_level_are_sums(slopes: LmerResult, crossed: LmerResult) -> None:
    table = slopes.coef()["Subject"]
    wanted = slopes.params.to_numpy() + slopes.random_effects["Subject"].to_numpy()
    np.testing.assert_allclose(table.to_numpy(), wanted)
    assert set(crossed.coef()) == {"plate", "sample"}


def test_a_random_effect_without_a_fixed_one_stands_alone() -> None:
    fit = lmer("Reaction ~ 1 + (Days | Subject)", load_dataset("sleepstudy"))
    table = fit.coef()["Subject"]
    assert list(table.columns) == ["Intercept", "Days"]
    np.testing.assert_allclose(table["Days"], fit.random_effects["Subject"]["Days"])


def test_two_intercepts_on_one_group_sum_in_coef() -> None:
    term = made_term("g", ("Intercept",), np.array(["u", "v"]))
    core = SimpleNamespace(b=(np.array([[1.0], [2.0]]), np.array([[10.0], [20.0]])), beta=np.array([100.0]))
    design = SimpleNamespace(random=(term, term), x_names=("Intercept",))
    assert list(module.random_effects(design, core)["g"].columns) == ["Intercept", "Intercept.1"]
    assert list(module.coef(design, core)["g"]["Intercept"]) == [111.0, 122.0]


def test_levels_of_several_groups_keep_their_types() -> None:
    numbers = made_term("n", ("Intercept",), np.array([7, 8]))
    texts = made_term("t", ("Intercept",), np.array(["7", "x", "y"], dtype=object))
    core = SimpleNamespace(b=(np.zeros((3, 1)), np.ones((2, 1))))
    frame = module.ranef(SimpleNamespace(random=(texts, numbers)), core, condsd=False)
    assert list(frame.grp) == ["7", "x", "y", 7, 8]
    assert list(frame.condval) == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_a_million_levels_take_no_loop() -> None:
    q = 1_000_000
    rng = np.random.default_rng(1)
    term = made_term("g", ("Intercept", "x"), np.arange(q))
    core = SimpleNamespace(b=(rng.normal(size=(q, 2)),), cond_var=lambda: (np.ones((q, 2, 2)),), unidentified=None)
    begun = time.perf_counter()
    frame = module.ranef(SimpleNamespace(random=(term,)), core)
    assert time.perf_counter() - begun < 5.0  # a loop over levels takes tens of seconds
    assert len(frame) == 2 * q
    assert frame.condval[q + 5] == core.b[0][5, 1]
    assert frame.grp[q + 5] == 5
