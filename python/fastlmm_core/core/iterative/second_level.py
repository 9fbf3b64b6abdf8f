"""A second level for the solver: the system of sums over neighbouring levels, solved outright.

    M^-1 = D^-1 + P E^-1 P',    E = P'SP = P'P + Lambda_c' (P'CP) Lambda_c

The diagonal knows nothing of slow directions, those that vary little between tail levels that meet in the same leading
levels: along a chain of places or of years there are many. P adds up aggregates of such levels, each of a level's
columns apart, so that Lambda P = P Lambda_c and one small matrix of products from the rows does for all theta.

How near two levels are is what C has for them, sum_i n_ij n_ik K_i with K_i about one over the rows of leading level
i: the number of times that they are next to each other when each leading level's rows are turned around against
themselves by a random amount. So neighbours come from the rows in O(n) without C. Where a tail factor is coarser than
another, sums of the other's levels and its own effects are slow to tell apart as well: levels that meet in the
coarser factor's make a second partition, and a second correction. Aggregates are made of pairs, of pairs of pairs and
so on, each level with the one it is nearest to, relative to how much there is of both (Notay 2010 for the pairing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.sparse import csr_array

from fastlmm_core._native.iterative.row_form import RowForm
from fastlmm_core.errors import NumericalError
from fastlmm_core.lazy import cached_property

if TYPE_CHECKING:
    from fastlmm_core.core.iterative.problem import TailGroup

__all__ = ["Coarse", "SecondLevel", "aggregates", "neighbours"]

Array = NDArray[np.float64]
Labels = NDArray[np.int32]

SHARE = 4
"""Levels an aggregate, about, while there are not too many of them."""

LARGEST = 2_000
"""Coarse unknowns: their dense matrix is inverted at each theta, and read in each iteration."""

ALL = 64
"""A factor of no more levels is in the coarse system as it is."""

TURNS = 4
"""Turns of each leading level's rows that neighbours are counted in."""

ROWS = 64
"""Rows a tail level that are looked at for that, about, in each turn."""

ROUNDS = 3
"""Of pairing before the graph is contracted."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Which tail columns are added up.

    Attributes
    ----------
    labels : (m,) int32
        Of each tail column; -1 for none.
    sizes : tuple of int
        Aggregates of each tail factor; those of one factor follow one another, with its columns each.
    """

    labels: Labels
    sizes: tuple[int, ...]


class SecondLevel:
    """Aggregates of the tail's levels, made when they are first asked for.

    Parameters
    ----------
    rows : RowForm
    groups : sequence of TailGroup

    Attributes
    ----------
    wanted : bool
        A solve was too long without.
    """

    def __init__(self, rows: RowForm, groups: Sequence[TailGroup]) -> None:
        self.rows, self.groups, self.wanted = rows, tuple(groups), False

    @property
    def possible(self) -> bool:
        """Whether the tail is large enough for aggregates to be fewer than its levels."""
        return self.rows.m > 2 * ALL

    @cached_property
    def partitions(self) -> list[Partition]:
        """By the leading factor, and where a tail factor is coarser than another by such factors."""
        out = [self.partition(through_tail=False)]
        sizes = [group.q for group in self.groups]
        if min(sizes) < max(sizes):
            out.append(self.partition(through_tail=True))
        return out

    def partition(self, through_tail: bool) -> Partition:
        """Aggregates of levels that meet in leading levels, or in levels of coarser tail factors."""
        labels, sizes, start = np.full(self.rows.m, -1, np.int32), list[int](), 0
        room = LARGEST - sum(group.q * group.l for group in self.groups if group.q <= ALL)
        total = sum(group.q * group.l for group in self.groups if group.q > ALL)
        for f, group in enumerate(self.groups):
            if group.q <= ALL:
                found = np.arange(group.q)
            else:
                wanted = min(group.q // SHARE, max(1, int(room * group.q / total)))
                found = aggregates(neighbours(self.rows, f, self.groups, through_tail), wanted)
            size = int(found.max(initial=-1)) + 1
            columns = start + found[:, None] * group.l + np.arange(group.l)
            labels[group.columns] = np.where(found[:, None] < 0, -1, columns).ravel()
            sizes.append(size)
            start += size * group.l
        return Partition(labels, tuple(sizes))

    def corrections(self, K: Array, factors: Sequence[Array]) -> list[Coarse]:
        """P E^-1 P' of each partition at a theta.

        Parameters
        ----------
        K : (q, l, l)
        factors : sequence of (l, l)
            Of the tail factors.
        """
        return [Coarse(partition, self.coarse(partition, K, factors)) for partition in self.partitions]

    def coarse(self, partition: Partition, K: Array, factors: Sequence[Array]) -> Array:
        """E of a partition."""
        size, at = sum(count * group.l for count, group in zip(partition.sizes, self.groups, strict=True)), 0
        E = self.rows.aggregated(K, partition.labels, size)
        for count, group, factor in zip(partition.sizes, self.groups, factors, strict=True):
            own = slice(at, at + count * group.l)
            E[own] = (factor.T @ E[own].reshape(count, group.l, size)).reshape(-1, size)
            E[:, own] = (E[:, own].reshape(size, count, group.l) @ factor).reshape(size, -1)
            at = own.stop
        E[np.diag_indices(size)] += np.bincount(partition.labels[partition.labels >= 0], minlength=size)
        return np.asarray((E + E.T) / 2)


class Coarse:
    """One partition's system at a theta.

    Parameters
    ----------
    partition : Partition
    E : (c, c)

    Attributes
    ----------
    P, back : sparse (c, m), (m, c)
        P' and P.
    E, inverse : (c, c)
    log_det : float
        Of E.
    """

    def __init__(self, partition: Partition, E: Array) -> None:
        self.partition = partition
        used = np.flatnonzero(partition.labels >= 0)
        own = (partition.labels[used], used)
        self.P = csr_array((np.ones(len(used)), own), shape=(len(E), len(partition.labels)))
        self.back = csr_array(self.P.T)
        self.E = E
        self.inverse, self.log_det = inverse_and_log_det(E)

    def __call__(self, r: Array) -> Array:
        """P E^-1 P'r (m, k)."""
        return np.asarray(self.back @ (self.inverse @ (self.P @ r)))


def inverse_and_log_det(E: Array) -> tuple[Array, float]:
    """Inverse and log-determinant of a positive definite matrix.

    Raises
    ------
    NumericalError
        It is none, or has entries that are not finite.
    """
    factor, info = lapack.dpotrf(E, lower=1)
    pivots = np.diagonal(factor)
    if info == 0 and not np.isfinite(pivots).all():  # LAPACK may carry what is no number through
        info = int(np.flatnonzero(~np.isfinite(pivots))[0]) + 1
    if info == 0:
        out, info = lapack.dpotri(factor, lower=1)
    if info:
        raise NumericalError(
            "the matrix of sums over neighbouring levels is not positive definite, from sum "
            f"{info} of {len(E)} on: effects this large beside the residuals leave the iterative engine no digits"
        )
    return np.asarray(np.tril(out) + np.tril(out, -1).T), 2.0 * float(np.log(pivots).sum())


def neighbours(rows: RowForm, f: int, groups: Sequence[TailGroup], through_tail: bool = False) -> csr_array:
    """Symmetric (q, q) counts of how often levels of tail factor ``f`` meet in levels of other factors; no diagonal.

    In those of the leading factor, or ``through_tail`` in those of tail factors with fewer levels, if there are any. A
    function of the rows only: turns come from a generator of fixed seed.
    """
    group = groups[f]
    others = [h for h, other in enumerate(groups) if through_tail and other.q < group.q]
    rng = np.random.default_rng(0)
    each = min(rows.n, ROWS * group.q)
    out = csr_array((group.q, group.q))
    for _ in range(TURNS):
        at = np.arange(rows.n) if each == rows.n else np.sort(rng.choice(rows.n, each, replace=False, shuffle=False))
        levels = (rows.codes[at, f] - group.columns.start) // group.l
        if not others:
            out = out + meetings(levels, np.searchsorted(rows.ptr, at, side="right") - 1, group.q, rng)
        for h in others:
            met = rows.codes[at, h]
            order = np.argsort(met, kind="stable")
            out = out + meetings(levels[order], met[order], group.q, rng)
    return csr_array(out + out.T)


def meetings(levels: NDArray[np.int32], places: NDArray[np.integer], q: int, rng: np.random.Generator) -> csr_array:
    """Each row's level against that of another row of its place (q, q), rows sorted by place and turned at random."""
    starts = np.flatnonzero(np.concatenate([[True], places[1:] != places[:-1]]))
    counts = np.diff(np.append(starts, len(places)))
    first, count = np.repeat(starts, counts), np.repeat(counts, counts)
    turn = np.repeat((1 + rng.random(len(counts)) * np.maximum(counts - 1, 1)).astype(np.int64), counts)
    other = levels[first + (np.arange(len(places)) - first + turn) % count]
    apart = levels != other
    return csr_array((np.ones(int(apart.sum())), (levels[apart], other[apart])), shape=(q, q))


def aggregates(graph: csr_array, wanted: int) -> NDArray[np.int64]:
    """Label of each node (q,), 0 to about ``wanted``, by pairing nodes and pairs; -1 where there would be too many.

    Parameters
    ----------
    graph : (q, q) sparse
        Weights of neighbours, symmetric, without a diagonal.
    wanted : int
    """
    labels = np.arange(graph.shape[0])
    rng = np.random.default_rng(1)
    while graph.shape[0] > wanted:
        pairs = paired(graph, rng)
        size = int(pairs.max()) + 1
        if size > 0.95 * graph.shape[0]:
            break
        labels = pairs[labels]
        P = csr_array((np.ones(len(pairs)), (np.arange(len(pairs)), pairs)), shape=(len(pairs), size))
        graph = csr_array(P.T @ graph @ P)
        graph.setdiag(0.0)
        graph.eliminate_zeros()
    if graph.shape[0] > 2 * wanted:  # what is left has no neighbours: the largest are kept
        keep = np.argsort(-np.bincount(labels), kind="stable")[: 2 * wanted]
        place = np.full(graph.shape[0], -1)
        place[keep] = np.arange(len(keep))
        labels = place[labels]
    return labels


def paired(graph: csr_array, rng: np.random.Generator) -> NDArray[np.int64]:
    """Label of each node: two that are each other's nearest share one."""
    q = graph.shape[0]
    degree = np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1e-300)
    row = np.repeat(np.arange(q), np.diff(graph.indptr))
    column = graph.indices
    weight = graph.data / np.sqrt(degree[row] * degree[column])
    tie = rng.random(q)
    weight = weight * (1.0 + 1e-3 * (tie[row] + tie[column]))  # symmetric, so that equals agree on whom they take
    mate = np.full(q, -1)
    for _ in range(ROUNDS):
        free = (mate[row] < 0) & (mate[column] < 0)
        best = np.full(q, -1)
        order = np.argsort(weight[free], kind="stable")
        best[row[free][order]] = column[free][order]  # the last one written is the heaviest
        node = np.flatnonzero(best >= 0)
        mutual = node[best[best[node]] == node]
        mate[mutual] = best[mutual]
    own = np.where(mate < 0, np.arange(q), np.minimum(np.arange(q), mate))
    return np.unique(own, return_inverse=True)[1].ravel()
