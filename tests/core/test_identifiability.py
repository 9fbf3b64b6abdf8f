"""What the criterion cannot see, against the definition in dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fastlmm_core._native.rows.crossprod import level_ranks
from fastlmm_core.core import Control, Model, Term
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.identifiability import identify, seems_identified
from fastlmm_core.core.parameter_gram import gram_of_parameters

Array = NDArray[np.float64]


def z_of(term: Term) -> Array:
    return np.ones((len(term.codes), 1)) if term.z is None else term.z


def contributions(terms: list[Term]) -> list[tuple[int, int, int, Array]]:
    """(term, row, column, Z (I x E) Z') for each element of the symmetric matrices."""
    out = []
    for k, term in enumerate(terms):
        z, same = z_of(term), term.codes[:, None] == term.codes
        for i, j in term.index():
            part = np.outer(z[:, i], z[:, j]) * same
            out.append((k, i, j, part if i == j else part + part.T))
    return out


def dense_null(X: Array, terms: list[Term], reml: bool) -> tuple[Array, list[Array], Array]:
    """Null directions of D -> M V M with the residual first, the contributions, and M."""
    n = len(X)
    q, size, _ = np.linalg.svd(X, full_matrices=False)
    q = q[:, size > 1e-9 * size[0]]
    M = np.eye(n) - q @ q.T if reml else np.eye(n)
    parts = [np.eye(n), *(part for *_, part in contributions(terms))]
    scale = [float(np.linalg.norm(part)) or 1.0 for part in parts]
    columns = np.column_stack([(M @ part @ M).ravel() / s for part, s in zip(parts, scale, strict=True)])
    _, sizes, right = np.linalg.svd(columns, full_matrices=False)
    return right[sizes < 1e-8].T / np.array(scale)[:, None], parts, M


def random_design(rng: np.random.Generator) -> tuple[Array, list[Term]]:
    """A small design of nested and crossed factors, in which much is aliased."""
    n = int(rng.integers(14, 30))
    a = rng.integers(0, int(rng.integers(2, 5)), n)
    b = a * 2 + rng.integers(0, 2, n)  # nested in a
    c = rng.integers(0, int(rng.integers(2, 6)), n)
    x = rng.normal(size=n)
    t = (a % 2).astype(float)
    ones = np.ones(n)
    factors = {"a": a, "b": b, "c": c, "relabelled": a.max() - a}
    fixed = {
        "1": ones[:, None],
        "x": np.column_stack([ones, x]),
        "a": np.column_stack([ones, np.eye(a.max() + 1)[a][:, 1:]]),
        "a*x": np.column_stack([np.eye(a.max() + 1)[a], np.eye(a.max() + 1)[a] * x[:, None]]),
        "t": np.column_stack([ones, t]),
        "c": np.column_stack([np.eye(c.max() + 1)[c], x]),
    }
    columns = {
        "1": None,
        "x": np.column_stack([ones, x]),
        "0+x": x[:, None],
        "t": np.column_stack([ones, t]),
        "twice": np.column_stack([x, 2.0 * x]),
        "empty": np.column_stack([ones, 0.0 * x]),
    }
    terms = []
    for _ in range(int(rng.integers(1, 3))):
        codes = np.unique(factors[str(rng.choice(list(factors)))], return_inverse=True)[1]
        z = columns[str(rng.choice(list(columns), p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]))]
        cov = "diag" if rng.random() < 0.2 else "us"
        terms.append(Term(codes.astype(np.int32), z, cov=cov))
    return fixed[str(rng.choice(list(fixed)))], terms


@pytest.mark.parametrize("reml", [True, False])
def test_found_exactly_where_the_dense_map_has_a_null_space(reml: bool) -> None:
    rng, found_some = np.random.default_rng(11), 0
    for _ in range(150):
        X, terms = random_design(rng)
        if len(X) <= np.linalg.matrix_rank(X):
            continue
        products = DesignProducts(X, terms)
        found = identify(products, reml)
        null, parts, M = dense_null(X, terms, reml)
        assert (found is not None) == (null.shape[1] > 0), (X.shape, terms, found)
        if seems_identified(products, reml):
            assert null.shape[1] == 0
        if found is None:
            continue
        found_some += 1
        # the coefficients whose estimate or variance moves along a null direction are touched, and no others
        half = np.linalg.pinv(X[:, products.keep])
        for row in np.eye(products.rank) @ half:
            moves = covaries = 0.0
            for direction in null.T:
                delta = sum(v * part for v, part in zip(direction, parts, strict=True))
                size = sum(abs(v) * np.linalg.norm(part, 2) for v, part in zip(direction, parts, strict=True))
                effect = row @ delta / (max(size, 1e-6) * np.linalg.norm(row))  # a column of zeros has none
                moves = max(moves, np.linalg.norm(effect @ M), abs(effect @ row) / np.linalg.norm(row))
                covaries = max(covaries, np.linalg.norm(effect))
            told = not found.determined((row @ X[:, products.keep] @ products.inverse)[None])[0]
            assert told or not (reml and moves > 1e-6)
            assert not told or covaries > 1e-8
    assert found_some > 20


@pytest.mark.parametrize("reml", [True, False])
def test_holding_costs_nothing(reml: bool) -> None:
    """A fit with parameters held reaches the best criterion of any theta, and says so in fewer evaluations."""
    rng = np.random.default_rng(5)
    checked = 0
    for _ in range(60):
        X, terms = random_design(rng)
        y = X @ rng.normal(size=X.shape[1]) + rng.normal(size=len(X))
        for term in terms:
            y = y + (z_of(term) * rng.normal(size=(term.n_levels, term.n_columns))[term.codes]).sum(axis=1)
        model = Model(X, terms, reml=reml, control=Control(max_evaluations=500))
        if model.products.unidentified is None:
            continue
        fit = model.fit(y)
        objective = model.objective(y)
        assert fit.converged
        assert np.isfinite(fit.theta).all()
        assert np.abs(fit.theta).max() < 1e4
        for _ in range(20):
            theta = rng.normal(size=len(fit.theta)) * 10.0 ** rng.uniform(-1, 1)
            assert objective(theta) >= fit.criterion - 1e-6 * max(1.0, abs(fit.criterion))
        held = np.flatnonzero(model.products.unidentified.held)
        assert (fit.theta[held] == 0.0).all()
        checked += 1
    assert checked > 10


def test_gram_of_parameters_is_the_trace_of_products() -> None:
    rng = np.random.default_rng(2)
    n = 60
    x, w = rng.normal(size=n), rng.uniform(0.5, 2.0, n)
    X = np.column_stack([np.ones(n), x, rng.normal(size=n)])
    terms = [
        Term(rng.integers(0, 9, n), np.column_stack([np.ones(n), x])),
        Term(rng.integers(0, 7, n)),
        Term(rng.integers(0, 5, n), np.column_stack([x, x**2]), cov="diag"),
    ]
    products = DesignProducts(X, terms, weights=w)
    index = [(int(g), int(i), int(j)) for g, i, j in products.theta_map.index]
    root = np.sqrt(products.weights)[:, None]
    q = np.linalg.qr(root * X)[0]
    for reml in (True, False):
        M = np.eye(n) - q @ q.T if reml else np.eye(n)
        V = [np.eye(n)]
        for g, i, j in index:
            z = products.columns[g] if products.columns[g] is not None else np.ones((n, 1))
            z, same = root * z, products.codes[g][:, None] == products.codes[g]
            part = np.outer(z[:, i], z[:, j]) * same
            V.append(part if i == j else part + part.T)
        want = np.array([[np.trace(M @ a @ M @ b) for a in V] for b in V])
        got, _ = gram_of_parameters(products, index, reml)
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10 * np.abs(want).max())


def test_level_ranks() -> None:
    rng = np.random.default_rng(0)
    blocks = []
    for rank in (3, 2, 1, 0, 3):
        root = rng.normal(size=(rank, 3))
        blocks.append(root.T @ root)
    assert level_ranks(np.array(blocks), 1e-10) == (4, 3)


def test_sound_models_are_passed_by_counting() -> None:
    """The usual designs are known to be sound from the numbers of levels alone."""
    rng = np.random.default_rng(3)
    n = 400
    x = np.tile(np.arange(10.0), 40)
    X = np.column_stack([np.ones(n), x])
    g = np.repeat(np.arange(40), 10)
    for terms in ([Term(g)], [Term(g, X)], [Term(g), Term(np.repeat(np.arange(8), 50))], [Term(g), Term(g, x)]):
        products = DesignProducts(X, terms)
        assert seems_identified(products, True) or (len(terms) == 2 and identify(products, True) is None)
        assert identify(products, True) is None
    assert seems_identified(DesignProducts(X, [Term(g, X)]), True)
    assert not seems_identified(DesignProducts(np.eye(40)[g], [Term(g)]), True)
    assert rng is not None


def test_refits_and_many_fits_hold_too() -> None:
    rng = np.random.default_rng(8)
    g = np.repeat(np.arange(6), 12)
    X = np.column_stack([np.eye(6)[g], np.tile(np.arange(12.0), 6)])
    model = Model(X, [Term(g), Term(np.tile(np.arange(12), 6))])
    Y = rng.normal(size=(5, 72)) + rng.normal(size=12)[np.tile(np.arange(12), 6)]
    many = model.fit_many(Y)
    assert many.converged.all()
    assert (many.theta[:, 0] == 0).all()
    assert np.isnan(many.se[:, :6]).all()
    assert np.isfinite(many.se[:, 6]).all()
    for y, theta in zip(Y, many.theta, strict=True):
        fit = model.fit(y, start=[3.0, 1.0])
        np.testing.assert_allclose(fit.theta, theta, atol=1e-4)
        assert not fit.is_singular or fit.theta[1] < 1e-4
