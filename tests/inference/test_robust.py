"""Cluster-robust covariances against clubSandwich's figures, and against their definition in dense matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import DataError, LmerResult, ModelError, lmer, load_dataset, power
from fastlmm_core.inference.robust import covariance_method

FIGURES = Path(__file__).parents[1] / "golden" / "after"
GOLDEN = json.loads((FIGURES / "robust.json").read_text())
STRUCTURED = json.loads((FIGURES / "robust_structures.json").read_text())


@pytest.mark.parametrize("record", GOLDEN, ids=lambda r: f"{r['model']}-{r['type']}")
def test_figures_are_clubsandwichs(record: dict[str, Any], sleepstudy: pd.DataFrame) -> None:
    fit = lmer(record["formula"], sleepstudy)
    table = fit.coef_table(cov_type=record["type"])
    np.testing.assert_allclose(table["std_error"], record["se"], rtol=1e-4)
    np.testing.assert_allclose(table["df"], record["df"], rtol=1e-3)
    np.testing.assert_allclose(fit.cov_params(cov_type=record["type"]), record["vcov"], rtol=1e-4)


@pytest.mark.parametrize("record", STRUCTURED, ids=lambda r: f"{r['model']}-{r['type']}")
def test_figures_of_residual_structures_are_clubsandwichs(record: dict[str, Any]) -> None:
    data = load_dataset("Orthodont")
    fit = lmer(record["formula"], data.drop(data.index[[2, 9, 10, 49, 76]]), **record["structure"])
    table = fit.coef_table(cov_type=record["type"])
    np.testing.assert_allclose(table["std_error"], record["se"], rtol=1e-6)
    np.testing.assert_allclose(table["df"], record["df"], rtol=2e-6)
    np.testing.assert_allclose(fit.cov_params(cov_type=record["type"]), record["vcov"], rtol=2e-6)


def dense(fit: LmerResult, codes: np.ndarray, kind: str) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
    """The sandwich, and A_g'V_g^-1X_g M of each cluster with V and M: n x n, in the user's units."""
    d, core = fit.design, fit.core
    kept = ~np.isnan(core.beta)
    X = d.X[:, kept]
    V = np.diag(1.0 / (np.ones(len(X)) if d.weights is None else d.weights))
    for t, L in zip(d.random, core.L, strict=True):
        zl = (np.ones((len(X), 1)) if t.z is None else t.z) @ L
        V += (zl @ zl.T) * (t.codes[:, None] == t.codes)
    V *= core.sigma**2
    W = np.linalg.inv(V)
    M = np.linalg.inv(X.T @ W @ X)
    e = d.y - X @ core.beta[kept]
    meat, functions = np.zeros((X.shape[1], X.shape[1])), []
    for g in range(codes.max() + 1):
        i = np.flatnonzero(codes == g)
        Vg = V[np.ix_(i, i)]
        Wg = np.linalg.inv(Vg)
        A = np.eye(len(i))
        if kind == "CR2":
            D = np.linalg.cholesky(Vg).T
            size, axes = np.linalg.eigh(D @ (Vg - X[i] @ M @ X[i].T) @ D.T)
            inverse = np.where(size > 1e-10 * size.max(), 1.0 / np.sqrt(np.maximum(size, 1e-300)), 0.0)
            A = D.T @ (axes * inverse) @ axes.T @ D
        elif kind == "CR3":
            A = np.linalg.inv(np.eye(len(i)) - X[i] @ M @ X[i].T @ Wg)
        G = np.zeros((len(X), X.shape[1]))
        G[i] = A.T @ Wg @ X[i] @ M
        functions.append(G)
        score = G[i].T @ e[i]
        meat += np.outer(score, score)
    return meat, functions, V, M


def weighted_data() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    n = 80
    data = pd.DataFrame({"g": np.repeat(np.arange(8), 10), "x": rng.normal(size=n), "w": rng.uniform(0.5, 3.0, n)})
    data["h"] = data.g * 2 + (np.arange(n) % 2)
    data["v"] = 0.5 + data.g
    return data.assign(y=rng.normal(size=n) + data.x + rng.normal(size=8)[data.g] + rng.normal(size=16)[data.h])


@pytest.mark.parametrize("weights", [None, "w", "v"])
@pytest.mark.parametrize("kind", ["CR0", "CR2", "CR3"])
@pytest.mark.parametrize("formula", ["y ~ x + (1 | g/h)", "y ~ x + (x | g)"])
def test_definition(formula: str, kind: str, weights: str | None) -> None:
    fit = lmer(formula, weighted_data(), weights=weights)
    codes = weighted_data().g.to_numpy()
    meat, functions, V, M = dense(fit, codes, kind)
    found = fit.cov_params(cov_type=kind)
    np.testing.assert_allclose(found, meat, rtol=1e-7)
    X = fit.design.X
    residual = V - X @ M @ X.T
    for k in range(2):
        G = np.column_stack([f[:, k] for f in functions])
        P = G.T @ residual @ G
        assert fit.coef_table(cov_type=kind)["df"].iloc[k] == pytest.approx(np.trace(P) ** 2 / np.sum(P * P), rel=1e-7)


def test_joint_test_is_htz() -> None:
    """Tipton and Pustejovsky (2015), from the scores' covariance in dense matrices."""
    fit = lmer("y ~ x + C(h % 2) + (1 | g)", weighted_data())
    codes = weighted_data().g.to_numpy()
    meat, functions, V, M = dense(fit, codes, "CR2")
    X = fit.design.X
    rows = np.eye(3)[1:]
    omega = rows @ sum(f.T @ (V - X @ M @ X.T) @ f for f in functions) @ rows.T
    size, axes = np.linalg.eigh(omega)
    turned = (axes / np.sqrt(size)) @ axes.T @ rows
    G = [np.column_stack([f @ row for f in functions]) for row in turned]
    P = [[a.T @ (V - X @ M @ X.T) @ b for b in G] for a in G]
    total = sum(np.sum(P[s][s] * P[t][t]) + np.sum(P[s][t] * P[t][s]) for s in range(2) for t in range(2))
    eta = 6.0 / total
    beta = fit.core.beta
    q = (rows @ beta) @ np.linalg.solve(rows @ meat @ rows.T, rows @ beta)
    found = fit.f_test(rows, cov_type="CR2")
    assert found.den_df == pytest.approx(eta - 1.0, rel=1e-6)
    assert pytest.approx((eta - 1.0) / eta * q / 2.0, rel=1e-6) == found.F


def test_scaling_of_the_response_scales_the_errors(sleepstudy: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ Days + (Days | Subject)", sleepstudy)
    other = fit.refit(10.0 * fit.design.y)
    for kind in ("CR0", "CR2"):
        np.testing.assert_allclose(other.cov_params(cov_type=kind), 100.0 * fit.cov_params(cov_type=kind), rtol=1e-6)


def test_units_of_the_columns_do_not_matter(sleepstudy: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ Days + (1 | Subject)", sleepstudy)
    far = lmer("Reaction ~ x + (1 | Subject)", sleepstudy.assign(x=1e-3 * sleepstudy.Days + 500.0))
    one, other = (f.coef_table(cov_type="CR2").iloc[1] for f in (fit, far))
    assert other["std_error"] == pytest.approx(1e3 * one["std_error"], rel=1e-6)
    assert other["df"] == pytest.approx(one["df"], rel=1e-5)


def test_every_table_takes_it(sleepstudy: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ Days + (Days | Subject)", sleepstudy)
    table = fit.coef_table(cov_type="CR2")
    assert fit.t_test("Days = 0", cov_type="CR2")["p"].iloc[0] == pytest.approx(table["p"].iloc[1])
    assert fit.f_test("Days = 0", cov_type="CR2").p == pytest.approx(table["p"].iloc[1])
    assert fit.anova(cov_type="CR2")["p"].iloc[0] == pytest.approx(table["p"].iloc[1])
    slope = fit.emtrends("Days", cov_type="CR2").to_frame()
    assert slope["std_error"].iloc[0] == pytest.approx(table["std_error"].iloc[1])
    limits = fit.conf_int(parm="Days", ddf="satterthwaite", cov_type="CR2").loc["Days"]
    np.testing.assert_allclose(limits, slope[["lower", "upper"]].iloc[0], rtol=1e-6)
    assert "18 clusters by Subject" in table.attrs["notes"][0]


def test_clusters_above_the_grouping_factor() -> None:
    data = load_dataset("Pastes")
    fit = lmer("strength ~ 1 + (1 | sample)", data)
    by_name = fit.coef_table(cov_type="CR2", cluster="batch")
    by_values = fit.coef_table(cov_type="CR2", cluster=data["batch"].to_numpy())
    pd.testing.assert_frame_equal(by_name, by_values)
    assert by_name["df"].iloc[0] < fit.coef_table(cov_type="CR2")["df"].iloc[0]


def test_what_cannot_be_done() -> None:
    fit = lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", load_dataset("Penicillin"))
    with pytest.raises(ModelError, match="cross the clusters"):
        fit.coef_table(cov_type="CR2")
    with pytest.raises(ModelError, match="'CR1S'"):
        fit.coef_table(cov_type="HC3")
    with pytest.raises(ModelError, match="Kenward"):
        covariance_method(fit, "kenward-roger", cov_type="CR2")
    with pytest.raises(ModelError, match="give cov_type"):
        fit.coef_table(cluster="plate")
    with pytest.raises(DataError, match="cluster has 3 values"):
        fit.coef_table(cov_type="CR2", cluster=[1, 2, 3])


def test_models_with_a_residual_structure() -> None:
    """Compound symmetry within subjects is a random intercept: the same sandwich and degrees of freedom."""
    data = load_dataset("sleepstudy")
    one = lmer("Reaction ~ Days + (1 | Subject)", data)
    other = lmer("Reaction ~ Days", data, residual="cs(Days | Subject)")
    for kind in ("CR0", "CR1S", "CR2", "CR3"):
        a, b = (fit.coef_table(cov_type=kind) for fit in (one, other))
        np.testing.assert_allclose(b, a, rtol=1e-4)
    with pytest.raises(ModelError, match="are its subjects"):
        other.coef_table(cov_type="CR2", cluster="Subject")


@pytest.mark.parametrize("size", [1e-2, 1e-3])
def test_cr2_where_groups_differ_by_far_more_than_rows(size: float) -> None:
    """The limit is within groups: coefficients and CR2 of the least squares of what the groups' means leave."""
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(12), 10)
    x, noise = rng.normal(size=(2, 120))
    f = np.tile(["a", "b", "c"], 40)
    data = pd.DataFrame({"g": codes.astype(str), "x": x, "f": f, "y": codes + x + size * noise})
    fit = lmer("y ~ x + f + (1 | g)", data)
    assert fit.theta.iloc[0] > 2 / size
    X = fit.design.X[:, 1:]

    def within(values: np.ndarray) -> np.ndarray:
        return values - np.stack([values[codes == g].mean(axis=0) for g in range(12)])[codes]

    X, y = within(X), within(fit.design.y)
    M = np.linalg.inv(X.T @ X)
    e = y - X @ (M @ X.T @ y)
    meat = np.zeros((3, 3))
    for g in range(12):
        rows = codes == g
        values, axes = np.linalg.eigh(np.eye(10) - X[rows] @ M @ X[rows].T)
        score = X[rows].T @ (axes @ (axes.T @ e[rows] / np.sqrt(values)))
        meat += np.outer(score, score)
    table = fit.coef_table(cov_type="CR2")
    np.testing.assert_allclose(table.iloc[1:, 1], np.sqrt(np.diagonal(M @ meat @ M)), rtol=2 * size)
    np.testing.assert_allclose(
        fit.cov_params(cov_type="CR2").iloc[1:, 1:], M @ meat @ M, rtol=0.1 * size, atol=1e-2 * size**3
    )


def test_clusters_are_aligned_with_the_data(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.drop(index=[3, 70]).assign(Subject=lambda d: d["Subject"].astype(str))
    fit = lmer("Reaction ~ Days + (1 | Subject)", data.assign(Days=data["Days"].where(data["Days"] < 9)))
    clusters = pd.Series(pd.factorize(data["Subject"])[0] // 2, data.index)
    want = fit.coef_table(cov_type="CR2", cluster=clusters)
    for given in (clusters.sample(frac=1, random_state=0), clusters[data["Days"] < 9].sample(frac=1, random_state=1)):
        pd.testing.assert_frame_equal(fit.coef_table(cov_type="CR2", cluster=given), want)
    with pytest.raises(DataError, match="the index of cluster differs"):
        fit.coef_table(cov_type="CR2", cluster=clusters.set_axis(range(500, 500 + len(clusters))))
    with pytest.raises(DataError, match="cluster is missing in"):
        fit.coef_table(cov_type="CR2", cluster=np.ma.MaskedArray(clusters, clusters == 0))


def test_columns_of_a_table_that_was_sorted_since(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.assign(pair=sleepstudy["Subject"].astype("category").cat.codes // 2)
    fit = lmer("Reaction ~ Days + np.sin(Days) + (1 | Subject)", data)
    want = fit.coef_table(cov_type="CR2", cluster="pair")
    asked: dict[str, Any] = {"n": 5, "seed": 1, "params": {"Days": 1.0, "np.sin(Days)": 2.0}}
    reached = power(fit, "Reaction ~ np.sin(Days) + (1 | Subject)", **asked).p
    ordered = data.sort_values("Reaction")
    for name in data:
        data[name] = ordered[name].array
    data.index = ordered.index
    pd.testing.assert_frame_equal(fit.coef_table(cov_type="CR2", cluster="pair"), want)
    pd.testing.assert_frame_equal(power(fit, "Reaction ~ np.sin(Days) + (1 | Subject)", **asked).p, reached)
