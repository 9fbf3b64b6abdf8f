"""The symbolic phase: order of the tail, engine, index structures. Made once, for every theta and every weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fastlmm_core._native.criterion.evaluator import Evaluator
from fastlmm_core._native.criterion.values import Values
from fastlmm_core._native.rows.refill import RowPlaces
from fastlmm_core._native.symbolic.index import (
    leading_rows,
    leading_values,
    permuted_pattern,
    schur_fill,
    schur_pattern,
    tail_rows,
    tail_values,
)
from fastlmm_core._native.symbolic.ordering import elimination_tree, fill_ordering
from fastlmm_core._native.symbolic.supernodes import Supernodes, dense_seconds
from fastlmm_core._native.tail.sparse import SparseTail
from fastlmm_core._native.tail.tail import DenseTail, EmptyTail, Tail
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.crossprod import CrossProducts, DesignProducts
from fastlmm_core.core.terms import Group
from fastlmm_core.core.theta import ThetaMap
from fastlmm_core.errors import MemoryLimitError, ModelError

__all__ = ["Layout", "plan"]

DENSE_BELOW = 100
"""Tails no larger than this are dense without a look at their pattern, which would cost more than it saves."""

DENSE_FILL = 0.4
"""Schur complements fuller than this are dense without a look at their pattern. Elimination fills them further: at 0.46
(ten million ratings) a sparse factor was predicted to take 0.7 of the time and twice the memory."""

PATTERN_BYTES = 24
"""Bytes an entry of the Schur complement's pattern takes in the sparse engine, its factor left out: an index, a value,
and a place in the factor."""

METIS_SECONDS = 2.5e-7
"""Predicted seconds of a factor and inverse, an entry of the pattern of blocks, from which on METIS is tried. It takes
6e-7 an entry, and where it beats AMD it does so by about a quarter, in each of some ten evaluations."""

SAMPLED_ROWS = 64
"""Rows of the Schur complement whose fill decides whether its whole pattern is worth forming."""

SHORT = 1 << 16
"""Tail columns that 16-bit numbers tell apart."""

PARALLEL_ABOVE = 5e6
"""Flops of an evaluation below which waking a second thread costs more than it saves."""

Longs = NDArray[np.int64]
Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Offsets = list[Longs]
LeadingRows = tuple[Longs, Ints, Longs, Ints, Longs]
TailRows = tuple[Longs, Ints]
Pattern = tuple[Longs, Longs]
Cells = tuple[Longs, Ints, Floats]


class Products(Protocol):
    """What a layout is made from: which levels occur together. `CrossProducts` and `DesignProducts` have it."""

    @property
    def n(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def groups(self) -> tuple[Group, ...]: ...
    @property
    def blocks(self) -> tuple[Floats, ...]: ...
    @property
    def pairs(self) -> dict[tuple[int, int], Cells]: ...
    @property
    def theta_map(self) -> ThetaMap: ...


@dataclass(frozen=True)
class Incidence:
    """`Products` without their numbers: blocks and cells have their columns, but no rows."""

    n: int
    rank: int
    groups: tuple[Group, ...]
    blocks: tuple[Floats, ...]
    pairs: dict[tuple[int, int], Cells]
    theta_map: ThetaMap

    @classmethod
    def of(cls, products: Products) -> Incidence:
        """That of some products; the arrays that say which levels meet are shared."""
        blocks = tuple(np.empty((0, *block.shape[1:])) for block in products.blocks)
        pairs = {key: (ptr, idx, np.empty((0, *val.shape[1:]))) for key, (ptr, idx, val) in products.pairs.items()}
        return cls(products.n, products.rank, products.groups, blocks, pairs, products.theta_map)


@dataclass(frozen=True)
class Layout:
    """Where each number of a model goes, and the engine that will work on them: nothing that depends on y or weights.

    Attributes
    ----------
    incidence : Incidence
        What it was made from.
    engine : {"none", "dense", "sparse"}
        How the tail is factored; "none" where the leading factor is the only one.
    offsets : list of (q,) int64
        For each group but the leading one, the tail column at which each level begins.
    arrays : dict
        Index arrays of the evaluator.
    factor_bytes : int
        Predicted size of the tail's matrices.
    total_bytes : int
        Predicted size of those, the index structures and the evaluator's workspace: what a fit needs beside the data
        and their cross-products.
    threads : int
        Threads an evaluation uses: one where there is too little work to share.
    """

    incidence: Incidence
    control: Control
    engine: str
    offsets: Offsets
    arrays: dict[str, NDArray[np.generic]]
    factor_bytes: int
    total_bytes: int
    threads: int
    tail: Tail

    @property
    def groups(self) -> tuple[Group, ...]:
        """Grouping factors, the leading one first."""
        return self.incidence.groups

    def evaluator(self, reml: bool, *, n: int | None = None, rank: int | None = None) -> Evaluator:
        """The compiled workspace for one criterion, to be loaded with values.

        Parameters
        ----------
        reml : bool
        n, rank : int, optional
            Observations that the criterion counts and columns of X, where they are not the data's.

        Notes
        -----
        Evaluators of one layout share its tail, which knows whose factors it holds; one of them works at a time, and a
        second thread's call raises `InUseError`.
        """
        n = self.incidence.n if n is None else n
        rank = self.incidence.rank if rank is None else rank
        return Evaluator(self.arrays, self.tail, n, rank, reml, self.threads)

    def working_evaluator(self) -> Evaluator:
        """The workspace for log|M| at a fixed scale: of a working model, whose weights carry the scale."""
        return Evaluator(self.arrays, self.tail, self.incidence.n, 0, False, self.threads, True)

    def load(self, evaluator: Evaluator, cross: CrossProducts) -> None:
        """Load an evaluator of this layout with the numbers of cross-products, and their criterion's constant."""
        constant = cross.conditioning.constant(evaluator.nu, evaluator.reml)
        evaluator.load(self.values(cross), constant)

    def values(self, cross: CrossProducts) -> Values:
        """Cross-products in this layout's order.

        They may be other ones than the layout was made from, with other weights or another response, so long as the
        same levels occur together.

        Raises
        ------
        ModelError
            They do not.
        """
        for key, (ptr, idx, _) in cross.pairs.items():
            own_ptr, own_idx, _ = self.incidence.pairs[key]
            if not (idx is own_idx or (np.array_equal(ptr, own_ptr) and np.array_equal(idx, own_idx))):
                raise ModelError("other levels occur together than in the data that this model was laid out for")
        lead, m = self.groups[0], self.tail.m
        leading, tail, pairs = pair_lists(cross, self.offsets)
        a: dict[str, Any] = self.arrays
        val = leading_values(lead.n_columns, a["ptr"], a["t_ptr"], a["t_pos"], leading)
        even = not cross.weighted and lead.n_columns == 1 and bool((val == 1.0).all())
        zd_tail = np.empty((cross.dtd.shape[0], m))
        for group, offset, dense in zip(self.groups[1:], self.offsets, cross.dense[1:], strict=True):
            zd_tail[:, (offset[:, None] + np.arange(group.n_columns)).ravel()] = dense.T
        rows = tail_values(a["a_ptr"], tail, pairs)
        # the weights' mean is one
        return Values(cross.blocks[0], val, rows, cross.dense[0], zd_tail, cross.dtd, cross.n, even)

    def rows(self, design: DesignProducts) -> RowPlaces:
        """Places of a design's rows, to refill the values with other weights."""
        levels = [group.n_levels for group in self.groups]
        return RowPlaces(design.codes, design.columns, levels, list(self.offsets), self.arrays, self.threads)

    def __reduce__(self) -> tuple[Callable[..., Layout], tuple[Incidence, Control]]:
        return plan, (self.incidence, self.control)  # made anew: a tail is a workspace

    def tail_columns(self, dense: Sequence[Floats]) -> Floats:
        """Rows (q l, ...) of every group but the leading one, brought into the tail's order (m, ...)."""
        out = np.empty((sum(len(rows) for rows in dense[1:]), *dense[0].shape[1:]))
        for group, offset, rows in zip(self.groups[1:], self.offsets, dense[1:], strict=True):
            out[(offset[:, None] + np.arange(group.n_columns)).ravel()] = rows
        return out


def natural_offsets(cross: Products) -> Offsets:
    """Tail columns in the order of the groups and their levels."""
    offsets, start = [], 0
    for group in cross.groups[1:]:
        offsets.append(start + group.n_columns * np.arange(group.n_levels, dtype=np.int64))
        start += group.size
    return offsets


LeadingPair = tuple[Longs, Ints, Floats, Longs]
TailBlock = tuple[Floats, Longs]
TailPair = tuple[Longs, Ints, Floats, Longs, Longs]


def pair_lists(cross: Products, offsets: Offsets) -> tuple[list[LeadingPair], list[TailBlock], list[TailPair]]:
    """Cells of the leading factor with each other one, blocks of the tail, and cells within it, with their places."""
    leading = [(*cross.pairs[0, h + 1], offset) for h, offset in enumerate(offsets)]
    tail = list(zip(cross.blocks[1:], offsets, strict=True))
    pairs = [(*cells, offsets[g - 1], offsets[h - 1]) for (g, h), cells in cross.pairs.items() if g > 0]
    return leading, tail, pairs


def structures(cross: Products, offsets: Offsets) -> tuple[LeadingRows, TailRows]:
    """Patterns of the leading rows and of the tail rows for one order of the tail."""
    m = sum(group.size for group in cross.groups[1:])
    leading, tail, pairs = pair_lists(cross, offsets)
    return leading_rows(cross.groups[0].n_levels, m, leading), tail_rows(m, tail, pairs)


def pattern(leading: LeadingRows, tail: TailRows, limit: int) -> Pattern | None:
    """Lower pattern of the Schur complement with sorted rows, or None where it has more entries than ``limit``."""
    ptr, idx, t_ptr, t_lead, t_pos = leading
    found = schur_pattern(tail[0], tail[1], ptr, idx, t_ptr, t_lead, t_pos, limit)
    return None if found is None else permuted_pattern(*found, np.arange(len(tail[0]) - 1))


def sampled_fill(leading: LeadingRows, tail: TailRows) -> float:
    """Fraction of the Schur complement's lower triangle that is nonzero, from evenly spaced rows."""
    ptr, idx, t_ptr, t_lead, t_pos = leading
    m = len(tail[0]) - 1
    sample = np.unique(np.linspace(0, m - 1, SAMPLED_ROWS).astype(np.int64))
    return float(schur_fill(tail[0], tail[1], ptr, idx, t_ptr, t_lead, t_pos, sample))


def block_pattern(lower: Pattern, widths: Longs) -> Pattern:
    """Pattern of blocks of columns from that of the columns."""
    if widths.max() == 1:
        return lower
    ptr, idx = lower
    last = np.cumsum(widths) - 1  # a block's last row lists all of its diagonal block
    block_of = np.repeat(np.arange(len(widths)), widths)
    rows = csr_array((np.ones(len(idx), np.int8), idx, ptr), shape=(len(block_of),) * 2)[last]
    blocks = csr_array((rows.data, block_of[rows.indices], rows.indptr), shape=(len(widths),) * 2)
    blocks.sum_duplicates()
    return blocks.indptr.astype(np.int64), blocks.indices.astype(np.int64)


def order_blocks(cross: Products, lower: Pattern) -> tuple[Offsets, Longs, Supernodes]:
    """The cheaper of AMD's and METIS's orders of the tail's blocks (levels), and what a factor looks like in it.

    Columns of one level share a pattern and stay together.

    Parameters
    ----------
    cross : Products
    lower : Pattern
        In the natural order.

    Returns
    -------
    offsets
        As `Layout` has them.
    position : (m,) int64
        New place of each column.
    tree : Supernodes
    """
    groups = cross.groups[1:]
    widths = np.concatenate([np.full(g.n_levels, g.n_columns, np.int64) for g in groups])
    starts = np.cumsum(widths) - widths
    blocks = block_pattern(lower, widths)
    best: tuple[Longs, Supernodes] | None = None
    for method in ("amd", "metis"):
        if best is not None and best[1].seconds < METIS_SECONDS * len(blocks[1]):
            break
        perm = fill_ordering(*blocks, method)
        if perm is None:
            continue
        place = np.cumsum(widths[perm]) - widths[perm]
        columns = np.repeat(starts[perm] - place, widths[perm]) + np.arange(widths.sum())
        tree = Supernodes(*elimination_tree(*lower, columns))
        if best is None or tree.seconds < best[1].seconds:
            best = columns, tree
    assert best is not None
    position = np.empty_like(best[0])
    position[best[0]] = np.arange(len(position))
    return np.split(position[starts], np.cumsum([g.n_levels for g in groups])[:-1]), position, best[1]


def elimination_flops(cross: Products, ptr: NDArray[np.generic], m: int) -> float:
    """Flops of one evaluation: pairs of columns that meet in a leading level, a dense tail, the dense columns."""
    widths = np.diff(ptr).astype(np.float64)
    lead, d = cross.groups[0], cross.rank + 1
    return float(lead.n_columns * (widths @ widths) + lead.size * d * (d + lead.n_columns) + m**3 / 3)


def dense_bytes(m: int) -> int:
    """Memory of the dense engine: both triangles, and a panel for the inverse."""
    return 8 * m * (m + 1 + DenseTail.tile_size(m))


def workspace_bytes(cross: Products, leading: LeadingRows, rows: TailRows) -> int:
    """Memory of the index structures and of the evaluator's workspace, the tail's matrices left out."""
    lead, d, parameters = cross.groups[0], cross.rank + 1, cross.theta_map.index
    q, l, m, n_theta = lead.n_levels, lead.n_columns, len(rows[0]) - 1, len(parameters)
    own = int((parameters[:, 0] == 0).sum())
    structure = sum(a.nbytes for a in (*leading, *rows)) + 8 * (2 * l * len(leading[1]) + len(rows[1]))  # B, U, A_tt
    structure += 2 * len(leading[1]) if m <= SHORT else 0  # the columns once more, as 16-bit numbers
    levels = 8 * q * (l * l + 1 + l * (2 * d + 2 + own))
    columns = 8 * m * (4 * d + 2 + 2 * n_theta - own + l * l + 2 * (d - 1))
    return int(structure + levels + columns)


def refuse(needed: float, available: int, what: str) -> None:
    """Refuse a factor that the machine cannot hold."""
    if needed > available:
        raise MemoryLimitError(
            f"{what} would take {needed / 2**30:.1f} GiB, but {available / 2**30:.1f} GiB can be used: "
            "simplify the random effects, raise Control(memory_limit=...) if the machine has more, or fit crossed "
            "factors without a factor by core.iterative.fit"
        )


def plan(cross: Products, control: Control | None = None) -> Layout:
    """Order the tail, choose its engine and lay out every index structure.

    Parameters
    ----------
    cross : CrossProducts or DesignProducts
        Only which levels occur together matters, no value does.
    control : Control, optional

    Returns
    -------
    Layout

    Raises
    ------
    MemoryLimitError
        The predicted factor exceeds the memory at hand; the message has both figures.
    """
    control = checked_control(control)
    m = sum(group.size for group in cross.groups[1:])
    if m > np.iinfo(np.int32).max:
        raise ModelError(f"{m} random effects beside the leading factor exceed the index range")
    available = control.n_bytes if m else 0  # before the structures, which `work` counts
    offsets = natural_offsets(cross)
    leading, rows = structures(cross, offsets)
    threads = control.n_threads if elimination_flops(cross, leading[0], m) > PARALLEL_ABOVE else 1
    tail: Tail | None = None
    work = workspace_bytes(cross, leading, rows)
    engine, factor_bytes = "dense", dense_bytes(m)
    if m == 0:
        tail, engine, factor_bytes = EmptyTail(), "none", 0
    elif control.engine == "sparse" or (control.engine == "auto" and m > DENSE_BELOW):
        forced = control.engine == "sparse"
        limit = available // PATTERN_BYTES
        dense_fits = factor_bytes + work <= available
        full = not forced and dense_fits and sampled_fill(leading, rows) > DENSE_FILL
        lower = None if full else pattern(leading, rows, limit)
        if lower is not None:
            new_offsets, position, tree = order_blocks(cross, lower)
            sparse_bytes = SparseTail.bytes(tree, len(lower[1]), threads)
            fits = sparse_bytes + work <= available
            # memory is worth as much as time: a sparse factor that takes more of it has to be faster by as much; judged
            # on one thread, so that their number does not change the engine and with it the last digits
            memory = SparseTail.bytes(tree, len(lower[1]), 1) / dense_bytes(m)
            better = tree.seconds * max(1.0, memory) < dense_seconds(m)
            if forced or not dense_fits or (fits and better):
                refuse(sparse_bytes + work, available, f"the sparse factor of {m} random effects")
                offsets = new_offsets
                del leading, rows  # before the others are made
                leading, rows = structures(cross, offsets)
                tail = SparseTail(rows, *permuted_pattern(*lower, position), threads, tree)
                engine, factor_bytes = "sparse", sparse_bytes
        elif forced:
            raise MemoryLimitError(
                f"the sparse engine's pattern of {m} random effects has more than {limit:.3g} entries, which is what "
                f"{available / 2**30:.1f} GiB can hold"
            )
    if tail is None:
        refuse(factor_bytes + work, available, f"the dense factor of {m} random effects")
        tail = DenseTail(rows, threads)
    return Layout(
        Incidence.of(cross),
        control,
        engine,
        offsets,
        evaluator_arrays(cross, offsets, leading, rows),
        factor_bytes,
        factor_bytes + work,
        threads,
        tail,
    )


def evaluator_arrays(
    cross: Products, offsets: Offsets, leading: LeadingRows, rows: TailRows
) -> dict[str, NDArray[np.generic]]:
    """Index arrays of the evaluator, tail quantities in the tail's order."""
    groups, index = cross.groups, cross.theta_map.index
    m = sum(group.size for group in groups[1:])
    ptr, idx, t_ptr, t_lead, t_pos = leading
    group_l = np.array([g.n_columns for g in groups], np.int64)
    group_lam = np.concatenate([[0], np.cumsum(group_l**2)])
    starts = np.concatenate([*offsets, np.empty(0, np.int64)])
    owner = np.repeat(np.arange(1, len(groups)), [g.n_levels for g in groups[1:]])
    order = np.argsort(starts, kind="stable")
    block_group = owner[order].astype(np.int64)
    widths = group_l[block_group] if len(block_group) else np.empty(0, np.int64)
    # one spare entry at the end of each: an empty tail still has an address
    return {
        "ptr": ptr,
        "idx": idx,
        "short_idx": idx.astype(np.uint16) if m <= SHORT else np.empty(0, np.uint16),
        "t_ptr": t_ptr,
        "t_lead": t_lead,
        "t_pos": t_pos,
        "a_ptr": rows[0],
        "a_idx": rows[1],
        "block_ptr": np.concatenate([[0], np.cumsum(widths)]).astype(np.int64),
        "block_group": np.append(block_group, 0),
        "block_lam": np.append(group_lam[block_group], 0).astype(np.int64),
        "column_block": np.append(np.repeat(np.arange(len(order)), widths), 0).astype(np.int64),
        "group_l": group_l,
        "group_lam": group_lam.astype(np.int64),
        "group_levels": np.array([g.n_levels for g in groups], np.int64),
        "theta_group": np.ascontiguousarray(index[:, 0]),
        "theta_row": np.ascontiguousarray(index[:, 1]),
        "theta_col": np.ascontiguousarray(index[:, 2]),
    }
