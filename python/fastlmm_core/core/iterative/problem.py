"""A crossed model as the iterative engine sees it: rows sorted by leading level, and sums over levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import MAX_LEADING, WIDTH, RowForm
from fastlmm_core._native.iterative.sorting import level_starts, place_codes, place_columns
from fastlmm_core.core.control import Control
from fastlmm_core.core.crossprod import DesignSums, Responses, RowsAtHand
from fastlmm_core.core.start import moment_start
from fastlmm_core.errors import MemoryLimitError, ModelError

__all__ = ["Problem", "TailTerm", "crossed_problem", "refuse_unidentified", "row_form_bytes"]

Array = NDArray[np.float64]

SOLVER_BLOCKS = 8
"""Blocks (m, 8) of a solve and of the products in it; each tail term keeps one a block of probes, and Q, beside."""


@dataclass(frozen=True)
class TailTerm:
    """One column of one tail factor: its effects have a standard deviation of their own.

    Attributes
    ----------
    parameter : int
        Place in theta.
    group, column : int
    columns : slice
        Tail columns, one a level.
    """

    parameter: int
    group: int
    column: int
    columns: slice


@dataclass(frozen=True, eq=False)
class Problem:
    """Conditioned cross-products without cells, and the rows that stand in for them.

    Attributes
    ----------
    rows : RowForm
    blocks : (q, l, l)
        A_i, the leading factor's blocks of Z'WZ.
    lead_dense, tail_dense : (q, l, p + 1), (m, p + 1)
        Z'W[X y].
    dtd : (p + 1, p + 1)
    tail_squares : (m,)
        Diagonal of Z_t'WZ_t.
    lead : tuple of (parameter, row, column)
        Places of the leading factor's parameters in L.
    tail : tuple of TailTerm
    n, p, n_theta : int
    start : (n_theta,)
        Moment estimates.
    """

    rows: RowForm
    blocks: Array
    lead_dense: Array
    tail_dense: Array
    dtd: Array
    tail_squares: Array
    lead: tuple[tuple[int, int, int], ...]
    tail: tuple[TailTerm, ...]
    n: int
    p: int
    n_theta: int
    start: Array


def tail_terms(design: DesignSums) -> tuple[TailTerm, ...]:
    """Columns of the tail factors, in the order of groups; ModelError where two of one factor are correlated."""
    place = {}
    for a, (g, i, j) in enumerate(design.theta_map.index.tolist()):
        if g > 0 and i != j:
            raise ModelError(
                "the iterative engine takes correlated random effects on the factor with the most random effects only: "
                "make the slopes of the other factors independent of their intercepts, as (x || g) does"
            )
        if i == j:
            place[g, i] = a
    out, start = [], 0
    for g, group in enumerate(design.groups[1:], 1):
        for c in range(group.n_columns):
            out.append(TailTerm(place[g, c], g, c, slice(start, start + group.n_levels)))
            start += group.n_levels
    return tuple(out)


def refuse_unidentified(design: DesignSums) -> None:
    """ModelError where the criterion does not depend on some variance: the search would have nowhere to go."""
    found = design.unidentified
    if found is not None:
        names = ", ".join(map(str, found.terms))
        raise ModelError(
            f"the criterion does not determine every variance (terms {names}): leave those terms out, or let the exact "
            "engines say what can be estimated"
        )


def row_form_bytes(design: DesignSums, n_tail: int, m: int, probes: int) -> int:
    """Bytes of the sorted rows, of what is kept of each level, and of the vectors of a solve."""
    at_hand = cast(RowsAtHand, design)
    columns, n = at_hand.columns, len(at_hand.codes[0])
    l, q = design.groups[0].n_columns, design.groups[0].n_levels
    covariates = n_tail if any(z is not None for z in columns[1:]) else 0
    doubles = covariates + (0 if columns[0] is None else l) + (at_hand.weights is not None)
    rows = n * (4 * n_tail + 8 * doubles) + 8 * (2 * q + 1)
    parts = 8 if m <= 1_000_000 else 4  # each has sums of its own
    blocks = parts + SOLVER_BLOCKS + n_tail * (1 - (-probes // WIDTH))
    vectors = 8 * WIDTH * (blocks * m + 2 * q * l)
    levels = 8 * (3 * q * l * l + m * l * l + (q * l + m) * (design.rank + 1))
    return rows + vectors + levels


def crossed_problem(design: DesignSums, found: Responses, control: Control) -> Problem:
    """The problem of one response.

    Raises
    ------
    ModelError
        One grouping factor only, correlated effects on a tail factor, or a leading factor of more than 16 columns.
    MemoryLimitError
        The rows in this form, and the vectors, do not fit into memory.
    """
    if len(design.groups) < 2:
        raise ModelError(
            "the iterative engine is for two or more grouping factors: with one the exact engines are fast"
        )
    tail = tail_terms(design)
    m, l, q = tail[-1].columns.stop, design.groups[0].n_columns, design.groups[0].n_levels
    if l > MAX_LEADING:
        raise ModelError(f"the iterative engine takes at most {MAX_LEADING} random effects a level, not {l}")
    if m >= 2**31:
        raise ModelError(
            f"the iterative engine takes fewer than 2**31 random effects beside the leading factor, not {m}"
        )
    needed, available = row_form_bytes(design, len(tail), m, control.probes), control.n_bytes
    if needed > available:
        raise MemoryLimitError(
            f"the iterative engine would take {needed / 2**30:.3g} GiB for {design.n} rows and {m} random effects "
            f"beside the leading factor, but {available / 2**30:.3g} GiB can be used: raise "
            "Control(memory_limit=...) if the machine has more, or fit fewer rows"
        )
    at_hand = cast(RowsAtHand, design)
    of_group, columns, w = at_hand.codes, at_hand.columns, at_hand.weights
    ptr, n = level_starts(of_group[0], q), len(of_group[0])  # cells may stand in for the rows
    codes = np.empty((n, len(tail)), np.int32)
    t = None
    if any(columns[term.group] is not None for term in tail):
        t = np.ones((n, len(tail)))
    for f, term in enumerate(tail):
        place_codes(ptr, of_group[0], of_group[term.group], term.columns.start, codes, f)
        z = columns[term.group]
        if t is not None and z is not None:
            place_columns(ptr, of_group[0], np.ascontiguousarray(z[:, term.column, None]), t, f)

    def placed(values: Array | None) -> Array | None:
        if values is None:
            return None
        out = np.empty_like(values)
        place_columns(ptr, of_group[0], values, out, 0)
        return out

    sorted_w = placed(None if w is None else w[:, None])
    rows = RowForm(
        ptr,
        codes,
        m,
        placed(columns[0]),
        t,
        None if sorted_w is None else sorted_w.ravel(),
        control.n_threads,
    )
    dense = [np.column_stack([x, y]) for x, y in zip(design.dense, found.dense, strict=True)]
    cross = design.complete(found, pairs=False)
    return Problem(
        rows,
        design.blocks[0],
        np.ascontiguousarray(dense[0].reshape(q, l, -1)),
        np.concatenate(
            [dense[t.group].reshape(-1, design.groups[t.group].n_columns, design.rank + 1)[:, t.column] for t in tail]
        ),
        cross.dtd,
        np.concatenate([design.blocks[t.group][:, t.column, t.column] for t in tail]),
        tuple((a, i, j) for a, (g, i, j) in enumerate(design.theta_map.index.tolist()) if g == 0),
        tail,
        design.n,
        design.rank,
        len(design.theta_map.index),
        moment_start(cross),
    )
