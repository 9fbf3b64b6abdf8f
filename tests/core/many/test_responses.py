"""Many responses with weights, offsets and missing values of their own, and scans of candidate columns."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core import DataError
from fastlmm_core.core import Model, Term, fit, fit_responses, fit_responses_by_blocks, scan

RNG = np.random.default_rng(0)
N, Q, K = 120, 20, 14
CODES = np.repeat(np.arange(Q), N // Q)
OTHER = RNG.integers(0, 5, N)
X = np.column_stack([np.ones(N), RNG.normal(size=N), np.arange(N) % 2])
Y = RNG.normal(size=(K, Q))[:, CODES] + RNG.normal(size=(K, N)) + X[:, 1]
TERMS = [Term(CODES), Term(OTHER)]


def alone(y: np.ndarray, **arguments: np.ndarray) -> object:
    """One response fitted on the rows that it has."""
    here = np.flatnonzero(np.isfinite(y))
    terms = [Term(np.unique(t.codes[here], return_inverse=True)[1]) for t in TERMS]
    return fit(y[here], X[here], terms, **{name: value[here] for name, value in arguments.items()})


def test_each_response_is_fitted_on_its_rows() -> None:
    missing = Y.copy()
    missing[::3, 5:9] = np.nan
    missing[1, :6] = np.nan  # a whole level
    found = fit_responses(missing, X, TERMS)
    for k, y in enumerate(missing):
        one = alone(y)
        np.testing.assert_allclose(found.beta[k], one.beta, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.se[k], np.sqrt(np.diag(one.cov_beta)), rtol=1e-4)
        assert found.n[k] == np.isfinite(y).sum()
    np.testing.assert_array_equal(found.estimate, found.beta)
    assert (found.message == "").all()


@pytest.mark.parametrize("shape", ["shared", "own"])
def test_weights_and_offsets(shape: str) -> None:
    weights, offset = RNG.uniform(0.5, 2.0, (K, N)), RNG.normal(size=(K, N))
    if shape == "shared":
        weights, offset = weights[0], offset[0]
    found = fit_responses(Y, X, TERMS, weights=weights, offset=offset)
    for k, y in enumerate(Y):
        w, o = (weights, offset) if shape == "shared" else (weights[k], offset[k])
        one = alone(y, weights=w, offset=o)
        np.testing.assert_allclose(found.beta[k], one.beta, rtol=1e-4, atol=1e-5)
        assert found.sigma[k] == pytest.approx(one.sigma, rel=1e-4)


def test_contrasts_and_their_degrees_of_freedom() -> None:
    rows = np.array([[0.0, 1.0, -1.0], [1.0, 0.0, 0.5]])
    found = fit_responses(Y, X, TERMS, contrasts=rows)
    many = Model(X, TERMS).fit_many(Y, information=True)
    assert many.information is not None
    variance, df = many.information.df(rows)
    np.testing.assert_allclose(found.estimate, many.beta @ rows.T)
    np.testing.assert_allclose(found.std_error, np.sqrt(variance))
    np.testing.assert_allclose(found.df, df)
    assert ((found.p > 0) & (found.p <= 1)).all()
    assert found.to_frame().shape == (K, 2 + 3 + 3 + 3 + 2 + 5 * 2 + 1)


def test_responses_that_cannot_be_fitted_say_why() -> None:
    hard = Y.copy()
    hard[2] = 1.0
    hard[3, 2:] = np.nan
    hard[4] = X @ [1.0, 2.0, 3.0]
    hard[5, X[:, 2] == 1.0] = np.nan  # the third column is constant there
    found = fit_responses(hard, X, TERMS)
    assert found.message[2] == "the response is constant"
    assert found.message[3]
    assert "nothing is left to fit" in found.message[4]
    assert np.isnan(found.beta[2:5]).all()
    assert np.isnan(found.t[5, 2])
    assert np.isfinite(found.t[5, 1])
    np.testing.assert_allclose(found.beta[6], fit_responses(Y[6:7], X, TERMS).beta[0], rtol=1e-5)


def test_blocks_and_progress() -> None:
    done: list[int] = []
    whole = fit_responses(Y, X, TERMS, progress=done.append)
    assert sum(done) == K
    blocks = list(fit_responses_by_blocks((Y[:6], Y[6:]), X, TERMS))
    np.testing.assert_allclose(np.vstack([b.beta for b in blocks]), whole.beta, rtol=1e-4, atol=1e-6)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="weights has shape"):
        fit_responses(Y, X, TERMS, weights=np.ones(3))
    with pytest.raises(DataError, match="contrasts have 2 columns"):
        fit_responses(Y, X, TERMS, contrasts=[[1.0, 0.0]])
    with pytest.raises(DataError, match="infinite"):
        fit_responses(np.where(Y[0, 0] == Y, np.inf, Y), X, TERMS)


@pytest.mark.parametrize("weighted", [False, True])
def test_scan_is_a_fit_with_the_column_added(weighted: bool) -> None:
    weights = RNG.uniform(0.5, 2.0, N) if weighted else None
    offset = RNG.normal(size=N) if weighted else None
    terms = [Term(CODES, np.column_stack([np.ones(N), X[:, 1]])), Term(OTHER)]
    candidates = RNG.integers(0, 3, (9, N)).astype(float)
    candidates[4], candidates[5] = 2.0, X[:, 1] - 3.0
    model = Model(X, terms, weights=weights, offset=offset)
    found = scan(model, Y[0], candidates)
    assert np.isnan(found.p[4:6]).all()
    for j in (0, 3, 8):
        one = Model(np.column_stack([X, candidates[j]]), terms, weights=weights, offset=offset).at(Y[0], found.theta)
        assert found.beta[j] == pytest.approx(one.beta[-1], rel=1e-9)
        assert found.se[j] == pytest.approx(np.sqrt(one.cov_beta[-1, -1]), rel=1e-9)
    assert found.df == N - 3 - 1
    with pytest.raises(DataError, match="candidate 1 has"):
        scan(model, Y[0], np.where(np.arange(9)[:, None] == 1, np.nan, candidates))
    with pytest.raises(DataError, match="each needs 120"):
        scan(model, Y[0], candidates[:, 1:])


@pytest.mark.parametrize("seed", range(4))
def test_responses_that_the_model_all_but_reproduces(seed: int) -> None:
    """Fitted with more digits, or NaN; in either case with a message, and without harm to the others."""
    rng = np.random.default_rng(seed)
    weights, near = rng.uniform(0.5, 2.0, (K, N)), Y.copy()
    near[2] = X @ [1.0, 2.0, 3.0] + rng.normal(size=Q)[CODES] + 1e-9 * rng.normal(size=N)
    for w in (weights, weights[0]):
        found = fit_responses(near, X, TERMS, weights=w)
        assert np.isnan(found.beta[2, 1]) or found.beta[2, 1] == pytest.approx(2.0, abs=1e-6)
        assert found.message[2]
        assert (found.message[3:] == "").all()


def test_rows_that_some_responses_do_not_have() -> None:
    """Masked values, weights of zero and missing weights are rows left out; a response without a row is NaN."""
    gone = np.arange(N) % 7 == 3
    missing = np.where(gone, np.nan, Y)
    want = fit_responses(missing, X, TERMS)
    masked = fit_responses(np.ma.MaskedArray(Y, np.broadcast_to(gone, Y.shape)), X, TERMS)
    np.testing.assert_array_equal(masked.beta, want.beta)
    for nothing in (0.0, np.nan):
        for weights in (np.where(gone, nothing, 1.0), np.where(gone, nothing, np.ones(Y.shape))):
            found = fit_responses(Y, X, TERMS, weights=weights)
            np.testing.assert_allclose(found.beta, want.beta, rtol=1e-6)
            np.testing.assert_array_equal(found.n, want.n)
    found = fit_responses(np.vstack([np.full(N, np.nan), np.ones(N), Y]), X, TERMS)
    np.testing.assert_allclose(found.beta[2:], fit_responses(Y, X, TERMS).beta, rtol=1e-9)
    assert np.isnan(found.df[:2]).all()
    assert found.message[:2].tolist() == ["the response has no value", "the response is constant"]
    assert len(fit_responses(Y[:0], X, TERMS)) == 0
    with pytest.raises(DataError, match="weights are negative"):
        fit_responses(Y, X, TERMS, weights=-np.ones(N))
    with pytest.raises(DataError, match="real numbers, not complex128"):
        fit_responses(Y + 0j, X, TERMS)
    with pytest.raises(DataError, match="masked"):
        scan(Model(X, TERMS), Y[0], np.ma.MaskedArray(Y, Y > 1))
    with pytest.raises(DataError, match="real numbers, not complex128"):
        scan(Model(X, TERMS), Y[0], Y + 0j)
