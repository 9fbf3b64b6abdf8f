"""A crossed model as the iterative engine sees it: rows sorted by leading level, and sums over levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import MAX_LEADING, WIDTH, RowForm
from fastlmm_core._native.iterative.sorting import place_codes, place_columns, places, tally
from fastlmm_core.core.control import Control
from fastlmm_core.core.identifiability import Unidentified
from fastlmm_core.core.iterative.second_level import SecondLevel
from fastlmm_core.core.products import DesignSums, Responses
from fastlmm_core.core.rows_at_hand import RowsAtHand
from fastlmm_core.core.spool import Spool
from fastlmm_core.core.start import moment_start
from fastlmm_core.core.terms import Group
from fastlmm_core.core.theta import ThetaMap
from fastlmm_core.errors import MemoryLimitError, ModelError

__all__ = [
    "Factors",
    "Levels",
    "Places",
    "Problem",
    "TailGroup",
    "TailTerm",
    "check_sizes",
    "crossed_problem",
    "lead_places",
    "refuse_unidentified",
    "row_form",
    "row_form_bytes",
    "tail_groups",
    "tail_terms",
]

Array = NDArray[np.float64]
Places = tuple[tuple[int, int, int], ...]

SOLVER_BLOCKS = 8
"""Blocks (m, 8) of a solve and of the products in it; each tail term keeps one a block of probes, and Q, beside."""


@dataclass(frozen=True)
class TailGroup:
    """One tail factor: the columns of a level follow one another.

    Attributes
    ----------
    parameters : tuple of (parameter, row, column)
        Places of its parameters in L.
    q, l : int
        Levels, and columns of each.
    columns : slice
        Its tail columns.
    """

    parameters: Places
    q: int
    l: int
    columns: slice

    @property
    def correlated(self) -> bool:
        """Whether a level's effects have covariances."""
        return any(i != j for _, i, j in self.parameters)

    def of_level(self, x: Array) -> Array:
        """Rows of x (m, k) by level (q, l, k)."""
        return x[self.columns].reshape(self.q, self.l, -1)


@dataclass(frozen=True)
class TailTerm:
    """One column of one tail factor: probes are signs on one of these.

    Attributes
    ----------
    parameter : int
        Place of its diagonal element of L in theta.
    group, column : int
        Which tail factor, and which of its columns.
    columns : slice
        Tail columns, one a level.
    """

    parameter: int
    group: int
    column: int
    columns: slice


@dataclass(frozen=True, eq=False)
class Factors:
    """Grouping factors and the places of their parameters, as a search sees them.

    Attributes
    ----------
    tail_blocks : tuple of (q, l, l)
        Blocks of Z_t'WZ_t on its diagonal, one array a tail factor.
    lead : tuple of (parameter, row, column)
        Places of the leading factor's parameters in L; none where nothing leads.
    groups : tuple of TailGroup
    tail : tuple of TailTerm
    n_theta : int
    """

    tail_blocks: tuple[Array, ...]
    lead: Places
    groups: tuple[TailGroup, ...]
    tail: tuple[TailTerm, ...]
    n_theta: int

    @property
    def factors(self) -> list[tuple[Places, int]]:
        """Places of the parameters and columns of each factor, the leading one first."""
        l = 1 + max((i for _, i, _ in self.lead), default=-1)
        return [(self.lead, l), *((group.parameters, group.l) for group in self.groups)]


@dataclass(frozen=True, eq=False)
class Levels(Factors):
    """What a reduced system is made of, whatever stands on the right of it: rows, and their blocks by level.

    Attributes
    ----------
    rows : RowForm
    blocks : (q, l, l)
        A_i, the leading factor's blocks of Z'WZ.
    second : SecondLevel
    """

    rows: RowForm
    blocks: Array
    second: SecondLevel


@dataclass(frozen=True, eq=False)
class Problem(Levels):
    """A linear model: conditioned cross-products without cells, and the rows that stand in for them.

    Attributes
    ----------
    lead_dense, tail_dense : (q, l, p + 1), (m, p + 1)
        Z'W[X y].
    dtd : (p + 1, p + 1)
    n, p : int
    start : (n_theta,)
        Moment estimates.
    """

    lead_dense: Array
    tail_dense: Array
    dtd: Array
    n: int
    p: int
    start: Array


class Grouped(Protocol):
    """A design: its grouping factors, and where their parameters are."""

    @property
    def groups(self) -> Sequence[Group]:
        """The leading one first."""

    @property
    def theta_map(self) -> ThetaMap:
        """Places of theta."""


def tail_groups(design: Grouped) -> tuple[TailGroup, ...]:
    """The tail factors."""
    index, out, start = design.theta_map.index.tolist(), list[TailGroup](), 0
    for g, group in enumerate(design.groups[1:], 1):
        own = tuple((a, i, j) for a, (other, i, j) in enumerate(index) if other == g)
        out.append(TailGroup(own, group.n_levels, group.n_columns, slice(start, start + group.size)))
        start += group.size
    return tuple(out)


def tail_terms(groups: Sequence[TailGroup]) -> tuple[TailTerm, ...]:
    """Their columns."""
    out = []
    for g, group in enumerate(groups):
        place = {i: a for a, i, j in group.parameters if i == j}
        for c in range(group.l):
            columns = slice(group.columns.start + c, group.columns.stop, group.l)
            out.append(TailTerm(place[c], g, c, columns))
    return tuple(out)


def refuse_unidentified(found: Unidentified | None) -> None:
    """ModelError where the criterion does not depend on some variance: the search would have nowhere to go."""
    if found is not None:
        names = ", ".join(map(str, found.terms))
        raise ModelError(
            f"the criterion does not determine every variance (terms {names}): leave those terms out, or let the exact "
            "engines say what can be estimated"
        )


def sorted_bytes(groups: Sequence[Group], rows: RowsAtHand) -> int:
    """Bytes of the sorted rows."""
    factors = groups[1:]
    covariates = sum(g.n_columns for g in factors) if any(rows.varying[1:]) else 0
    doubles = covariates + (groups[0].n_columns if rows.varying[0] else 0) + rows.weighted
    return rows.n * (4 * len(factors) + 8 * doubles)


def row_form_bytes(groups: Sequence[Group], rows: RowsAtHand, dense: int, probes: int) -> int:
    """Bytes of the sorted rows where they are in memory, of what is kept of each level, and of the vectors of a solve.

    Parameters
    ----------
    groups
        Grouping factors, the leading one first.
    rows : RowsAtHand
    dense, probes : int
        Columns of [X y], and probes.
    """
    factors = groups[1:]
    n_tail, m = sum(g.n_columns for g in factors), sum(g.size for g in factors)
    l, q = groups[0].n_columns, groups[0].n_levels
    whole = sorted_bytes(groups, rows)
    here = whole if rows.room is None else min(whole, rows.room)
    parts = 8 if m <= 1_000_000 else 4  # each has sums of its own
    blocks = parts + SOLVER_BLOCKS + n_tail * (1 - (-probes // WIDTH))
    vectors = 8 * WIDTH * (blocks * m + 2 * q * l)
    widest = max(g.n_columns for g in factors)
    levels = 8 * (2 * q + 1 + 3 * q * l * l + m * widest * (l * l + 4) + (q * l + m) * dense)
    return here + vectors + levels


def check_sizes(groups: Sequence[Group], needed: int, n: int, control: Control) -> None:
    """Refuse what this engine does not take.

    Raises
    ------
    ModelError
        One grouping factor only, or more than 16 columns of one.
    MemoryLimitError
        The rows in this form, and the vectors, do not fit into memory.
    """
    if len(groups) < 2:
        raise ModelError(
            "the iterative engine is for two or more grouping factors: with one the exact engines are fast"
        )
    widest, m = max(g.n_columns for g in groups), sum(g.size for g in groups[1:])
    if widest > MAX_LEADING:
        raise ModelError(f"the iterative engine takes at most {MAX_LEADING} random effects a level, not {widest}")
    if m >= 2**31:
        raise ModelError(
            f"the iterative engine takes fewer than 2**31 random effects beside the leading factor, not {m}"
        )
    available = control.n_bytes
    if needed > available:
        raise MemoryLimitError(
            f"the iterative engine would take {needed / 2**30:.3g} GiB for {n} rows and {m} random effects "
            f"beside the leading factor, but {available / 2**30:.3g} GiB can be used: raise "
            "Control(memory_limit=...) if the machine has more, or fit fewer rows"
        )


def crossed_problem(design: DesignSums, found: Responses, control: Control) -> Problem:
    """The problem of one response.

    Raises
    ------
    ModelError
        One grouping factor only, or more than 16 columns of one.
    MemoryLimitError
        The rows in this form, and the vectors, do not fit into memory.
    """
    needed = 0
    if len(design.groups) > 1:
        needed = row_form_bytes(design.groups, design.at_hand, design.rank + 1, control.probes)
    check_sizes(design.groups, needed, design.n, control)
    groups = tail_groups(design)
    l, q = design.groups[0].n_columns, design.groups[0].n_levels
    dense = [np.column_stack([x, y]) for x, y in zip(design.dense, found.dense, strict=True)]
    cross = design.complete(found, pairs=False)
    rows = row_form(design.at_hand, design.groups, control.n_threads)
    return Problem(
        rows=rows,
        blocks=design.blocks[0],
        tail_blocks=tuple(design.blocks[1:]),
        lead=lead_places(design),
        groups=groups,
        tail=tail_terms(groups),
        n_theta=len(design.theta_map.index),
        second=SecondLevel(rows, groups),
        lead_dense=np.ascontiguousarray(dense[0].reshape(q, l, -1)),
        tail_dense=np.concatenate(dense[1:]),
        dtd=cross.dtd,
        n=design.n,
        p=design.rank,
        start=moment_start(cross),
    )


def lead_places(design: Grouped) -> Places:
    """Places of the leading factor's parameters in L."""
    return tuple((a, i, j) for a, (g, i, j) in enumerate(design.theta_map.index.tolist()) if g == 0)


def row_form(rows: RowsAtHand, groups: Sequence[Group], threads: int) -> RowForm:
    """The rows sorted by leading level; cells may stand in for them.

    Where they have no room in memory they are sorted window by window, a pass over all rows for each, into temporary
    files, which the form reads through memory maps.

    Parameters
    ----------
    rows : RowsAtHand
    groups : sequence of Group
        The leading one first.
    threads : int
    """
    lead, *tail = groups
    n, counts = rows.n, np.zeros(lead.n_levels, np.int64)
    for codes, _, _ in rows.pieces():
        tally(codes[0], counts)
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    widths = np.array([group.n_columns for group in tail], np.int64)
    shapes = {"codes": (len(tail),)}
    if rows.varying[0]:
        shapes["z"] = (lead.n_columns,)
    if any(rows.varying[1:]):
        shapes["t"] = (int(widths.sum()),)
    if rows.weighted:
        shapes["w"] = (1,)
    whole = sorted_bytes(groups, rows)
    in_memory = rows.room is None or whole <= rows.room
    window = n if in_memory else max(1, n * (rows.room or 1) // (2 * whole))
    kinds = {name: np.dtype(np.int32 if name == "codes" else np.float64) for name in shapes}
    files = {} if in_memory else {name: Spool(kinds[name], of, on_disk=True) for name, of in shapes.items()}
    found: dict[str, NDArray[Any]] = {}
    for first in range(0, n, window):
        found = {name: np.empty((min(window, n - first), *of), kinds[name]) for name, of in shapes.items()}
        place_rows(rows, tail, ptr[:-1].copy(), found, first)
        for name, file in files.items():
            file.write(first, found[name])
    found.update((name, file.whole(n)) for name, file in files.items())
    w = found.get("w")
    return RowForm(
        ptr,
        found["codes"],
        np.array([group.n_levels for group in tail], np.int64),
        widths,
        found.get("z"),
        found.get("t"),
        None if w is None else w.reshape(-1),
        threads,
    )


def place_rows(
    rows: RowsAtHand, tail: Sequence[Group], at: NDArray[np.int64], found: Mapping[str, NDArray[Any]], first: int
) -> None:
    """Fill a window of the sorted rows from row ``first`` on; ``at`` (q,) are where levels begin, and is moved on."""
    for codes, columns, w in rows.pieces():
        place, start, column = places(codes[0], at), 0, 0
        for f, group in enumerate(tail):
            place_codes(place, codes[f + 1], start, found["codes"], f, group.n_columns, first)
            z = columns[f + 1]
            if "t" in found:
                own = np.ones((len(place), 1)) if z is None else z
                place_columns(place, own, found["t"], column, first)
            start, column = start + group.size, column + group.n_columns
        if columns[0] is not None:
            place_columns(place, columns[0], found["z"], 0, first)
        if w is not None:
            place_columns(place, w[:, None], found["w"], 0, first)
