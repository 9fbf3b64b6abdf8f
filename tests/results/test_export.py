from __future__ import annotations

import json

import pytest

from fastlmm_core import LmerResult, RankWarning, lmer


def test_holds_plain_values(slopes: LmerResult) -> None:
    out = slopes.to_dict()
    again = json.loads(json.dumps(out, allow_nan=False))
    assert again == out
    assert out["params"] == slopes.params.to_dict()
    assert out["theta"]["Subject.Days"] == slopes.theta["Subject.Days"]
    assert out["var_corr"][-1] == {
        "grp": "Residual",
        "var1": None,
        "var2": None,
        "vcov": slopes.sigma**2,
        "sdcor": slopes.sigma,
    }
    assert out["n_groups"] == {"Subject": 18}
    assert "ranef" not in out


def test_random_effects_on_request(slopes: LmerResult) -> None:
    rows = slopes.to_dict(ranef=True)["ranef"]
    assert len(rows) == 36
    assert rows[0]["grp"] == "308"
    json.dumps(rows, allow_nan=False)


def test_not_a_number_becomes_none(sleepstudy: object) -> None:
    with pytest.warns(RankWarning):
        fit = lmer("Reaction ~ Days + I(2 * Days) + (1 | Subject)", sleepstudy)
    out = fit.to_dict()
    assert None in out["params"].values()
    json.dumps(out, allow_nan=False)
