"""Rows of a generalised model in the order of the leading factor's levels, with whatever weights they have by then.

    design -> WorkingRows.system(theta, w) -> System        a pass over the rows each; products and solves as ever
    M = Lambda'Z'WZ Lambda + I,     solve: b = Lambda M^-1 Lambda'x and what it leaves of x, x - Z'WZ b

Vectors over all random effects are pairs, the leading factor's (q, l, k) and the tail's (m, k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.rows.crossprod import level_blocks, level_sums
from fastlmm_core.core.control import Control
from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.core.iterative.problem import (
    Levels,
    check_sizes,
    lead_places,
    row_form,
    row_form_bytes,
    tail_groups,
    tail_terms,
)
from fastlmm_core.core.iterative.second_level import SecondLevel
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.rows_at_hand import TableRows

__all__ = ["Pairs", "Vectors", "WorkingRows", "by_group", "covariance_times", "solve"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Vectors:
    """K vectors over the random effects.

    Attributes
    ----------
    lead : (q, l, k)
    tail : (m, k)
    """

    lead: Array
    tail: Array

    def __add__(self, other: Vectors) -> Vectors:
        return Vectors(self.lead + other.lead, self.tail + other.tail)

    def __sub__(self, other: Vectors) -> Vectors:
        return Vectors(self.lead - other.lead, self.tail - other.tail)

    def __mul__(self, scale: float) -> Vectors:
        return Vectors(self.lead * scale, self.tail * scale)

    def __getitem__(self, k: slice) -> Vectors:
        return Vectors(self.lead[:, :, k], self.tail[:, k])

    @property
    def k(self) -> int:
        """How many."""
        return self.tail.shape[1]

    def dot(self, other: Vectors) -> Array:
        """Inner products (k, k')."""
        size = self.lead.shape[0] * self.lead.shape[1]
        mine, theirs = self.lead.reshape(size, self.k), other.lead.reshape(size, other.k)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(mine.T @ theirs + self.tail.T @ other.tail)

    def times(self, weights: Array) -> Vectors:
        """Sums of them with weights (k, k'): k' vectors."""
        return Vectors(self.lead @ weights, self.tail @ weights)

    def combined(self, weights: Array) -> Vectors:
        """One vector, their sum with weights (k,)."""
        return Vectors(self.lead @ weights[:, None], self.tail @ weights[:, None])


class WorkingRows:
    """The rows of a design, sorted; they hold one set of weights at a time.

    Parameters
    ----------
    design : GlmmDesign
    control : Control

    Attributes
    ----------
    order : (n,) int64
        The design's row at each place here.
    levels : Levels
        With unit weights, until `system` is called.

    Raises
    ------
    ModelError, MemoryLimitError
        The model is not one for this engine, or its rows and vectors do not fit into memory.
    """

    def __init__(self, design: GlmmDesign, control: Control) -> None:
        groups, n = design.groups, design.n
        needed = 0
        if len(groups) > 1:
            rows = TableRows(design.codes, design.z, np.empty(n))
            needed = row_form_bytes(groups, rows, design.rank + 1, control.probes)
            needed += 8 * n * (6 + 3 * design.n_free)  # rows' derivatives, sorted columns, and their directions
        check_sizes(groups, needed, n, control)
        self.design, self.groups = design, groups
        self.order = np.argsort(design.codes[0], kind="stable")
        self.codes = [np.ascontiguousarray(codes[self.order]) for codes in design.codes]
        self.z = [None if z is None else np.ascontiguousarray(z[self.order]) for z in design.z]
        tail = tail_groups(design)
        form = row_form(TableRows(self.codes, self.z, np.ones(n)), groups, control.n_threads)
        self.levels = Levels(
            rows=form,
            blocks=np.empty((0, 0, 0)),
            tail_blocks=(),
            lead=lead_places(design),
            groups=tail,
            tail=tail_terms(tail),
            n_theta=design.n_theta,
            second=SecondLevel(form, tail),
        )
        self.reweight(np.ones(n))

    def sorted(self, values: Array) -> Array:
        """Rows of an array (n, ...) in the order here."""
        return np.ascontiguousarray(values[self.order])

    def reweight(self, w: Array) -> None:
        """Other weights (n,) of the sorted rows; systems made before are of no use then."""
        levels, w = self.levels, np.array(w)  # a copy: the rows keep it
        levels.rows.reweight(w)
        blocks = [
            level_blocks(codes, group.n_levels, z, w)
            for codes, group, z in zip(self.codes, self.groups, self.z, strict=True)
        ]
        self.levels = replace(levels, blocks=blocks[0], tail_blocks=tuple(blocks[1:]))

    def system(self, theta: Array, w: Array) -> System[Levels]:
        """The reduced system with weights ``w`` (n,) of the sorted rows.

        Raises
        ------
        NumericalError
            It is not positive definite.
        """
        self.reweight(w)
        return System(self.levels, theta)

    def sums(self, d: Array) -> Vectors:
        """Z'd, for d (n, k) of the sorted rows."""
        out = []
        for codes, group, z in zip(self.codes, self.groups, self.z, strict=True):
            target = np.zeros((group.size, d.shape[1]))
            level_sums(codes, z, None, d, target)
            out.append(target)
        lead = out[0].reshape(self.groups[0].n_levels, self.groups[0].n_columns, -1)
        return Vectors(lead, np.concatenate(out[1:]))

    def products(self, b: Vectors) -> Array:
        """Z b (n, k) of the sorted rows."""
        out = np.zeros((len(self.order), b.k))
        parts = [b.lead, *(group.of_level(b.tail) for group in self.levels.groups)]
        for codes, z, part in zip(self.codes, self.z, parts, strict=True):
            for k in range(b.k):
                if z is None:
                    out[:, k] += part[:, 0, k][codes]
                else:
                    out[:, k] += np.einsum("rc,rc->r", z, part[:, :, k][codes])
        return out

    def nothing(self) -> Vectors:
        """One vector of zeros."""
        rows = self.levels.rows
        return Vectors(np.zeros((rows.q, rows.l, 1)), np.zeros((rows.m, 1)))


def covariance_times(levels: Levels, factors: Sequence[Array], t: Vectors) -> Vectors:
    """Lambda Lambda't, for the factors L (l, l) of each group."""
    tail = np.empty_like(t.tail)
    for group, factor in zip(levels.groups, factors[1:], strict=True):
        tail[group.columns] = (factor @ factor.T @ group.of_level(t.tail)).reshape(-1, t.k)
    return Vectors(factors[0] @ factors[0].T @ t.lead, tail)


class Pairs:
    """Directions in which Lambda Lambda't moves: d(LL')t of one factor is a sum of m_ab, m_ab t = t_a e_b + t_b e_a.

    Those of a parameter vanish with its factor; these do not, so that what they say about a G stays.

    Attributes
    ----------
    of_group : tuple of tuple of (a, b)
        Rows of each factor that share a column of L, the leading factor first; a <= b.
    n : int
        How many, of all factors.
    """

    def __init__(self, levels: Levels) -> None:
        self.places, self.widths = zip(*levels.factors, strict=True)
        self.of_group = tuple(
            tuple(sorted({(min(i, k), max(i, k)) for _, i, j in own for _, k, other in own if j == other}))
            for own in self.places
        )
        self.starts = np.concatenate([[0], np.cumsum([len(own) for own in self.of_group])]).tolist()
        self.levels, self.n = levels, self.starts[-1]

    def vectors(self, t: Vectors) -> Vectors:
        """m_ab t of every pair, for one t."""
        out = Vectors(np.zeros((*t.lead.shape[:2], self.n)), np.zeros((len(t.tail), self.n)))
        for g, (own, start) in enumerate(zip(self.of_group, self.starts[:-1], strict=True)):
            group = None if g == 0 else self.levels.groups[g - 1]
            mine = t.lead[:, :, 0] if group is None else group.of_level(t.tail)[:, :, 0]
            for k, (a, b) in enumerate(own, start):
                moved = np.zeros_like(mine)
                moved[:, a] += mine[:, b]
                moved[:, b] += mine[:, a]
                if group is None:
                    out.lead[:, :, k] = moved
                else:
                    out.tail[group.columns, k] = moved.ravel()
        return out

    def by_parameter(self, factors: Sequence[Array]) -> Array:
        """(n, n_theta): each parameter's direction d(LL')t as a sum of these."""
        out = np.zeros((self.n, self.levels.n_theta))
        for own, places, factor, start in zip(self.of_group, self.places, factors, self.starts[:-1], strict=True):
            at = {pair: k for k, pair in enumerate(own, start)}
            for a, i, j in places:
                for _, k, column in places:
                    if column == j:
                        out[at[min(i, k), max(i, k)], a] += factor[k, j]
        return out

    def matrices(self, values: Array) -> list[Array]:
        """Symmetric (s, l, l) of each factor from values (s, n) of its pairs, halved; zero elsewhere."""
        out = []
        for own, l, start in zip(self.of_group, self.widths, self.starts[:-1], strict=True):
            matrix = np.zeros((len(values), l, l))
            for k, (a, b) in enumerate(own, start):
                matrix[:, a, b] = matrix[:, b, a] = 0.5 * values[:, k]
            out.append(matrix)
        return out


def solve(system: System[Levels], x: Vectors, tol: float) -> tuple[Vectors, Vectors]:
    """B = Lambda M^-1 Lambda'x, and what it leaves of x, x - Z'WZ b: to relative residuals of the reduced system."""
    shrunk = system.K @ x.lead
    right = x.tail - system.tail_sums(shrunk)
    b = system.lam(system.solve_columns(system.lam_t(right), tol))
    rest = x.lead - system.lead_sums(b)
    return Vectors(system.K @ rest, b), Vectors(system.R @ rest, right - system.product(b))


def by_group(levels: Levels, b: Vectors) -> list[Array]:
    """The first vector as (q, l) of each group."""
    return [b.lead[:, :, 0], *(group.of_level(b.tail)[:, :, 0] for group in levels.groups)]
