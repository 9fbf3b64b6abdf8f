"""Degrees of freedom from dense n x n algebra, beside `oracle`: the papers' formulas, written out.

Satterthwaite (Giesbrecht & Burns 1985; Fai & Cornelius 1996), as lmerTest has it: with phi = (theta, sigma) and the
deviance d(phi) = log|V| (+ log|X'V^-1X|) + 2 nu log sigma + r^2 / sigma^2,

    df = 2 (l'C l)^2 / (g'A g),   C = sigma^2 (X'V^-1X)^-1,   g = d(l'C l)/d phi,   A = 2 (d''(phi))^-1             (1)

Kenward & Roger (1997), with V* = sigma^2 V = sum_i s_i G_i, the s_i being the entries of every sigma^2 Sigma_k and
sigma^2 itself (G = W^-1), so that second derivatives of V* vanish:

    P_i = -X'V*^-1 G_i V*^-1 X       Q_ij = X'V*^-1 G_i V*^-1 G_j V*^-1 X                                         (2)
    2 W^-1 = tr(V*^-1 G_i V*^-1 G_j) - tr(2 Phi Q_ij) + tr(Phi P_i Phi P_j)                                       (3)
    Phi_A = Phi + 2 Phi { sum_ij W_ij (Q_ij - P_i Phi P_j) } Phi                                                  (4)

and the F approximation of their section 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import oracle

Array = NDArray[Any]

__all__ = ["kenward_roger", "kenward_roger_f", "satterthwaite", "satterthwaite_f"]


def _fixed(ev: oracle.Evaluation) -> Array:
    return np.asarray(ev.model.X, dtype=np.longdouble)[:, ev.kept]


def satterthwaite_pieces(ev: oracle.Evaluation) -> tuple[Array, Array, Array]:
    """C (p, p), its derivatives (k + 1, p, p) in (theta, sigma), and A (k + 1, k + 1), in float64."""
    X, sigma = _fixed(ev), oracle.sigma(ev)
    derivatives = oracle.derivatives_V(ev)
    k = len(derivatives)
    VX = ev.Vinv @ X
    C = sigma**2 * ev.cov_unit
    slopes = [sigma**2 * ev.cov_unit @ (VX.T @ Va @ VX) @ ev.cov_unit for Va in derivatives] + [2 * C / sigma]

    F = np.column_stack([Va @ ev.Py for Va in derivatives])  # f_a = V_a P y
    QV = [ev.Q @ Va for Va in derivatives]
    traces = np.array([[(A * B.T).sum() for B in QV] for A in QV])
    d2 = np.zeros((k + 1, k + 1), dtype=np.longdouble)
    # tr(Q V_ab) - (Py)'V_ab(Py) / sigma^2 is the curvature term, because nu / r^2 = 1 / sigma^2
    d2[:k, :k] = -traces + 2 * F.T @ ev.P @ F / sigma**2 + oracle.curvature_of_square(ev)
    d2[:k, k] = d2[k, :k] = 2 * (F.T @ ev.Py) / sigma**3
    d2[k, k] = -2 * ev.nu / sigma**2 + 6 * ev.r2 / sigma**4
    A = 2 * np.linalg.inv(np.asarray(d2, dtype=float))
    return np.asarray(C, float), np.asarray(slopes, float), A


def satterthwaite(ev: oracle.Evaluation, rows: Array) -> Array:
    """Equation (1) for each row l of (k, p)."""
    C, slopes, A = satterthwaite_pieces(ev)
    out = []
    for row in rows:
        g = np.array([row @ slope @ row for slope in slopes])
        out.append(2 * (row @ C @ row) ** 2 / (g @ A @ g))
    return np.array(out)


def satterthwaite_f(ev: oracle.Evaluation, rows: Array) -> tuple[float, float]:
    """F statistic of rows beta = 0 and its denominator: eigenvectors of L C L' make independent t statistics."""
    C, _, _ = satterthwaite_pieces(ev)
    d, P = np.linalg.eigh(rows @ C @ rows.T)
    turned = P.T @ rows
    beta = np.asarray(ev.beta, float)
    F = np.mean((turned @ beta) ** 2 / d)
    nu = satterthwaite(ev, turned)
    E = np.sum(nu / (nu - 2))
    return float(F), float(2 * E / (E - len(d))) if (nu > 2).all() else 2.0


def kenward_roger(ev: oracle.Evaluation) -> tuple[Array, Array, Array, Array]:
    """Phi, Phi_A (p, p), P (k + 1, p, p) and W (k + 1, k + 1)."""
    sigma2 = oracle.sigma(ev) ** 2
    n = ev.n
    G = []
    for term in ev.model.terms:
        z, same = oracle.term_z(term), oracle.same_level(term)
        for i, j in oracle.entries(term):
            outer = np.outer(z[:, i], z[:, j])
            G.append(same * (outer + outer.T if i != j else outer))
    G.append(np.diag(np.ones(n) if ev.model.weights is None else 1 / np.asarray(ev.model.weights)))
    Vinv, X, Phi = (np.asarray(a, float) for a in (ev.Vinv / sigma2, _fixed(ev), sigma2 * ev.cov_unit))
    VX = Vinv @ X
    VG = [Vinv @ g for g in G]
    k = len(G)
    P = [-VX.T @ g @ VX for g in G]
    Q = [[VX.T @ G[i] @ Vinv @ G[j] @ VX for j in range(k)] for i in range(k)]
    info = np.array(
        [
            [
                (VG[i] * VG[j].T).sum() - 2 * np.trace(Phi @ Q[i][j]) + np.trace(Phi @ P[i] @ Phi @ P[j])
                for j in range(k)
            ]
            for i in range(k)
        ]
    )
    scale = np.sqrt(np.diag(info))
    # entries that the design cannot tell apart share what is known of their sum
    W = 2 * np.linalg.pinv(info / np.outer(scale, scale), 1e-9, True) / np.outer(scale, scale)
    U = sum(W[i, j] * (Q[i][j] - P[i] @ Phi @ P[j]) for i in range(k) for j in range(k))
    return Phi, Phi + 2 * Phi @ U @ Phi, np.array(P), W


def kenward_roger_f(ev: oracle.Evaluation, rows: Array) -> tuple[float, float, float]:
    """F statistic of rows beta = 0 (unscaled), its denominator m and its scale lambda."""
    Phi, Phi_A, P, W = kenward_roger(ev)
    l, k = len(rows), len(P)
    Theta = rows.T @ np.linalg.inv(rows @ Phi @ rows.T) @ rows
    M = [Theta @ Phi @ p @ Phi for p in P]
    A1 = sum(W[i, j] * np.trace(M[i]) * np.trace(M[j]) for i in range(k) for j in range(k))
    A2 = sum(W[i, j] * np.trace(M[i] @ M[j]) for i in range(k) for j in range(k))
    B = (A1 + 6 * A2) / (2 * l)
    g = ((l + 1) * A1 - (l + 4) * A2) / ((l + 2) * A2)
    c = np.array([g, l - g, l + 2 - g]) / (3 * l + 2 * (1 - g))
    E = 1 / (1 - A2 / l)
    V = 2 / l * (1 + c[0] * B) / ((1 - c[1] * B) ** 2 * (1 - c[2] * B))
    rho = V / (2 * E**2)
    m = 4 + (l + 2) / (l * rho - 1)
    value = rows @ np.asarray(ev.beta, float)
    F = value @ np.linalg.solve(rows @ Phi_A @ rows.T, value) / l
    return float(F), float(m), float(m / (E * (m - 2)))
