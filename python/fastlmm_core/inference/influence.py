"""What the estimates would be without one observation, or without one group.

At fixed theta deletion has an exact formula. With C the inverse of the mixed-model equations, R_U = [X_U Z_U] the rows
deleted, e_U their conditional residuals and D_U = W_U^-1 - R_U C R_U'

    (beta, b)_(U) = (beta, b) - C R_U' D_U^-1 e_U        r^2_(U) = r^2 - e_U' D_U^-1 e_U
    C_(U)         = C + C R_U' D_U^-1 R_U C

(Christensen, Pearson & Johnson 1992; Demidenko & Stukel 2005). For one observation D_U = (1 - h) / w. A group of many
rows is cheaper to leave out of the cross-products, which is the same number by another way.

Three methods, named for what they hold:
    "fixed"     theta stays at the full data's estimate: exact for beta and sigma given theta
    "one-step"  theta moves by one Newton step on the reduced data's criterion, with its exact gradient
    "refit"     the reduced data are fitted anew (lme4's `influence`)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from fastlmm_core.core import Objective
from fastlmm_core.core.threads import bounded, one_blas_thread
from fastlmm_core.errors import DataError, FastLMMError, ModelError
from fastlmm_core.fitting.models import arrays_of
from fastlmm_core.fitting.var_corr import theta_labels
from fastlmm_core.inference.leverage import FittedRows, fitted_rows
from fastlmm_core.inference.progress import each
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.formula import Design
    from fastlmm_core.inference.joint_inverse import JointInverse

    Array = NDArray[np.float64]

__all__ = ["METHODS", "Deleted", "Influence", "Method", "cases_of", "collect", "influence"]

Method = Literal["fixed", "one-step", "refit"]
METHODS = ("fixed", "one-step", "refit")

MANY_ROWS = 128
"""Rows of a group above which leaving them out of the cross-products is cheaper than the joint covariance of each."""

SOLVES = 256
"""Rows whose columns of the inverse are held at once."""


@dataclass(frozen=True, eq=False)
class Influence:
    """Estimates without each case; the rows of every table are the cases.

    Attributes
    ----------
    by : str
        "obs", the grouping factor, or "labels".
    method : {"fixed", "one-step", "refit"}
        What became of theta when a case was left out; see `LmerResult.influence`.
    params : DataFrame (cases, p)
        Fixed effects without the case.
    std_errors : DataFrame (cases, p)
        Their standard errors.
    sigma : Series (cases,)
        Residual standard deviation without the case.
    theta : DataFrame (cases, n_theta)
        Covariance parameters; the full fit's own under "fixed".
    cooks_distance : Series (cases,)
        Change of the fixed effects in the metric of their covariance, d' Cov(beta)^-1 d / p (lme4's is smaller by
        (m - p) / m for m cases).
    cov_ratio : Series (cases,)
        Determinant of the covariance of the fixed effects without the case over that with it.
    n_rows : Series (cases,)
        Rows deleted.
    converged : Series (cases,)
        Whether the refit did; True under the other methods.
    full : Series (p,)
        Estimates from all rows.
    """

    by: str
    method: Method
    params: pd.DataFrame
    std_errors: pd.DataFrame
    sigma: pd.Series
    theta: pd.DataFrame
    cooks_distance: pd.Series
    cov_ratio: pd.Series
    n_rows: pd.Series
    converged: pd.Series
    full: pd.Series

    @property
    def dfbeta(self) -> pd.DataFrame:
        """`params` without the case less those of all rows (lme4's sign)."""
        return self.params - self.full

    @property
    def dfbetas(self) -> pd.DataFrame:
        """`dfbeta` over the standard errors without the case."""
        return self.dfbeta / self.std_errors

    def to_frame(self) -> Table:
        """One row a case: n_rows, cooks_distance, cov_ratio, sigma, and a column dfbetas_<name> a coefficient."""
        columns = {
            "n_rows": self.n_rows,
            "cooks_distance": self.cooks_distance,
            "cov_ratio": self.cov_ratio,
            "sigma": self.sigma,
            **{f"dfbetas_{name}": values for name, values in self.dfbetas.items()},
        }
        # as arrays: the labels of rows need not be unique
        return table({name: np.asarray(values) for name, values in columns.items()}, self.params.index)

    def __repr__(self) -> str:
        known = self.cooks_distance.dropna()
        largest = f"{known.max():.3g} at {known.idxmax()!r}" if len(known) else "unknown"
        return (
            f"<Influence: {len(self.params)} cases by {self.by}, method {self.method!r}; "
            f"largest Cook's distance {largest}>"
        )


@dataclass
class Deleted:
    """Arrays that the methods fill, a row a case."""

    beta: Array  # (cases, p)
    errors: Array  # (cases, p)
    logdet: Array  # (cases,) of the covariance of the coefficients estimated
    sigma: Array  # (cases,)
    theta: Array  # (cases, n_theta)
    converged: NDArray[np.bool_]  # (cases,)

    @classmethod
    def empty(cls, cases: int, core: CoreFit) -> Deleted:
        """Nothing known yet, theta that of all rows."""
        p = len(core.beta)
        nan = np.nan
        theta = np.tile(core.theta, (cases, 1))
        logdet, sigma = np.full((2, cases), nan)
        converged = np.ones(cases, dtype=bool)
        return cls(np.full((cases, p), nan), np.full((cases, p), nan), logdet, sigma, theta, converged)

    def set(self, case: int, beta: Array, cov: Array, sigma: float, keep: NDArray[np.int64]) -> None:
        """One case, given its covariance (p, p); ``keep`` are the columns the full fit estimates."""
        self.beta[case], self.sigma[case] = beta, sigma
        self.errors[case] = np.sqrt(np.diagonal(cov))
        part = cov[np.ix_(keep, keep)]
        self.logdet[case] = np.linalg.slogdet(part)[1] if np.isfinite(part).all() else np.nan


@bounded
def influence(
    design: Design, core: CoreFit, by: str | ArrayLike = "obs", method: Method = "fixed", *, progress: bool = False
) -> Influence:
    """Estimates without each observation or group; see `LmerResult.influence`."""
    if method not in METHODS:
        raise ModelError(f"influence has no method {method!r}: use one of {', '.join(map(repr, METHODS))}")
    if method != "refit":
        core.require_products()
    codes, cases, name = cases_of(design, by)
    out = Deleted.empty(len(cases), core)
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=len(cases))
    members = np.split(order, np.cumsum(counts)[:-1])
    if method != "fixed":
        for case, rows in enumerate(each(members, progress, "influence", "case")):
            _reduced(design, core, rows, method, out, case)
    elif name == "obs":
        _observations(design, core, out)
    else:
        parts = fitted_rows(design, core, core.objective())
        few = np.flatnonzero(counts <= MANY_ROWS)
        left = [case for batch in _batches(few, counts) for case in _groups(design, core, parts, batch, members, out)]
        for case in [*np.flatnonzero(counts > MANY_ROWS), *left]:
            _reduced(design, core, members[case], "fixed", out, int(case))
    return collect(design, core, out, cases, counts, name, method)


def cases_of(design: Design, by: str | ArrayLike) -> tuple[NDArray[np.int64], pd.Index, str]:
    """A case's number for each row, the cases' labels, and what they are."""
    if isinstance(by, str):
        if by == "obs":
            return np.arange(len(design.y)), design.row_labels, "obs"
        for term in design.random:
            if term.group == by:
                return np.asarray(term.codes, np.int64), pd.Index(term.levels, name=by), by
        have = ", ".join(dict.fromkeys(t.group for t in design.random))
        raise DataError(f"{by!r} is not a grouping factor of the model; they are {have} (and 'obs' is every row)")
    labels = np.asarray(design.of_rows(by, "by"))
    if labels.shape not in ((len(design.y),), (design.n_total,)):
        raise DataError(f"by has shape {labels.shape}, but the fit used {len(design.y)} rows")
    codes, levels = pd.factorize(labels if len(labels) == len(design.y) else labels[design.row_index])
    if (codes < 0).any():
        raise DataError(f"by has {int((codes < 0).sum())} missing labels")
    return codes, pd.Index(levels), "labels"


def _batches(cases: NDArray[np.int64], counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cases in runs of about `SOLVES` rows."""
    if len(cases):
        yield from np.split(cases, np.flatnonzero(np.diff(np.cumsum(counts[cases]) // SOLVES)) + 1)


def _user_half(core: CoreFit, parts: FittedRows) -> Array:
    """T (rank, rank) with beta's change = T (L_X^-1 g)' D^-1 e: r^-1 L_X^-T."""
    rank = core.cross.conditioning.rank
    return np.asarray(np.linalg.inv(parts.inverse.l_x.T @ core.cross.conditioning.r[:rank, :rank]), np.float64)


def _observations(design: Design, core: CoreFit, out: Deleted) -> None:
    """Every single row at fixed theta."""
    parts = fitted_rows(design, core, core.objective())
    keep, nu, scale = core.cross.conditioning.keep, parts.inverse.objective.nu, parts.inverse.scale
    e = design.y - core.fitted
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = parts.weights / (1.0 - parts.leverage)
    gain = np.where(1.0 - parts.leverage > 1e-10, gain, np.nan)
    t = _user_half(core, parts)
    half = parts.half @ t.T
    out.beta[:, keep] = core.beta[keep] - half * (gain * e)[:, None]
    unit = (nu * scale - gain * e**2) / (nu - 1.0)
    out.errors[:, keep] = np.sqrt(unit[:, None] * ((t**2).sum(axis=1) + gain[:, None] * half**2))
    grown = np.log1p(gain * np.einsum("ij,ij->i", *[parts.half] * 2))  # the determinant of I + gain half half'
    out.logdet[:] = 2.0 * np.linalg.slogdet(t)[1] + len(keep) * np.log(unit) + grown
    out.sigma[:] = np.sqrt(unit * core.cross.conditioning.weight_scale)


def _random_covariances(
    inverse: JointInverse, parts: FittedRows, rows: NDArray[np.int64], sizes: list[int]
) -> Iterator[Array]:
    """Z_U H Z_U' of each case, whose rows stand one after another."""
    starts = np.cumsum([0, *sizes])
    if inverse.explicit is not None:
        for a, b in pairwise(starts):
            yield inverse.random_covariance(parts.rows.take(rows[a:b]))
        return
    vectors = inverse.functionals(parts.rows.take(rows))
    solved = inverse.solve(vectors)  # one factorisation for all
    for a, b in pairwise(starts):
        yield np.sum([x[:, a:b].T @ v[:, a:b] for v, x in zip(vectors, solved, strict=True)], axis=0)


def _groups(
    design: Design,
    core: CoreFit,
    parts: FittedRows,
    batch: NDArray[np.int64],
    members: list[NDArray[np.int64]],
    out: Deleted,
) -> list[int]:
    """A batch of small groups at fixed theta; returns those whose deletion leaves the coefficients undetermined."""
    c, inverse = core.cross.conditioning, parts.inverse
    rows = np.concatenate([members[case] for case in batch])
    blocks = _random_covariances(inverse, parts, rows, [len(members[case]) for case in batch])
    t = _user_half(core, parts)
    e = design.y - core.fitted
    nu = inverse.objective.nu
    failed = []
    for case, block in zip(batch, blocks, strict=True):
        u = members[case]
        half = parts.half[u]
        d = np.diag(1.0 / parts.weights[u]) - half @ half.T - block
        root = np.sqrt(parts.weights[u])
        if nu <= len(u) or np.linalg.eigvalsh(d * np.outer(root, root))[0] < 1e-10:
            failed.append(int(case))
            continue
        solved = np.linalg.solve(d, np.column_stack([e[u], half]))
        mapped = half @ t.T
        unit = (nu * inverse.scale - e[u] @ solved[:, 0]) / (nu - len(u))
        beta, cov = np.full(c.n_columns, np.nan), np.full((c.n_columns, c.n_columns), np.nan)
        beta[c.keep] = core.beta[c.keep] - mapped.T @ solved[:, 0]
        cov[np.ix_(c.keep, c.keep)] = unit * (t @ t.T + mapped.T @ solved[:, 1:] @ t.T)
        out.set(int(case), beta, cov, float(np.sqrt(unit * c.weight_scale)), c.keep)
    return failed


def _reduced(design: Design, core: CoreFit, rows: NDArray[np.int64], method: Method, out: Deleted, case: int) -> None:
    """One case by way of the reduced data; NaN where they cannot be fitted."""
    keep = np.ones(len(design.y), dtype=bool)
    keep[rows] = False
    arrays, y = arrays_of(design).rows(keep), design.y[keep]
    try:
        if method == "refit":
            again = arrays.model(core.reml, core.control).fit(y, start=core.theta)
            out.set(case, again.beta, again.cov_beta, again.sigma, core.cross.conditioning.keep)
            out.theta[case], out.converged[case] = again.theta, again.converged
            return
        objective = arrays.objective(y, core.reml, core.control)
        theta = core.theta if method == "fixed" else _one_step(objective, core.theta)
        out.theta[case] = theta
        out.set(case, *_estimates(objective, theta), core.cross.conditioning.keep)
    except FastLMMError:
        out.theta[case] = np.nan  # the reduced data do not determine the model: said by NaN


def _one_step(objective: Objective, theta: Array) -> Array:
    """A Newton step of the criterion from ``theta``, halved until the criterion does not rise."""
    at = objective.to_conditioned(theta)
    with one_blas_thread():
        value, gradient, hessian = objective.at_conditioned(at).conditioned
        values, vectors = np.linalg.eigh(hessian)
        floor = 1e-8 * max(float(np.abs(values).max()), 1e-300)
        step = vectors @ ((vectors.T @ gradient) / np.maximum(np.abs(values), floor))
        for _ in range(8):
            if objective.at_conditioned(at - step).value <= value:
                return objective.to_user(at - step)
            step = 0.5 * step
    return theta


def _estimates(objective: Objective, theta: Array) -> tuple[Array, Array, float]:
    """Estimates (p,), their covariance (p, p) and sigma at ``theta``."""
    c = objective.cross.conditioning
    modes = objective.at(theta).modes
    gamma, ld = modes.gamma, modes.ld
    rank = c.rank
    beta, cov = np.full(c.n_columns, np.nan), np.full((c.n_columns, c.n_columns), np.nan)
    beta[c.keep] = c.shift + np.linalg.solve(c.r[:rank, :rank], c.r[:rank, -1] + c.y_scale * gamma)
    unit = (ld[-1, -1] * c.y_scale) ** 2 / objective.nu
    t = np.linalg.inv(ld[:rank, :rank].T @ c.r[:rank, :rank])
    cov[np.ix_(c.keep, c.keep)] = unit * (t @ t.T)
    return beta, cov, float(np.sqrt(unit * c.weight_scale))


def collect(
    design: Design,
    core: CoreFit,
    out: Deleted,
    cases: pd.Index,
    counts: NDArray[np.int64],
    name: str,
    method: Method,
    labels: list[str] | None = None,
) -> Influence:
    """The tables; `labels` are theta's."""
    names = list(design.x_names)
    kept = ~np.isnan(core.beta)
    change = (out.beta - core.beta)[:, kept]
    cov = core.cov_beta[np.ix_(kept, kept)]
    distance = np.einsum("ij,ij->i", change, np.linalg.solve(cov, change.T).T) / (core.rank or np.nan)
    known = np.isfinite(cov).all()  # not where a coefficient's error depends on what the data do not tell
    ratio = np.exp(out.logdet - np.linalg.slogdet(cov)[1]) if known else np.full(len(out.logdet), np.nan)
    return Influence(
        by=name,
        method=method,
        params=pd.DataFrame(out.beta, index=cases, columns=names),
        std_errors=pd.DataFrame(out.errors, index=cases, columns=names),
        sigma=pd.Series(out.sigma, index=cases),
        theta=pd.DataFrame(out.theta, index=cases, columns=theta_labels(design) if labels is None else labels),
        cooks_distance=pd.Series(distance, index=cases),
        cov_ratio=pd.Series(ratio, index=cases),
        n_rows=pd.Series(counts, index=cases),
        converged=pd.Series(out.converged, index=cases),
        full=pd.Series(core.beta, index=names),
    )
