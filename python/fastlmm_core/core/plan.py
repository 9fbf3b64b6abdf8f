"""The symbolic phase: order of the tail, engine, index structures. Made once; every theta reuses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fastlmm_core._native.criterion.evaluator import Evaluator
from fastlmm_core._native.symbolic.index import leading_rows, permuted_pattern, schur_fill, schur_pattern, tail_rows
from fastlmm_core._native.symbolic.ordering import elimination_tree, fill_ordering
from fastlmm_core._native.symbolic.supernodes import Supernodes, dense_seconds
from fastlmm_core._native.tail.sparse import SparseTail
from fastlmm_core._native.tail.tail import DenseTail, EmptyTail, Tail
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.crossprod import CrossProducts
from fastlmm_core.errors import MemoryLimitError, ModelError

__all__ = ["Plan", "plan"]

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

FLOOR = 1e-6
"""Squared floor of a tail factor's singular values, relative to one over the rows a level has."""

PARALLEL_ABOVE = 5e6
"""Flops of an evaluation below which waking a second thread costs more than it saves."""

Longs = NDArray[np.int64]
Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Offsets = list[Longs]
LeadingRows = tuple[Longs, Ints, Floats, Longs, Ints, Longs]
TailRows = tuple[Longs, Ints, Floats]
Pattern = tuple[Longs, Longs]


@dataclass(frozen=True)
class Plan:
    """A model ready to be evaluated.

    Attributes
    ----------
    engine : {"none", "dense", "sparse"}
        How the tail is factored; "none" where the leading factor is the only one.
    offsets : list of (q,) int64
        For each group but the leading one, the tail column at which each level begins.
    arrays : dict
        Constants of the evaluator.
    factor_bytes : int
        Predicted size of the tail's matrices.
    total_bytes : int
        Predicted size of those, the index structures and the evaluator's workspace: what a fit needs beside the data
        and their cross-products.
    threads : int
        Threads an evaluation uses: one where there is too little work to share.
    """

    cross: CrossProducts
    control: Control
    engine: str
    offsets: Offsets
    arrays: dict[str, NDArray[np.generic]]
    factor_bytes: int
    total_bytes: int
    threads: int
    tail: Tail

    def evaluator(self, reml: bool) -> Evaluator:
        """The compiled workspace for one criterion.

        Evaluators of one plan share its tail, which knows whose factors it holds; one of them works at a time, and a
        second thread's call raises `InUseError`.
        """
        c = self.cross
        nu = c.n - c.conditioning.rank if reml else c.n
        constant = c.conditioning.constant(nu, reml)
        return Evaluator(self.arrays, self.tail, c.n, c.conditioning.rank, reml, constant, self.threads)

    def __reduce__(self) -> tuple[Callable[..., Plan], tuple[CrossProducts, Control]]:
        return plan, (self.cross, self.control)  # made anew: a tail is a workspace

    def tail_columns(self, dense: Sequence[Floats]) -> Floats:
        """Rows (q l, ...) of every group but the leading one, brought into the tail's order (m, ...)."""
        out = np.empty((sum(len(rows) for rows in dense[1:]), *dense[0].shape[1:]))
        for group, offset, rows in zip(self.cross.groups[1:], self.offsets, dense[1:], strict=True):
            out[(offset[:, None] + np.arange(group.n_columns)).ravel()] = rows
        return out


def natural_offsets(cross: CrossProducts) -> Offsets:
    """Tail columns in the order of the groups and their levels."""
    offsets, start = [], 0
    for group in cross.groups[1:]:
        offsets.append(start + group.n_columns * np.arange(group.n_levels, dtype=np.int64))
        start += group.size
    return offsets


def structures(cross: CrossProducts, offsets: Offsets) -> tuple[LeadingRows, TailRows]:
    """Leading rows and tail rows for one order of the tail."""
    lead = cross.groups[0]
    m = sum(group.size for group in cross.groups[1:])
    leading = leading_rows(
        lead.n_levels, lead.n_columns, m, [(*cross.pairs[0, h + 1], offset) for h, offset in enumerate(offsets)]
    )
    tail = tail_rows(
        m,
        list(zip(cross.blocks[1:], offsets, strict=True)),
        [(*cells, offsets[g - 1], offsets[h - 1]) for (g, h), cells in cross.pairs.items() if g > 0],
    )
    return leading, tail


def pattern(leading: LeadingRows, tail: TailRows, limit: int) -> Pattern | None:
    """Lower pattern of the Schur complement with sorted rows, or None where it has more entries than ``limit``."""
    ptr, idx, _, t_ptr, t_lead, t_pos = leading
    found = schur_pattern(tail[0], tail[1], ptr, idx, t_ptr, t_lead, t_pos, limit)
    return None if found is None else permuted_pattern(*found, np.arange(len(tail[0]) - 1))


def sampled_fill(leading: LeadingRows, tail: TailRows) -> float:
    """Fraction of the Schur complement's lower triangle that is nonzero, from evenly spaced rows."""
    ptr, idx, _, t_ptr, t_lead, t_pos = leading
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


def order_blocks(cross: CrossProducts, lower: Pattern) -> tuple[Offsets, Longs, Supernodes]:
    """The cheaper of AMD's and METIS's orders of the tail's blocks (levels), and what a factor looks like in it.

    Columns of one level share a pattern and stay together.

    Parameters
    ----------
    cross : CrossProducts
    lower : Pattern
        In the natural order.

    Returns
    -------
    offsets
        As `Plan` has them.
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


def elimination_flops(cross: CrossProducts, ptr: NDArray[np.generic], m: int) -> float:
    """Flops of one evaluation: pairs of columns that meet in a leading level, a dense tail, the dense columns."""
    widths = np.diff(ptr).astype(np.float64)
    lead, d = cross.groups[0], cross.dtd.shape[0]
    return float(lead.n_columns * (widths @ widths) + lead.size * d * (d + lead.n_columns) + m**3 / 3)


def dense_bytes(m: int) -> int:
    """Memory of the dense engine: both triangles, and a panel for the inverse."""
    return 8 * m * (m + 1 + DenseTail.tile_size(m))


def workspace_bytes(cross: CrossProducts, leading: LeadingRows, rows: TailRows) -> int:
    """Memory of the index structures and of the evaluator's workspace, the tail's matrices left out."""
    lead, d, parameters = cross.groups[0], cross.dtd.shape[0], cross.theta_map.index
    q, l, m, n_theta = lead.n_levels, lead.n_columns, len(rows[0]) - 1, len(parameters)
    own = int((parameters[:, 0] == 0).sum())
    structure = sum(a.nbytes for a in (*leading, *rows)) + leading[2].nbytes  # the values twice: B and U
    structure += 2 * len(leading[1]) if m <= SHORT else 0  # the columns once more, as 16-bit numbers
    levels = 8 * q * (l * l + 1 + l * (2 * d + 2 + own))
    columns = 8 * m * (4 * d + 2 + 2 * n_theta - own + l * l + 2 * (d - 1))
    return int(structure + levels + columns)


def refuse(needed: float, available: int, what: str) -> None:
    """Refuse a factor that the machine cannot hold."""
    if needed > available:
        raise MemoryLimitError(
            f"{what} would take {needed / 2**30:.1f} GiB, but {available / 2**30:.1f} GiB can be used: "
            "simplify the random effects, or raise Control(memory_limit=...) if the machine has more"
        )


def plan(cross: CrossProducts, control: Control | None = None) -> Plan:
    """Order the tail, choose its engine and lay out every index structure.

    Parameters
    ----------
    cross : CrossProducts
    control : Control, optional

    Returns
    -------
    Plan

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
    arrays = evaluator_arrays(cross, offsets, leading)
    return Plan(cross, control, engine, offsets, arrays, factor_bytes, factor_bytes + work, threads, tail)


def evaluator_arrays(cross: CrossProducts, offsets: Offsets, leading: LeadingRows) -> dict[str, NDArray[np.generic]]:
    """Constants of the evaluator, tail quantities in the tail's order."""
    groups = cross.groups
    m, d = sum(group.size for group in groups[1:]), cross.dtd.shape[0]
    ptr, idx, val, t_ptr, t_lead, t_pos = leading
    group_l = np.array([g.n_columns for g in groups], np.int64)
    group_lam = np.concatenate([[0], np.cumsum(group_l**2)])
    zd_tail = np.empty((d, m))
    starts = np.concatenate([*offsets, np.empty(0, np.int64)])
    owner = np.repeat(np.arange(1, len(groups)), [g.n_levels for g in groups[1:]])
    for group, offset, dense in zip(groups[1:], offsets, cross.dense[1:], strict=True):
        columns = (offset[:, None] + np.arange(group.n_columns)).ravel()
        zd_tail[:, columns] = dense.T
    order = np.argsort(starts, kind="stable")
    block_group = owner[order].astype(np.int64)
    widths = group_l[block_group] if len(block_group) else np.empty(0, np.int64)
    # one spare entry at the end of each: an empty tail still has an address
    return {
        "a": cross.blocks[0],
        "zd": cross.dense[0],
        "ptr": ptr,
        "idx": idx,
        "short_idx": idx.astype(np.uint16) if m <= SHORT else np.empty(0, np.uint16),
        "ones": np.array([cross.groups[0].n_columns == 1 and bool((val == 1.0).all())]),
        "val": val,
        "t_ptr": t_ptr,
        "t_lead": t_lead,
        "t_pos": t_pos,
        "block_ptr": np.concatenate([[0], np.cumsum(widths)]).astype(np.int64),
        "block_group": np.append(block_group, 0),
        "block_lam": np.append(group_lam[block_group], 0).astype(np.int64),
        "column_block": np.append(np.repeat(np.arange(len(order)), widths), 0).astype(np.int64),
        "group_l": group_l,
        "group_lam": group_lam.astype(np.int64),
        "group_floor": np.array([np.sqrt(FLOOR * g.n_levels / cross.n) for g in groups]),
        "theta_group": np.ascontiguousarray(cross.theta_index[:, 0]),
        "theta_row": np.ascontiguousarray(cross.theta_index[:, 1]),
        "theta_col": np.ascontiguousarray(cross.theta_index[:, 2]),
        "dtd": cross.dtd,
        "zd_tail": zd_tail,
    }
