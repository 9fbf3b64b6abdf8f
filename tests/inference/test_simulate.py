from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import DataError, LmerResult, ModelError, lmer, load_dataset


@pytest.fixture(scope="module")
def weighted() -> LmerResult:
    data = load_dataset("sleepstudy").assign(w=np.tile([0.5, 1.0, 2.0], 60), off=np.linspace(0.0, 9.0, 180))
    return lmer("Reaction ~ Days + (Days | Subject)", data, weights="w", offset="off")


def test_moments_are_the_models(weighted: LmerResult) -> None:
    drawn = weighted.simulate(4000, seed=1).to_numpy()
    rows = np.flatnonzero(weighted.design.random[0].codes == 3)
    cov = weighted.marginal_cov(weighted.design.random[0].levels[3])
    found = np.cov(drawn[rows])
    scale = np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    np.testing.assert_allclose(found / scale, cov / scale, atol=0.08)
    mean = weighted.design.X @ weighted.params.to_numpy() + weighted.design.offset
    np.testing.assert_allclose(drawn.mean(axis=1), mean, atol=5 * np.sqrt(cov.max() / 4000))
    other = np.flatnonzero(weighted.design.random[0].codes == 4)
    assert np.abs(np.corrcoef(drawn[rows[0]], drawn[other])[0, 1:]).max() < 0.08


def test_seeds(weighted: LmerResult) -> None:
    first = weighted.simulate(3, seed=7)
    assert list(first.columns) == ["sim_1", "sim_2", "sim_3"]
    pd.testing.assert_frame_equal(first, weighted.simulate(5, seed=7).iloc[:, :3])
    again = np.random.SeedSequence(7)
    for _ in range(2):  # a SeedSequence is not advanced
        pd.testing.assert_frame_equal(first, weighted.simulate(3, seed=again))
    assert not np.allclose(first, weighted.simulate(3, seed=8))
    assert not np.allclose(weighted.simulate(1), weighted.simulate(1))
    for bad in (-1, "a", 1.5):
        with pytest.raises(DataError, match="seed"):
            weighted.simulate(1, seed=bad)  # type: ignore[arg-type]


def test_conditional_modes_held(weighted: LmerResult) -> None:
    params = {"sigma": 0.0}
    with pytest.raises(ModelError, match="conditional modes"):
        weighted.simulate(1, re_form="all", params=params)
    drawn = weighted.simulate(3000, seed=2, re_form="all").to_numpy()
    sd = weighted.sigma / np.sqrt(weighted.design.weights)
    np.testing.assert_allclose(drawn.mean(axis=1), weighted.fittedvalues, atol=5 * sd.max() / np.sqrt(3000))
    np.testing.assert_allclose(drawn.std(axis=1), sd, rtol=0.08)


def test_some_random_effects_held() -> None:
    fit = lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", load_dataset("Penicillin"))
    drawn = fit.simulate(2000, seed=3, re_form="(1 | sample)").to_numpy()
    expected = fit.predict(re_form="(1 | sample)").to_numpy()
    sd = fit.var_corr().to_frame().sdcor.to_numpy()
    total = np.hypot(sd[0], sd[2])
    np.testing.assert_allclose(drawn.mean(axis=1), expected, atol=5 * total / np.sqrt(2000))
    np.testing.assert_allclose(drawn.std(axis=1), total, rtol=0.1)


def test_parameters_given(weighted: LmerResult) -> None:
    still = weighted.simulate(2, seed=1, params={"beta": [1.0, 2.0], "theta": np.zeros(3), "sigma": 0.0})
    expected = 1.0 + 2.0 * weighted.design.X[:, 1] + weighted.design.offset
    np.testing.assert_allclose(still.to_numpy(), np.column_stack([expected, expected]))


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"beta": [1.0]}, DataError, "shape"),
        ({"theta": [1.0, np.nan, 1.0]}, DataError, "not finite"),
        ({"sigma": -1.0}, DataError, "sigma"),
        ({"sd": 1.0}, ModelError, "not 'sd'"),
    ],
)
def test_wrong_parameters(weighted: LmerResult, params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        weighted.simulate(1, params=params)
    with pytest.raises(ModelError, match="at least 1"):
        weighted.simulate(0)


def test_new_rows() -> None:
    data = load_dataset("sleepstudy")
    fit = lmer("Reaction ~ Days + (Days | Subject)", data)
    new = pd.DataFrame({"Days": [0.0, 0.0, 0.0, 5.0], "Subject": ["a", "a", "308", "b"]}, index=list("wxyz"))
    drawn = fit.simulate(3000, seed=1, newdata=new)
    assert list(drawn.index) == list("wxyz")
    values = drawn.to_numpy()
    sd = fit.var_corr().to_frame().sdcor.to_numpy()
    share = sd[0] ** 2 / (sd[0] ** 2 + sd[-1] ** 2)
    found = np.corrcoef(values)
    assert abs(found[0, 1] - share) < 0.06  # rows of one new level share its effects
    assert abs(found[0, 2]) < 0.06
    np.testing.assert_allclose(values[0].std(), np.hypot(sd[0], sd[-1]), rtol=0.05)
    np.testing.assert_allclose(values[3].mean(), fit.params.to_numpy() @ [1, 5], atol=4.0)
    known = fit.simulate(2000, seed=1, newdata=new.iloc[2:3], re_form="all").to_numpy()
    expected = fit.predict(new.iloc[2:3]).to_numpy()
    np.testing.assert_allclose(known.mean(axis=1), expected, atol=5 * fit.sigma / np.sqrt(2000))
    with pytest.raises(DataError, match='re_form="none" draws'):
        fit.simulate(1, newdata=new, re_form="all")
    unknown = fit.simulate(3000, seed=1, newdata=new.assign(Subject=[None, None, "b", "c"])).to_numpy()
    assert abs(np.corrcoef(unknown)[0, 1]) < 0.06  # an unknown level is one of its own
    gaps = fit.simulate(2, seed=1, newdata=new.assign(Days=[0.0, np.nan, 0.0, 5.0]))
    assert gaps.isna().all(axis=1).tolist() == [False, True, False, False]


def test_interactions_in_new_rows() -> None:
    data = load_dataset("Pastes")
    fit = lmer("strength ~ 1 + (1 | batch/cask)", data)
    drawn = fit.simulate(50, seed=1, newdata=data.head(12), params={"sigma": 1e-9, "theta": np.array([1e9, 0.0])})
    keys = (data.batch.astype(str) + data.cask.astype(str)).head(12).to_numpy()
    values = drawn.to_numpy()[:, 0]
    for a in range(12):
        for b in range(12):
            assert (abs(values[a] - values[b]) < 1e-6) == (keys[a] == keys[b])
