"""Rows that can be looked at again, piece by piece: those of a table, and those that a stream has kept.

A pass over all of them is a loop over `pieces`, whose cuts depend on nothing but the number of rows, so that sums and
products come out the same wherever the rows are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["PIECE", "Piece", "RowsAtHand", "TableRows"]

Array = NDArray[np.float64]
Codes = NDArray[np.int32]
Piece = tuple[Sequence[Codes], Sequence[Array | None], Array | None]
"""Levels (n,) of some rows and columns (n, l) of each group, None for ones; weights (n,) or None."""

PIECE = 1 << 19
"""Rows looked at together."""


class RowsAtHand(Protocol):
    """What the iterative engine and the choice of an engine ask of rows."""

    @property
    def n(self) -> int:
        """Rows; cells may stand for them."""

    @property
    def varying(self) -> Sequence[bool]:
        """Whether a group has columns beside a single one of ones."""

    @property
    def weighted(self) -> bool:
        """Whether there are weights."""

    @property
    def room(self) -> int | None:
        """Bytes that these rows may take once more, in another order, before that goes into a file; None for any."""

    def pieces(self) -> Iterator[Piece]:
        """`PIECE` rows after another; conditioned columns, scaled weights."""


@dataclass(frozen=True)
class TableRows:
    """Rows in memory, as one array each.

    Attributes
    ----------
    codes : sequence of (n,) int32
    columns : sequence of (n, l) or None
    weights : (n,) or None
    """

    codes: Sequence[Codes]
    columns: Sequence[Array | None]
    weights: Array | None
    room: int | None = None

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.codes[0])

    @property
    def varying(self) -> tuple[bool, ...]:
        """See `RowsAtHand`."""
        return tuple(z is not None for z in self.columns)

    @property
    def weighted(self) -> bool:
        """See `RowsAtHand`."""
        return self.weights is not None

    def pieces(self) -> Iterator[Piece]:
        """See `RowsAtHand`."""
        for s in range(0, self.n, PIECE):
            part = slice(s, s + PIECE)
            columns = [None if z is None else z[part] for z in self.columns]
            yield [c[part] for c in self.codes], columns, None if self.weights is None else self.weights[part]
