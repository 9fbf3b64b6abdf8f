from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import oracle
import prediction_oracle
from fastlmm_core import Control, DataError, LmerResult, ModelError, lmer, load_dataset
from fastlmm_core.core import Objective
from fastlmm_core.fitting.predict import included_columns, target_rows
from fastlmm_core.inference.prediction import factors_of, targets, theta_covariance, uncertain_theta
from problems import Problem, ProblemTerm


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    """Unbalanced, weighted, an offset; g is crossed with h and has a slope; some pairs never meet."""
    rng = np.random.default_rng(5)
    n = 90
    g, h = rng.integers(0, 12, n), rng.integers(0, 7, n)
    x, w, off = rng.normal(size=n) + 1, rng.uniform(0.3, 3.0, n), rng.normal(size=n)
    b, c = rng.normal(size=(12, 2)) @ np.array([[1.0, 0.3], [0.0, 0.6]]), rng.normal(size=7)
    y = 2 + 0.5 * x + b[g, 0] + b[g, 1] * x + c[h] + off + rng.normal(size=n) / np.sqrt(w)
    return pd.DataFrame({"y": y, "x": x, "w": w, "off": off, "g": [f"g{v:02}" for v in g], "h": [f"h{v}" for v in h]})


@pytest.fixture(scope="module", params=["dense", "sparse"])
def fit(request: pytest.FixtureRequest, data: pd.DataFrame) -> LmerResult:
    control = Control(engine=request.param)
    return lmer("y ~ x + (x | g) + (1 | h)", data, weights="w", offset="off", control=control)


def problem_of(fit: LmerResult) -> Problem:
    d = fit.design
    terms = tuple(ProblemTerm(t.codes, t.z) for t in d.random)
    return Problem(d.y, d.X, terms, d.weights, d.offset)


@pytest.fixture(scope="module")
def ev(fit: LmerResult) -> oracle.Evaluation:
    return oracle.evaluate(problem_of(fit), fit.core.theta, reml=True, dtype=float)


NEW = pd.DataFrame(
    {
        "x": [0.0, 1.5, -2.0, 0.3, 4.0, 1.0],
        "off": [0.0, 1.0, 0.5, 0.0, 2.0, 0.0],
        "g": ["g00", "g03", "g11", "new", "new", "g05"],
        "h": ["h0", "h6", "other", "h1", "other", "h2"],
    }
)


def known_parts(fit: LmerResult, slope: bool = True, h: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
    by_group = {}
    for term in fit.design.random:
        codes = pd.Index(term.levels).get_indexer(NEW[term.group])
        by_group[term.group] = np.where(codes < 0, -1, codes)
    x = NEW["x"].to_numpy()
    out = []
    for term in fit.design.random:
        if term.group == "g":
            out.append((by_group["g"], np.column_stack([np.ones(6), x * slope])))
        else:
            out.append((by_group["h"] if h else np.full(6, -1), np.ones((6, 1))))
    return out


def quadratic(fit: LmerResult, group: str, z: np.ndarray) -> np.ndarray:
    cov = fit.var_corr()[group].to_numpy()
    return np.einsum("ij,jk,ik->i", z, cov, z)


def test_variance_of_all_random_effects(fit: LmerResult, ev: oracle.Evaluation) -> None:
    X = np.column_stack([np.ones(6), NEW["x"]])
    known = np.diag(prediction_oracle.prediction_covariance(ev, X, known_parts(fit)))
    new_g, new_h = (NEW["g"] == "new").to_numpy(), (NEW["h"] == "other").to_numpy()
    extra = quadratic(fit, "g", X) * new_g + quadratic(fit, "h", np.ones((6, 1))) * new_h
    out = fit.predict(NEW, allow_new_levels=True, interval="confidence")
    np.testing.assert_allclose(out["fit"], fit.predict(NEW, allow_new_levels=True))
    np.testing.assert_allclose(out["std_error"] ** 2, known + extra, rtol=1e-8)
    # an observation adds its own variance, and nothing else as no effect is left out
    weights = np.linspace(0.5, 2.0, 6)
    out = fit.predict(NEW, allow_new_levels=True, interval="prediction", weights=weights)
    np.testing.assert_allclose(out["std_error"] ** 2, known + extra + fit.sigma**2 / weights, rtol=1e-8)


def test_variance_of_the_population(fit: LmerResult, ev: oracle.Evaluation) -> None:
    X = np.column_stack([np.ones(6), NEW["x"]])
    known = np.einsum("ij,jk,ik->i", X, oracle.cov_beta(ev).astype(float), X)
    out = fit.predict(NEW, re_form="none", interval="confidence")
    np.testing.assert_allclose(out["std_error"] ** 2, known, rtol=1e-8)
    left_out = quadratic(fit, "g", X) + quadratic(fit, "h", np.ones((6, 1)))
    out = fit.predict(NEW[["x", "off"]], re_form="none", interval="prediction")  # no grouping column is needed
    np.testing.assert_allclose(out["std_error"] ** 2, known + left_out + fit.sigma**2, rtol=1e-8)


def test_variance_of_a_part(fit: LmerResult, ev: oracle.Evaluation) -> None:
    X = np.column_stack([np.ones(6), NEW["x"]])
    known = np.diag(prediction_oracle.prediction_covariance(ev, X, known_parts(fit, slope=False, h=False)))
    new_g = (NEW["g"] == "new").to_numpy()
    one, slope = np.column_stack([np.ones(6), np.zeros(6)]), np.column_stack([np.zeros(6), NEW["x"]])
    out = fit.predict(NEW, re_form="(1 | g)", interval="confidence", allow_new_levels=True)
    np.testing.assert_allclose(out["std_error"] ** 2, known + quadratic(fit, "g", one) * new_g, rtol=1e-8)
    # of a known group the slope is drawn anew; of a new group intercept and slope are drawn together
    drawn = np.where(new_g, quadratic(fit, "g", X), quadratic(fit, "g", slope))
    drawn = drawn + quadratic(fit, "h", np.ones((6, 1))) + fit.sigma**2
    out = fit.predict(NEW, re_form="(1 | g)", interval="prediction", allow_new_levels=True)
    np.testing.assert_allclose(out["std_error"] ** 2, known + drawn, rtol=1e-8)


def test_rows_of_the_fit(fit: LmerResult, data: pd.DataFrame) -> None:
    out = fit.predict(interval="prediction", ddf="normal")
    again = fit.predict(data, interval="prediction", ddf="normal", weights=data["w"])
    np.testing.assert_allclose(out, again, rtol=1e-9)
    w = fit.design.weights
    np.testing.assert_allclose(out["std_error"] ** 2, fit.sigma**2 * (1.0 + fit.hatvalues()) / w, rtol=1e-8)
    assert list(out.index) == list(fit.fittedvalues.index)


def test_interval_is_the_quantile_of_its_distribution(fit: LmerResult) -> None:
    from scipy import stats

    normal = fit.predict(NEW, re_form="none", interval="confidence", ddf="normal", level=0.9)
    np.testing.assert_allclose(normal["upper"] - normal["fit"], stats.norm.ppf(0.95) * normal["std_error"])
    assert np.isinf(normal["df"]).all()
    t = fit.predict(NEW, re_form="none", interval="confidence", level=0.9)
    np.testing.assert_allclose(t["fit"] - t["lower"], stats.t.ppf(0.95, t["df"]) * t["std_error"], rtol=1e-8)


def test_satterthwaite_on_a_balanced_design() -> None:
    """The mean of a balanced one-way layout has the batches' degrees of freedom, exactly."""
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    new = pd.DataFrame({"any": [0.0]})
    assert fit.predict(new, re_form="none", interval="confidence")["df"].iloc[0] == pytest.approx(5.0, rel=1e-4)
    # MS_batch / 30 + (MS_batch - MS_error) / 5 + MS_error, combined by Satterthwaite's formula
    between, within = fit.sigma**2 + 5 * fit.var_corr()["Batch"].iloc[0, 0], fit.sigma**2
    parts = np.array([between * (1 / 30 + 1 / 5), within * (1 - 1 / 5)])
    df = parts.sum() ** 2 / (parts**2 / np.array([5.0, 24.0])).sum()
    out = fit.predict(new, re_form="none", interval="prediction")
    assert out["std_error"].iloc[0] ** 2 == pytest.approx(parts.sum(), rel=1e-6)
    assert out["df"].iloc[0] == pytest.approx(df, rel=1e-3)


def test_degrees_of_freedom_are_those_of_the_joint_information(fit: LmerResult) -> None:
    """The profile form against the delta method in (theta, sigma^2) with the whole Hessian."""
    core = fit.core
    objective: Objective = core.objective()
    masks = included_columns(fit.design, "all")
    rows = target_rows(fit.design, NEW, masks, allow_new_levels=True, all_columns=True)
    target = targets(fit.design, core, rows, masks, observation=True, weights=np.ones(len(NEW)))
    variance, _ = target.at(objective, core.theta)
    df, _ = uncertain_theta(target, objective, core.theta, variance)

    nu, s2, at = objective.evaluator.nu, core.sigma**2, objective.to_conditioned(core.theta)

    def full(theta: np.ndarray, sigma2: float) -> float:
        profiled = objective.evaluator.value(theta)
        _, _, _, ld, _ = objective.evaluator.modes(theta)
        c = objective.cross.conditioning
        r2 = (ld[-1, -1] * c.y_scale) ** 2 * c.weight_scale
        return profiled - nu * (1 + np.log(r2 / nu)) + nu * np.log(sigma2) + r2 / sigma2

    def per_sigma2(theta: np.ndarray) -> np.ndarray:
        _, _, _, ld, _ = objective.evaluator.modes(theta)
        c = objective.cross.conditioning
        own = (ld[-1, -1] * c.y_scale) ** 2 * c.weight_scale / nu
        return target.at(objective, objective.to_user(theta))[0] / own

    steps = np.append(np.full(len(at), 2e-3), 2e-3 * s2)
    point = np.append(at, s2)
    k = len(point)
    hessian = np.empty((k, k))
    for a in range(k):
        for b in range(k):
            e, f = np.eye(k)[a] * steps, np.eye(k)[b] * steps
            values = [full((point + i * e + j * f)[:-1], (point + i * e + j * f)[-1]) for i, j in SIGNS]
            hessian[a, b] = (values[0] - values[1] - values[2] + values[3]) / (4 * steps[a] * steps[b])
    slopes = [(per_sigma2(at + h) - per_sigma2(at - h)) * s2 / (2 * 2e-3) for h in 2e-3 * np.eye(len(at))]
    gradient = np.array([*slopes, per_sigma2(at)])
    noise = np.einsum("an,ab,bn->n", gradient, 2 * np.linalg.inv(hessian), gradient)
    np.testing.assert_allclose(df, 2 * variance**2 / noise, rtol=1e-3)


def test_what_the_estimate_of_theta_adds(fit: LmerResult) -> None:
    """Against predictions of the dense oracle at displaced theta."""
    theta = fit.core.theta
    X, parts = np.column_stack([np.ones(6), NEW["x"]]), known_parts(fit)

    def predicted(at: np.ndarray) -> np.ndarray:
        ev = oracle.evaluate(problem_of(fit), at, reml=True, dtype=float)
        out = X @ ev.beta
        for (codes, z), b in zip(parts, oracle.cond_modes(ev), strict=True):
            out = out + np.where(codes >= 0, (z * b[codes]).sum(axis=1), 0.0)
        return out.astype(float)

    h = 1e-4
    drift = np.array([(predicted(theta + h * e) - predicted(theta - h * e)) / (2 * h) for e in np.eye(len(theta))])
    objective = fit.core.objective()
    cov = objective.cross.to_conditioned
    cov = np.linalg.inv(cov) @ theta_covariance(objective, theta) @ np.linalg.inv(cov).T
    wanted = 2 * np.einsum("an,ab,bn->n", drift, cov, drift)
    plain = fit.predict(NEW, allow_new_levels=True, interval="confidence", ddf="normal")
    wider = fit.predict(NEW, allow_new_levels=True, interval="confidence", ddf="normal", theta_known=False)
    np.testing.assert_allclose(wider["std_error"] ** 2 - plain["std_error"] ** 2, wanted, rtol=1e-4)
    np.testing.assert_array_equal(wider["fit"], plain["fit"])


SIGNS = [(1, 1), (1, -1), (-1, 1), (-1, -1)]


def test_theta_covariance_on_the_boundary() -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2"))
    assert np.isfinite(theta_covariance(fit.core.objective(), fit.core.theta)).all()
    out = fit.predict(interval="prediction")
    assert np.isfinite(out.to_numpy()).all()
    np.testing.assert_allclose(out["std_error"], fit.sigma * np.sqrt(1 + 1 / 30))
    np.testing.assert_allclose(out["df"], 29.0, rtol=1e-6)


def test_factors_of_theta(fit: LmerResult) -> None:
    for L, factor in zip(fit.core.L, factors_of([len(L) for L in fit.core.L], fit.core.theta), strict=True):
        np.testing.assert_array_equal(L, factor)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"interval": "credible"}, ModelError, "'credible' does not exist"),
        ({"interval": "confidence", "ddf": "residual"}, ModelError, "'residual' does not exist"),
        ({"interval": "confidence", "level": 95}, ModelError, "between 0 and 1"),
        ({"interval": "prediction", "weights": -1.0}, DataError, "positive"),
        ({"interval": "confidence", "allow_new_levels": False}, DataError, "not fitted to"),
    ],
)
def test_errors(fit: LmerResult, arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        fit.predict(NEW, **{"allow_new_levels": True, **arguments})


# ---------------------------------------------------------------- what the criterion does not depend on


def spanned(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    data = pd.DataFrame({"tank": np.repeat(list("ABCDEF"), 8), "x": np.tile(np.arange(8.0), 6)})
    data["trt"] = "t" + data["tank"]
    return data.assign(y=rng.normal(size=6)[pd.factorize(data["tank"])[0]] + 0.1 * data["x"] + rng.normal(size=48))


@pytest.mark.filterwarnings("ignore::fastlmm_core.errors.IdentifiabilityWarning")
@pytest.mark.parametrize("formula", ["y ~ trt + x + (1 | tank)", "y ~ trt * x + (x | tank)"])
def test_rows_whose_variance_is_not_identified_have_no_standard_error(formula: str) -> None:
    fit = lmer(formula, spanned())
    new = pd.DataFrame({"tank": list("ABA"), "trt": ["tA", "tB", "tB"], "x": 1.0})
    apart = [False, False, True]  # the treatment of one tank and the effect of another were never together
    for interval in ("confidence", "prediction"):
        own = fit.predict(new, interval=interval)
        assert own["std_error"].isna().tolist() == apart
        assert own[["df", "lower", "upper"]].isna().all(axis=1).tolist() == apart
        assert own["fit"].notna().all()
        assert "1 of 3 rows has no standard error (NaN)" in own.attrs["notes"][0]
        population = fit.predict(new, interval=interval, re_form="none")
        assert population["std_error"].isna().all()
        assert "3 of 3 rows" in population.attrs["notes"][0]
        rows = fit.predict(interval=interval)
        assert rows["std_error"].notna().all()
        assert rows.attrs["notes"] == []
    # a row of the fit is as without the term, which says nothing more
    least_squares = np.linalg.lstsq(fit.design.X, fit.design.y, rcond=None)[0]
    np.testing.assert_allclose(fit.predict(interval="confidence")["fit"], fit.design.X @ least_squares, rtol=1e-8)


@pytest.mark.filterwarnings("ignore::fastlmm_core.errors.IdentifiabilityWarning")
def test_two_terms_that_say_the_same_share_a_variance() -> None:
    data = spanned().assign(again=lambda d: d["tank"])
    fit = lmer("y ~ x + (1 | tank) + (1 | again)", data)
    one = lmer("y ~ x + (1 | tank)", data)
    assert fit.theta.iloc[0] > 0.1
    new = pd.DataFrame({"tank": list("AB"), "again": list("AB"), "x": 1.0})
    for options in ({}, {"re_form": "none"}):
        both, alone = (m.predict(new, interval="prediction", **options) for m in (fit, one))
        np.testing.assert_allclose(both["std_error"], alone["std_error"], rtol=1e-6)
    half = fit.predict(new, interval="confidence", re_form="(1 | tank)")
    assert half["std_error"].isna().all()
    with pytest.raises(DataError, match="tank and again have the same level in each row of the fit, but different"):
        fit.predict(new.assign(again=list("BA")), interval="confidence")
