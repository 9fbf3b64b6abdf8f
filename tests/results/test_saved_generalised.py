"""Generalised fits in files whose families have several parameters."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pandas.testing import assert_frame_equal, assert_series_equal

from fastlmm_core import glmer, load, load_dataset

MODELS = {
    "inflated": ("TICKS ~ YEAR + (1 | BROOD)", {"family": "poisson", "zero": "~ 1"}),
    "inflated, a covariate": ("TICKS ~ YEAR + (1 | BROOD)", {"family": "negativebinomial", "zero": "~ h + YEAR"}),
    "hurdle, two factors": ("TICKS ~ h + (1 | BROOD) + (1 | LOCATION)", {"family": "truncated_nbinom2", "zero": "~ h"}),
    "ordinal": ("some ~ h + (1 | BROOD)", {"family": "ordinal", "link": "probit"}),
}


@pytest.fixture(scope="module")
def ticks():
    table = load_dataset("grouseticks")
    height = (table["HEIGHT"] - table["HEIGHT"].mean()) / 50.0
    return table.assign(h=height, some=np.digitize(table["TICKS"], [1, 4, 12]))


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_fit_is_the_fit(name, ticks, tmp_path):
    formula, options = MODELS[name]
    fit = glmer(formula, ticks, **options)
    fit.save(tmp_path / "fit", data=True)
    found = load(tmp_path / "fit")
    assert found.criterion == fit.criterion
    assert found.core.family.names == fit.core.family.names
    assert_series_equal(found.params, fit.params)
    assert_frame_equal(found.ranef(), fit.ranef(), rtol=1e-6)
    assert_allclose(found.bse, fit.bse, rtol=1e-5)
    assert_frame_equal(found.family_params, fit.family_params, rtol=1e-4)
    rows = ticks.iloc[[3, 200, 7]]
    kinds = ["link", "response"] + (["zprob"] if "zero" in options else [])
    for kind in kinds:
        ours, theirs = fit.predict(rows, kind=kind), found.predict(rows, kind=kind)
        assert_allclose(np.asarray(theirs, float), np.asarray(ours, float), rtol=1e-6)
    assert_allclose(found.refit(found.design.y).criterion, fit.criterion, atol=1e-6)
    assert str(found.summary()) == str(fit.summary())
