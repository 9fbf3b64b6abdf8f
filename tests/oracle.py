"""The reference the fast code is held to: dense n x n algebra, every equation written out, nothing clever.

The model is `y = X beta + sum_k Z_k b_k + eps + offset` with `Var(y) = sigma^2 V` and

    V = W^-1 + sum_k Z_k (I x Sigma_k) Z_k',        Sigma_k = L_k L_k'                              (1)

so that element (i, j) of term k's part is `z_i' Sigma_k z_j` when rows i and j share a level and zero otherwise.
`theta` stacks the free entries of every `L_k` in order of terms: the lower triangle column by column ("us") or the
diagonal ("diag").

Everything is computed in extended precision (`numpy.longdouble`, 64 bits of mantissa on x86) with a hand-written
Cholesky factorisation, so a disagreement of 1e-10 with the compiled core is never the oracle's rounding. The same code
runs on complex numbers (all transposes are plain, never conjugated), which makes the complex step an exact derivative
in the self-tests, and in float64, where it is fast enough to minimise. Meant for n <= 300.

A model is any object with the attributes `y` (n,), `X` (n, p), `terms`, `weights` (n,) or None and `offset` (n,) or
None; a term is any object with `codes` (n,), `z` (n, l) or None, `cov` ("us" or "diag") and `n_levels` (int or None).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LONG = np.longdouble

__all__ = [
    "Evaluation",
    "ai_hessian",
    "beta",
    "complex_step",
    "cond_modes",
    "cond_var",
    "cov_beta",
    "criterion",
    "cross_moments",
    "evaluate",
    "exact_hessian",
    "fitted",
    "gradient",
    "independent_columns",
    "n_theta",
    "sigma",
    "theta_to_factors",
]


# ----------------------------------------------------------------------------------------------- parameters and columns


def term_z(term: Any) -> Array:
    """The (n, l) covariates of a term; a missing `z` is one column of ones."""
    if term.z is None:
        return np.ones((len(term.codes), 1))
    z = np.asarray(term.z)
    return z[:, None] if z.ndim == 1 else z


def term_levels(term: Any) -> int:
    """How many levels the term has, unobserved ones included."""
    return int(term.n_levels) if term.n_levels is not None else int(np.max(term.codes)) + 1


def entries(term: Any) -> list[tuple[int, int]]:
    """(row, column) in L of each of the term's theta entries, in order."""
    width = term_z(term).shape[1]
    if term.cov == "diag":
        return [(i, i) for i in range(width)]
    return [(i, j) for j in range(width) for i in range(j, width)]


def n_theta(terms: Any) -> int:
    """Length of theta."""
    return sum(len(entries(term)) for term in terms)


def theta_to_factors(terms: Any, theta: Array) -> list[Array]:
    """The lower-triangular (l, l) factors L_k of theta; keeps theta's dtype."""
    theta = np.asarray(theta)
    factors, start = [], 0
    for term in terms:
        width = term_z(term).shape[1]
        factor = np.zeros((width, width), dtype=theta.dtype)
        for i, j in entries(term):
            factor[i, j] = theta[start]
            start += 1
        factors.append(factor)
    if start != len(theta):
        raise ValueError(f"theta has {len(theta)} entries, the terms need {start}")
    return factors


def independent_columns(X: Array, tol: float = 1e-10) -> list[int]:
    """Columns of X that do not depend linearly on earlier ones, left to right (what stays in the model)."""
    X = np.asarray(X, dtype=float)
    kept: list[int] = []
    basis = np.zeros((X.shape[0], 0))
    for j in range(X.shape[1]):
        norm = np.linalg.norm(X[:, j])
        rest = X[:, j] / norm if norm > 0 else X[:, j]
        for _ in range(2):  # twice is enough for orthogonality to working precision
            rest = rest - basis @ (basis.T @ rest)
        if np.linalg.norm(rest) > tol:
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
            kept.append(j)
    return kept


# ------------------------------------------------------------------------------------------------------- linear algebra


def cholesky(A: Array) -> Array:
    """Lower C with `A = C C'` (plain transpose, so that complex symmetric A differentiates correctly), any dtype."""
    A = A.copy()
    C = np.zeros_like(A)
    for j in range(A.shape[0]):
        C[j:, j] = A[j:, j] / np.sqrt(A[j, j])
        A[j + 1 :, j + 1 :] -= np.outer(C[j + 1 :, j], C[j + 1 :, j])
    return C


def forward(C: Array, B: Array) -> Array:
    """`C^-1 B` for lower-triangular C."""
    out = np.zeros(B.shape, dtype=np.result_type(C, B))
    for i in range(C.shape[0]):
        out[i] = (B[i] - C[i, :i] @ out[:i]) / C[i, i]
    return out


def backward(C: Array, B: Array) -> Array:
    """`C^-T B` for lower-triangular C."""
    return forward(C.T[::-1, ::-1], B[::-1])[::-1]


# ----------------------------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Evaluation:
    """Dense quantities at one theta, shared by the functions below."""

    model: Any
    reml: bool
    L: list[Array]  # (l, l) per term
    kept: list[int]  # columns of X in the model
    n: int
    nu: int  # n (ML) or n - rank(X) (REML)
    Vinv: Array  # (n, n)
    P: Array  # (n, n): V^-1 - V^-1 X (X'V^-1X)^-1 X'V^-1
    Py: Array  # (n,): P (y - offset) = V^-1 (y - offset - X beta)
    r2: Any  # (y - offset)' P (y - offset)
    beta: Array  # (rank,) of the kept columns
    cov_unit: Array  # (rank, rank): (X'V^-1X)^-1 of the kept columns
    logdet_V: Any  # log|V| = log|M| - sum log w
    logdet_XVX: Any  # log|X'V^-1X| in the user's X, kept columns

    @property
    def Q(self) -> Array:
        """The matrix of the trace terms: V^-1 (ML) or P (REML)."""
        return self.P if self.reml else self.Vinv


def evaluate(model: Any, theta: Array, *, reml: bool = True, dtype: Any = LONG) -> Evaluation:
    """Everything at one theta. A complex theta promotes the arithmetic to complex."""
    y = np.asarray(model.y, dtype=dtype)
    y = y if model.offset is None else y - np.asarray(model.offset, dtype=dtype)
    n = len(y)
    theta = np.asarray(theta)
    theta = theta.astype(np.result_type(theta, dtype))
    L = theta_to_factors(model.terms, theta)

    # (1)
    V = np.zeros((n, n), dtype=theta.dtype)
    V[np.diag_indices(n)] = 1 if model.weights is None else 1 / np.asarray(model.weights, dtype=dtype)
    for term, factor in zip(model.terms, L, strict=True):
        zl = term_z(term).astype(dtype) @ factor
        V += same_level(term) * (zl @ zl.T)
    C = cholesky(V)
    Vinv_half = forward(C, np.eye(n, dtype=V.dtype))
    Vinv = Vinv_half.T @ Vinv_half
    logdet_V = 2 * np.log(np.diag(C)).sum()

    # X = (X R^-1) R with R from a float64 QR: only a preconditioner, its error does not enter because X R^-1 is formed
    # from the R at hand; log|X'V^-1X| = log|R^-T X'V^-1X R^-1| + 2 log|det R|.
    kept = independent_columns(model.X)
    X = np.asarray(model.X, dtype=dtype)[:, kept]
    R = np.linalg.qr(X.astype(float), mode="r").astype(dtype) if kept else np.zeros((0, 0), dtype=dtype)
    Xt = Vinv_half @ forward(R.T, X.T).T
    F = cholesky(Xt.T @ Xt)
    half = forward(F, Xt.T)  # half' half projects on the columns of V^-1/2 X
    proj = half @ Vinv_half
    P = Vinv - proj.T @ proj
    u = Vinv_half @ y
    for _ in range(2):  # the second pass removes what a large mean of y left behind
        u = u - half.T @ (half @ u)
    Py = Vinv_half.T @ u
    R_inv = backward(R.T, np.eye(len(kept), dtype=dtype))
    F_inv = forward(F, np.eye(len(kept), dtype=V.dtype))
    coef = R_inv @ (F_inv.T @ (proj @ y))
    cov_unit = R_inv @ F_inv.T @ F_inv @ R_inv.T
    logdet_XVX = 2 * np.log(np.diag(F)).sum() + 2 * np.log(np.abs(np.diag(R))).sum()
    nu = n - len(kept) if reml else n
    r2 = u @ u  # y'Py as a sum of squares
    return Evaluation(model, reml, L, kept, n, nu, Vinv, P, Py, r2, coef, cov_unit, logdet_V, logdet_XVX)


def same_level(term: Any) -> Array:
    """(n, n) indicator that two rows share a level of the term."""
    codes = np.asarray(term.codes)
    return codes[:, None] == codes[None, :]


# ------------------------------------------------------------------------------------------------- criterion, estimates


def profiled(ev: Evaluation) -> Any:
    """lme4's criterion:

    ML    log|V| + n (1 + log(2 pi r^2 / n))                                                          (2)
    REML  log|V| + log|X'V^-1X| + (n-p) (1 + log(2 pi r^2 / (n-p)))                                   (3)

    where `log|V| = log|M| - sum log w`, p is the rank of X, and X'V^-1X is in the user's own columns.
    """
    value = ev.logdet_V + ev.nu * (1 + np.log(2 * LONG(np.pi) * ev.r2 / ev.nu))
    return value + ev.logdet_XVX if ev.reml else value


def criterion(model: Any, theta: Array, *, reml: bool = True, dtype: Any = LONG) -> Any:
    """Equations (2) and (3) at theta."""
    return profiled(evaluate(model, theta, reml=reml, dtype=dtype))


def sigma(ev: Evaluation) -> Any:
    """`sqrt(r^2 / nu)`."""
    return np.sqrt(ev.r2 / ev.nu)


def beta(ev: Evaluation) -> Array:
    """(p,): `(X'V^-1X)^-1 X'V^-1 (y - offset)`, NaN where the column was dropped."""
    out = np.full(np.shape(ev.model.X)[1], np.nan, dtype=ev.beta.dtype)
    out[ev.kept] = ev.beta
    return out


def cov_beta(ev: Evaluation) -> Array:
    """(p, p): `sigma^2 (X'V^-1X)^-1`, NaN rows and columns where the column was dropped."""
    p = np.shape(ev.model.X)[1]
    out = np.full((p, p), np.nan, dtype=ev.cov_unit.dtype)
    out[np.ix_(ev.kept, ev.kept)] = sigma(ev) ** 2 * ev.cov_unit
    return out


def cond_modes(ev: Evaluation) -> list[Array]:
    """(q, l) per term: `b_k = (I x Sigma_k) Z_k' P y`; zero at an unobserved level."""
    modes = []
    for term, L in zip(ev.model.terms, ev.L, strict=True):
        t = np.zeros((term_levels(term), L.shape[0]), dtype=ev.Py.dtype)
        np.add.at(t, np.asarray(term.codes), term_z(term) * ev.Py[:, None])
        modes.append(t @ (L @ L.T))
    return modes


def cond_var(ev: Evaluation) -> list[Array]:
    """(q, l, l) per term: `Var(b_kj | y) = sigma^2 (Sigma - Sigma Z_j'V^-1Z_j Sigma)`, at known beta as in lme4.

    An unobserved level keeps its prior variance `sigma^2 Sigma`.
    """
    out = []
    for term, L in zip(ev.model.terms, ev.L, strict=True):
        Sigma = L @ L.T
        inner = Sigma @ level_blocks(term, ev.Vinv) @ Sigma
        out.append(sigma(ev) ** 2 * (Sigma - inner))
    return out


def fitted(ev: Evaluation) -> Array:
    """(n,): `X beta + Z b + offset`."""
    X = np.asarray(ev.model.X)[:, ev.kept]
    out = X @ ev.beta
    for term, b in zip(ev.model.terms, cond_modes(ev), strict=True):
        out = out + (term_z(term) * b[np.asarray(term.codes)]).sum(axis=1)
    return out if ev.model.offset is None else out + np.asarray(ev.model.offset)


def level_blocks(term: Any, A: Array) -> Array:
    """(q, l, l): the diagonal blocks `[Z_k' A Z_k]_jj`, one per level; zero at an unobserved level."""
    codes, z = np.asarray(term.codes), term_z(term)
    blocks = np.zeros((term_levels(term), z.shape[1], z.shape[1]), dtype=A.dtype)
    for j in range(len(blocks)):
        rows = np.flatnonzero(codes == j)
        blocks[j] = z[rows].T @ A[np.ix_(rows, rows)] @ z[rows]
    return blocks


# ---------------------------------------------------------------------------------------------------------- derivatives


def derivatives_V(ev: Evaluation) -> list[Array]:
    """(n, n) per theta entry: `V_a = Z_k (I x (E_a L_k' + L_k E_a')) Z_k'`, with `E_a = dL_k / dtheta_a`."""
    out = []
    for term, L in zip(ev.model.terms, ev.L, strict=True):
        z, same = term_z(term).astype(L.dtype), same_level(term)
        for i, j in entries(term):
            column = np.outer(z[:, i], z @ L[:, j])
            out.append(same * (column + column.T))
    return out


def cross_moments(ev: Evaluation) -> list[Array]:
    """(l, l) per term: `G_k = d(criterion)/dSigma_k = sum_j ([Z_k'QZ_k]_jj - nu/r^2 t_j t_j')`, `t = Z_k'P y`."""
    out = []
    for term in ev.model.terms:
        z = term_z(term)
        t = np.zeros((term_levels(term), z.shape[1]), dtype=ev.Py.dtype)
        np.add.at(t, np.asarray(term.codes), z * ev.Py[:, None])
        out.append(level_blocks(term, ev.Q).sum(axis=0) - ev.nu / ev.r2 * (t.T @ t))
    return out


def gradient(ev: Evaluation) -> Array:
    """(n_theta,): `tr(Q V_a) - nu (Py)'V_a(Py) / r^2`."""
    return np.array([(ev.Q * Va).sum() - ev.nu * (ev.Py @ Va @ ev.Py) / ev.r2 for Va in derivatives_V(ev)])


def curvature_of_square(ev: Evaluation) -> Array:
    """(n_theta, n_theta): `2 (G_k)_{ia ib}` for two entries of one term in one column of L, zero otherwise.

    It is `tr(Q V_ab) - nu (Py)'V_ab(Py)/r^2`: there `d^2 Sigma_k / dtheta_a dtheta_b = e_ia e_ib' + e_ib e_ia'`.
    """
    out = np.zeros((n_theta(ev.model.terms),) * 2, dtype=ev.Py.dtype)
    start = 0
    for term, G in zip(ev.model.terms, cross_moments(ev), strict=True):
        places = entries(term)
        for a, (ia, ja) in enumerate(places):
            for b, (ib, jb) in enumerate(places):
                if ja == jb:
                    out[start + a, start + b] = 2 * G[ia, ib]
        start += len(places)
    return out


def ai_hessian(ev: Evaluation) -> Array:
    """(n_theta, n_theta): `nu (f_a'P f_b / r^2 - (f_a'Py)(f_b'Py) / r^4) + 2 (G_k)_{ia ib}`, with `f_a = V_a P y`."""
    F = np.column_stack([Va @ ev.Py for Va in derivatives_V(ev)])
    s = F.T @ ev.Py / ev.r2
    return ev.nu * (F.T @ ev.P @ F / ev.r2 - np.outer(s, s)) + curvature_of_square(ev)


def exact_hessian(ev: Evaluation) -> Array:
    """(n_theta, n_theta): the criterion's second derivatives,

    `-tr(Q V_a Q V_b) + 2 nu f_a'P f_b / r^2 - nu (f_a'Py)(f_b'Py) / r^4 + tr(Q V_ab) - nu (Py)'V_ab(Py) / r^2`.
    """
    dV = derivatives_V(ev)
    F = np.column_stack([Va @ ev.Py for Va in dV])
    s = F.T @ ev.Py / ev.r2
    QV = [ev.Q @ Va for Va in dV]
    traces = np.array([[(A * B.T).sum() for B in QV] for A in QV])
    return -traces + 2 * ev.nu * F.T @ ev.P @ F / ev.r2 - ev.nu * np.outer(s, s) + curvature_of_square(ev)


def complex_step(function: Any, theta: Array, h: float = 1e-40) -> Array:
    """Derivative of `function(theta)` in every entry of theta, free of cancellation: `Im f(theta + i h e_a) / h`."""
    columns = []
    for a in range(len(theta)):
        at = np.asarray(theta, dtype=np.clongdouble)
        at[a] += 1j * LONG(h)
        columns.append(np.imag(function(at)) / LONG(h))
    return np.array(columns)
