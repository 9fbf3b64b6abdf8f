"""Vectors over the random effects of a layout."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Effects"]

Array = NDArray[np.float64]


class Effects:
    """Vectors over the random effects: the leading factor's (k, q l), and the tail's (k, m) in the layout's order."""

    __slots__ = ("lead", "tail")

    def __init__(self, lead: Array, tail: Array) -> None:
        self.lead, self.tail = lead, tail

    def __add__(self, other: Effects) -> Effects:
        return Effects(self.lead + other.lead, self.tail + other.tail)

    def __sub__(self, other: Effects) -> Effects:
        return Effects(self.lead - other.lead, self.tail - other.tail)

    def __mul__(self, scale: float) -> Effects:
        return Effects(self.lead * scale, self.tail * scale)

    def __getitem__(self, k: slice) -> Effects:
        return Effects(self.lead[k], self.tail[k])

    def dot(self, other: Effects) -> Array:
        """(k, k') inner products; infinite where a step was far too long."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(self.lead @ other.lead.T + self.tail @ other.tail.T)

    def combined(self, weights: Array) -> Effects:
        """One vector, a weighted sum of the k."""
        return Effects(weights[None] @ self.lead, weights[None] @ self.tail)
