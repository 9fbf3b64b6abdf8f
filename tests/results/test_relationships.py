"""`precision=` and `relmat=` through `lmer`."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from fastlmm_core import DataError, ModelError, lmer, pedigree


@pytest.fixture(scope="module")
def animals():
    rng = np.random.default_rng(7)
    n = 80
    sire = [None if i < 10 else f"a{rng.integers(max(0, i - 20), i)}" for i in range(n)]
    dam = [None if i < 10 else f"a{rng.integers(max(0, i - 20), i)}" for i in range(n)]
    return pd.DataFrame({"animal": [f"a{i}" for i in range(n)], "sire": sire, "dam": dam}).sample(
        frac=1, random_state=1
    )


@pytest.fixture(scope="module")
def data(animals):
    rng = np.random.default_rng(8)
    related = pedigree(animals, "animal", "sire", "dam")
    A = np.linalg.inv(related.precision.toarray())
    b = dict(zip(related.levels, np.linalg.cholesky(A) @ rng.normal(size=80), strict=True))
    who = rng.choice(related.levels[20:], 200)
    x = rng.normal(size=200)
    return pd.DataFrame({"y": x + [b[a] for a in who] + rng.normal(size=200), "x": x, "animal": who})


def test_one_relationship_in_every_form_gives_one_fit(animals, data):
    related = pedigree(animals, "animal", "sire", "dam")
    A = pd.DataFrame(np.linalg.inv(related.precision.toarray()), related.levels, related.levels)
    fit = lmer("y ~ x + (1 | animal)", data, precision={"animal": related})
    again = lmer("y ~ x + (1 | animal)", data, relmat={"animal": A})
    assert again.criterion == pytest.approx(fit.criterion, abs=1e-7)
    np.testing.assert_allclose(again.params, fit.params, atol=1e-5)
    inverse = pd.DataFrame(related.precision.toarray(), related.levels, related.levels)
    third = lmer("y ~ x + (1 | animal)", data, precision={"animal": inverse})
    assert third.criterion == pytest.approx(fit.criterion, abs=1e-7)
    assert fit.df_model == 4
    assert fit.n_groups == {"animal": 80}


def test_against_dense_matrices(animals, data):
    related = pedigree(animals, "animal", "sire", "dam")
    fit = lmer("y ~ x + (1 | animal)", data, precision={"animal": related})
    A = np.linalg.inv(related.precision.toarray())
    at = pd.Index(related.levels).get_indexer(data["animal"])
    variance = fit.var_corr()["animal"].iloc[0, 0]
    V = variance * A[np.ix_(at, at)] + fit.sigma**2 * np.eye(200)
    X = np.column_stack([np.ones(200), data["x"]])
    inverse = np.linalg.inv(V)
    cov = np.linalg.inv(X.T @ inverse @ X)
    beta = cov @ X.T @ inverse @ data["y"]
    np.testing.assert_allclose(fit.params, beta, rtol=1e-6)
    np.testing.assert_allclose(fit.bse, np.sqrt(np.diag(cov)), rtol=1e-6)
    values = fit.breeding_values()
    C = variance * A[:, at]
    expected = C @ inverse @ (data["y"] - X @ beta)
    np.testing.assert_allclose(values["value"], expected, atol=1e-6)
    P = inverse - inverse @ X @ cov @ X.T @ inverse
    error = variance * A - C @ P @ C.T
    np.testing.assert_allclose(values["std_error"], np.sqrt(np.diag(error)), rtol=1e-5)
    np.testing.assert_allclose(values["reliability"], 1 - np.diag(error) / (variance * np.diag(A)), atol=1e-6)


def test_satterthwaite_is_that_of_differences(animals, data):
    related = pedigree(animals, "animal", "sire", "dam")
    fit = lmer("y ~ x + (1 | animal)", data, precision={"animal": related})
    A = np.linalg.inv(related.precision.toarray())
    at = pd.Index(related.levels).get_indexer(data["animal"])
    X, K = np.column_stack([np.ones(200), data["x"]]), A[np.ix_(at, at)]

    def cov(v):
        return np.linalg.inv(X.T @ np.linalg.inv(v[0] * K + v[1] * np.eye(200)) @ X)

    def criterion(v):
        V = v[0] * K + v[1] * np.eye(200)
        inverse, C = np.linalg.inv(V), cov(v)
        e = data["y"].to_numpy() - X @ C @ X.T @ inverse @ data["y"].to_numpy()
        return np.linalg.slogdet(V)[1] - np.linalg.slogdet(C)[1] + e @ inverse @ e

    v, h = np.array([fit.var_corr()["animal"].iloc[0, 0], fit.sigma**2]), 1e-3
    steps = h * np.eye(2)
    hessian = [
        [sum(a * b * criterion(v + a * s + b * t) for a in (1, -1) for b in (1, -1)) / (4 * h * h) for t in steps]
        for s in steps
    ]
    slopes = np.array([np.diag(cov(v + s) - cov(v - s)) / (2 * h) for s in steps])
    spread = np.einsum("ak,ab,bk->k", slopes, 2 * np.linalg.inv(hessian), slopes)
    np.testing.assert_allclose(fit.coef_table()["df"], 2 * np.diag(cov(v)) ** 2 / spread, rtol=2e-3)
    with pytest.raises(ModelError, match="Kenward-Roger's method is not available"):
        fit.coef_table(ddf="kenward-roger")


def test_a_precision_without_names_is_in_the_order_of_the_levels(data):
    levels = sorted(data["animal"].unique())
    q = len(levels)
    chain = sp.diags_array([np.full(q, 2.1), np.full(q - 1, -1.0), np.full(q - 1, -1.0)], offsets=[0, 1, -1])
    named = pd.DataFrame(chain.toarray(), levels, levels)
    fit = lmer("y ~ x + (1 | animal)", data, precision={"animal": chain})
    assert fit.criterion == pytest.approx(lmer("y ~ x + (1 | animal)", data, precision={"animal": named}).criterion)


def test_summary_refit_pickle_and_what_is_refused(animals, data):
    related = pedigree(animals, "animal", "sire", "dam")
    fit = lmer("y ~ x + (1 | animal)", data, precision={"animal": related})
    assert "animal" in str(fit.summary())
    assert "animal related" in repr(fit)
    assert pickle.loads(pickle.dumps(fit)).criterion == fit.criterion
    assert fit.refit(data["y"]).criterion == pytest.approx(fit.criterion, abs=1e-8)
    assert not fit.refit_ml().reml
    np.testing.assert_allclose(fit.predict(data.head()), fit.fittedvalues.head())
    assert len(fit.ranef()) == 80
    for name in ("bootstrap", "hatvalues"):
        with pytest.raises(ModelError, match="not available"):
            getattr(fit, name)()
    with pytest.raises(ModelError, match="of independent subjects"):
        fit.residual_cov()


def test_errors(animals, data):
    related = pedigree(animals, "animal", "sire", "dam")
    few = pd.DataFrame(np.eye(3), ["a20", "a21", "a22"], ["a20", "a21", "a22"])
    for options, kind, message in (
        ({"relmat": {"animal": few}}, DataError, r"relmat\['animal'\] lacks \d+ of \d+ levels of animal: 'a"),
        ({"relmat": {"id": few}}, ModelError, r"relmat\['id'\] belongs to no random-effects term"),
        ({"precision": {"animal": sp.eye_array(4)}}, DataError, "4 rows without names"),
        ({"precision": related}, ModelError, "maps grouping factors to matrices"),
        (
            {"precision": {"animal": related}, "relmat": {"animal": few}},
            ModelError,
            "both a precision and a covariance",
        ),
        ({"precision": {"animal": "A"}}, ModelError, "not str"),
    ):
        with pytest.raises(kind, match=message):
            lmer("y ~ x + (1 | animal)", data, **options)
    with pytest.raises(DataError, match="two rows for 'a1'"):
        pedigree(pd.concat([animals, animals[animals["animal"] == "a1"]]), "animal", "sire", "dam")
    loop = pd.DataFrame({"animal": ["a", "b"], "sire": ["b", "a"], "dam": [None, None]})
    with pytest.raises(DataError, match="loop"):
        pedigree(loop, "animal", "sire", "dam")


def test_residual_structures_beside_a_relationship(animals, data):
    related = pedigree(animals, "animal", "sire", "dam")
    data = data.assign(time=data.groupby("animal").cumcount())
    plain = lmer("y ~ x + (1 | animal)", data, precision={"animal": related})
    fit = lmer("y ~ x + (1 | animal)", data, precision={"animal": related}, residual="ar1(time | animal)")
    assert fit.criterion <= plain.criterion
    assert fit.breeding_values()["std_error"].between(0, 10).all()
    uneven = lmer("y ~ x + (1 | animal)", data, precision={"animal": related}, dispersion="~ x")
    assert plain.criterion - 10 < uneven.criterion <= plain.criterion
    with pytest.raises(ModelError, match="simulate is not available for known relationships"):
        fit.simulate(2)


def test_mrode_example_11_6():
    """Mrode (2005): an EM algorithm ends at 0.549 and 0.485 (tests of the R package rutilstimflutre)."""
    calves = pd.DataFrame({"calf": [4, 5, 6, 7, 8], "sire": [1, 3, 1, 4, 3], "dam": [None, 2, 2, 5, 6]})
    data = calves.assign(sex=["m", "f", "f", "m", "m"], gain=[2.6, 0.1, 1.0, 3.0, 1.0])
    related = pedigree(calves, "calf", "sire", "dam")
    fit = lmer("gain ~ sex + (1 | calf)", data, precision={"calf": related})
    variance, residual = fit.var_corr()["calf"].iloc[0, 0], fit.sigma**2
    assert variance == pytest.approx(0.549, abs=4e-3)
    assert residual == pytest.approx(0.485, abs=2e-3)
    A = np.linalg.inv(related.precision.toarray())
    at = pd.Index(related.levels.astype(str)).get_indexer(data["calf"].astype(str))
    X = np.column_stack([np.ones(5), data["sex"] == "m"]).astype(float)

    def deviance(a, e):
        V = a * A[np.ix_(at, at)] + e * np.eye(5)
        inverse = np.linalg.inv(V)
        XVX = X.T @ inverse @ X
        r = data["gain"] - X @ np.linalg.solve(XVX, X.T @ inverse @ data["gain"])
        return np.linalg.slogdet(V)[1] + np.linalg.slogdet(XVX)[1] + r @ inverse @ r + 3 * np.log(2 * np.pi)

    assert fit.criterion == pytest.approx(deviance(variance, residual), abs=1e-9)
    assert deviance(0.549, 0.485) > fit.criterion
