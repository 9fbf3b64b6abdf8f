"""`neighbours(...)` through `lmer`: forms of maps, an ICAR model, islands; singular and rotated `relmat=`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from fastlmm_core import DataError, FastLMMWarning, ModelError, lmer, load, neighbours

MAP = {"a": ["b", "c"], "b": ["a", "c", "d"], "c": ["a", "b"], "d": ["b", "e"], "e": ["d"]}


def lattice(rows=6, columns=5):
    """Neighbours of a rectangular lattice, names by row and column."""
    at = {(i, j): f"r{i}c{j}" for i in range(rows) for j in range(columns)}
    return {
        name: [at[k] for k in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)) if k in at]
        for (i, j), name in at.items()
    }


def smooth(areas, n=150, seed=0):
    rng = np.random.default_rng(seed)
    related = neighbours(areas)
    A = np.linalg.pinv(related.precision.toarray(), hermitian=True)
    values, vectors = np.linalg.eigh(A)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T  # whatever basis LAPACK takes of equal values
    b = root @ rng.normal(size=len(A))
    who = rng.integers(0, len(A), n)
    x = rng.normal(size=n)
    area = related.levels[who].astype(str)
    return pd.DataFrame({"y": 1 + 0.5 * x + b[who] + 0.7 * rng.normal(size=n), "x": x, "area": area}), A, who


def test_one_map_in_every_form():
    found = neighbours(MAP)
    pairs = pd.DataFrame([(i, j) for i, others in MAP.items() for j in others], columns=["one", "other"])
    W = pd.DataFrame(0.0, list(MAP), list(MAP))
    for i, others in MAP.items():
        W.loc[i, others] = 1.0
    half = pairs[pairs["one"] < pairs["other"]]
    expected = np.diag(W.sum()) - W.to_numpy()
    np.testing.assert_allclose(found.precision.toarray(), expected)
    for other in (neighbours(pairs, "one", "other"), neighbours(half, "one", "other"), neighbours(W)):
        place = pd.Index(other.levels).get_indexer(list(MAP))
        np.testing.assert_allclose(other.precision.toarray()[np.ix_(place, place)], expected)
    for matrix in (W.to_numpy(), sp.csr_array(W.to_numpy())):
        bare = neighbours(matrix)
        assert bare.names is None
        np.testing.assert_allclose(bare.precision.toarray(), expected)
    weighted = neighbours(half.assign(w=2.0), "one", "other", weight="w")
    assert weighted.logdet == pytest.approx(found.logdet - 4 * np.log(2.0))


def test_maps_that_are_none():
    with pytest.raises(DataError, match="'b' is a neighbour of 'a', but not the other way round"):
        neighbours({"a": ["b"], "b": []})
    with pytest.raises(DataError, match="'a' is listed as a neighbour of itself"):
        neighbours({"a": ["a"]})
    with pytest.raises(DataError, match="'z', a neighbour of 'a', is no area"):
        neighbours({"a": ["z"]})
    with pytest.raises(DataError, match="neighbours of 'a' have to be a list, not str"):
        neighbours({"a": "bc", "b": [], "c": []})
    pairs = pd.DataFrame({"one": ["a", "b"], "other": ["b", "a"], "w": [1.0, 2.0]})
    with pytest.raises(DataError, match="the pair 'b', 'a' is listed with two weights"):
        neighbours(pairs, "one", "other", weight="w")
    with pytest.raises(DataError, match="positive: 1 of 2 are not"):
        neighbours(pairs.assign(w=[1.0, -1.0]), "one", "other", weight="w")
    with pytest.raises(DataError, match="have to be numbers"):
        neighbours(pairs, "one", "other", weight="one")
    with pytest.raises(ModelError, match="two columns of areas"):
        neighbours(pairs, "one")
    with pytest.raises(DataError, match="of a table of pairs name the two columns"):
        neighbours(pairs)
    with pytest.raises(DataError, match="not symmetric: '1' and '0' have two weights"):
        neighbours(np.array([[0.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(ModelError, match="columns of a table of pairs; this is none"):
        neighbours(MAP, weight="w")
    with pytest.raises(ModelError, match="not int"):
        neighbours(3)


@pytest.mark.parametrize("reml", [True, False])
def test_icar_against_the_pseudo_inverse(reml):
    data, A, who = smooth(lattice())
    fit = lmer("y ~ x + (1 | area)", data, precision={"area": neighbours(lattice())}, reml=reml)
    variance = fit.var_corr()["area"].iloc[0, 0]
    n, X = len(data), np.column_stack([np.ones(len(data)), data["x"]])

    def deviance(ratio):
        V = ratio * A[np.ix_(who, who)] + np.eye(n)
        inverse = np.linalg.inv(V)
        XVX = X.T @ inverse @ X
        e = data["y"] - X @ np.linalg.solve(XVX, X.T @ inverse @ data["y"])
        nu = n - 2 if reml else n
        value = np.linalg.slogdet(V)[1] + nu * (1 + np.log(2 * np.pi * (e @ inverse @ e) / nu))
        return value + (np.linalg.slogdet(XVX)[1] if reml else 0.0)

    best = variance / fit.sigma**2
    assert fit.criterion == pytest.approx(deviance(best), abs=1e-8)
    assert min(deviance(best * 1.02), deviance(best / 1.02)) > fit.criterion
    V = variance * A[np.ix_(who, who)] + fit.sigma**2 * np.eye(n)
    inverse = np.linalg.inv(V)
    cov = np.linalg.inv(X.T @ inverse @ X)
    P = inverse - inverse @ X @ cov @ X.T @ inverse
    C = variance * A[:, who]
    values = fit.breeding_values()
    np.testing.assert_allclose(values["value"], C @ P @ data["y"], atol=1e-8)
    np.testing.assert_allclose(values["value"].sum(), 0.0, atol=1e-10)
    error = np.diag(variance * A - C @ P @ C.T)
    np.testing.assert_allclose(values["std_error"], np.sqrt(error), rtol=1e-8)
    np.testing.assert_allclose(values["reliability"], 1 - error / (variance * np.diag(A)), atol=1e-8)


def test_parts_islands_and_an_independent_effect_beside():
    areas = {**lattice(4, 4), "i1": ["i2"], "i2": ["i1"], "skye": []}
    with pytest.warns(FastLMMWarning, match=r"1 of 19 areas have no neighbours, so that their effect is zero: 'skye'"):
        related = neighbours(areas, scaled=True)
    data, *_ = smooth(lattice(4, 4))
    more = pd.DataFrame({"y": [2.0, 1.0, 3.0, 2.5], "x": [0.0, 1.0, 0.5, 0.2], "area": ["i1", "i2", "skye", "skye"]})
    data = pd.concat([data, more], ignore_index=True).assign(spot=lambda d: d["area"])
    fit = lmer("y ~ x + (1 | area) + (1 | spot)", data, precision={"area": related})  # Besag, York and Mollie
    assert (fit.breeding_values()["std_error"] >= 0).all()
    values = fit.breeding_values()["value"]
    assert values["skye"] == pytest.approx(0.0, abs=1e-12)
    assert values["i1"] == pytest.approx(-values["i2"])
    assert values.drop(["i1", "i2", "skye"]).sum() == pytest.approx(0.0, abs=1e-10)
    assert np.isfinite(fit.coef_table()["df"]).all()
    assert list(fit.n_groups) == ["area", "spot"]


def test_a_map_and_correlated_residuals():
    data, A, who = smooth(lattice(), seed=3)
    data["unit"], data["visit"] = np.arange(150) // 3, np.arange(150) % 3
    fit = lmer(
        "y ~ x + (1 | area)", data, residual="ar1(visit | unit)", precision={"area": neighbours(lattice())}, reml=False
    )
    variance = fit.var_corr()["area"].iloc[0, 0]
    R = np.kron(np.eye(50), fit.residual_cov().to_numpy())
    V = variance * A[np.ix_(who, who)] + R
    e = data["y"] - fit.params["Intercept"] - fit.params["x"] * data["x"]
    expected = np.linalg.slogdet(2 * np.pi * V)[1] + e @ np.linalg.solve(V, e)
    assert fit.criterion == pytest.approx(expected, abs=1e-7)


def test_singular_genomic_relationships_of_more_individuals_than_records(tmp_path):
    rng = np.random.default_rng(1)
    M = rng.binomial(2, 0.4, (60, 300)).astype(float)
    M -= M.mean(axis=0)
    names = np.array([f"i{k}" for k in range(60)])
    G = pd.DataFrame(M @ M.T / 144.0, names, names)
    b = M @ rng.normal(size=300) / 12.0
    who = rng.permutation(60)[:45]
    data = pd.DataFrame({"y": b[who] + rng.normal(size=45), "x": rng.normal(size=45), "id": names[who]})
    fit = lmer("y ~ x + (1 | id)", data, relmat={"id": G})
    turn = rng.permutation(60)
    again = lmer("y ~ x + (1 | id)", data, relmat={"id": G.iloc[turn, turn].astype(np.float32)})
    assert again.criterion == pytest.approx(fit.criterion, abs=1e-4)
    values = fit.breeding_values()
    assert len(values) == 60
    np.testing.assert_allclose(again.breeding_values()["value"][names], values["value"], atol=1e-3)
    variance = fit.var_corr()["id"].iloc[0, 0]
    V = variance * G.to_numpy()[np.ix_(who, who)] + fit.sigma**2 * np.eye(45)
    X = np.column_stack([np.ones(45), data["x"]])
    inverse = np.linalg.inv(V)
    P = inverse - inverse @ X @ np.linalg.solve(X.T @ inverse @ X, X.T @ inverse)
    C = variance * G.to_numpy()[:, who]
    np.testing.assert_allclose(values["value"], C @ P @ data["y"], atol=1e-8)
    error = np.diag(variance * G.to_numpy() - C @ P @ C.T)
    np.testing.assert_allclose(values["std_error"], np.sqrt(error), rtol=1e-7)
    new = names[np.setdiff1d(np.arange(60), who)][:3]
    at_zero = fit.predict(pd.DataFrame({"x": np.zeros(3), "id": new}))
    np.testing.assert_allclose(at_zero, fit.params["Intercept"] + values["value"][new], atol=1e-10)
    fit.save(tmp_path / "fit", data=True)
    np.testing.assert_allclose(load(tmp_path / "fit").breeding_values(), values)
    with pytest.raises(ModelError, match=r"relmat\['id'\].*only models with one random intercept"):
        lmer("y ~ x + (1 | id) + (1 | herd)", data.assign(herd=np.arange(45) % 5), relmat={"id": G})


def test_intervals_of_individuals_with_and_without_records():
    rng = np.random.default_rng(2)
    M = rng.binomial(2, 0.4, (50, 200)).astype(float)
    names = np.array([f"i{k}" for k in range(50)])
    G = pd.DataFrame(np.cov(M) + 0.05 * np.eye(50), names, names)
    who = rng.integers(0, 40, 60)
    b = np.linalg.cholesky(G) @ rng.normal(size=50)
    data = pd.DataFrame({"y": b[who] + 0.5 * rng.normal(size=60), "x": rng.normal(size=60), "id": names[who]})
    inverse = pd.DataFrame(np.linalg.inv(G), names, names)
    rotated = lmer("y ~ x + (1 | id)", data, relmat={"id": G})
    other = lmer("y ~ x + (1 | id)", data, precision={"id": 0.5 * (inverse + inverse.T)})
    new = pd.DataFrame({"x": np.linspace(-1, 1, 6), "id": names[[0, 3, 7, 41, 45, 49]]})
    for interval in ("confidence", "prediction"):
        for known in (True, False):
            one, two = (f.predict(new, interval=interval, theta_known=known) for f in (rotated, other))
            np.testing.assert_allclose(one, two, rtol=2e-4)


def test_against_mgcv():
    """R's mgcv 1.8: gam(y ~ x + s(area, bs = "mrf", k = 64), method = "REML") on these rows, gam.vcomp and -2 REML."""
    data, *_ = smooth(lattice(8, 8), n=400, seed=5)
    fit = lmer("y ~ x + (1 | area)", data, precision={"area": neighbours(lattice(8, 8))})
    assert np.sqrt(fit.var_corr()["area"].iloc[0, 0]) == pytest.approx(0.9778128, abs=2e-6)
    assert fit.sigma == pytest.approx(0.6856861, abs=2e-7)
    assert fit.criterion == pytest.approx(948.7228, abs=1e-4)
    assert fit.params["x"] == pytest.approx(0.4982113, abs=2e-7)
    assert fit.bse["x"] == pytest.approx(0.03586691, abs=2e-8)
