"""Many candidate columns of X tested one at a time on one response, at variances fitted without them.

With P = V^-1 - V^-1X(X'V^-1X)^-1X'V^-1 at the null fit's theta, a column x has (Kang et al. 2010)

    beta = x'Py / x'Px,     se^2 = s^2 / x'Px,     s^2 = (y'Py - (x'Py)^2 / x'Px) / (n - rank - 1).              (1)

A candidate is treated as a response is: residualised on X and scaled to norm one, so that only its cross-products Z'Wx
and one solve with the null model's factor are needed, and nothing is refactored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.arguments import as_floats, refuse_masked
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import DataError

if TYPE_CHECKING:
    from fastlmm_core.core.criterion import Objective
    from fastlmm_core.core.model import Model

__all__ = ["Scan", "scan"]

Array = NDArray[np.float64]

CHUNK_NUMBERS = 1 << 21
"""Numbers in a chunk of candidates, at most, unless one has more."""

IN_SPAN = 1e-6
"""A candidate of which less than this share is left beside X is taken to be one of its combinations."""


@dataclass(frozen=True, eq=False)
class Scan:
    """Tests of m candidate columns.

    Attributes
    ----------
    beta, se, t, p : (m,)
        Effects, standard errors, t statistics and two-sided p-values; NaN for combinations of the columns of X.
    df : float
        n - rank - 1.
    theta : (n_theta,)
        At which the tests were made.
    """

    beta: Array
    se: Array
    t: Array
    p: Array
    df: float
    theta: Array

    def __len__(self) -> int:
        return len(self.beta)


def scan(model: Model, y: ArrayLike, columns: ArrayLike, *, theta: ArrayLike | None = None) -> Scan:
    """Test each of many columns as an addition to X.

    Parameters
    ----------
    model : Model
        Without the candidates.
    y : (n,)
        Response.
    columns : (m, n)
        Candidates, one a row.
    theta : (n_theta,), optional
        Where to test, as `CoreFit.theta`; the fit without candidates by default.

    Raises
    ------
    DataError
        Another number of rows, or values that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlmm_core.core import Model, Term
    >>> rng = np.random.default_rng(0)
    >>> codes, G = np.repeat(np.arange(20), 5), rng.normal(size=(1000, 100))
    >>> y = 2.0 * G[7] + rng.normal(size=20)[codes] + rng.normal(size=100)
    >>> found = scan(Model(np.ones((100, 1)), [Term(codes)]), y, G)
    >>> int(np.argmin(found.p))
    7
    """
    products = model.products
    refuse_masked(columns, "columns")
    candidates = np.asarray(columns)
    if candidates.dtype.kind not in "biuf":
        raise DataError(f"the candidates must hold real numbers, not {candidates.dtype}")
    if candidates.ndim != 2 or candidates.shape[1] != products.n:
        raise DataError(f"the candidates have shape {candidates.shape}, but each needs {products.n} values, a row each")
    at = model.fit(y).theta if theta is None else np.asarray(theta, dtype=np.float64)
    df = float(products.n - products.rank - 1)
    out = np.full((2, len(candidates)), np.nan)
    response = as_floats(y, "y") if products.offset is None else as_floats(y, "y") - products.offset
    with one_blas_thread(), model._workspaces.lent(products.complete(products.response(y))) as objective:
        test = _tester(model, objective, response, at, df)
        for rows in _chunks(len(candidates), products.n):
            block = np.ascontiguousarray(candidates[rows].T, dtype=np.float64)
            if not np.isfinite(block).all():
                bad = rows.start + int(np.argmax(~np.isfinite(block).all(axis=0)))
                raise DataError(f"candidate {bad} has values that are missing or infinite")
            out[:, rows] = test(block)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = out[0] / out[1]
    from scipy.special import stdtr

    return Scan(out[0], out[1], t, np.asarray(2.0 * stdtr(df, -np.abs(t))), df, at)


def _chunks(m: int, n: int) -> Iterator[slice]:
    size = max(1, CHUNK_NUMBERS // n)
    for start in range(0, m, size):
        yield slice(start, min(start + size, m))


def _tester(model: Model, objective: Objective, y: Array, theta: Array, df: float) -> Callable[[Array], Array]:
    """A function from candidates (n, k) to their effects and standard errors (2, k)."""
    products, evaluator, layout = model.products, objective.evaluator, objective.plan
    at = objective.to_conditioned(theta)
    null = products.responses(np.ascontiguousarray(y[:, None]))

    def solved(dense: tuple[Array, ...]) -> tuple[Array, Array, Array, Array]:
        lead, tail = layout.join(dense)
        b_lead, b_tail, _, _ = evaluator.solve(at, lead, tail)
        return lead, tail, b_lead, b_tail

    x_lead, x_tail, bx_lead, bx_tail = solved(tuple(products.dense))
    y_lead, y_tail, by_lead, by_tail = solved(null.dense)
    xvx = products.xtx - x_lead @ bx_lead.T - x_tail @ bx_tail.T
    xvy = null.xty[:, 0] - x_lead @ by_lead[0] - x_tail @ by_tail[0]
    along = np.linalg.solve(xvx, xvy)
    ypy = 1.0 - y_lead[0] @ by_lead[0] - y_tail[0] @ by_tail[0] - xvy @ along
    y_norm = float(null.norms[0])
    wy = y if products.weights is None else y * products.weights

    def test(block: Array) -> Array:
        coefficients, sizes, norms, dense, xty, _ = products.rows(block)
        inside = ~(norms > IN_SPAN * sizes)
        scale = np.where(inside, 1.0, norms)
        lead, tail, b_lead, b_tail = solved(tuple(dense))
        cvc = 1.0 - np.einsum("ki,ki->k", lead, b_lead) - np.einsum("ki,ki->k", tail, b_tail)
        cvx = xty.T - b_lead @ x_lead.T - b_tail @ x_tail.T
        cross = (block.T @ wy - coefficients.T @ null.coefficients[:, 0]) / (scale * y_norm)
        cvy = cross - b_lead @ y_lead[0] - b_tail @ y_tail[0]
        turned = np.linalg.solve(xvx, cvx.T)
        cpc = cvc - np.einsum("kp,pk->k", cvx, turned)
        cpy = cvy - cvx @ along
        with np.errstate(divide="ignore", invalid="ignore"):
            s2 = np.maximum(0.0, ypy - cpy**2 / cpc) / df
            found = np.array([cpy / cpc * (y_norm / scale), np.sqrt(s2 / cpc) * (y_norm / scale)])
        found[:, inside | ~(cpc > 0)] = np.nan
        return found

    return test
