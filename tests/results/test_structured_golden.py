"""Models with residual structures against nlme's figures for Orthodont."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastlmm_core import lmer, load_dataset

FITS = json.loads((Path(__file__).parents[1] / "golden" / "orthodont_nlme.json").read_text(encoding="utf-8"))["fits"]


@pytest.mark.parametrize("golden", FITS, ids=[fit["id"] for fit in FITS])
def test_nlme(golden):
    fit = lmer(golden["formula"], load_dataset("Orthodont"), reml=golden["reml"], **golden["options"])
    assert fit.converged
    assert fit.criterion == pytest.approx(golden["criterion"], abs=1e-7)
    assert fit.df_model == golden["df"]
    np.testing.assert_allclose((fit.params - golden["beta"]) / golden["se"], 0.0, atol=1e-4)
    np.testing.assert_allclose(fit.bse, golden["se"], rtol=1e-4)
