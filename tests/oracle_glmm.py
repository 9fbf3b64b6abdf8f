"""The marginal deviance of a generalised linear mixed model in plain dense NumPy: Laplace and adaptive quadrature.

    h(u) = |u|^2 - 2 sum f l(X beta + A u + offset),   A = Z Lambda,   u~ its minimiser,   M = A'WA + I
    d    = h(u~) + log|M|                                   Laplace (observed W, or expected)
    d    = sum_i log|M_i| - 2 log sum_k omega_k exp(-h_i(u_k) / 2 + |z_k|^2 / 2),     u_k = u~_i + C_i^-T z_k

Log densities are SciPy's, written as functions of the mean. Weights come from the package's rows, whose derivatives
have a test of their own against differences of these densities.
"""

from __future__ import annotations

import numpy as np
from scipy import stats
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, gammaln, ndtr, xlog1py, xlogy

TIGHT = 1e-22


TRUNCATED = {
    "truncated_poisson": "poisson",
    "truncated_nbinom2": "negativebinomial",
    "truncated_nbinom1": "negativebinomial1",
}


def inverse_link(name, eta):
    """The mean."""
    return {
        "logit": expit,
        "probit": ndtr,
        "cloglog": lambda e: -np.expm1(-np.exp(e)),
        "cauchit": lambda e: 0.5 + np.arctan(e) / np.pi,
        "log": np.exp,
        "identity": lambda e: e,
        "inverse": lambda e: 1.0 / e,
        "sqrt": lambda e: e * e,
    }[name](eta)


def log_density(name, y, mu, m, rho):
    """Log density of each row, all constants included; ``m`` as in `fastlmm_core.families`."""
    phi = np.exp(rho)
    if name in TRUNCATED:
        whole = TRUNCATED[name]
        seen = -np.expm1(log_density(whole, 0.0 * y, mu, 1.0, rho))
        return log_density(whole, y, mu, m, rho) - m * np.log(seen)
    if name == "binomial":
        choose = gammaln(m + 1) - gammaln(y + 1) - gammaln(m - y + 1)
        return choose + xlogy(y, mu) + xlog1py(m - y, -mu)
    if name == "poisson":
        return m * stats.poisson.logpmf(y, mu)
    if name == "negativebinomial":
        return m * stats.nbinom.logpmf(y, phi, phi / (phi + mu))
    if name == "negativebinomial1":
        return m * stats.nbinom.logpmf(y, mu / phi, 1 / (1 + phi))
    if name == "gamma":
        return stats.gamma.logpdf(y, m / phi, scale=mu * phi / m)
    if name == "inverse_gaussian":
        return 0.5 * (np.log(m / (2 * np.pi * phi * y**3)) - m * (y - mu) ** 2 / (phi * mu**2 * y))
    if name == "gaussian":
        return stats.norm.logpdf(y, mu, np.sqrt(phi / m))
    if name == "beta":
        return m * stats.beta.logpdf(y, mu * phi, (1 - mu) * phi)
    raise ValueError(name)


def row_density(family, y, eta, m, rho):
    """Log density of each row at its linear predictor, families with several parameters included."""
    name, link = family.name, family.link.name
    if name == "ordinal":
        bounds = np.concatenate([[-np.inf], rho, [np.inf]])
        k = y.astype(int)
        with np.errstate(over="ignore"):
            return m * np.log(inverse_link(link, bounds[k + 1] - eta) - inverse_link(link, bounds[k] - eta))
    if not family.vector:
        return log_density(name, y, inverse_link(link, eta), m, rho)
    zero = np.ones((len(y), 1)) if family.zero is None else family.zero
    p, own = expit(zero @ rho[: zero.shape[1]]), rho[-1]
    counts = np.log1p(-p) + log_density(family.base.name, np.where(y > 0, y, 1.0), np.exp(eta), 1.0, own)
    if name.startswith("hurdle"):
        return m * np.where(y == 0, np.log(p), counts)
    at_zero = np.exp(log_density(family.base.name, 0.0 * y, np.exp(eta), 1.0, own))
    return m * np.where(y == 0, np.log(p + (1 - p) * at_zero), counts)


def dense_z(terms):
    """Z of all terms, the levels of a term one after another."""
    parts = []
    for term in terms:
        z = np.ones((len(term.codes), 1)) if term.z is None else term.z
        l = z.shape[1]
        part = np.zeros((len(z), term.n_levels * l))
        for c in range(l):
            part[np.arange(len(z)), term.codes * l + c] = z[:, c]
        parts.append(part)
    return np.hstack(parts)


def factors(terms, theta):
    """Covariance factor of each term from theta."""
    out, at = [], 0
    for term in terms:
        factor = np.zeros((term.n_columns,) * 2)
        for r, c in term.index():
            factor[r, c] = theta[at]
            at += 1
        out.append(factor)
    return out


class Dense:
    """One model and response; ``x`` is (theta, beta, rho)."""

    def __init__(self, y, X, terms, family, m=None, freq=None, offset=None, expected=False):
        self.y, self.X, self.terms, self.family, self.expected = np.asarray(y, float), X, terms, family, expected
        n = len(self.y)
        self.m = np.ones(n) if m is None else np.asarray(m, float)
        self.f = np.ones(n) if freq is None else np.asarray(freq, float)
        self.o = np.zeros(n) if offset is None else offset
        self.Z = dense_z(terms)
        self.n_theta = sum(len(term.index()) for term in terms)
        self.u = np.zeros(self.Z.shape[1])

    def parts(self, x):
        """A, the fixed part and rho at x."""
        nt, p = self.n_theta, self.X.shape[1]
        lam = [np.kron(np.eye(t.n_levels), f) for t, f in zip(self.terms, factors(self.terms, x[:nt]), strict=True)]
        at, blocks = 0, []
        for block in lam:
            blocks.append(self.Z[:, at : at + len(block)] @ block)
            at += len(block)
        return np.hstack(blocks), self.X @ x[nt : nt + p] + self.o, self.family.rho_of(x[nt + p :])

    def loglik(self, eta, rho):
        """Log density of each row."""
        with np.errstate(all="ignore"):
            return row_density(self.family, self.y, eta, self.m, rho) * self.f

    def modes(self, x):
        """u~ with A and the rows' derivatives there."""
        A, base, rho = self.parts(x)
        u = self.u.copy()
        h = np.inf
        for _ in range(200):
            rows = self.family.row(self.y, base + A @ u, self.m, rho)
            g = A.T @ (self.f * rows.s) - u
            for w in (rows.w, np.maximum(rows.w, rows.we)):
                M = (A.T * (self.f * w)) @ A + np.eye(len(u))
                try:
                    step = cho_solve(cho_factor(M), g)
                    break
                except np.linalg.LinAlgError:
                    continue
            if g @ step < TIGHT:
                break
            h = u @ u - 2 * self.loglik(base + A @ u, rho).sum()
            scale = 1.0
            while scale > 1e-12:
                v = u + scale * step
                if v @ v - 2 * self.loglik(base + A @ v, rho).sum() <= h + 1e-11 * abs(h):
                    break
                scale /= 2
            if g @ step < 1e-17:  # rounding decides nothing any more
                u = u + step
                break
            u = u + scale * step
        self.u = u
        eta = base + A @ u
        return u, A, eta, self.family.row(self.y, eta, self.m, rho), rho

    def laplace(self, x):
        """d at x."""
        u, A, eta, rows, rho = self.modes(x)
        w = self.f * (rows.we if self.expected else rows.w)
        M = (A.T * w) @ A + np.eye(len(u))
        return u @ u - 2 * self.loglik(eta, rho).sum() + np.linalg.slogdet(M)[1]

    def quadrature(self, x, k):
        """d at x by k adaptive nodes a dimension, one term."""
        u, A, _, rows, rho = self.modes(x)
        _, base, _ = self.parts(x)
        term = self.terms[0]
        l = term.n_columns
        z, weights = np.polynomial.hermite_e.hermegauss(k)
        weights = weights / weights.sum()
        grid = np.stack(np.meshgrid(*[z] * l, indexing="ij"), -1).reshape(-1, l)
        omega = np.stack(np.meshgrid(*[weights] * l, indexing="ij"), -1).reshape(-1, l).prod(1)
        w = self.f * (rows.we if self.expected else rows.w)
        total = 0.0
        for i in range(term.n_levels):
            here = term.codes == i
            a = A[here][:, i * l : (i + 1) * l]
            ui = u[i * l : (i + 1) * l]
            M = (a.T * w[here]) @ a + np.eye(l)
            C = np.linalg.cholesky(M)
            sub = Dense.__new__(Dense)
            sub.y, sub.m, sub.f, sub.family = self.y[here], self.m[here], self.f[here], self.family
            if getattr(self.family, "zero", None) is not None:
                sub.family = self.family.at(self.family.zero[here], None)
            logs = []
            for node, weight in zip(grid, omega, strict=True):
                uk = ui + np.linalg.solve(C.T, node)
                hk = uk @ uk - 2 * sub.loglik(base[here] + a @ uk, rho).sum()
                logs.append(np.log(weight) - 0.5 * hk + 0.5 * node @ node)
            top = max(logs)
            total += np.linalg.slogdet(M)[1] - 2 * (top + np.log(np.exp(np.array(logs) - top).sum()))
        return total


def differences(f, x, step=2e-3):
    """Gradient of f at x by six-point central differences."""
    out = np.empty(len(x))
    for j in range(len(x)):
        e = np.zeros(len(x))
        e[j] = step * max(1.0, abs(x[j]))
        d = [f(x + k * e) - f(x - k * e) for k in (1, 2, 3)]
        out[j] = (45 * d[0] - 9 * d[1] + d[2]) / (60 * e[j])
    return out
