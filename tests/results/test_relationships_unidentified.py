"""Models with known relationships or sparse fixed effects and variances that no response can tell."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import IdentifiabilityWarning, LmerResult, lmer
from fastlmm_core.core import Term
from fastlmm_core.core.structures.covariances import Structure
from fastlmm_core.core.structures.equations_fit import EquationsModel
from fastlmm_core.core.structures.relationship import from_covariance


def related(levels: list[str], seed: int = 0) -> pd.DataFrame:
    G = np.random.default_rng(seed).normal(size=(len(levels), 3 * len(levels)))
    return pd.DataFrame(G @ G.T / G.shape[1], levels, levels)


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    d = pd.DataFrame({"site": np.repeat(list("ABCD"), 40), "k": [f"k{i}" for i in rng.integers(0, 20, 160)]})
    d["trt"], d["x"] = "t" + d.site, rng.normal(size=160)
    d["y"] = 0.5 * d.x + d.k.map({f"k{i}": b for i, b in enumerate(rng.normal(size=20))}) + rng.normal(size=160)
    return d


def told(formula: str, data: pd.DataFrame, match: str, **options: object) -> LmerResult:
    with pytest.warns(IdentifiabilityWarning, match=match):
        return lmer(formula, data, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_fixed_effects_span_a_term_with_a_relationship(data, weighted):
    weights = np.linspace(0.5, 2.0, len(data)) if weighted else None
    relmat = {"site": related(list("ABCD"))}
    m = told("y ~ trt + x + (1 | site)", data, r"var\(Intercept \| site\)", relmat=relmat, weights=weights)
    lines = [name for name in m.params.index if name != "x"]
    table = m.coef_table()
    assert table.loc[lines, ["std_error", "p"]].isna().all(axis=None)
    plain = lmer("y ~ trt + x + (1 | k)", data, weights=weights)
    again = told("y ~ trt + x + (1 | site) + (1 | k)", data, r"site", relmat=relmat, weights=weights)
    assert again.criterion == pytest.approx(plain.criterion, abs=1e-5)
    assert again.bse["x"] == pytest.approx(plain.bse["x"], rel=1e-4)
    assert again.bse[lines].isna().all()
    frame = again.var_corr().to_frame()
    assert frame[frame.grp == "site"].vcov.isna().all()
    assert frame[frame.grp == "k"].vcov.notna().all()
    assert m.breeding_values()["std_error"].isna().all()


def test_levels_of_sparse_effects_that_span_a_term(data):
    relmat = {"site": related(list("ABCD"))}
    m = told("y ~ x + sparse(trt) + (1 | site) + (1 | k)", data, r"var\(Intercept \| site\)", relmat=relmat)
    plain = lmer("y ~ x + sparse(trt) + (1 | k)", data)
    assert m.bse["x"] == pytest.approx(plain.bse["x"], rel=1e-4)
    found = m.sparse_coef(se=True)["std_error"]
    assert found[plain.sparse_coef(se=True)["std_error"].notna()].isna().all()
    assert plain.sparse_coef(se=True)["std_error"].notna().sum() >= 3


@pytest.mark.parametrize("reml", [True, False])
def test_terms_that_say_the_same(data, reml):
    relmat = {"k": related([f"k{i}" for i in range(20)])}
    m = told("y ~ x + (1 | k) + (1 | k)", data, "fewer combinations", relmat=relmat, reml=reml)
    assert m.coef_table().p.notna().all()


def test_unrelated_levels_of_one_row_are_the_residual(data):
    rows = data.assign(row=[f"r{i}" for i in range(len(data))])
    relmat = {"row": pd.DataFrame(np.eye(len(rows)), rows.row, rows.row)}
    told("y ~ x + (1 | row)", rows, "residual variance", relmat=relmat)


def test_sound_models_are_not_suspected(data):
    relmat = {"k": related([f"k{i}" for i in range(20)]), "site": related(list("ABCD"))}
    with warnings.catch_warnings():
        warnings.simplefilter("error", IdentifiabilityWarning)
        m = lmer("y ~ x + (1 + x | k) + (1 | site)", data, relmat=relmat)
        lmer("y ~ x + sparse(k) + (1 | site)", data, relmat={"site": relmat["site"]}, reml=False)
        lmer("y ~ trt + x + (1 | site)", data, relmat={"site": relmat["site"]}, reml=False)
    assert m.coef_table().p.notna().all()


@pytest.mark.parametrize("seed", range(4))
def test_null_directions_against_dense_matrices(seed):
    # two terms on nested factors, X random or spanning the coarser one: tr(M V_a M V_b) by its definition
    rng = np.random.default_rng(seed)
    fine = np.repeat(np.arange(12, dtype=np.int32), 4)
    coarse = (fine // 3).astype(np.int32)
    A, B = related(list("abcdefghijkl"), seed).to_numpy(), related(list("abcd"), seed).to_numpy()
    X = np.eye(4)[coarse] if seed % 2 else np.column_stack([np.ones(48), rng.normal(size=48)])
    slope = Term(fine, np.column_stack([np.ones(48), rng.normal(size=48)]), n_levels=12)
    relationships = [from_covariance(None, A), from_covariance(None, B)]
    model = EquationsModel(X, [slope, Term(coarse, n_levels=4)], [Structure("us"), Structure("us")], relationships)
    found, _ = model.unseen(model.equations(rng.normal(size=48)))
    M = np.eye(48) - X @ np.linalg.pinv(X)
    z = model.terms[0].z
    pairs = [np.outer(z[:, i], z[:, j]) + np.outer(z[:, j], z[:, i]) for i, j in ((0, 0), (0, 1), (1, 1))]
    V = [np.eye(48), *(A[np.ix_(fine, fine)] * p for p in pairs), B[np.ix_(coarse, coarse)]]
    seen = np.stack([(M @ v @ M).ravel() / np.linalg.norm(v) for v in V])
    lacking = len(V) - np.linalg.matrix_rank(seen, tol=1e-8)
    assert lacking == seed % 2
    assert (found is not None) == bool(lacking)
    if found is not None:
        assert found.flat == ((1, 0, 0),)
        assert found.basis.shape == (4, 4)
