from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import oracle
import problems
from fastlmm_core import Control, DataError, LmerResult, ModelError, NumericalError, RankWarning, lmer, load_dataset


@pytest.fixture(scope="module")
def sleepstudy() -> pd.DataFrame:
    return load_dataset("sleepstudy").assign(w=np.tile([0.5, 1.0, 2.0], 60), off=np.linspace(0.0, 9.0, 180))


@pytest.fixture(scope="module")
def slopes(sleepstudy: pd.DataFrame) -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", sleepstudy)


MODELS = {
    "slopes": ("Reaction ~ Days + (Days | Subject)", {}),
    "weighted": ("Reaction ~ Days + (Days | Subject)", {"weights": "w", "offset": "off"}),
    "ml": ("Reaction ~ Days + (1 | Subject)", {"reml": False}),
    "crossed": ("Reaction ~ Days + (1 | Subject) + (0 + Days | Subject) + (1 | day)", {"weights": "w"}),
    "sparse": ("Reaction ~ Days + (Days | Subject) + (1 | day)", {"control": Control(engine="sparse")}),
    "singular": ("Reaction ~ w + (1 | day) + (1 | odd)", {}),
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, sleepstudy: pd.DataFrame) -> LmerResult:
    formula, options = MODELS[request.param]
    odd = np.random.default_rng(1).integers(0, 5, 180).astype(str)
    return lmer(formula, sleepstudy.assign(day=sleepstudy["Days"].astype(str), odd=odd), **options)


def without(fit: LmerResult, rows: np.ndarray) -> oracle.Evaluation:
    """The oracle on the other rows, at the fit's theta."""
    keep = np.setdiff1d(np.arange(len(fit.design.y)), rows)
    d = fit.design
    terms = tuple(problems.ProblemTerm(t.codes, t.z) for t in d.random)
    problem = problems.Problem(d.y, d.X, terms, d.weights, d.offset).rows(keep)
    return oracle.evaluate(problem, fit.core.theta, reml=fit.reml, dtype=float)


def check_case(fit: LmerResult, influence: object, case: object, rows: np.ndarray) -> None:
    ev = without(fit, rows)
    cov = oracle.cov_beta(ev).astype(float)
    np.testing.assert_allclose(influence.params.loc[case], oracle.beta(ev).astype(float), rtol=1e-8)
    np.testing.assert_allclose(influence.std_errors.loc[case], np.sqrt(np.diag(cov)), rtol=1e-8)
    np.testing.assert_allclose(influence.sigma.loc[case], float(oracle.sigma(ev)), rtol=1e-8)
    ratio = np.linalg.det(cov) / np.linalg.det(fit.cov_params())
    np.testing.assert_allclose(influence.cov_ratio.loc[case], ratio, rtol=1e-7)
    change = oracle.beta(ev).astype(float) - fit.params
    distance = change @ np.linalg.solve(fit.cov_params(), change) / len(change)
    np.testing.assert_allclose(influence.cooks_distance.loc[case], distance, rtol=1e-6)
    assert influence.n_rows.loc[case] == len(rows)


def test_observations_at_fixed_theta(model: LmerResult) -> None:
    influence = model.influence()
    assert influence.method == "fixed"
    for i in (0, 59, 101):
        check_case(model, influence, i, np.array([i]))
    np.testing.assert_array_equal(influence.theta, np.tile(model.core.theta, (180, 1)))


def test_groups_at_fixed_theta(model: LmerResult) -> None:
    for term in model.design.random:
        influence = model.influence(term.group)
        for code in (0, len(term.levels) - 1):
            check_case(model, influence, term.levels[code], np.flatnonzero(term.codes == code))


def test_groups_by_cross_products_are_the_same_number(model: LmerResult, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlmm_core.inference import influence as module

    group = model.design.random[0].group
    by_formula = model.influence(group).to_frame()
    monkeypatch.setattr(module, "MANY_ROWS", 0)
    pd.testing.assert_frame_equal(model.influence(group).to_frame(), by_formula, rtol=1e-7, atol=1e-9)
    monkeypatch.setattr(module, "MANY_ROWS", 128)
    monkeypatch.setattr(module, "SOLVES", 7)
    pd.testing.assert_frame_equal(model.influence(group).to_frame(), by_formula, rtol=1e-9)


def test_labels_of_ones_own(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    labels = np.where(sleepstudy["Days"] < 3, "early", "late")
    influence = slopes.influence(labels)
    check_case(slopes, influence, "early", np.flatnonzero(labels == "early"))
    np.testing.assert_allclose(slopes.influence(sleepstudy["Subject"]).params, slopes.influence("Subject").params)


def test_refit_as_brute_force(model: LmerResult, sleepstudy: pd.DataFrame) -> None:
    term = model.design.random[0]
    influence = model.influence(term.group, method="refit")
    keep = term.codes != 3
    data = {name: sleepstudy[name].to_numpy()[keep] for name in sleepstudy}
    data["day"] = data["Days"].astype(str)
    data["odd"] = np.random.default_rng(1).integers(0, 5, 180).astype(str)[keep]
    options = model.options
    names = {"weights": "w" if model.design.weights is not None else None}
    names["offset"] = "off" if model.design.offset is not None else None
    again = lmer(model.formula, data, reml=options.reml, control=options.control, **names)
    np.testing.assert_allclose(influence.params.loc[term.levels[3]], again.params, rtol=1e-4)
    assert influence.sigma.loc[term.levels[3]] == pytest.approx(again.sigma, rel=1e-4)
    np.testing.assert_allclose(influence.std_errors.loc[term.levels[3]], again.bse, rtol=1e-3)


def test_refit_as_lme4(slopes: LmerResult) -> None:
    """influence(m, "Subject") of lme4 1.1-31."""
    influence = slopes.influence("Subject", method="refit")
    wanted = [[0.0587248822986, -0.4489274386944], [0.4108749215917, 0.3098968979973]]
    wanted.append([-0.1282565747742, -0.0298222608189])
    np.testing.assert_allclose(influence.dfbetas.iloc[[0, 1, 17]], wanted, rtol=1e-3, atol=1e-4)
    m, p = 18, 2  # lme4 multiplies by (m - p) / m
    cook = influence.cooks_distance.iloc[[0, 1, 17]] * (m - p) / m
    np.testing.assert_allclose(cook, [0.08214840506941, 0.13202079795776, 0.00921615992657], rtol=1e-3)


def test_one_step_lies_by_the_refit(slopes: LmerResult) -> None:
    fixed, step, refit = (slopes.influence("Subject", method=m) for m in ("fixed", "one-step", "refit"))
    away = [float(np.abs((i.dfbetas - refit.dfbetas).to_numpy()).max()) for i in (fixed, step)]
    assert away[1] < 0.05 * away[0]
    assert float(np.abs(step.theta - refit.theta).to_numpy().max()) < 0.05


def test_deletion_that_leaves_a_coefficient_undetermined(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.assign(one=(sleepstudy["Subject"] == "308") * 1.0, spot=np.eye(180)[7])
    fit = lmer("Reaction ~ Days + one + (1 | Subject)", data)
    influence = fit.influence("Subject")
    assert np.isnan(influence.params.loc["308", "one"])
    assert np.isfinite(influence.params.loc["308", ["Intercept", "Days"]]).all()
    assert np.isfinite(influence.params.drop(index="308")).all(axis=None)
    fit = lmer("Reaction ~ Days + spot + (1 | Subject)", data)
    influence = fit.influence()
    assert influence.params.loc[7].isna().all()
    assert np.isfinite(influence.params.drop(index=7)).all(axis=None)


def test_dropped_columns(sleepstudy: pd.DataFrame, slopes: LmerResult) -> None:
    with pytest.warns(RankWarning):
        fit = lmer("Reaction ~ twice + Days + (Days | Subject)", sleepstudy.assign(twice=2 * sleepstudy.Days))
    for method in ("fixed", "one-step", "refit"):
        influence = fit.influence("Subject", method=method)
        wanted = slopes.influence("Subject", method=method)
        np.testing.assert_allclose(influence.params["Intercept"], wanted.params["Intercept"], rtol=1e-4)
        np.testing.assert_allclose(influence.cooks_distance, wanted.cooks_distance, rtol=1e-2, atol=1e-5)


def test_frame_and_text(slopes: LmerResult) -> None:
    influence = slopes.influence("Subject")
    frame = influence.to_frame()
    assert list(frame.columns) == [
        "n_rows",
        "cooks_distance",
        "cov_ratio",
        "sigma",
        "dfbetas_Intercept",
        "dfbetas_Days",
    ]
    assert frame.index.name == "Subject"
    assert "18 cases by Subject, method 'fixed'" in repr(influence)


def test_errors(slopes: LmerResult) -> None:
    with pytest.raises(ModelError, match="no method 'guess'"):
        slopes.influence(method="guess")
    with pytest.raises(DataError, match="'Patient' is not a grouping factor"):
        slopes.influence("Patient")
    with pytest.raises(DataError, match="shape"):
        slopes.influence(np.zeros(3))
    with pytest.raises(DataError, match="1 missing label"):
        slopes.influence(np.array([None] + ["a"] * 179, dtype=object))


def test_near_perfect_fits_are_refused_by_the_methods_that_keep_theta() -> None:
    rng = np.random.default_rng(4)
    codes = np.repeat(np.arange(12), 10)
    data = pd.DataFrame({"g": codes, "x": rng.normal(size=120)})
    data["y"] = codes + data["x"] + 1e-7 * rng.normal(size=120)
    fit = lmer("y ~ x + (1 | g)", data)
    for method in ("fixed", "one-step"):
        with pytest.raises(NumericalError, match="residuals are so small"):
            fit.influence("g", method=method)
    with pytest.raises(NumericalError, match="residuals are so small"):
        fit.coef_table(cov_type="CR2")
    assert fit.influence("g", method="refit").std_errors.notna().all(axis=None)
