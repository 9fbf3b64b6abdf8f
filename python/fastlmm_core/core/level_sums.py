"""Sums over the levels of each grouping factor, added up from batches of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.rows.crossprod import add_level_blocks, level_sums, mirror_blocks
from fastlmm_core.core.machine import NOTICED, require_memory

__all__ = ["LevelSums"]

Array = NDArray[np.float64]
Codes = NDArray[np.int32]


class LevelSums:
    """Blocks Z_g'WZ_g and sums Z_g'WD of each factor, for any columns z and D, conditioned or not.

    Parameters
    ----------
    widths : sequence of int
        l, columns of each factor.
    n_dense : int
        Columns of D.
    levels : sequence of int
        Levels of each factor to begin with; `grow` makes room for more.

    Notes
    -----
    Rows of a level are added in the order in which they come. So the sums are the same to the bit however the rows are
    cut into batches, so long as their order is the same, and to rounding in another order.
    """

    def __init__(self, widths: Sequence[int], n_dense: int, levels: Sequence[int]) -> None:
        self.widths, self.n_dense, self.levels = tuple(widths), n_dense, list(levels)
        self._blocks: list[Array] = []
        self._dense: list[Array] = []
        for q, l in zip(levels, widths, strict=True):
            size = 8 * q * l * (l + n_dense)
            if size > NOTICED:
                require_memory(size, f"the cross-products of {q} levels with {l} effects each")
            self._blocks.append(np.zeros((q, l, l)))
            self._dense.append(np.zeros((q * l, n_dense)))

    def grow(self, g: int, levels: int) -> None:
        """Make room for as many levels of a factor, and some more."""
        l, room = self.widths[g], len(self._blocks[g])
        if levels > room:
            room = max(levels, room + room // 2)
            self._blocks[g] = extended(self._blocks[g], room)
            self._dense[g] = extended(self._dense[g], room * l)
        self.levels[g] = max(self.levels[g], levels)

    def add(self, codes: Sequence[Codes], columns: Sequence[Array | None], weights: Array | None, dense: Array) -> None:
        """Add rows: codes (n,) and columns (n, l) of each factor, weights (n,), dense columns (n, n_dense).

        Codes must lie below `levels`; columns None are one column of ones.
        """
        dense = np.ascontiguousarray(dense)
        for c, z, blocks, sums in zip(codes, columns, self._blocks, self._dense, strict=True):
            add_level_blocks(c, z, weights, blocks)
            level_sums(c, z, weights, dense, sums)

    def add_sums(self, g: int, places: NDArray[np.int64], blocks: Array, dense: Array) -> None:
        """Add another's sums of one factor: blocks (k, l, l) and dense (k, l, n_dense) of levels ``places`` (k,)."""
        l = self.widths[g]
        self._blocks[g][places] += blocks
        self._dense[g].reshape(-1, l, self.n_dense)[places] += dense

    def raw(self, g: int) -> tuple[Array, Array]:
        """Blocks (q, l, l), whole, and dense (q, l, n_dense) of one factor, as they stand."""
        q, l = self.levels[g], self.widths[g]
        blocks = self._blocks[g][:q]
        mirror_blocks(blocks)
        return blocks, self._dense[g][: q * l].reshape(q, l, self.n_dense)

    def renumber(self, g: int, order: NDArray[np.integer]) -> None:
        """Give each level of a factor the code ``order`` (q,) has for it."""
        l, q = self.widths[g], self.levels[g]
        blocks, dense = self._blocks[g][:q], self._dense[g][: q * l].reshape(q, l, self.n_dense)
        self._blocks[g], moved = np.empty_like(blocks), np.empty_like(dense)
        self._blocks[g][order], moved[order] = blocks, dense
        self._dense[g] = moved.reshape(q * l, self.n_dense)

    def finish(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Blocks (q, l, l) and dense sums (q * l, n_dense) of each factor."""
        found, sums = [], []
        for blocks, dense, q, l in zip(self._blocks, self._dense, self.levels, self.widths, strict=True):
            if l > 1:
                mirror_blocks(blocks)
            found.append(blocks if len(blocks) == q else blocks[:q])
            sums.append(dense if len(dense) == q * l else dense[: q * l])
        return tuple(found), tuple(sums)


def extended(array: Array, rows: int) -> Array:
    """The array with zeros up to a number of rows."""
    out = np.zeros((rows, *array.shape[1:]))
    out[: len(array)] = array
    return out
