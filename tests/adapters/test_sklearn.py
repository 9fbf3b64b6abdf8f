"""The regressor against `lmer`, and against what scikit-learn asks of every estimator."""

import pickle

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from fastlmm_core import lmer, load_dataset
from fastlmm_core.adapters.sklearn import MixedModelRegressor
from fastlmm_core.errors import DataError, ModelError


@pytest.fixture(scope="module")
def sleep():
    data = load_dataset("sleepstudy")
    return data[["Days", "Subject"]], data["Reaction"], lmer("Reaction ~ Days + (Days | Subject)", data)


def test_it_is_an_estimator():
    for answer in check_estimator(MixedModelRegressor(), on_fail=None, on_skip=None):
        assert answer["status"] != "failed", (answer["check_name"], answer["exception"])


@pytest.mark.parametrize("form", ["pandas", "polars", "array", "objects"])
def test_is_lmer_whatever_holds_the_columns(sleep, form):
    X, y, fit = sleep
    model = MixedModelRegressor(groups="Subject", slopes="Days")
    if form == "polars":
        X = pl.from_pandas(X)
    elif form != "pandas":
        X = np.column_stack([X["Days"], X["Subject"].astype(int)]) if form == "array" else X.to_numpy(dtype=object)
        model = MixedModelRegressor(groups=-1, slopes=[0])
    model.fit(X, y)
    np.testing.assert_allclose(model.predict(X), fit.fittedvalues, rtol=1e-8)
    np.testing.assert_allclose([model.intercept_, *model.coef_], fit.params, rtol=1e-8)
    np.testing.assert_allclose(model.random_effects_[0], fit.random_effects["Subject"], rtol=1e-6)


def test_crossed_groups_and_weights():
    data = load_dataset("Penicillin")
    data["w"] = np.resize([1.0, 2.0, 3.0], len(data))
    fit = lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", data, weights="w", reml=False)
    X = data[["plate", "sample"]]
    model = MixedModelRegressor(groups=["plate", "sample"], reml=False).fit(X, data["diameter"], data["w"])
    np.testing.assert_allclose(model.predict(X), fit.fittedvalues, rtol=1e-8)
    assert model.coef_.shape == (0,)
    some = data["w"].where(data["plate"] != "a", 0.0)
    without = MixedModelRegressor(groups=["plate", "sample"]).fit(X, data["diameter"], some)
    kept = MixedModelRegressor(groups=["plate", "sample"]).fit(
        X[some > 0], data["diameter"][some > 0], data["w"][some > 0]
    )
    np.testing.assert_allclose(without.predict(X), kept.predict(X), rtol=1e-12)


def test_slopes_of_several_groups():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"a": rng.integers(0, 12, 400), "b": rng.integers(0, 7, 400), "x": rng.normal(size=400)})
    data["y"] = rng.normal(size=12)[data.a] * data.x + rng.normal(size=7)[data.b] + rng.normal(size=400)
    fit = lmer("y ~ x + (x | a) + (1 | b)", data)
    model = MixedModelRegressor(groups=["b", "a"], slopes={"a": ["x"]}).fit(data[["b", "x", "a"]], data["y"])
    np.testing.assert_allclose(model.predict(data[["b", "x", "a"]]), fit.fittedvalues, atol=1e-6)


def test_new_levels_have_the_fixed_effects(sleep):
    X, y, fit = sleep
    model = MixedModelRegressor("Subject", slopes="Days").fit(X, y)
    new = pd.DataFrame({"Days": [1.0, 2.0], "Subject": ["nobody", "308"]})
    assert model.predict(new)[0] == pytest.approx(float(fit.params @ [1.0, 1.0]))
    assert model.predict(new)[1] == pytest.approx(fit.predict(new[1:]).iloc[0])


def test_without_groups_it_is_least_squares():
    rng = np.random.default_rng(5)
    X, y, w = rng.normal(size=(60, 3)), rng.normal(size=60), rng.integers(0, 3, 60).astype(float)
    model, known = MixedModelRegressor().fit(X, y, w), LinearRegression().fit(X, y, w)
    np.testing.assert_allclose(model.predict(X), known.predict(X), rtol=1e-9)
    assert model.core_ is None


def test_clone_pickle_search_and_pipeline(sleep):
    X, y, _ = sleep
    model = MixedModelRegressor("Subject", slopes=["Days"])
    assert clone(model).get_params() == model.get_params()
    again = pickle.loads(pickle.dumps(model.fit(X, y)))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    with joblib.parallel_backend("threading"):
        # subjects known in each fold: for new ones the lines of both models are the same
        folds = KFold(3, shuffle=True, random_state=0)
        search = GridSearchCV(model, {"slopes": [None, ["Days"]]}, cv=folds, n_jobs=2).fit(X, y)
    assert search.best_params_ == {"slopes": ["Days"]}
    assert cross_val_score(model, X, y, groups=X["Subject"], cv=GroupKFold(3)).shape == (3,)
    np.testing.assert_array_equal(make_pipeline(FunctionTransformer(), model).fit(X, y).predict(X), model.predict(X))


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"groups": "subject"}, DataError, "no column 'subject'; its columns are Days, Subject"),
        ({"groups": 2}, DataError, "X has 2 columns, but column 2"),
        ({"slopes": "Days"}, ModelError, "name a column in groups"),
        ({"groups": "Subject", "slopes": {"Days": [0]}}, ModelError, "not among the groups"),
        ({"groups": "Subject", "slopes": ["Subject"]}, ModelError, "it is a grouping factor"),
    ],
)
def test_what_cannot_be_asked(sleep, arguments, kind, words):
    with pytest.raises(kind, match=words):
        MixedModelRegressor(**arguments).fit(*sleep[:2])


def test_missing_and_single_levels(sleep):
    X, y, _ = sleep
    with pytest.raises(DataError, match="has 180 missing values"):
        MixedModelRegressor("g").fit(X.assign(g=np.nan), y)
    with pytest.raises(ModelError, match="a single level"):
        MixedModelRegressor("g").fit(X[["Days"]].assign(g="one"), y)
    with pytest.raises(ValueError, match="NaN"):
        MixedModelRegressor("Subject").fit(X.assign(Days=np.nan), y)
