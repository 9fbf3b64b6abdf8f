"""Known relationships and sparse fixed effects against dense matrices; pedigrees against the tabular method."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from fastlmm_core._native.rows.pedigree import mendelian_variances
from fastlmm_core.core import Term, fit
from fastlmm_core.core.structures import sparse_factor
from fastlmm_core.core.structures.covariances import Structure
from fastlmm_core.core.structures.equations import Equations, in_words
from fastlmm_core.core.structures.equations_fit import LIFT, EquationsModel
from fastlmm_core.core.structures.pedigree import from_parents
from fastlmm_core.core.structures.relationship import from_covariance, from_precision
from fastlmm_core.core.structures.sparse_factor import SparseFactor, cheapest_ordering, lower_rows, multiplications
from fastlmm_core.errors import DataError, FastLMMWarning, ModelError


def tabular(sire, dam):
    """A (q, q) by the definition (Emik and Terrill 1949), parents before offspring."""
    n = len(sire)
    A = np.zeros((n + 1, n + 1))  # the last row and column belong to an unknown parent
    for i in range(n):
        A[i, :i] = A[:i, i] = 0.5 * (A[sire[i], :i] + A[dam[i], :i])
        A[i, i] = 1.0 + 0.5 * A[sire[i], dam[i]] * (sire[i] >= 0 and dam[i] >= 0)
    return A[:n, :n]


def inbred(n=60, seed=0):
    rng = np.random.default_rng(seed)
    sire = np.array([-1 if i < 5 else rng.integers(max(0, i - 12), i) for i in range(n)])
    dam = np.array([-1 if i < 5 or rng.random() < 0.1 else rng.integers(max(0, i - 12), i) for i in range(n)])
    dam[20] = sire[20]  # a selfing
    return sire, dam


def test_inverse_relationship_and_inbreeding():
    sire, dam = inbred()
    A = tabular(sire, dam)
    found = from_parents(range(60), sire, dam)
    np.testing.assert_allclose(found.precision.toarray() @ A, np.eye(60), atol=1e-12)
    np.testing.assert_allclose(found.inbreeding, np.diag(A) - 1, atol=1e-14)
    assert found.logdet == pytest.approx(np.linalg.slogdet(A)[1], abs=1e-12)
    np.testing.assert_allclose(found.times(np.eye(60)), A, atol=1e-12)
    np.testing.assert_allclose(found.variances, np.diag(A))
    F, d = mendelian_variances(sire.astype(np.int64), dam.astype(np.int64))
    np.testing.assert_allclose(F, found.inbreeding)
    assert d.min() > 0


def test_order_of_a_pedigree_does_not_matter_and_loops_are_named():
    sire, dam = inbred(seed=1)
    turn = np.random.default_rng(2).permutation(60)
    place = np.append(np.argsort(turn), -1)
    found = from_parents(turn.tolist(), place[sire[turn]], place[dam[turn]])
    at = np.argsort(found.levels.astype(int))
    np.testing.assert_allclose(found.precision.toarray()[np.ix_(at, at)] @ tabular(sire, dam), np.eye(60), atol=1e-12)
    with pytest.raises(DataError, match="loop: b → c → b"):
        from_parents(["a", "b", "c", "d"], np.array([-1, 2, 1, 1]), np.array([-1, 0, 0, 2]))
    with pytest.raises(ValueError, match="does not come before"):
        mendelian_variances(np.array([1, -1]), np.array([-1, -1]))


def test_mrode_example_3_1():
    # Mrode, Linear Models for the Prediction of Animal Breeding Values, example 3.1: variances 20 and 40 known
    names = list(range(1, 9))
    sire = np.array([-1, -1, -1, 0, 2, 0, 3, 2])
    dam = np.array([-1, -1, -1, -1, 1, 1, 4, 5])
    related = from_parents(names, sire, dam)
    y = np.array([4.5, 2.9, 3.9, 3.5, 5.0])
    X = np.array([[1, 0], [0, 1], [0, 1], [1, 0], [1, 0]], float)
    term = Term(np.array([3, 4, 5, 6, 7], np.int32), n_levels=8)
    solved = Equations([term], [related], 0, None, X, y, True).solve([np.array([[np.sqrt(0.5)]])])
    # beta of Q = X, e = y
    np.testing.assert_allclose(solved.beta, [4.358, 3.404], atol=1e-3)
    expected = [0.098, -0.019, -0.041, -0.009, -0.186, 0.177, -0.249, 0.183]
    np.testing.assert_allclose(solved.u * np.sqrt(0.5), expected, atol=5e-4)


def records(seed=3):
    rng = np.random.default_rng(seed)
    sire, dam = inbred()
    related = from_parents(range(60), sire, dam)
    A = tabular(sire, dam)
    codes = rng.integers(10, 60, 150).astype(np.int32)
    w, other, firm = rng.normal(size=150), rng.integers(0, 8, 150).astype(np.int32), rng.integers(0, 12, 150)
    b = np.linalg.cholesky(A + 1e-12 * np.eye(60)) @ rng.normal(size=(60, 2))
    X = np.column_stack([np.ones(150), rng.normal(size=150)])
    y = X @ [1.0, 2.0] + b[codes, 0] + 0.5 * w * b[codes, 1] + rng.normal(size=8)[other] + rng.normal(size=150)
    terms = [
        Term(codes, np.column_stack([np.ones(150), w]), n_levels=60),
        Term(other, np.column_stack([np.ones(150), X[:, 1]])),
    ]
    sparse = Term(np.maximum(firm - 1, 0).astype(np.int32), (firm > 0).astype(float), n_levels=11)
    return y, X, terms, related, A, sparse, firm, rng.uniform(0.5, 2.0, 150)


def dense(y, X, terms, A, model, phi, weights, reml):
    V = np.diag(1.0 / weights)
    for term, c, T, where, between in zip(terms, model.covariances, model.transforms, model.slices, A, strict=True):
        z = term.z @ T
        V += (z @ c.sigma(phi[where]) @ z.T) * between[np.ix_(term.codes, term.codes)]
    inverse = np.linalg.inv(V)
    XVX = X.T @ inverse @ X
    e = y - X @ np.linalg.solve(XVX, X.T @ inverse @ y)
    nu = len(y) - X.shape[1] if reml else len(y)
    value = np.linalg.slogdet(V)[1] + nu * (1 + np.log(2 * np.pi * (e @ inverse @ e) / nu))
    return value + (np.linalg.slogdet(XVX)[1] if reml else 0.0)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("names", [("us", "diag"), ("cs", "us")])
def test_criterion_and_gradient_against_dense_matrices(names, absorbed, reml):
    y, X, terms, related, A, sparse, firm, weights = records()
    structures = [Structure(name) for name in names]
    extra = [sparse] if absorbed else []
    model = EquationsModel(X, terms, structures, [related, None], extra, weights=weights, reml=reml)
    full = np.column_stack([X, np.eye(12)[firm][:, 1:]]) if absorbed else X
    scaled = y * model.root
    rest = scaled - model.Q @ (model.Q.T @ scaled)
    norm = np.linalg.norm(rest)
    relations = model.relationships
    equations = Equations(model._conditioned(), relations, len(extra), model.root, model.Q, rest / norm, reml)
    constant = 2 * equations.nu * np.log(norm) - model.log_weights
    constant += 2 * np.log(np.diag(model.r)).sum() if reml else 0.0
    start = np.concatenate([c.start() for c in model.covariances])
    phi = start + 0.2 * np.random.default_rng(4).normal(size=len(start))
    found = model.at(equations, phi, constant)
    assert found.value == pytest.approx(dense(y, full, terms, (A, np.eye(8)), model, phi, weights, reml), rel=1e-10)
    h = 1e-5
    moved = [
        (model.at(equations, phi + s).value - model.at(equations, phi - s).value) / (2 * h)
        for s in h * np.eye(len(phi))
    ]
    np.testing.assert_allclose(found.gradient, moved, atol=1e-7 * (1 + np.abs(moved).max()))


def test_without_a_relationship_it_is_the_ordinary_fit():
    y, X, terms, *_, weights = records()
    ours = EquationsModel(X, terms, [Structure(), Structure()], [None, None], weights=weights).fit(y)
    other = fit(y, X, terms, weights=weights)
    assert ours.converged
    assert ours.criterion == pytest.approx(other.criterion, abs=1e-6)
    np.testing.assert_allclose(ours.beta, other.beta, atol=1e-4)
    np.testing.assert_allclose(ours.cov_beta, other.cov_beta, rtol=1e-3)
    np.testing.assert_allclose(ours.fitted, other.fitted, atol=2e-3)
    for a, b in zip(ours.cond_var(), other.cond_var(), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)


def test_sparse_fixed_effects_are_those_of_dummies():
    y, X, terms, _, _, sparse, firm, _ = records()
    ours = EquationsModel(X, terms[1:], [Structure()], [None], [sparse]).fit(y)
    other = fit(y, np.column_stack([X, np.eye(12)[firm][:, 1:]]), terms[1:])
    assert ours.criterion == pytest.approx(other.criterion, abs=1e-6)
    np.testing.assert_allclose(ours.beta, other.beta[:2], atol=1e-4)
    np.testing.assert_allclose(ours.absorbed[0], other.beta[2:], atol=1e-4)
    np.testing.assert_allclose(np.sqrt(ours.absorbed_var()[0]), np.sqrt(np.diag(other.cov_beta))[2:], rtol=1e-3)
    wide = np.column_stack([X, firm == 3])
    again = EquationsModel(wide, terms[1:], [Structure()], [None], [sparse]).fit(y)
    assert np.isnan(again.beta[2])


def test_sparse_factor_against_dense_matrices():
    rng = np.random.default_rng(5)
    S = sp.random_array((30, 30), density=0.1, rng=rng)
    S = sp.csc_array(S @ S.T + sp.eye_array(30))
    factor = SparseFactor(S)
    assert factor.refactor(S) == pytest.approx(np.linalg.slogdet(S.toarray())[1])
    np.testing.assert_allclose(factor.solve(np.eye(30)), np.linalg.inv(S.toarray()), atol=1e-12)
    np.testing.assert_allclose(factor.inverse_diagonal(), np.diag(np.linalg.inv(S.toarray())), atol=1e-12)


def test_matrices_that_cannot_be_relationships():
    with pytest.raises(ModelError, match=r"smallest eigenvalue -1.*bend it"):
        from_covariance("ab", np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ModelError, match="not positive definite"):
        from_precision("ab", np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(DataError, match="not symmetric"):
        from_covariance("ab", np.array([[1.0, 0.5], [0.2, 1.0]]))
    with pytest.raises(DataError, match="square"):
        from_covariance("ab", np.ones((2, 3)))
    with pytest.raises(DataError, match="not finite"):
        from_precision("ab", np.array([[1.0, np.nan], [np.nan, 1.0]]))
    with pytest.raises(DataError, match="3 levels"):
        from_precision("abc", np.eye(2))
    with pytest.raises(DataError, match="a level twice"):
        from_precision("aa", np.eye(2))


def test_the_cheaper_of_two_orderings_is_taken(monkeypatch):
    side = np.arange(400).reshape(20, 20)
    edges = np.concatenate(
        [np.stack([side[1:], side[:-1]]).reshape(2, -1), np.stack([side[:, 1:], side[:, :-1]]).reshape(2, -1)], axis=1
    )
    graph = sp.coo_array((np.ones(edges.shape[1]), edges), shape=(400, 400))
    S = (graph + graph.T + 5.0 * sp.eye_array(400)).tocsr()
    rhs = np.random.default_rng(0).normal(size=(400, 2))
    plain, good = sparse_factor.fill_ordering, None
    for least, bad in ((np.inf, "metis"), (0.0, "metis"), (0.0, "amd")):
        monkeypatch.setattr(sparse_factor, "LARGE", least)
        monkeypatch.setattr(
            sparse_factor,
            "fill_ordering",
            lambda ptr, idx, how, bad=bad: np.arange(400) if how == bad else plain(ptr, idx, "amd"),
        )
        factor = SparseFactor(S)
        good = factor.perm if good is None else good
        np.testing.assert_array_equal(factor.perm, good)
        assert factor.refactor(S) == pytest.approx(np.linalg.slogdet(S.toarray())[1], abs=1e-10)
        np.testing.assert_allclose(S @ factor.solve(rhs), rhs, atol=1e-12)
        L = np.linalg.cholesky(S.toarray()[np.ix_(factor.perm, factor.perm)])
        lower = sp.tril(S).tocoo()
        ptr, idx, _ = lower_rows(400, lower.row.astype(np.int64), lower.col.astype(np.int64))
        assert multiplications(cheapest_ordering(ptr, idx)[1]) == np.square((L != 0).sum(axis=0)).sum()


def test_derivatives_where_a_diagonal_entry_is_the_lift_with_a_minus():
    y, X, terms, related, *_ = records()
    model = EquationsModel(X, terms[:1], [Structure()], [related])
    projected = model.project(y)
    equations = model.equations(projected.rest)
    for last in (-LIFT, 0.0, LIFT):
        place = model.at(equations, np.array([0.7, 0.1, last]))
        assert np.isfinite(place.hessian).all()


def test_the_time_of_an_evaluation_is_told(monkeypatch):
    y, X, terms, related, *_ = records()
    monkeypatch.setattr("fastlmm_core.core.structures.equations.LONG", 0.0)
    model = EquationsModel(X, terms[:1], [Structure()], [related])
    with pytest.warns(FastLMMWarning, match="evaluation of the criterion is predicted to take 0 seconds of one core"):
        model.equations(model.project(y).rest)
    assert [in_words(s) for s in (90.0, 235.1, 7300.0)] == ["90 seconds", "4 minutes", "2 hours"]
