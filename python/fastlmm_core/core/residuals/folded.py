"""Cross-products of rows whose residuals are correlated within units, as linear functions of the patterns' inverses.

With E = [Z X y] and P_g = R_g^-1 of pattern g (`moments`), all that the mixed-model equations need is linear in P:

    C = E'R^-1 E = sum_g sum_st (P_g)_st sum_i e_is e_it'                                                          (1)
    K_g = sum_i E_i F E_i'          the adjoint: <F, dC> = sum_g <dP_g, K_g>                                       (2)

so the sums over units i are taken once, as sparse matrices and as sums of [X y] over the units of one pattern and one
level, and neither (1) nor (2) touches the rows again. Only where a unit's rows are in several levels of a factor, or an
effect has a covariate, [X y] is multiplied by P row by row, once an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fastlmm_core.core.residuals.moments import Batch
from fastlmm_core.core.structures.equations import Blocks, covariates, level_columns
from fastlmm_core.core.terms import Term
from fastlmm_core.errors import MemoryLimitError

__all__ = ["Folded"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

ENTRY = 80
"""Bytes that an entry of the map takes while it is made."""


@dataclass(frozen=True, eq=False)
class Still:
    """A term whose intercepts do not change within a batch's units: sums over the units of a level and a pattern.

    Attributes
    ----------
    level : (u,) int64
        Of every unit.
    pattern : (c,) int64
        Of the c classes of units.
    owner : (q, c) sparse
        Ones where a class is of a level.
    sums : (c, m, d)
        Of [X y] over a class's units.
    """

    level: Index
    pattern: Index
    owner: sp.csr_array
    sums: Array


@dataclass(frozen=True, eq=False)
class Moving:
    """A term whose levels or columns change within units.

    Attributes
    ----------
    codes : (u, m) int64
    z : (u, m, l)
    columns : (u m, q l) sparse
    """

    codes: Index
    z: Array
    columns: sp.csr_array


def still(term: Term, root: Array | None, part: Batch, D: Array) -> Still | None:
    """A term's classes in a batch; None where its levels or columns change within units."""
    codes = term.codes[part.units].astype(np.int64)
    if term.z is not None or root is not None or (codes != codes[:, :1]).any():
        return None
    level, k = codes[:, 0], len(part.counts)
    key, inverse = np.unique(level * k + part.pattern, return_inverse=True)
    u, m = part.units.shape
    member = sp.csr_array((np.ones(u), (inverse.reshape(-1), np.arange(u))), shape=(len(key), u))
    sums = np.empty((len(key), m, D.shape[1]))
    for t in range(m):
        sums[:, t] = member @ D[part.units[:, t]]
    q = int(term.n_levels or 0)
    owner = sp.csr_array((np.ones(len(key)), (key // k, np.arange(len(key)))), shape=(q, len(key)))
    return Still(level, key % k, owner, sums)


class Folded:
    """Equations (1) and (2) of one model.

    Parameters
    ----------
    parts : sequence of Batch
        Of the rows D; a unit is a subject.
    terms : sequence of Term
        Columns as conditioned.
    root : (n,) or None
        Square roots of the weights.
    D : (n, d)
        [X y], conditioned, weights included.
    """

    def __init__(self, parts: Sequence[Batch], terms: Sequence[Term], root: Array | None, D: Array) -> None:
        self.parts, self.terms, self.root, self.d = tuple(parts), tuple(terms), root, D.shape[1]
        self.widths = [t.n_columns for t in terms]
        self.levels = [int(t.n_levels or 0) for t in terms]
        self.ends = np.cumsum([0, *(q * l for q, l in zip(self.levels, self.widths, strict=True))])
        z = [covariates(t, root) for t in terms]
        whole = [level_columns(t, root) for t in terms]
        self.held: list[list[Still | Moving]] = []
        self.rows: list[Array | None] = []
        for part in parts:
            held: list[Still | Moving] = []
            for k, term in enumerate(terms):
                fixed = still(term, root, part, D)
                moving = None
                if fixed is None:
                    codes = term.codes[part.units].astype(np.int64)
                    moving = Moving(codes, z[k][part.units], sp.csr_array(whole[k][part.units.ravel()]))
                held.append(fixed or moving)  # type: ignore[arg-type]
            self.held.append(held)
            self.rows.append(D[part.units] if any(isinstance(h, Moving) for h in held) else None)
        # the places of a batch in the vector of all entries: P (k, m, m), then the sums of each P (k,)
        sizes = [len(p.counts) * (p.rows.shape[1] ** 2 + 1) for p in parts]
        self.places = np.cumsum([0, *sizes])
        self.maps: list[sp.csr_array] = []

    def meetings(self, term: Term) -> sp.csr_array:
        """Which levels a unit meets: (units, q l), ones."""
        l, at = term.n_columns, 0
        unit = np.empty(len(term.codes), np.int64)
        for part in self.parts:
            u = len(part.units)
            unit[part.units] = np.arange(at, at + u)[:, None]
            at += u
        columns = term.codes.astype(np.int64)[:, None] * l + np.arange(l)
        rows = np.repeat(unit, l)
        found = sp.csr_array((np.ones(len(rows)), (rows, columns.ravel())), shape=(at, int(term.n_levels or 0) * l))
        found.data[:] = 1.0
        return found

    def follow(self, blocks: Sequence[Blocks], n_bytes: int | None = None) -> None:
        """Make the linear map from P to the blocks' entries; MemoryLimitError where it takes more than n_bytes."""
        needed = ENTRY * sum(map(self._entries, blocks))
        if n_bytes is not None and needed > n_bytes:
            raise MemoryLimitError(
                "beside a residual structure effects whose levels change within subjects take an entry for each pair "
                f"of a subject's rows: {needed / 2**30:.2g} GiB, but {n_bytes / 2**30:.2g} GiB can be used. Raise "
                "Control(memory_limit=...) if the machine has more, or fit fewer rows"
            )
        self.maps = [self._map(block) for block in blocks]

    def _entries(self, block: Blocks) -> int:
        """Entries of `_map`, about."""
        l, w = block.C.shape[1:]
        total = 0
        for part, held in zip(self.parts, self.held, strict=True):
            u, m = part.units.shape
            one, two = held[block.k], held[block.other]
            pairs = m * (m + 1) // 2 if block.k == block.other else m * m
            total += u * (1 if isinstance(one, Still) and isinstance(two, Still) else pairs * l * w)
        return total

    def _map(self, block: Blocks) -> sp.csr_array:
        """(nb l w, entries of all P)."""
        q, (l, w) = self.levels[block.other], block.C.shape[1:]
        every = block.a * q + block.b  # sorted
        rows, columns, values = [], [], []

        def add(a: Index, b: Index, at: Index, value: Array) -> None:
            """Contributions (u, l, w) of units' pairs of levels through one entry of P each."""
            if block.k == block.other:
                lower = a >= b
                a, b, at, value = a[lower], b[lower], at[lower], value[lower]
            place = np.searchsorted(every, a * q + b)
            rows.append((place[:, None] * (l * w) + np.arange(l * w)).ravel())
            columns.append(np.repeat(at, l * w))
            values.append(value.reshape(-1))

        for part, held, start in zip(self.parts, self.held, self.places[:-1].tolist(), strict=True):
            one, two, m = held[block.k], held[block.other], part.rows.shape[1]
            if isinstance(one, Still) and isinstance(two, Still):
                k, size = len(part.counts), self.levels[block.k] * q
                key, count = np.unique(part.pattern * size + one.level * q + two.level, return_counts=True)
                pair = key % size
                add(pair // q, pair % q, start + k * m * m + key // size, count.astype(np.float64)[:, None, None])
                continue
            for s in range(m):
                a, z = _at(one, s)
                for t in range(m):
                    b, v = _at(two, t)
                    at = start + (part.pattern * m + s) * m + t
                    add(a, b, at, z[:, :, None] * v[:, None, :])
        shape = (len(every) * l * w, int(self.places[-1]))
        pairs = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return sp.csr_array(sp.coo_array(pairs, shape=shape))

    def forward(self, P: Sequence[Array]) -> tuple[list[Array], Array, Array]:
        """Equation (1): entries of each list of blocks, flat; Z'R^-1[X y] (m, d); [X y]'R^-1[X y] (d, d)."""
        flat = np.concatenate([np.concatenate([p.ravel(), p.sum(axis=(1, 2))]) for p in P])
        ZE = np.zeros((int(self.ends[-1]), self.d))
        EE = np.zeros((self.d, self.d))
        for part, held, rows, p in zip(self.parts, self.held, self.rows, P, strict=True):
            EE += part.products(p)
            moved = None if rows is None else (p[part.pattern] @ rows).reshape(-1, self.d)
            for k, term in enumerate(held):
                own = slice(int(self.ends[k]), int(self.ends[k + 1]))
                if isinstance(term, Still):
                    weights = p.sum(axis=1)[term.pattern]
                    ZE[own] += term.owner @ (weights[:, None, :] @ term.sums)[:, 0]
                else:
                    ZE[own] += term.columns.T @ moved
        return [B @ flat for B in self.maps], ZE, EE

    def adjoint(self, F: Sequence[Array], FZ: Array, FE: Array) -> list[Array]:
        """Equation (2): K (k, m, m) of each batch, F as `forward` has C, entries that stand twice in it doubled."""
        flat = np.zeros(int(self.places[-1]))
        for B, f in zip(self.maps, F, strict=False):
            flat += B.T @ f
        out = []
        for part, held, rows, start in zip(self.parts, self.held, self.rows, self.places[:-1].tolist(), strict=True):
            k, m = part.rows.shape
            square = k * m * m
            K = flat[start : start + square].reshape(k, m, m) + flat[start + square : start + square + k, None, None]
            K = 0.5 * (K + K.transpose(0, 2, 1)) + part.scores(FE)
            moving = np.zeros((len(part.units) * m, self.d)) if rows is not None else None
            for j, term in enumerate(held):
                mine = FZ[int(self.ends[j]) : int(self.ends[j + 1])]
                if isinstance(term, Still):
                    sums = np.einsum("cmd,cd->cm", term.sums, term.owner.T @ mine)
                    by_pattern = _by(term.pattern, k) @ sums
                    K += by_pattern[:, :, None] + by_pattern[:, None, :]
                else:
                    moving += term.columns @ mine
            if moving is not None:
                both = moving.reshape(-1, m, self.d) @ rows.transpose(0, 2, 1)  # type: ignore[union-attr]
                sums = (_by(part.pattern, k) @ both.reshape(-1, m * m)).reshape(k, m, m)
                K += sums + sums.transpose(0, 2, 1)
            out.append(K)
        return out


def _at(term: Still | Moving, s: int) -> tuple[Index, Array]:
    """Level (u,) and columns (u, l) of every unit's row s."""
    if isinstance(term, Still):
        return term.level, np.ones((len(term.level), 1))
    return term.codes[:, s], term.z[:, s]


def _by(pattern: Index, k: int) -> sp.csr_array:
    """(k, u) ones: sums over the units of each pattern."""
    return sp.csr_array((np.ones(len(pattern)), (pattern, np.arange(len(pattern)))), shape=(k, len(pattern)))
