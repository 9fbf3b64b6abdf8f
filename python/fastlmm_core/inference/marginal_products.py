"""Sums over Z'V^-1Z that Kenward and Roger's method needs, from matrices as wide as the tail.

Leading effects 1, tail t; A_i the leading blocks of Z'WZ, K_i = L1 (L1'A_iL1 + I)^-1 L1', B = Z_1'WZ_t, both sparse:

    N = (I - A K) B = Z_1'V_1^-1 Z_t      D_i = (I - A_i K_i) A_i      C = Z_t'V_1^-1 Z_t = A_tt - B'K B
    T = Lambda_t S^-1 Lambda_t'    S = Lambda_t'C Lambda_t + I         G = I - T C
    Z_1'V^-1Z_1 = D - N T N'              Z_1'V^-1Z_t = N G            Z_t'V^-1Z_t = C G

so the only square matrices are m x m, m the length of the tail, and a model with one grouping factor has none. Where
Lambda_t has an inverse, G = T (Lambda_t Lambda_t')^-1 and C G = Lambda_t'^-1 (I - S^-1) Lambda_t^-1: with P = T N'N,
N'N G = P'(Lambda_t Lambda_t')^-1, and P is the one product of square matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.sparse import bsr_array, csr_array, hstack

from fastlmm_core.core import CrossProducts
from fastlmm_core.core.theta import group_factors
from fastlmm_core.errors import ModelError, NumericalError

__all__ = ["MarginalProducts"]

Array = NDArray[np.float64]

BATCH = 1 << 22
"""Doubles of the transient row blocks."""

SMALLEST_FACTOR = 1e-3
"""Below this, the smallest singular value of a term's factor times the root of C's mean diagonal leaves too few digits
for its inverse."""

SPARSE = 8
"""N'N is formed where N has more numbers than its square root's share of this: a product with a sparse matrix takes
that many times as long a number."""


class MarginalProducts:
    """Z'V^-1Z of one model at one conditioned theta, never formed.

    Parameters
    ----------
    cross : CrossProducts
    theta : (n_theta,)
        Conditioned.
    memory : int
        Bytes that may be used.

    Raises
    ------
    ModelError
        The m x m matrices would take more than `memory`.
    """

    def __init__(self, cross: CrossProducts, theta: Array, memory: int) -> None:
        lead, *rest = cross.groups
        self.cross = cross
        self.l = lead.n_columns
        self.m = m = sum(g.size for g in rest)
        needed = 8 * m * m * (8 + self.l**2)
        if needed > memory:
            raise ModelError(
                f"Kenward-Roger needs matrices of {m} x {m}, for the random effects beside {lead.n_levels} levels of "
                f"the largest factor: {needed / 2**30:.1f} GiB, but {memory / 2**30:.1f} GiB can be used. "
                "Use ddf='satterthwaite'"
            )
        ends = np.cumsum([0, *(g.size for g in rest)])
        self.parts = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        self.widths = [g.n_columns for g in rest]
        self.factors = group_factors(cross.theta_index, theta, [g.n_columns for g in cross.groups])

        a, first = cross.blocks[0], self.factors[0]
        inner = first.T @ a @ first + np.eye(self.l)
        k = first @ np.linalg.solve(inner, np.broadcast_to(first.T, inner.shape))
        shrink = np.eye(self.l) - a @ k
        self.d = shrink @ a
        if m == 0:
            self.n = csr_array((lead.size, 0))
            self.c = self.t = self.g = np.zeros((0, 0))
            return
        b = hstack([self._cells(0, h + 1) for h in range(len(rest))], format="csr")
        self.n = csr_array(_block_diagonal(shrink) @ b)
        self.c = self._tail_gram() - (b.T @ (_block_diagonal(k) @ b)).toarray()
        self.inverses = self._inverses()
        self.t, self.k = self._inverse(np.asfortranarray(self.c))
        if self.inverses is None:
            self.g = np.eye(m) - self.t @ self.c
            self.k = self.c @ self.g
        else:
            self.g = self._times_inverse_covariance(self.t)

    def _cells(self, g: int, h: int) -> bsr_array:
        ptr, idx, val = self.cross.pairs[g, h]
        groups = self.cross.groups
        shape = (groups[g].n_columns, groups[h].n_columns)
        return bsr_array((val.reshape(-1, *shape), idx, ptr), shape=(groups[g].size, groups[h].size))

    def _tail_gram(self) -> Array:
        """Z_t'WZ_t, dense."""
        out = np.zeros((self.m, self.m))
        for h, part in enumerate(self.parts):
            blocks = self.cross.blocks[h + 1]
            rows = part.start + np.arange(part.stop - part.start).reshape(blocks.shape[:2])
            out[rows[:, :, None], rows[:, None, :]] = blocks
        for (g, h), _ in self.cross.pairs.items():
            if g > 0:
                cells = self._cells(g, h).toarray()
                out[self.parts[g - 1], self.parts[h - 1]] = cells
                out[self.parts[h - 1], self.parts[g - 1]] = cells.T
        return out

    def _inverses(self) -> list[Array] | None:
        """Inverses of the factors of the tail's terms; None where one has none to enough digits."""
        for part, l, factor in zip(self.parts, self.widths, self.factors[1:], strict=True):
            sizes = np.sqrt(np.diagonal(self.c)[part].reshape(-1, l).mean(axis=0))
            if not np.linalg.svd(factor * sizes[:, None], compute_uv=False).min() > SMALLEST_FACTOR:
                return None
        return [np.asarray(np.linalg.inv(factor), np.float64) for factor in self.factors[1:]]

    def _inverse(self, c: Array) -> tuple[Array, Array]:
        """T, and C G where the factors have inverses."""
        factors = self.factors[1:]
        s = self._by_levels(self._by_levels(c, [f.T for f in factors]).T, [f.T for f in factors])  # Lambda'C Lambda
        s[np.diag_indices(self.m)] += 1.0
        factor, info = lapack.dpotrf(s, lower=1, overwrite_a=1)
        if info == 0:
            s, info = lapack.dpotri(factor, lower=1, overwrite_c=1)
        if info != 0:
            raise NumericalError("the equations of the random effects are not positive definite at the estimates")
        s = np.tril(s) + np.tril(s, -1).T
        t = self._by_levels(self._by_levels(s, factors).T, factors)
        if self.inverses is None:
            return t, t
        np.negative(s, out=s)
        s[np.diag_indices(self.m)] += 1.0
        turned = [f.T for f in self.inverses]
        return t, self._by_levels(self._by_levels(s, turned).T, turned)

    def _by_levels(self, x: Array, factors: list[Array]) -> Array:
        """The block-diagonal matrix of each term's factor, level by level, times x (m, k)."""
        out = np.empty((self.m, x.shape[1]))
        for part, l, f in zip(self.parts, self.widths, factors, strict=True):
            if l == 1:
                np.multiply(x[part], f[0, 0], out=out[part])
            else:
                out[part] = (f @ x[part].reshape(-1, l, x.shape[1])).reshape(-1, x.shape[1])
        return out

    def _times_inverse_covariance(self, x: Array) -> Array:
        """X (k, m) times (Lambda Lambda')^-1."""
        assert self.inverses is not None
        out = np.empty(x.shape)
        for part, l, f in zip(self.parts, self.widths, self.inverses, strict=True):
            inverse = f.T @ f
            if l == 1:
                np.multiply(x[:, part], inverse[0, 0], out=out[:, part])
            else:
                out[:, part] = (x[:, part].reshape(len(x), -1, l) @ inverse).reshape(len(x), -1)
        return out

    def _levels(self, width: int) -> Iterator[slice]:
        """Batches of leading levels whose rows of `width` doubles stay within the transient limit."""
        step = max(1, BATCH // max(1, width * self.l))
        for start in range(0, len(self.d), step):
            yield slice(start, start + step)

    def quadratic(self, lead: Array, tail: Array) -> Array:
        """u'Z'V^-1Z u for u given as (q, l, k) and (m, k); leading levels a batch at a time."""
        k = lead.shape[2]
        out = np.zeros((k, k))
        w = self.c @ tail
        for rows in self._levels(k):
            u = lead[rows].reshape(-1, k)
            out += u.T @ (self.d[rows] @ lead[rows]).reshape(-1, k)
            if self.m:
                across = self.n[rows.start * self.l : rows.stop * self.l].T @ u  # N'u
                out += across.T @ tail + tail.T @ across
                w += across
        return out + tail.T @ (self.c @ tail) - w.T @ (self.t @ w)

    def traces(self) -> tuple[dict[tuple[int, int], Array], list[Array]]:
        """Sums that give tr(V^-1 G_i V^-1 G_j) and tr(V^-1 G_i) for any G = Z (I x E) Z'.

        Returns
        -------
        pairs : dict (g, h) -> (l_g, l_g, l_h, l_h)
            For g <= h and K = Z'V^-1Z: element [r, s, u, v] is the sum of K[a r, b u] K[a s, b v] over levels a of g
            and b of h.
        single : list of (l, l)
            Sum over levels of the diagonal blocks of K, a matrix a group.
        """
        diagonal, crossed, pairs = self.d, None, {}
        if self.m:
            y, products = self._row_forms()
            diagonal = self.d - y
            crossed = np.einsum("jru,jsv->rsuv", self.d, y)
        single = [diagonal.sum(axis=0)]
        pairs[0, 0] = np.einsum("jru,jsv->rsuv", self.d, self.d)
        if crossed is None:
            return pairs, single
        pairs[0, 0] -= crossed + crossed.transpose(1, 0, 3, 2)
        self._leading_pairs(pairs, products)
        k = self.k
        for g, (rows, lg) in enumerate(zip(self.parts, self.widths, strict=True)):
            block = k[rows, rows].reshape(-1, lg, (rows.stop - rows.start) // lg, lg)
            single.append(np.einsum("jrjs->rs", block))
            for h in range(g, len(self.parts)):
                columns, lh = self.parts[h], self.widths[h]
                block = k[rows, columns].reshape((rows.stop - rows.start) // lg, lg, -1, lh)
                flat = block.transpose(1, 3, 0, 2).reshape(lg * lh, -1)
                gram = (flat @ flat.T).reshape(lg, lh, lg, lh)
                pairs[g + 1, h + 1] = gram.transpose(0, 2, 1, 3)
        return pairs, single

    def _row_forms(self) -> tuple[Array, dict[tuple[int, int], Array]]:
        """N_j T N_j' of each leading level, (q, l, l), and P_rs = T N_r'N_s, N_r the r-th rows of the levels."""
        l = self.l
        out = np.empty_like(self.d)
        formed = SPARSE * self.n.nnz > self.m**2
        products = {key: np.zeros((self.m, self.m)) for key in np.ndindex(l, l)}
        for rows in self._levels(self.m):
            n = self.n[rows.start * l : rows.stop * l]
            parts = [csr_array(n[r::l]) for r in range(l)]
            for r in range(l):
                nt = np.asarray(parts[r] @ self.t)
                for s in range(l):
                    part = parts[s]
                    level = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
                    out[rows, r, s] = np.bincount(level, part.data * nt[level, part.indices], part.shape[0])
                    if not formed:
                        products[r, s] += part.T @ nt  # P', turned at the end
        for r, s in products:
            if formed:
                products[r, s] = self.t @ (self.n[r::l].T @ self.n[s::l]).toarray()
            else:
                products[r, s] = products[r, s].T
        return out, products

    def _leading_pairs(self, pairs: dict[tuple[int, int], Array], products: dict[tuple[int, int], Array]) -> None:
        """The leading group with itself, tr(P_uv P_sr), and with the tail's groups, from N_r'N_s G."""
        l = self.l
        for h, width in enumerate(self.widths):
            pairs[0, h + 1] = np.empty((l, l, width, width))
        for r, s in products:
            if self.inverses is None:
                half = (self.n[r::l].T @ self.n[s::l]).toarray() @ self.g
            else:  # N_r'N_s T = (T N_s'N_r)'
                half = self._times_inverse_covariance(products[s, r].T)
            for h, (part, width) in enumerate(zip(self.parts, self.widths, strict=True)):
                left = self.g[:, part].reshape(self.m, -1, width)
                right = half[:, part].reshape(self.m, -1, width)
                for u in range(width):
                    for v in range(width):
                        pairs[0, h + 1][r, s, u, v] = np.einsum("mj,mj->", left[:, :, u], right[:, :, v])
        for r, s, u, v in np.ndindex(l, l, l, l):
            pairs[0, 0][r, s, u, v] += np.einsum("ab,ba->", products[u, v], products[s, r])


def _block_diagonal(blocks: Array) -> bsr_array:
    q, l, _ = blocks.shape
    return bsr_array((np.ascontiguousarray(blocks), np.arange(q), np.arange(q + 1)), shape=(q * l, q * l))
