"""Cluster-robust covariance of the fixed effects: CR0 to CR3, with Bell and McCaffrey's degrees of freedom and HTZ.

With V_g the fitted covariance of cluster g's rows, M = (X'V^-1X)^-1 and e = y - X beta, the sandwich is

    M (sum_g s_g s_g') M,     s_g = X_g'V_g^-1 A_g e_g,                                                         (1)

A_g = I for CR0; CR1 and CR1S scale it; A_g = (I - X_g M X_g'V_g^-1)^-1 for CR3; for CR2 (Bell and McCaffrey 2002;
Pustejovsky and Tipton 2018)

    A_g = D'B^(+1/2)D,     B = D (V_g - X_g M X_g') D',     D'D = V_g,                                          (2)

which does not depend on the root D. X is replaced by X K with M = K K' first, so that M = I throughout. With
G_g = A_g'V_g^-1X_g, what a cluster contributes is s_g = G_g'e_g, T_g = G_g'V_gG_g and H_g = X_g'G_g, in p dimensions.
For a function c'beta, with m = K'c, the scores' covariance under the fitted model is P = diag(m'T_g m) - h h',
h_g = H_g m, and its degrees of freedom are tr(P)^2 / tr(P^2).

Outside the span of [Z_g X_g] V_g is a multiple of the identity and the scores vanish, so that a cluster's rows are
replaced by the triangle of a QR: nothing of n rows is factored. Where weights differ within a cluster that is not so,
and V_g is formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.core import CoreFit
from fastlmm_core.errors import DataError, MemoryLimitError, ModelError, no_such
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.formula.frame import Table, as_factor
from fastlmm_core.inference.ddf import FixedDf, Method, ddf_method, method_name

if TYPE_CHECKING:
    from fastlmm_core.core.glmm import GlmmFit
    from fastlmm_core.core.residuals import PatternFit
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import Design

__all__ = ["COV_TYPES", "ClusterRobust", "covariance_method", "robust_cov"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

COV_TYPES = ("model", "CR0", "CR1", "CR1S", "CR2", "CR3")

FEW_CLUSTERS = 10
"""Below this a note prefers CR2."""

LARGEST = 5_000
"""Order of the matrices that a cluster may need."""

BATCH_NUMBERS = 1 << 22
"""Numbers in a batch of clusters, at most, unless one cluster has more."""

MOST_BYTES = 4 << 30
"""Memory of the clusters' T and H, at most."""

ZERO = 1e-11
"""Eigenvalues of I - V_g^(-1/2) X_g M X_g'V_g^(-1/2) below this belong to what a single cluster determines."""


@dataclass(frozen=True, eq=False)
class ClusterRobust(Method):
    """Cluster-robust covariance with the fitted model as the working model of its degrees of freedom.

    Attributes
    ----------
    root : (rank, rank)
        K, with M = K K'.
    spread, shared : (n_clusters, rank, rank)
        T_g and H_g.
    """

    root: Array = field(default_factory=lambda: np.empty((0, 0)))
    spread: Array = field(default_factory=lambda: np.empty((0, 0, 0)))
    shared: Array = field(default_factory=lambda: np.empty((0, 0, 0)))

    def df(self, rows: Array) -> Array:
        """Bell and McCaffrey's, by Satterthwaite's approximation."""
        out = np.empty(len(rows))
        for k, m in enumerate(rows @ self.root):
            d, h = np.einsum("gxy,x,y->g", self.spread, m, m), self.shared @ m
            own = np.einsum("gx,gx->g", h, h)
            square = np.sum(d * d) - 2.0 * np.sum(d * own) + np.sum(np.square(h.T @ h))
            with np.errstate(divide="ignore", invalid="ignore"):
                out[k] = (np.sum(d) - np.sum(own)) ** 2 / square
        return out

    def joint(self, rows: Array, values: Array) -> tuple[float, float]:
        """HTZ: Hotelling's T-squared with the degrees of freedom of Zhang (2012); Tipton and Pustejovsky (2015)."""
        q = len(rows)
        m = rows @ self.root
        omega = self._trace(m, m)
        size, axes = np.linalg.eigh(omega)
        if size[0] <= 0.0:
            return np.nan, np.nan
        m = (axes / np.sqrt(size)) @ axes.T @ m
        d = np.einsum("gxy,sx,ty->stg", self.spread, m, m)
        h = np.einsum("gxy,sy->sgx", self.shared, m)
        own = np.einsum("sgx,tgx->stg", h, h)
        gram = np.einsum("sgx,tgy->stxy", h, h)

        def product(s: int, t: int, u: int, v: int) -> float:
            """tr(P_st P_uv'), P_st = diag(d_st) - h_s h_t'."""
            crossed = np.sum(d[s, t] * own[u, v]) + np.sum(d[u, v] * own[s, t])
            return float(np.sum(d[s, t] * d[u, v]) - crossed + np.sum(gram[s, u] * gram[t, v]))

        variance = sum(product(s, s, t, t) + product(s, t, t, s) for s in range(q) for t in range(q))
        eta = q * (q + 1) / variance
        if eta <= q - 1:
            return np.nan, np.nan
        return eta - q + 1.0, (eta - q + 1.0) / eta

    def _trace(self, left: Array, right: Array) -> Array:
        """tr(P_st) of all pairs."""
        d = np.einsum("gxy,sx,ty->st", self.spread, left, right)
        one, other = (np.einsum("gxy,sy->sgx", self.shared, m) for m in (left, right))
        return np.asarray(d - np.einsum("sgx,tgx->st", one, other))


def covariance_method(result: FittedModel, ddf: str | None, *, cov_type: str = "model", cluster: Any = None) -> Method:
    """The method of a fit by the names of its degrees of freedom and its covariance.

    Parameters
    ----------
    result : FittedModel
    ddf : str or None
        As `ddf_method`; None is "satterthwaite", or "normal" for a generalised model, which has no others. With a
        robust covariance "satterthwaite" is Bell and McCaffrey's.
    cov_type : {"model", "CR0", "CR1", "CR1S", "CR2", "CR3"}
    cluster : optional
        A column of the fit's table, a grouping factor, or a value a row; the coarsest grouping factor by default.

    Raises
    ------
    ModelError
        No such type; random effects that cross the clusters; Kenward and Roger's method.
    """
    kind = str(cov_type)
    if kind not in COV_TYPES:
        raise ModelError(no_such("cov_type", cov_type, COV_TYPES))
    if isinstance(result, GeneralisedModel):
        return _generalised(result.core, ddf, kind)
    ddf = "satterthwaite" if ddf is None else ddf
    if kind == "model":
        if cluster is not None:
            raise ModelError("cluster is for a robust covariance: give cov_type='CR2' as well")
        return ddf_method(result, ddf)
    name = method_name(ddf)
    if name == "kenward-roger":
        raise ModelError("Kenward and Roger's method adjusts the model's own covariance: use ddf='satterthwaite'")
    robust = _robust(result, kind, cluster)
    if name == "satterthwaite":
        return robust
    value = np.inf if name == "normal" else float(result.core.n - result.core.rank)
    return FixedDf(name, robust.beta, robust.cov, robust.sigma, robust.notes, value)


def _generalised(core: GlmmFit, ddf: str | None, kind: str) -> Method:
    """The method of a generalised model: Wald's."""
    if kind != "model":
        raise ModelError("robust covariances of generalised models are not available")
    name = "normal" if ddf is None else method_name(ddf)
    if name != "normal":
        raise ModelError(f"{name} degrees of freedom belong to linear models: a generalised one takes ddf='normal'")
    kept = ~np.isnan(core.beta)
    return FixedDf("normal", core.beta[kept], core.cov_beta[np.ix_(kept, kept)], 1.0, (), np.inf)


def robust_cov(result: FittedModel, cov_type: str, cluster: Any, joint: bool) -> pd.DataFrame:
    """The covariance of all coefficients, labelled; NaN for dropped ones."""
    if joint:
        raise ModelError("a robust covariance is of the coefficients alone: leave full and levels out")
    method = covariance_method(result, "normal", cov_type=cov_type, cluster=cluster)
    kept = ~np.isnan(result.core.beta)
    cov = np.full((len(kept), len(kept)), np.nan)
    cov[np.ix_(kept, kept)] = method.cov
    names = list(result.design.x_names)
    return pd.DataFrame(cov, index=names, columns=names)


def _robust(result: FittedModel, kind: str, cluster: Any) -> ClusterRobust:
    from fastlmm_core.core.residuals import CrossedFit, PatternFit

    design, core = result.design, result.core
    if kind == "CR2" and isinstance(core, CoreFit):
        core.require_products()
    if any(term.relationship is not None for term in design.random):
        raise ModelError(
            "levels with a known relationship are not independent clusters: no robust covariance is available"
        )
    if design.sparse:
        raise ModelError(
            "robust covariances are not available beside sparse() effects: their columns have a part in them"
        )
    if isinstance(core, CrossedFit) and core.by_units is not None:
        core = core.by_units
    if isinstance(core, CrossedFit):
        raise ModelError(
            "robust covariances are not available for a residual structure beside effects that cross its subjects, or "
            "whose levels have many rows: no clusters of moderate size are independent"
        )
    if isinstance(core, PatternFit):
        if cluster is not None:
            raise ModelError("the clusters of a model with a residual structure are its subjects: leave cluster out")
        label, n_clusters, sigma = "subject", sum(len(part.units) for part in core.parts), core.working
    else:
        codes, label = _clusters(result, cluster)
        _check_nested(design, codes, label)
        n_clusters, sigma = int(codes.max()) + 1, core.sigma
    if n_clusters < 2:
        raise ModelError(f"{label} has one level: a robust covariance needs several clusters")
    kept = ~np.isnan(core.beta)
    beta, rank = core.beta[kept], int(kept.sum())
    if 16 * n_clusters * rank**2 > MOST_BYTES:
        raise MemoryLimitError(
            f"a robust covariance of {rank} coefficients with {n_clusters:,} clusters needs "
            f"{16 * n_clusters * rank**2 / 2**30:.0f} GiB: give a coarser cluster="
        )
    root = np.linalg.cholesky(core.known_cov[np.ix_(kept, kept)]) / sigma
    scores, spread, shared = np.empty((n_clusters, rank)), *np.empty((2, n_clusters, rank, rank))
    X = design.X[:, kept] @ root
    batches = _pattern_batches(core, X) if isinstance(core, PatternFit) else _batches(result, codes, X)
    for where, V, x, e in batches:
        scores[where], spread[where], shared[where] = _contributions(V, x, e, kind)
    factor = {
        "CR1": n_clusters / (n_clusters - 1),
        "CR1S": n_clusters * (core.n - 1) / ((n_clusters - 1) * (core.n - rank)),
    }.get(kind, 1.0)
    half = root @ scores.T
    notes = [f"{kind} robust standard errors, {n_clusters} clusters by {label}"]
    if n_clusters < FEW_CLUSTERS and kind != "CR2":
        notes.append(f"with fewer than {FEW_CLUSTERS} clusters CR2 is less biased")
    name = "satterthwaite"
    return ClusterRobust(name, beta, factor * half @ half.T, core.sigma, tuple(notes), root, spread, shared)


def _clusters(result: FittedModel, cluster: Any) -> tuple[Codes, str]:
    """Codes (n,) of the clusters and a name for them."""
    design = result.design
    if cluster is None:
        term = min(design.random, key=lambda t: len(t.level_set))
        return term.codes.astype(np.int64), term.group
    if isinstance(cluster, str):
        for term in design.random:
            if term.group == cluster:
                return term.codes.astype(np.int64), cluster
        table = Table(result.rows_kept())
        table.require([cluster])
        factor, label = as_factor(table[cluster]), cluster
    else:
        values = np.asarray(design.of_rows(cluster, "cluster"))
        if values.ndim != 1:
            raise DataError(f"cluster has shape {values.shape}: one value a row is needed")
        table = Table({"cluster": values})
        factor, label = as_factor(table["cluster"]), "the clusters given"
    codes = np.asarray(factor.codes, dtype=np.int64)
    n = len(design.y)
    if len(codes) == design.n_total:
        codes = codes[design.row_index]
    elif len(codes) != n:
        raise DataError(f"cluster has {len(codes)} values, but the fit used {n} rows of a table of {design.n_total}")
    if (codes < 0).any():
        raise DataError(f"cluster is missing in {int((codes < 0).sum())} rows of the fit")
    return np.unique(codes, return_inverse=True)[1].astype(np.int64), label


def _check_nested(design: Design, codes: Codes, label: str) -> None:
    """ModelError where a level of a random term has rows in two clusters: their scores would depend on each other."""
    for term in design.random:
        of_level = np.empty(len(term.level_set), np.int64)
        of_level[term.codes] = codes
        if not np.array_equal(of_level[term.codes], codes):
            raise ModelError(
                f"the levels of {term.group} cross the clusters ({label}), so that clusters are not independent: a "
                "robust covariance needs clusters that contain all levels of every grouping factor"
            )


def _batches(result: FittedModel, codes: Codes, X: Array) -> Iterator[tuple[Codes, Array, Array, Array]]:
    """Clusters of like size together: their numbers (b,), V (b, k, k) over sigma^2, X (b, k, p) and e (b, k).

    In coordinates of an orthonormal basis of [Z_g X_g], or of the rows where weights differ within a cluster.
    """
    design, core = result.design, result.core
    kept = ~np.isnan(core.beta)
    e = design.y - design.X[:, kept] @ core.beta[kept]
    if design.offset is not None:
        e = e - design.offset
    n_clusters = int(codes.max()) + 1
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=n_clusters)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    columns, values, n_effects = _random_columns(design, core.L, codes, n_clusters)
    w = np.ones(len(e)) if design.weights is None else design.weights
    low, high = (f.reduceat(w[order], first) for f in (np.minimum, np.maximum))
    plain = high - low <= 1e-12 * high
    shape = np.stack([_power(sizes), _power(n_effects), plain], axis=1)
    kinds, kind_of = np.unique(shape, axis=0, return_inverse=True)
    for number in range(len(kinds)):
        members = np.flatnonzero(kind_of.ravel() == number)
        n, l = int(sizes[members].max()), int(n_effects[members].max())
        order_of_matrix = min(n, l + X.shape[1]) if plain[members[0]] else n
        if order_of_matrix > LARGEST:
            raise ModelError(
                f"a cluster needs a matrix of order {order_of_matrix:,}, more than {LARGEST:,}: a robust covariance is "
                "for many clusters, not for a few large ones"
            )
        step = max(1, BATCH_NUMBERS // (n * (l + X.shape[1] + 1)))
        for start in range(0, len(members), step):
            part = members[start : start + step]
            place = np.repeat(np.arange(len(part)), sizes[part])
            within = np.arange(len(place)) - np.repeat(np.cumsum(sizes[part]) - sizes[part], sizes[part])
            rows = order[np.repeat(first[part], sizes[part]) + within]
            C = np.zeros((len(part), n, l + X.shape[1] + 1))
            for column, value in zip(columns, values, strict=True):
                for j in range(value.shape[1]):
                    C[place, within, column[rows] + j] = value[rows, j]
            C[place, within, l:-1] = X[rows]
            C[place, within, -1] = e[rows]
            if plain[part[0]]:
                if n > l + X.shape[1]:
                    C = np.linalg.qr(C, mode="r")  # type: ignore[assignment]
                V = C[:, :, :l] @ C[:, :, :l].transpose(0, 2, 1)
                diagonal = np.repeat(1.0 / w[order[first[part]]][:, None], C.shape[1], axis=1)
            else:
                V = C[:, :, :l] @ C[:, :, :l].transpose(0, 2, 1)
                diagonal = np.ones((len(part), n))
                diagonal[place, within] = 1.0 / w[rows]
            V[:, np.arange(V.shape[1]), np.arange(V.shape[1])] += diagonal
            yield part, V, C[:, :, l:-1], C[:, :, -1]


def _pattern_batches(core: PatternFit, X: Array) -> Iterator[tuple[Codes, Array, Array, Array]]:
    """As `_batches`, the clusters being the independent units of a model with a residual structure."""
    scale = np.ones(len(X)) if core.model.root is None else core.model.root
    x, e = X * scale[:, None], (core.response - core.linear) * scale
    at = 0
    for part, V in zip(core.parts, core.covariances(marginal=True), strict=True):
        number = np.arange(at, at + len(part.units))
        at += len(part.units)
        yield number, V[part.pattern], x[part.units], e[part.units]


def _power(sizes: Codes) -> Codes:
    """Exponents of the next powers of two: clusters are padded to the largest of their like."""
    return np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)


def _random_columns(
    design: Design, factors: tuple[Array, ...], codes: Codes, n_clusters: int
) -> tuple[list[Codes], list[Array], Codes]:
    """Each row's first column of Z L among its cluster's, and its values there, term by term; columns a cluster has."""
    columns, values = [], []
    total = np.zeros(n_clusters, np.int64)
    for term, L in zip(design.random, factors, strict=True):
        of_level = np.empty(len(term.level_set), np.int64)
        of_level[term.codes] = codes
        count = np.bincount(of_level, minlength=n_clusters)
        sorted_levels = np.argsort(of_level, kind="stable")
        number = np.empty(len(of_level), np.int64)
        number[sorted_levels] = np.arange(len(of_level)) - np.repeat(np.cumsum(count) - count, count)
        columns.append(total[codes] + number[term.codes] * len(L))
        values.append(np.full((len(codes), 1), L[0, 0]) if term.z is None else term.z @ L)
        total = total + count * len(L)
    return columns, values, total


def _contributions(V: Array, X: Array, e: Array, kind: str) -> tuple[Array, Array, Array]:
    """s_g (b, p), T_g and H_g (b, p, p) of a batch of clusters."""
    lower = np.linalg.cholesky(V)
    white = np.linalg.solve(lower, np.concatenate([X, e[:, :, None]], axis=2))
    Xw, ew = white[:, :, :-1], white[:, :, -1:]
    XwT = Xw.transpose(0, 2, 1)
    J, s = XwT @ Xw, XwT @ ew
    if kind == "CR2":
        # B = D V D' - (D X)(D X)' = S'S with D = L', V = L L', S = (I - Xw Xw')^(1/2) L'L: the singular values of S
        # range as V does, B's eigenvalues as its square, in which large random effects drown the residuals
        upper = lower.transpose(0, 2, 1)
        size, axes = np.linalg.eigh(np.eye(V.shape[1]) - Xw @ XwT)
        left = size > ZERO  # the others are what a single cluster determines
        S = np.sqrt(np.where(left, size, 0.0))[:, :, None] * (axes.transpose(0, 2, 1) @ (upper @ lower))
        _, values, axes = np.linalg.svd(S)
        known = np.arange(values.shape[1]) < left.sum(axis=1)[:, None]
        inverse = np.where(known, 1.0, 0.0) / np.where(known, values, 1.0)
        # G = D'B^(+1/2)D V^-1 X = L B^(+1/2) L^-1 X
        turned = axes.transpose(0, 2, 1) @ (inverse[:, :, None] * (axes @ Xw))
        G = lower @ turned
        GT = G.transpose(0, 2, 1)
        inner = upper @ G
        return (GT @ e[:, :, None])[:, :, 0], inner.transpose(0, 2, 1) @ inner, X.transpose(0, 2, 1) @ G
    if kind == "CR3":
        # (I - Xw Xw')^-1 Xw = Q (I - R R')^+ R, Xw = Q R with R from the eigenvectors of Xw'Xw
        size, axes = np.linalg.eigh(J)
        known = size > ZERO * np.maximum(size[:, -1:], 1e-300)
        scale = np.sqrt(np.where(known, size, 0.0))
        R = scale[:, :, None] * axes.transpose(0, 2, 1)
        N = np.linalg.pinv(np.eye(R.shape[1]) - R @ R.transpose(0, 2, 1), rcond=ZERO, hermitian=True)
        NR = N @ R
        NRT = NR.transpose(0, 2, 1)
        inverse = np.where(known, 1.0, 0.0) / np.where(known, scale, 1.0)
        score = NRT @ (inverse[:, :, None] * (axes.transpose(0, 2, 1) @ s))
        return score[:, :, 0], NRT @ NR, R.transpose(0, 2, 1) @ NR
    return s[:, :, 0], J, J
