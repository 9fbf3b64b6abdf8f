"""What several factors need of the rows beside sums over levels: which levels occur together, and with what weight.

Rows are kept as codes for as long as they are few beside the cells they fall into, and collapse into cells, sorted by
(level, level), once they are many: then memory no longer grows with them. Rows that take more than half of the memory
given go into temporary files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.sorting import tally
from fastlmm_core._native.rows.crossprod import nested_cells, pair_cells, sort_rows
from fastlmm_core.core.machine import available_memory
from fastlmm_core.core.rows_at_hand import PIECE, Piece
from fastlmm_core.core.spool import KeptRows

__all__ = ["RowStore"]

Array = NDArray[np.float64]
Codes = NDArray[np.int32]
Longs = NDArray[np.int64]
Cells = tuple[Longs, Codes, Array]
Run = tuple[Longs, Array]

FIRST_LOOK = 1 << 22
"""Rows kept before it is asked whether they collapse; from then on whenever they have doubled."""

COLLAPSE = 4
"""Rows a cell, over all pairs of factors, from which on cells are kept instead."""

SAMPLE = 32
"""One pair of levels in as many is looked at for that."""

SORTED = 32
"""Bytes that sorting a row takes beside its columns."""

FREE = 2
"""One part in as many of the memory that is free is given, where nothing else is said."""


class RowStore:
    """Rows, or their cells, of two or more factors.

    Parameters
    ----------
    widths : sequence of int
        Columns of each factor.
    keep_rows : bool
        Never collapse, whatever room that takes.
    memory : int, optional
        Bytes for the rows here and in another order; half of what is free when it is left out. Half of it is for those
        here, which go into temporary files beyond.

    Attributes
    ----------
    rows : KeptRows
        Empty once they have collapsed.
    collapsed : bool
        The rows are gone.
    plain : bool
        All columns are ones so far: then a cell of two factors is a row whose weight is its sum.
    """

    def __init__(self, widths: Sequence[int], keep_rows: bool = False, memory: int | None = None) -> None:
        self.widths, self.keep_rows = tuple(widths), keep_rows
        self.memory = available_memory() // FREE if memory is None else memory
        self.rows = KeptRows()
        self.runs: dict[tuple[int, int], list[Run]] = {pair: [] for pair in combinations(range(len(widths)), 2)}
        self.collapsed, self.next_look, self.plain = False, FIRST_LOOK, True

    def snapshot(self) -> RowStore:
        """The store as it stands, which later additions do not change; the rows so far are shared."""
        out = copy(self)
        out.rows, out.runs = self.rows.snapshot(), {pair: list(runs) for pair, runs in self.runs.items()}
        return out

    @property
    def room(self) -> int:
        """Bytes for the rows here, and as many for them in another order."""
        return self.memory // 2

    @property
    def has_rows(self) -> bool:
        """Whether `pieces` has an answer."""
        return not self.collapsed or (self.plain and len(self.widths) == 2)

    def add(self, codes: Sequence[Codes], columns: Sequence[Array | None], weights: Array | None) -> None:
        """Add rows: codes (n,), columns (n, l) or None for ones, weights (n,) or None."""
        if self.collapsed:
            self._add_cells((codes, columns, weights))
        else:
            of_row = sum(a[:1].nbytes for a in [*codes, *columns, weights] if a is not None)
            if (len(self.rows) + len(codes[0])) * of_row > self.room and not self.rows.on_disk:
                self.rows.spill()  # before anything is added: the disk may be full
            self.rows.add(codes, columns, weights)
        self.plain = self.plain and all(z is None for z in columns)
        if len(self.rows) >= self.next_look and not self.keep_rows:
            self._look()

    def _look(self) -> None:
        """Collapse the rows if that saves enough and cells fit, by the cells of a sample of the pairs of levels."""
        self.next_look = 2 * len(self.rows)
        a_row, cells = 0.0, 0.0
        for g, h in self.runs:
            found = [sampled(keys_of(codes[g], codes[h])) for codes, _, _ in self.rows.pieces()]
            sample = np.sort(np.concatenate(found))
            if len(sample):
                share = (1 + np.count_nonzero(sample[1:] != sample[:-1])) / len(sample)
                a_row += share
                cells += share * (8 + 8 * self.widths[g] * self.widths[h])
            if COLLAPSE * a_row > 1.0:
                return
        if cells * len(self.rows) <= self.room:
            self.collapse()

    def collapse(self) -> None:
        """Keep cells instead of rows."""
        if not self.collapsed:
            rows, self.rows, self.collapsed = self.rows, KeptRows(), True
            for piece in rows.pieces():
                self._add_cells(piece)

    def _add_cells(self, rows: Piece) -> None:
        codes, columns, weights = rows
        for g, h in self.runs:
            key = keys_of(codes[g], codes[h])
            self._add_run((g, h), summed(key, outer(columns[g], columns[h], weights, len(key))))

    def _add_run(self, pair: tuple[int, int], run: Run) -> None:
        """One more run of sorted cells; they are merged when the new ones are as many as the old."""
        runs = self.runs[pair]
        runs.append(run)
        if sum(len(keys) for keys, _ in runs[1:]) >= len(runs[0][0]):
            self.merged(pair)

    def merged(self, pair: tuple[int, int]) -> Run:
        """All cells of a pair, sorted; they are one run afterwards."""
        runs = self.runs[pair]
        if not runs:
            return np.empty(0, np.int64), np.empty((0, self.widths[pair[0]], self.widths[pair[1]]))
        if len(runs) > 1:
            runs[:] = [summed(np.concatenate([k for k, _ in runs]), np.concatenate([v for _, v in runs]))]
        return runs[0]

    @property
    def n_kept(self) -> int:
        """Rows, or the cells that stand for them."""
        return len(self.merged((0, 1))[0]) if self.collapsed else len(self.rows)

    @property
    def weighted(self) -> bool:
        """Whether rows, or the cells that stand for them, have weights."""
        return self.collapsed or self.rows.weighted

    def pieces(self) -> Iterator[Piece]:
        """All rows kept, `PIECE` after another; of two factors without columns the cells, weighted by their sums."""
        if not self.collapsed:
            yield from self.rows.pieces()
            return
        keys, values = self.merged((0, 1))
        for start in range(0, len(keys), PIECE):
            part = keys[start : start + PIECE]
            codes = [(part >> 32).astype(np.int32), (part & 0xFFFFFFFF).astype(np.int32)]
            yield codes, [None, None], values[start : start + PIECE].ravel()

    def merge(self, other: RowStore, places: Sequence[Longs], changes: Sequence[Array]) -> None:
        """Add another's rows or cells: the own codes ``places`` (q,) of its levels, its columns times ``changes``."""
        self.plain = self.plain and other.plain
        if other.collapsed:
            self.collapse()
            for g, h in self.runs:
                keys, values = other.merged((g, h))
                moved = (places[g][keys >> 32] << 32) | places[h][keys & 0xFFFFFFFF]
                self._add_run((g, h), summed(moved, changes[g].T @ values @ changes[h]))
            return
        for codes, columns, weights in other.rows.pieces():
            own = [place[c].astype(np.int32) for place, c in zip(places, codes, strict=True)]
            z = [None if c is None else c @ change for c, change in zip(columns, changes, strict=True)]
            self.add(own, z, weights)

    def renumber(self, orders: Sequence[Codes]) -> None:
        """Give each level the code that its factor's ``orders`` (q,) has for it."""
        self.rows.renumber(orders)
        for (g, h), runs in self.runs.items():
            runs[:] = [
                summed(keys_of(orders[g][keys >> 32], orders[h][keys & 0xFFFFFFFF]), values) for keys, values in runs
            ]

    def pair(self, g: int, h: int, orders: Sequence[Codes], sizes: Sequence[int]) -> Cells:
        """Cells of two factors, g before h or after it, as block compressed rows.

        Parameters
        ----------
        g, h : int
        orders : sequence of (q,) int32
            New code of each level, a factor.
        sizes : sequence of int
            Levels of each.

        Returns
        -------
        cell_ptr, cell_idx, cell_val
            As of `pair_cells`.
        """
        if not self.collapsed:
            return self._pair_of_rows(g, h, orders, sizes)
        keys, values = self.merged((min(g, h), max(g, h)))
        first, second = keys >> 32, keys & 0xFFFFFFFF
        if g > h:
            first, second, values = second, first, values.transpose(0, 2, 1)
        keys, values = summed(keys_of(orders[g][first], orders[h][second]), values)
        ptr = np.searchsorted(keys, np.arange(sizes[g] + 1, dtype=np.int64) << 32)
        return ptr.astype(np.int64), (keys & 0xFFFFFFFF).astype(np.int32), values

    def _pair_of_rows(self, g: int, h: int, orders: Sequence[Codes], sizes: Sequence[int]) -> Cells:
        """`pair` from rows, by ranges of levels of g whose rows fit."""
        counts = np.zeros(sizes[g], np.int64)
        for codes, _, _ in self.rows.pieces():
            tally(orders[g][codes[g]], counts)
        limit = max(1, self.room // (SORTED + 2 * self.rows.row_bytes))
        parts = []
        for low, high in ranges(counts, limit):
            a, b, left, right, w = self._of_levels(g, h, orders, low, high)
            cells = nested_cells(a, high - low, left, b, right, w)
            if cells is None:
                cells = pair_cells(*sort_rows(a, high - low), left, b, sizes[h], right, w)
            parts.append(cells)
        if len(parts) == 1:
            return parts[0]
        ends = np.cumsum([0, *(len(idx) for _, idx, _ in parts)])
        ptr = [part[0][:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
        return (
            np.concatenate([*ptr, ends[-1:]]).astype(np.int64),
            np.concatenate([idx for _, idx, _ in parts]),
            np.concatenate([values for _, _, values in parts]),
        )

    def _of_levels(self, g: int, h: int, orders: Sequence[Codes], low: int, high: int) -> Any:
        """New codes of g less ``low`` and of h, columns of both and weights of the rows with levels of g in a range."""
        found = []
        for codes, columns, weights in self.rows.pieces():
            a = orders[g][codes[g]]
            own: slice | NDArray[np.bool_] = slice(None)
            if high - low < len(orders[g]):
                own = (a >= low) & (a < high)
            arrays = (a - np.int32(low), orders[h][codes[h]], columns[g], columns[h], weights)
            found.append([None if values is None else values[own] for values in arrays])
        return [joined(parts) for parts in zip(*found, strict=True)]


def joined(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """Arrays of rows as one; None where there are none."""
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None


def ranges(counts: Longs, limit: int) -> list[tuple[int, int]]:
    """Ranges of levels of at most so many rows, or of one level each."""
    ends, out, low = np.cumsum(counts), list[tuple[int, int]](), 0
    while low < len(counts):
        before = ends[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(ends, before + limit, side="right")))
        out.append((low, high))
        low = high
    return out


def keys_of(a: Codes, b: Codes) -> Longs:
    """One number (n,) a pair of codes, in their order."""
    out = a.astype(np.int64)
    out <<= 32
    out |= b
    return out


def sampled(keys: Longs) -> Longs:
    """Those of some keys whose scrambled bits begin with zeros: all rows of one in `SAMPLE` pairs of levels."""
    scrambled = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return keys[(scrambled >> np.uint64(32)) < np.uint64(2**32 // SAMPLE)]


def outer(a: Array | None, b: Array | None, weights: Array | None, n: int) -> Array:
    """W a b' (n, l, l') of rows; None stands for ones."""
    if a is None and b is None:
        return np.ones((n, 1, 1)) if weights is None else weights[:, None, None]
    left = np.ones((n, 1)) if a is None else a
    left = left if weights is None else left * weights[:, None]
    right = np.ones((n, 1)) if b is None else b
    return left[:, :, None] * right[:, None, :]


def summed(keys: Longs, values: Array) -> Run:
    """Distinct keys, sorted, and the sums of their values; equal keys are added in their order."""
    if len(keys) == 0:
        return keys, np.ascontiguousarray(values)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(values[order], starts, axis=0)
