from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import IdentifiabilityWarning, LmerResult, ModelError, lmer, load_dataset
from fastlmm_core.inference.parameters import choose, parameter_values, parameters
from fastlmm_core.inference.profile_paths import column_order


@pytest.fixture(scope="module")
def fit() -> LmerResult:
    rng = np.random.default_rng(0)
    data = load_dataset("sleepstudy").assign(x=rng.normal(size=180))
    return lmer("Reaction ~ Days + (Days + x | Subject)", data)


def test_names_and_values_are_var_corrs(fit: LmerResult) -> None:
    every = parameters(fit.design)
    assert [p.name for p in every] == [
        "sd_Intercept|Subject",
        "cor_Days.Intercept|Subject",
        "cor_x.Intercept|Subject",
        "sd_Days|Subject",
        "cor_x.Days|Subject",
        "sd_x|Subject",
        "sigma",
        "Intercept",
        "Days",
    ]
    core = fit.core
    twice = [np.stack([v, v]) for v in (core.theta, np.array(core.sigma), core.beta)]
    values = parameter_values(fit.design, *twice)
    assert values.shape == (2, 9)
    shown = dict(zip([p.name for p in every], values[1], strict=True))
    for row in fit.var_corr().to_frame().itertuples():
        if row.grp == "Residual":
            name = "sigma"
        else:
            name = f"sd_{row.var1}|{row.grp}" if row.var2 is None else f"cor_{row.var2}.{row.var1}|{row.grp}"
        np.testing.assert_allclose(shown[name], row.sdcor, rtol=1e-12)
    np.testing.assert_allclose(values[0, 7:], fit.params)


def test_terms_on_one_group_keep_its_name_while_it_tells_them_apart() -> None:
    data = load_dataset("sleepstudy")
    apart = lmer("Reaction ~ Days + (Days || Subject)", data)
    assert [p.name for p in parameters(apart.design)][:2] == ["sd_Intercept|Subject", "sd_Days|Subject"]
    with pytest.warns(IdentifiabilityWarning, match=r"cannot tell the variance of \(1 \| Subject\)"):
        shared = lmer("Reaction ~ Days + (1 | Subject) + (Days | Subject)", data)
    names = [p.name for p in parameters(shared.design)]
    assert len(set(names)) == len(names)
    assert "sd_Intercept|Subject.1" in names


def test_choose(fit: LmerResult) -> None:
    every = parameters(fit.design)
    assert choose(every, None) == list(every)
    assert [p.name for p in choose(every, "Days")] == ["Days"]
    assert [p.name for p in choose(every, ["Days", "sigma"])] == ["sigma", "Days"]
    assert [p.name for p in choose(every, "beta_")] == ["Intercept", "Days"]
    assert [p.name for p in choose(every, ["theta_", "Days"])] == [p.name for p in every if p.name != "Intercept"]
    with pytest.raises(ModelError, match=r"no parameter 'days'.*Days"):
        choose(every, "days")
    with pytest.raises(ModelError, match="by name"):
        choose(every, [1])  # type: ignore[list-item]


@pytest.mark.parametrize("l", [1, 2, 3, 4, 5])
def test_column_orders_bring_the_profiled_ones_to_the_front(l: int) -> None:
    for i in range(l):
        order = column_order(l, i)
        assert order[0] == i
        assert sorted(order) == list(range(l))
        for j in range(i + 1, l):
            pair = column_order(l, i, j)
            assert set(pair[:2]) == {i, j}
            assert sorted(pair) == list(range(l))
    if l == 3:
        orders = {tuple(column_order(3, i, j)) for i in range(3) for j in range(i + 1, 3)}
        assert orders == {tuple(column_order(3, i)) for i in range(3)}


def test_names_are_the_columns_of_a_bootstrap(fit: LmerResult) -> None:
    assert isinstance(fit.bootstrap(2, seed=1), pd.DataFrame)
    assert list(fit.bootstrap(2, seed=1).columns) == [p.name for p in parameters(fit.design)]
