"""Fits in files: what a loaded one answers, and which files are refused."""

import json
import pickle
import zipfile
from datetime import date

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal, assert_series_equal

from fastlmm_core import bootstrap_test, glmer, lmer, load, load_dataset, power
from fastlmm_core.core.saved import FORMAT
from fastlmm_core.errors import DataError, FormulaError, NotSavedError, SavedFormatError, SpellingError

MODELS = {
    "slopes": ("sleepstudy", "Reaction ~ Days + (Days | Subject)"),
    "transforms": ("sleepstudy", "log(Reaction) ~ poly(Days, 2) + np.sqrt(Days) + (1 + scale(Days) || Subject)"),
    "spline": ("sleepstudy", "Reaction ~ ns(Days, df=3) + (1 | Subject)"),
    "interaction": ("cake", "angle ~ C(recipe, 'sum') * temperature + (1 | recipe:replicate)"),
    "nested": ("Pastes", "strength ~ 1 + (1 | batch/cask)"),
    "crossed": ("Penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"),
}


@pytest.fixture(params=MODELS)
def case(request):
    name, formula = MODELS[request.param]
    data = load_dataset(name)
    return data, lmer(formula, data, reml=request.param != "nested")


def test_a_loaded_fit_answers(case, tmp_path):
    data, fit = case
    fit.save(tmp_path / "fit")
    found = load(tmp_path / "fit")
    for name in ("params", "bse", "tvalues", "pvalues", "theta"):
        assert_series_equal(getattr(found, name), getattr(fit, name))
    for name in ("sigma", "llf", "aic", "bic", "nobs", "df_model", "df_resid", "n_groups", "converged", "formula"):
        assert getattr(found, name) == getattr(fit, name)
    assert_frame_equal(found.coef_table(), fit.coef_table())
    np.testing.assert_array_equal(found.coef_arrays(), fit.coef_arrays())
    assert_frame_equal(found.cov_params(), fit.cov_params())
    assert_frame_equal(found.ranef(), fit.ranef())
    assert_frame_equal(found.fit_log, fit.fit_log)
    assert str(found.var_corr()) == str(fit.var_corr())
    new = data.sample(20, random_state=1)
    for re_form in ("all", "none"):
        assert_series_equal(found.predict(new, re_form=re_form), fit.predict(new, re_form=re_form))


def test_with_its_data_it_is_a_result_like_any_other(case, tmp_path):
    data, fit = case
    fit.save(tmp_path / "fit", data=True)
    found = load(tmp_path / "fit")
    assert type(found) is type(fit)
    assert_series_equal(found.theta, fit.theta, rtol=0.0)
    np.testing.assert_allclose(found.criterion, fit.criterion, rtol=1e-14)
    assert_series_equal(found.fittedvalues, fit.fittedvalues, rtol=1e-12)
    assert_frame_equal(found.conf_int(0.1), fit.conf_int(0.1), rtol=1e-8)
    assert_series_equal(found.predict(data[:3]), fit.predict(data[:3]), rtol=1e-12)
    assert_frame_equal(found.fit_log, fit.fit_log)
    assert str(found.summary()) == str(fit.summary())
    assert found.convergence_report().message == fit.convergence_report().message


def test_a_singular_fit_stays_where_it_was(tmp_path):
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(np.arange(40), 6), "x": rng.normal(size=240), "h": rng.integers(0, 8, 240)})
    data["y"] = data["x"] + rng.normal(size=40)[data["g"]] + rng.normal(size=240)
    fit = lmer("y ~ x + (x | g) + (1 | h)", data, offset=np.linspace(0.0, 1.0, 240))
    assert fit.is_singular
    fit.save(tmp_path / "fit", data=True)
    found = load(tmp_path / "fit")
    assert_series_equal(found.params, fit.params, rtol=1e-12)
    assert_series_equal(found.simulate(seed=1).iloc[:, 0], fit.simulate(seed=1).iloc[:, 0], rtol=1e-12)
    assert_series_equal(
        found.refit(fit.simulate(seed=2).iloc[:, 0]).params, fit.refit(fit.simulate(seed=2).iloc[:, 0]).params
    )


def test_weights_labels_and_levels_of_other_types(tmp_path):
    data = load_dataset("sleepstudy")
    data.index = pd.date_range("2020-01-01", periods=180, tz="UTC")
    data["day"] = [date(2020, 1, 1 + int(s) % 18) for s in data["Subject"].cat.codes]
    data["number"] = data["Subject"].cat.codes.to_numpy() % 5
    weights = pd.Series(np.linspace(1.0, 2.0, 180), index=data.index)
    fit = lmer("Reaction ~ factor(number) + (1 | day)", data, weights=weights)
    fit.save(tmp_path / "fit", data=True)
    found = load(tmp_path / "fit")
    assert_series_equal(found.fittedvalues, fit.fittedvalues, rtol=1e-6, check_freq=False)
    assert_series_equal(found.predict(data[:9]), fit.predict(data[:9]), rtol=1e-6, check_freq=False)


def test_a_small_file_of_a_large_fit(tmp_path):
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"g": rng.integers(0, 50, 200_000), "x": rng.normal(size=200_000)})
    data["y"] = rng.normal(size=50)[data["g"]] + rng.normal(size=200_000)
    lmer("y ~ x + (1 | g)", data).save(tmp_path / "fit")
    assert (tmp_path / "fit").stat().st_size < 20_000


def test_dropped_columns_are_not_estimable_after_loading_either(tmp_path):
    data = load_dataset("sleepstudy").assign(twice=lambda d: 2.0 * d["Days"])
    with pytest.warns(Warning, match="twice"):
        fit = lmer("Reaction ~ Days + twice + (1 | Subject)", data)
    fit.save(tmp_path / "fit")
    new = data[:2].assign(twice=[0.0, 7.0])
    assert_series_equal(load(tmp_path / "fit").predict(new), fit.predict(new))


def test_what_needs_the_rows_says_so(tmp_path):
    fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    fit.save(tmp_path / "fit")
    found = load(tmp_path / "fit")
    for ask in (
        lambda: found.profile(),
        lambda: found.predict(),
        lambda: found.resid,
        lambda: found.coef_table("kenward-roger"),
    ):
        with pytest.raises(NotSavedError, match="save the fit with data=True"):
            ask()
    with pytest.raises(AttributeError, match="no attribute"):
        _ = found.nonsense
    assert not hasattr(found, "profile")
    assert "SavedResult: Reaction" in repr(found)
    again = pickle.loads(pickle.dumps(found))
    again.save(tmp_path / "again")
    assert_frame_equal(load(tmp_path / "again").coef_table(), fit.coef_table())


def test_a_function_of_the_users_own_is_not_kept(tmp_path):
    def double(x):
        return 2.0 * x

    data = load_dataset("sleepstudy")
    lmer("Reaction ~ double(Days) + (1 | Subject)", data).save(tmp_path / "fit")
    with pytest.raises(FormulaError, match="'double', which the formula uses, could not be stored"):
        load(tmp_path / "fit").predict(data)


STRUCTURES = {
    "visits": ("distance ~ age * Sex", {"residual": "us(age | Subject)"}),
    "groups": ("distance ~ age * Sex", {"residual": "ar1h(age | Sex / Subject)"}),
    "places": ("distance ~ age", {"residual": "exp(age | Subject)", "dispersion": "~ Sex"}),
    "beside": ("distance ~ age * Sex + (age | Subject)", {"dispersion": "~ Sex"}),
    "effects": ("distance ~ Sex + ar1(0 + C(age) | Subject)", {}),
    "crossed": ("distance ~ age + (1 | age)", {"residual": "ar1(age | Subject)"}),
    "related": ("distance ~ age + (1 | Subject)", {"relmat": "Subject"}),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structured_fit_without_its_rows(name, tmp_path):
    formula, options = STRUCTURES[name]
    data = load_dataset("Orthodont")
    if "relmat" in options:
        children = sorted(set(data["Subject"]))
        near = 0.5 ** np.abs(np.subtract.outer(range(len(children)), range(len(children))))
        options = {"relmat": {"Subject": pd.DataFrame(near, index=children, columns=children)}}
    fit = lmer(formula, data, **options)
    fit.save(tmp_path / "fit")
    assert (tmp_path / "fit").stat().st_size < 20_000
    found = load(tmp_path / "fit")
    for figure in ("params", "bse", "theta", "pvalues"):
        assert_series_equal(getattr(found, figure), getattr(fit, figure))
    for figure in ("sigma", "llf", "aic", "df_model", "n_groups", "nobs"):
        assert getattr(found, figure) == getattr(fit, figure)
    assert_frame_equal(found.coef_table(), fit.coef_table())
    assert_frame_equal(
        found.t_test("age = 0" if "age" in fit.params else "Intercept = 0"),
        fit.t_test("age = 0" if "age" in fit.params else "Intercept = 0"),
    )
    assert_frame_equal(found.covariance_parameters(), fit.covariance_parameters())
    assert_frame_equal(found.ranef(), fit.ranef())
    assert_frame_equal(found.fit_log, fit.fit_log)
    assert str(found.summary()) == str(fit.summary())
    if "residual" in options:
        assert_frame_equal(found.residual_cov(), fit.residual_cov())
    new = data.iloc[[3, 50, 80]]
    assert_series_equal(found.predict(new), fit.predict(new))
    assert found.to_dict() == fit.to_dict()
    for ask in (
        lambda: found.predict(new, residual="conditional"),
        lambda: found.predict(new, interval="prediction"),
        lambda: found.profile(),
        lambda: found.resid,
        lambda: found.simulate(),
        lambda: found.coef_table("kenward-roger"),
        lambda: found.covariance_parameters(0.9),
    ):
        with pytest.raises(NotSavedError, match="save the fit with data=True"):
            ask()
    found.save(tmp_path / "again")
    assert str(load(tmp_path / "again").summary()) == str(fit.summary())


def test_figures_and_tests_of_a_loaded_fit_are_the_fits(case, tmp_path):
    _, fit = case
    fit.save(tmp_path / "fit")
    found = load(tmp_path / "fit")
    assert str(found.summary()) == str(fit.summary())
    assert str(found.summary(ddf="residual")) == str(fit.summary(ddf="residual"))
    every = np.eye(len(fit.params))
    for ddf in ("satterthwaite", "normal"):
        assert_frame_equal(found.t_test(every, ddf=ddf), fit.t_test(every, ddf=ddf))
        assert_frame_equal(found.conf_int(level=0.8, ddf=ddf), fit.conf_int(level=0.8, ddf=ddf))
    assert str(found.f_test(every)) == str(fit.f_test(every))
    assert found.to_dict(ranef=True) == fit.to_dict(ranef=True)
    assert found.aicc == fit.aicc
    with pytest.raises(NotSavedError, match=r"conf_int\(method='profile'\): .* save the fit with data=True"):
        found.conf_int("profile")


def rewritten(path, change):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    text = json.loads(members["fit.json"])
    change(text)
    members["fit.json"] = json.dumps(text).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="Is a directory"):
        load(tmp_path)
    with pytest.raises(DataError, match="No such file or directory"):
        lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")).save(tmp_path / "nowhere" / "fit")
    path = tmp_path / "fit"
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    fit.save(path)
    rewritten(path, lambda text: text.update({"saved format": FORMAT + 1}))
    with pytest.raises(SavedFormatError, match=rf"saved in format {FORMAT + 1}, but this version .* {FORMAT}: load it"):
        load(path)
    fit.save(path)
    rewritten(path, lambda text: text["contents"]["dict"].append(["more", {"class": "Popen", "is": {}}]))
    with pytest.raises(SavedFormatError, match="a class that this version does not know: Popen"):
        load(path)
    path.write_bytes(pickle.dumps(fit))
    with pytest.raises(SavedFormatError, match="no file that fastlmm_core saved"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(SavedFormatError, match="no file that fastlmm_core saved"):
        load(path)
    with pytest.raises(DataError, match="there is no such file"):
        load(tmp_path / "none")


def test_what_a_formula_took_of_whole_columns_is_saved(tmp_path):
    sleep = load_dataset("sleepstudy")
    sleep["when"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(sleep["Days"], unit="D")
    sleep["passed"] = sleep["when"] - sleep["when"].min()
    sleep["part"] = np.resize(["a", "b", "c"], len(sleep))
    sleep["other"] = np.resize(["u", "v", "w", "u"], len(sleep))
    terms = "I(passed / passed.max()) + I(when > min(when)) + relevel(part, 'b') + C(other, base=3)"
    fit = lmer(f"Reaction ~ {terms} + (1 | Subject)", sleep)
    new = sleep.iloc[[4, 13]]
    for data in (False, True):
        fit.save(tmp_path / "fit", data=data)
        found = load(tmp_path / "fit").predict(new)
        np.testing.assert_allclose(found, fit.predict(sleep).iloc[[4, 13]], rtol=1e-9)


def test_arguments_that_need_the_rows_are_refused_by_name(tmp_path):
    """They were bare type errors; at their defaults they ask for nothing."""
    lmer("Reaction ~ Days + (1 | Subject)", load_dataset("sleepstudy")).save(tmp_path / "linear")
    glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", load_dataset("cbpp")).save(tmp_path / "glm")
    linear, generalised = load(tmp_path / "linear"), load(tmp_path / "glm")
    assert linear.coef_table(cov_type="model", cluster=None).equals(linear.coef_table())
    assert linear.conf_int(seed=None, n=1000).equals(linear.conf_int())
    for ask in (
        lambda: linear.coef_table(cov_type="CR2"),
        lambda: linear.t_test("Days", cluster=np.arange(180)),
        lambda: linear.predict({"Days": [1], "Subject": [308]}, interval="confidence"),
        lambda: generalised.ranef("zero"),
        lambda: generalised.conf_int(),
        lambda: power(linear, "Days", n=2, params={"Days": 1.0}),
        lambda: power(generalised, "period", n=2, params={"period[T.2]": 1.0}),
        lambda: bootstrap_test(linear, linear, n=2),
    ):
        with pytest.raises((NotSavedError, SpellingError), match=r"without its data|by position"):
            ask()
    with pytest.raises(SpellingError, match="no argument foo="):
        linear.coef_table(foo=1)
    with pytest.raises(SpellingError, match="it is level="):
        generalised.coef_table(alpha=0.1)
    assert "Fixed effects" in linear._repr_html_()
