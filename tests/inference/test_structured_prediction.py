"""Predictions of models with a residual structure, and their intervals, against dense algebra and ordinary fits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from pandas.testing import assert_frame_equal
from scipy.linalg import block_diag

from fastlmm_core import lmer
from fastlmm_core.errors import DataError, ModelError

VISITS = ("v1", "v2", "v3", "v4", "v5")


@pytest.fixture(scope="module")
def trial() -> pd.DataFrame:
    """Thirty subjects in two arms, five visits, a fifth of them missed, three raters that cross the subjects."""
    rng = np.random.default_rng(7)
    n, T = 30, len(VISITS)
    table = pd.DataFrame({"subject": np.repeat([f"s{k:02d}" for k in range(n)], T), "visit": np.tile(VISITS, n)})
    table["day"] = np.tile([0.0, 1.0, 2.5, 5.0, 9.0], n)
    table["arm"] = np.repeat(rng.permutation(["a", "b"] * (n // 2)), T)
    table["x"] = rng.normal(size=n * T)
    table["rater"] = rng.choice(["r1", "r2", "r3", "r4", "r5", "r6"], n * T)
    table["w"] = rng.uniform(0.5, 2.0, n * T)
    rho = 0.7 ** np.abs(np.subtract.outer(range(T), range(T)))
    noise = (rng.normal(size=(n, T)) @ np.linalg.cholesky(rho).T).ravel()
    rater = dict(zip(sorted(set(table.rater)), rng.normal(size=6), strict=True))
    table["y"] = 1.0 + 0.5 * table.x + table.rater.map(rater) + (table.arm == "b") + 1.5 * noise
    return table


@pytest.fixture(scope="module")
def seen(trial) -> pd.DataFrame:
    return trial[np.random.default_rng(3).uniform(size=len(trial)) < 0.8].reset_index(drop=True)


@pytest.fixture(scope="module")
def unseen(trial, seen) -> pd.DataFrame:
    """The visits that were missed."""
    both = trial.merge(seen[["subject", "visit"]], on=["subject", "visit"], how="left", indicator=True)
    return both[both._merge == "left_only"].drop(columns="_merge").reset_index(drop=True)


def correlation(fit, kind: str, a: pd.DataFrame, b: pd.DataFrame):
    """Residual covariance between two subjects' rows of unit weight, from the figures that are printed."""
    if kind == "us":
        cov = fit.residual_cov()
        R = cov.loc[a.visit, b.visit].to_numpy()
    else:
        parameters = fit.covariance_parameters()["estimate"]
        lag = np.subtract.outer(a.visit.map(VISITS.index).to_numpy(), b.visit.map(VISITS.index).to_numpy())
        h = np.abs(np.subtract.outer(a.day.to_numpy(), b.day.to_numpy()))
        if kind == "ar1":
            R = parameters["rho"] ** np.abs(lag)
        elif kind == "exp":
            R = np.exp(-h / parameters["range"])
        else:
            R = np.where(lag == 0, 1.0, parameters["rho"])
        R = R * fit.sigma**2
        if fit.design.residual.dispersion is not None:
            s = np.exp(fit.theta.filter(like="log_sd").iloc[0])
            R = R * np.outer(np.where(a.arm == "b", s, 1.0), np.where(b.arm == "b", s, 1.0))
    return R * np.equal.outer(a.subject.to_numpy(), b.subject.to_numpy())


def dense(fit, kind, seen, new, *, conditional, observation, columns, random=(), weights=None):
    """The best linear unbiased predictor of new rows and its standard error, n x n."""
    X, X0 = columns(seen), columns(new)
    root = np.ones(len(seen)) if weights is None else np.sqrt(seen[weights].to_numpy())
    R = correlation(fit, kind, seen, seen) / root[:, None] / root
    r = correlation(fit, kind, new, seen) / root
    r0 = np.diag(correlation(fit, kind, new, new))
    V, C, v = R.copy(), np.zeros((len(new), len(seen))), np.zeros(len(new))
    for group, z in random:
        L = fit.core.L[[term.group for term in fit.design.random].index(group)]
        D = fit.sigma**2 * L @ L.T
        Z, Z0 = z(seen), z(new)
        V += (Z @ D @ Z.T) * np.equal.outer(seen[group].to_numpy(), seen[group].to_numpy())
        C += (Z0 @ D @ Z.T) * np.equal.outer(new[group].to_numpy(), seen[group].to_numpy())
        v += np.einsum("ni,ij,nj->n", Z0, D, Z0)
    if conditional:
        C = C + r
        v = v + (r0 if observation else np.einsum("ij,jk,ik->i", r, np.linalg.inv(R), r))
    elif observation:
        v = v + r0
    W = np.linalg.inv(V)
    cov = np.linalg.inv(X.T @ W @ X)
    beta = cov @ X.T @ W @ seen.y.to_numpy()
    value = X0 @ beta + C @ W @ (seen.y.to_numpy() - X @ beta)
    d = X0 - C @ W @ X
    return value, np.sqrt(v - np.einsum("ij,jk,ik->i", C, W, C) + np.einsum("ij,jk,ik->i", d, cov, d))


def fixed(table):
    return np.column_stack([np.ones(len(table)), (table.arm == "b"), table.x]).astype(float)


CASES = {
    "us": ("us", "y ~ arm + x", {"residual": "us(visit | subject)"}, ()),
    "ar1": ("ar1", "y ~ arm + x", {"residual": "ar1(visit | subject)"}, ()),
    "places": ("exp", "y ~ arm + x", {"residual": "exp(day | subject)"}, ()),
    "weights": ("ar1", "y ~ arm + x", {"residual": "ar1(visit | subject)", "weights": "w"}, ()),
    "dispersion": ("cs", "y ~ arm + x", {"residual": "cs(visit | subject)", "dispersion": "~ arm"}, ()),
    "rater": ("ar1", "y ~ arm + x + (1 | rater)", {"residual": "ar1(visit | subject)"}, ("rater",)),
    "subject": ("ar1", "y ~ arm + x + (1 | subject)", {"residual": "ar1(visit | subject)"}, ("subject",)),
    "ml": ("us", "y ~ arm + x", {"residual": "us(visit | subject)", "reml": False}, ()),
}


@pytest.mark.parametrize("interval", ["confidence", "prediction"])
@pytest.mark.parametrize("residual", ["marginal", "conditional"])
@pytest.mark.parametrize("case", CASES)
def test_known_subjects_against_dense_algebra(case, residual, interval, seen, unseen):
    kind, formula, options, groups = CASES[case]
    fit = lmer(formula, seen, **options)
    one = lambda table: np.ones((len(table), 1))  # noqa: E731
    table = fit.predict(unseen, residual=residual, interval=interval, ddf="normal")
    value, error = dense(
        fit,
        kind,
        seen,
        unseen,
        conditional=residual == "conditional",
        observation=interval == "prediction",
        columns=fixed,
        random=[(g, one) for g in groups],
        weights=options.get("weights"),
    )
    assert_allclose(table["fit"], value, rtol=1e-9)
    assert_allclose(table["std_error"], error, rtol=1e-8)
    assert_allclose(fit.predict(unseen, residual=residual), value, rtol=1e-9)


@pytest.mark.parametrize("case", ["us", "ar1", "dispersion", "rater", "subject"])
def test_new_subjects_have_the_marginal_variance(case, seen):
    kind, formula, options, groups = CASES[case]
    fit = lmer(formula, seen, **options)
    new = seen.iloc[:5].assign(subject="nobody", rater="nobody")
    table = fit.predict(
        new, residual="conditional", interval="prediction", ddf="normal", allow_new_levels=True, level=0.9
    )
    value, error = dense(
        fit,
        kind,
        seen,
        new,
        conditional=True,
        observation=True,
        columns=fixed,
        random=[(g, lambda t: np.ones((len(t), 1))) for g in groups],
    )
    assert_allclose(table["fit"], value, rtol=1e-9)
    assert_allclose(table["std_error"], error, rtol=1e-8)
    assert_frame_equal(
        table, fit.predict(new, interval="prediction", ddf="normal", allow_new_levels=True, level=0.9), rtol=1e-9
    )


@pytest.mark.parametrize("theta_known", [True, False])
@pytest.mark.parametrize("crossed", ["", " + (1 | rater)"])
def test_compound_symmetry_is_a_random_intercept(crossed, theta_known, seen, unseen):
    """Value, error and degrees of freedom are those of the ordinary engine, which has other parameters."""
    ordinary = lmer(f"y ~ arm + x + (1 | subject){crossed}", seen)
    structured = lmer(f"y ~ arm + x{crossed}", seen, residual="cs(visit | subject)")
    assert_allclose(structured.criterion, ordinary.criterion, rtol=1e-8)
    theirs = ordinary.predict(unseen, interval="prediction", theta_known=theta_known)
    ours = structured.predict(unseen, residual="conditional", interval="prediction", theta_known=theta_known)
    assert_allclose(ours, theirs, rtol=3e-5)


def test_relationships_of_none_are_ordinary_effects(seen, unseen):
    names = sorted(set(seen.rater))
    G = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    related = lmer("y ~ arm + x + (1 | rater)", seen, relmat={"rater": G})
    ordinary = lmer("y ~ arm + x + (1 | rater)", seen)
    for interval in ("confidence", "prediction"):
        assert_allclose(
            related.predict(unseen, interval=interval), ordinary.predict(unseen, interval=interval), rtol=3e-5
        )
    with pytest.raises(ModelError, match="rater depends on its relatives"):
        related.predict(unseen, interval="prediction", re_form="none")


def test_structured_effects_of_a_subject_have_intervals(seen, unseen):
    plain = lmer("y ~ arm + x + (1 + day | subject)", seen)
    same = lmer("y ~ arm + x + us(1 + day | subject)", seen, dispersion="~ arm")
    assert same.predict(unseen, interval="prediction").notna().all(axis=None)
    structured = lmer("y ~ arm + x + us(1 + day | subject)", seen)
    for interval in ("confidence", "prediction"):
        assert_allclose(
            structured.predict(unseen, interval=interval), plain.predict(unseen, interval=interval), rtol=1e-4
        )


def test_a_visit_of_the_fit_is_given_back(seen):
    fit = lmer("y ~ arm + x", seen, residual="us(visit | subject)")
    assert_allclose(fit.predict(residual="conditional"), seen.y, rtol=1e-9)
    table = fit.predict(seen, residual="conditional", interval="prediction")
    assert_allclose(table["fit"], seen.y, rtol=1e-9)
    assert (table["std_error"] == 0).all()
    assert np.isposinf(table["df"]).all()
    assert_allclose(table["lower"], table["upper"])


def test_coordinates_that_the_fit_has_not_are_places(seen):
    fit = lmer("y ~ arm + x", seen, residual="exp(day | subject)")
    between = seen.drop_duplicates("subject").assign(day=3.7)
    value, error = dense(fit, "exp", seen, between, conditional=True, observation=True, columns=fixed)
    table = fit.predict(between, residual="conditional", interval="prediction", ddf="normal")
    assert_allclose(table["fit"], value, rtol=1e-9)
    assert_allclose(table["std_error"], error, rtol=1e-8)
    far = fit.predict(seen.iloc[:1].assign(day=1e6), residual="conditional", interval="prediction", ddf="normal")
    assert_allclose(far, fit.predict(seen.iloc[:1], interval="prediction", ddf="normal"), rtol=1e-9)


def test_groups_of_subjects(seen, unseen):
    """Each arm's predictions are those of a fit with the other arm's rows as they are."""
    fit = lmer("y ~ arm + x", seen, residual="us(visit | arm / subject)")
    table = fit.predict(unseen, residual="conditional", interval="prediction", ddf="normal")
    blocks = {}
    for arm in ("a", "b"):
        some = seen[seen.arm == arm]
        subject = some.subject.value_counts().idxmax()
        blocks[arm] = fit.residual_cov(subject)
        assert len(blocks[arm]) == len(VISITS)
    same = np.equal.outer(seen.subject.to_numpy(), seen.subject.to_numpy())
    R = np.zeros((len(seen), len(seen)))
    r, r0 = np.zeros((len(unseen), len(seen))), np.zeros(len(unseen))
    for arm, cov in blocks.items():
        a, b = (seen.arm == arm).to_numpy(), (unseen.arm == arm).to_numpy()
        R[np.ix_(a, a)] = cov.loc[seen.visit[a], seen.visit[a]]
        r[np.ix_(b, a)] = cov.loc[unseen.visit[b], seen.visit[a]]
        r0[b] = np.diag(cov.loc[unseen.visit[b], unseen.visit[b]])
    R, r = R * same, r * np.equal.outer(unseen.subject.to_numpy(), seen.subject.to_numpy())
    W, X, X0 = np.linalg.inv(R), fixed(seen), fixed(unseen)
    cov = np.linalg.inv(X.T @ W @ X)
    beta = cov @ X.T @ W @ seen.y.to_numpy()
    d = X0 - r @ W @ X
    assert_allclose(table["fit"], X0 @ beta + r @ W @ (seen.y.to_numpy() - X @ beta), rtol=1e-9)
    variance = r0 - np.einsum("ij,jk,ik->i", r, W, r) + np.einsum("ij,jk,ik->i", d, cov, d)
    assert_allclose(table["std_error"], np.sqrt(variance), rtol=1e-8)
    assert block_diag(*blocks.values()).shape == (10, 10)


def test_the_subject_is_not_asked_for_where_it_does_not_matter(seen):
    fit = lmer("y ~ arm + x", seen, residual="us(visit | subject)")
    few = seen[["arm", "x", "visit"]].iloc[:3]
    assert fit.predict(few, interval="prediction")["std_error"].notna().all()
    assert fit.predict(few.drop(columns="visit"), interval="confidence")["std_error"].notna().all()
    with pytest.raises(DataError, match=r"no column 'visit'.*residual='us\(visit \| subject\)' needs it"):
        fit.predict(few.drop(columns="visit"), interval="prediction")
    with pytest.raises(DataError, match=r"no column 'subject'.*needs it"):
        fit.predict(few, residual="conditional")


def test_what_cannot_be_predicted_is_an_error_or_nothing(seen):
    fit = lmer("y ~ arm + x", seen, residual="us(visit | arm / subject)")
    row = seen.iloc[:2]
    with pytest.raises(DataError, match=r"subject.*'s99' \(2 rows have such subjects\).*allow_new_levels"):
        fit.predict(row.assign(subject="s99"), residual="conditional")
    with pytest.raises(DataError, match=r"level of visit that residual=.* was not fitted to: 'v9'"):
        fit.predict(row.assign(visit="v9"), residual="conditional")
    other = {"a": "b", "b": "a"}
    with pytest.raises(DataError, match=r"is in arm .* in the new data, but in"):
        fit.predict(row.assign(arm=row.arm.map(other)), residual="conditional")
    with pytest.raises(ModelError, match="residual 'conditonal' does not exist: did you mean 'conditional'"):
        fit.predict(row, residual="conditonal")
    missing = fit.predict(row.assign(subject=[None, row.subject.iloc[1]]), residual="conditional")
    assert missing.isna().tolist() == [True, False]
    known = fit.predict(row.assign(subject=[None, row.subject.iloc[1]]), residual="conditional", allow_new_levels=True)
    assert known.notna().all()
    for formula, options in (("y ~ arm + x + cs(0 + arm | rater)", {}), ("y ~ arm + x", {"dispersion": "~ arm"})):
        with pytest.raises(ModelError, match=r"needs a residual structure.*says nothing about another's"):
            lmer(formula, seen, **options).predict(row, residual="conditional")
    spatial = lmer("y ~ arm + x", seen, residual="sp_exph(day | subject)")
    with pytest.raises(DataError, match=r"place \(3\.7\) of day .* its variance"):
        spatial.predict(row.assign(day=3.7), interval="prediction")


def test_numbers_name_the_visits_they_are(seen):
    numbered = seen.assign(visit=seen.visit.map(VISITS.index))
    fit = lmer("y ~ arm + x", numbered, residual="ar1(visit | subject)")
    rows = numbered.iloc[:4]
    assert_allclose(fit.predict(rows.assign(visit=rows.visit.astype(float)), residual="conditional"), rows.y, rtol=1e-9)
