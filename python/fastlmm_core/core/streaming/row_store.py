"""What several factors need of the rows beside sums over levels: which levels occur together, and with what weight.

Rows are kept as codes for as long as they are few beside the cells they fall into, and collapse into cells, sorted by
(level, level), once they are many: then memory no longer grows with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.rows.crossprod import nested_cells, pair_cells, sort_rows

__all__ = ["RowStore"]

Array = NDArray[np.float64]
Codes = NDArray[np.int32]
Longs = NDArray[np.int64]
Cells = tuple[Longs, Codes, Array]
Rows = tuple[list[Codes], list[Array | None], Array | None]
Run = tuple[Longs, Array]

FIRST_LOOK = 1 << 22
"""Rows kept before it is asked whether they collapse; from then on whenever they have doubled."""

COLLAPSE = 4
"""Rows a cell, over all pairs of factors, from which on cells are kept instead."""


SAMPLE = 32
"""One pair of levels in as many is looked at for that."""


class RowStore:
    """Rows, or their cells, of two or more factors.

    Parameters
    ----------
    widths : sequence of int
        Columns of each factor.
    keep_rows : bool
        Never collapse, whatever memory that takes.

    Attributes
    ----------
    collapsed : bool
        The rows are gone.
    plain : bool
        All columns are ones so far: then a cell of two factors is a row whose weight is its sum.
    """

    def __init__(self, widths: Sequence[int], keep_rows: bool = False) -> None:
        self.widths, self.keep_rows = tuple(widths), keep_rows
        self.rows: list[Rows] = []
        self.runs: dict[tuple[int, int], list[Run]] = {pair: [] for pair in combinations(range(len(widths)), 2)}
        self.collapsed, self.n_kept, self.next_look, self.plain = False, 0, FIRST_LOOK, True

    def snapshot(self) -> RowStore:
        """The store as it stands, which later additions do not change; the rows so far are shared."""
        if self.rows:
            self.whole()
        out = RowStore(self.widths, self.keep_rows)
        out.rows, out.runs = list(self.rows), {pair: list(runs) for pair, runs in self.runs.items()}
        out.collapsed, out.n_kept, out.next_look, out.plain = self.collapsed, self.n_kept, self.next_look, self.plain
        return out

    @property
    def has_rows(self) -> bool:
        """Whether `whole` has an answer."""
        return not self.collapsed or (self.plain and len(self.widths) == 2)

    def add(self, codes: Sequence[Codes], columns: Sequence[Array | None], weights: Array | None) -> None:
        """Add rows: codes (n,), columns (n, l) or None for ones, weights (n,) or None."""
        self.plain = self.plain and all(z is None for z in columns)
        if self.collapsed:
            self._add_cells((list(codes), list(columns), weights))
            return
        self.rows.append((list(codes), list(columns), weights))
        self.n_kept += len(codes[0])
        if self.n_kept >= self.next_look and not self.keep_rows:
            self._look()

    def _look(self) -> None:
        """Collapse the rows if that saves enough, by the cells of a sample of the pairs of levels."""
        self.next_look = 2 * self.n_kept
        cells = 0.0
        for g, h in self.runs:
            sample = np.sort(np.concatenate([sampled(keys_of(codes[g], codes[h])) for codes, _, _ in self.rows]))
            if len(sample):
                cells += (1 + np.count_nonzero(sample[1:] != sample[:-1])) / len(sample)  # a row
            if COLLAPSE * cells > 1.0:
                return
        self.collapse()

    def collapse(self) -> None:
        """Keep cells instead of rows."""
        if not self.collapsed:
            rows, self.rows, self.collapsed, self.n_kept = self.rows, [], True, 0
            for part in rows:
                self._add_cells(part)

    def _add_cells(self, rows: Rows) -> None:
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

    def whole(self) -> Rows:
        """All rows kept, as one array each; of two factors without columns the cells, weighted by their sums."""
        if self.collapsed:
            keys, values = self.merged((0, 1))
            return [(keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32)], [None, None], values.ravel()
        if len(self.rows) > 1:
            codes, z = [list(part[0]) for part in self.rows], [list(part[1]) for part in self.rows]
            weights = [w for _, _, w in self.rows if w is not None]
            self.rows = []  # a batch is let go of as soon as it is copied, or all would be there twice
            factors = range(len(self.widths))
            joined = [np.concatenate([part.pop(0) for part in codes]) for _ in factors]
            columns = [joined_columns([part.pop(0) for part in z]) for _ in factors]
            self.rows = [(joined, columns, np.concatenate(weights) if weights else None)]
        return self.rows[0]

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
        for codes, columns, weights in other.rows:
            own = [place[c].astype(np.int32) for place, c in zip(places, codes, strict=True)]
            z = [None if c is None else c @ change for c, change in zip(columns, changes, strict=True)]
            self.add(own, z, weights)

    def renumber(self, orders: Sequence[Codes]) -> None:
        """Give each level the code that its factor's ``orders`` (q,) has for it, a batch at a time."""
        for k, (codes, z, w) in enumerate(self.rows):
            self.rows[k] = [order[c] for order, c in zip(orders, codes, strict=True)], z, w
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
            codes, columns, w = self.whole()
            a, b = (orders[f][codes[f]] for f in (g, h))
            cells = nested_cells(a, sizes[g], columns[g], b, columns[h], w)
            if cells is None:
                cells = pair_cells(*sort_rows(a, sizes[g]), columns[g], b, sizes[h], columns[h], w)
            return cells
        keys, values = self.merged((min(g, h), max(g, h)))
        first, second = keys >> 32, keys & 0xFFFFFFFF
        if g > h:
            first, second, values = second, first, values.transpose(0, 2, 1)
        keys, values = summed(keys_of(orders[g][first], orders[h][second]), values)
        ptr = np.searchsorted(keys, np.arange(sizes[g] + 1, dtype=np.int64) << 32)
        return ptr.astype(np.int64), (keys & 0xFFFFFFFF).astype(np.int32), values


def joined_columns(parts: Sequence[Array | None]) -> Array | None:
    """Columns of batches as one array; None for ones."""
    return None if parts[0] is None else np.concatenate([z for z in parts if z is not None])


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
