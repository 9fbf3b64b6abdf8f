from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import oracle
import prediction_oracle
import problems
from fastlmm_core import Control, DataError, LmerResult, MemoryLimitError, lmer, load_dataset
from fastlmm_core.core.figures import conditional_variances


@pytest.fixture(scope="module", params=["dense", "sparse"])
def crossed(request: pytest.FixtureRequest) -> LmerResult:
    data = load_dataset("sleepstudy")
    data["day"] = data["Days"].astype(str)
    formula = "Reaction ~ Days + (Days || Subject) + (1 | day)"
    return lmer(formula, data, control=Control(engine=request.param))


def evaluation(fit: LmerResult) -> oracle.Evaluation:
    d = fit.design
    terms = tuple(problems.ProblemTerm(t.codes, t.z) for t in d.random)
    problem = problems.Problem(d.y, d.X, terms, d.weights, d.offset)
    return oracle.evaluate(problem, fit.core.theta, reml=fit.reml, dtype=float)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize(
    "name", ["slope", "mixed_weights", "crossed_three", "unobserved_levels", "nested", "shared_codes"]
)
def test_conditional_variances_at_any_theta(name: str, engine: str) -> None:
    problem = problems.build(name)
    objective = problem.objective(True, engine)
    for label, theta in problems.thetas(problem).items():
        if label == "large":
            continue
        ev = oracle.evaluate(problem, theta)
        sigma = float(oracle.sigma(ev))
        for got, wanted in zip(conditional_variances(objective, theta, sigma), oracle.cond_var(ev), strict=True):
            wanted = wanted.astype(float)
            assert np.abs(got - wanted).max() < 1e-8 * max(1.0, np.abs(wanted).max()), label


def test_blocks_of_levels(crossed: LmerResult) -> None:
    ev = evaluation(crossed)
    joint = prediction_oracle.joint_covariance(ev)
    at = len(ev.kept)
    for term, wanted in zip(crossed.design.random, oracle.cond_var(ev), strict=True):
        block = crossed.ranef_cov()[term.grp]
        np.testing.assert_allclose(block.to_numpy().reshape(wanted.shape), wanted.astype(float), rtol=1e-8)
        whole = crossed.ranef_cov(beta_known=False)[term.grp].to_numpy().reshape(wanted.shape)
        size = wanted.shape[0] * wanted.shape[1]
        own = joint[at : at + size, at : at + size]
        np.testing.assert_allclose(whole.ravel(), np.diag(own), rtol=1e-8)  # every term here has one column
        at += size
        assert list(block.index.names) == [term.group, "effect"]


def test_blocks_agree_with_ranef() -> None:
    fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    block = fit.ranef_cov()["Subject"].loc["308"]
    table = fit.ranef().query("grp == '308'").set_index("term")["condsd"]
    np.testing.assert_allclose(np.sqrt(np.diag(block)), table[["Intercept", "Days"]])


def test_joint_covariance_of_everything(crossed: LmerResult) -> None:
    wanted = prediction_oracle.joint_covariance(evaluation(crossed))
    full = crossed.cov_params(full=True)
    np.testing.assert_allclose(full, wanted, atol=1e-8 * np.abs(wanted).max())
    np.testing.assert_allclose(full.iloc[:2, :2], crossed.cov_params(), rtol=1e-9)


def test_joint_covariance_of_chosen_levels(crossed: LmerResult) -> None:
    full = crossed.cov_params(full=True)
    some = crossed.cov_params(levels={"Subject": ["372", "308"], "day": ["3"]})
    np.testing.assert_allclose(some, full.loc[some.index, some.index], atol=1e-8)
    assert list(some.loc["Subject"].index) == [("372", "Intercept"), ("308", "Intercept")]
    assert list(some.loc["Subject.1"].index) == [("372", "Days"), ("308", "Days")]
    first = crossed.cov_params(levels=["308"])
    assert set(first.index.get_level_values("group")) == {"fixed", "Subject", "Subject.1"}


def test_errors(crossed: LmerResult) -> None:
    with pytest.raises(DataError, match="'Patient' is not a grouping factor"):
        crossed.cov_params(levels={"Patient": ["308"]})
    with pytest.raises(DataError, match="Subject has no level '1'"):
        crossed.cov_params(levels=["308", "1"])
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"), control=Control(memory_limit=100))
    with pytest.raises(MemoryLimitError, match="7 effects"):
        fit.cov_params(full=True)


@pytest.mark.filterwarnings("ignore::fastlmm_core.errors.IdentifiabilityWarning")
def test_joint_covariance_of_what_is_not_identified_is_nan() -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(list("abcdef"), 8), "x": rng.normal(size=48), "y": rng.normal(size=48)})
    fit = lmer("y ~ g + x + (1 | g)", data)
    joint = fit.cov_params(full=True)
    known = joint.loc[("fixed", "", "x"), ("fixed", "", "x")]
    np.testing.assert_allclose(known, fit.bse["x"] ** 2, rtol=1e-8)
    assert joint.notna().to_numpy().sum() == 1  # the factor's coefficients and its effects trade with each other
    assert fit.cov_params().notna().to_numpy().sum() == 1
