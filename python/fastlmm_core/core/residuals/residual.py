"""What a user asks of the residuals, as arrays: subjects, positions within them, a structure, dispersion columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.structures.distance import Distance
from fastlmm_core.core.structures.shapes import (
    AnteDependence,
    Autoregressive,
    CompoundSymmetry,
    Grouped,
    Independent,
    Shape,
    Toeplitz,
    Unstructured,
)
from fastlmm_core.errors import DataError, ModelError

__all__ = ["KINDS", "Residual"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

KINDS = ("none", "us", "diag", "cs", "ar1", "toep", "ad", "exp", "gau", "ou")
"""The structures' names."""

SPATIAL = {"exp": 1, "ou": 1, "gau": 2}


@dataclass(frozen=True, eq=False)
class Residual:
    """Covariance of the residuals of one subject, relative to sigma^2.

    Parameters
    ----------
    subject : (n,) integers
        Rows of different subjects are independent, random effects apart.
    kind : str
        One of `KINDS`.
    positions : (n,) integers
        Place of each row in its subject, 0 .. n_positions - 1: visits in order, or distinct coordinates.
    n_positions : int
    hom : bool
        One variance for all positions; unstructured and diagonal ones have one each in any case.
    coordinates : (n_positions, d), optional
        Of the positions, for `exp`, `gau` and `ou`.
    group : (n,) integers, optional
        Each group of subjects has parameters of its own.
    n_groups : int
    dispersion : (n, e), optional
        Columns in which the log standard deviation is linear.
    nugget : bool
        Of `exp`, `gau` and `ou`: part of the variance is not shared with other positions.
    """

    subject: Index
    kind: str = "none"
    positions: Index = field(default_factory=lambda: np.zeros(0, np.int64))
    n_positions: int = 1
    hom: bool = True
    coordinates: Array | None = None
    group: Index | None = None
    n_groups: int = 1
    dispersion: Array | None = None
    nugget: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ModelError(f"residual structure {self.kind!r} does not exist: use one of {', '.join(KINDS)}")
        if self.kind in SPATIAL and self.coordinates is None:
            raise DataError(f"{self.kind} needs coordinates")

    @property
    def cells(self) -> Index:
        """(n,) position within the group, groups numbered through."""
        if self.kind == "none":
            return np.zeros(len(self.subject), np.int64)
        return self.positions if self.group is None else self.group * self.n_positions + self.positions

    @property
    def heterogeneous(self) -> bool:
        """Whether positions have log standard deviations of their own, beside those of the shape."""
        return (not self.hom and self.kind not in ("us", "none")) or self.kind == "diag"

    def variance_of(self) -> tuple[Index, int]:
        """Which variance each row has (n,), and how many there are; one of them is sigma^2."""
        n = len(self.subject)
        if self.heterogeneous:
            return self.cells, self.n_positions * self.n_groups
        if self.group is not None and self.kind != "us":
            return self.group, self.n_groups
        return np.zeros(n, np.int64), 1

    def shape(self, names: tuple[str, ...] = ()) -> Shape:
        """Correlations, or covariances where unstructured; `names` are the groups'."""
        if self.group is None:
            return self._shape(False)
        names = names or tuple(map(str, range(self.n_groups)))
        return Grouped([self._shape(g > 0) for g in range(self.n_groups)], self.n_positions, names)

    def _shape(self, scale: bool) -> Shape:
        T = self.n_positions
        if self.kind == "us":
            return Unstructured(T, scale)
        if self.kind in ("none", "diag") or T == 1:
            return Independent()
        if self.kind in SPATIAL:
            assert self.coordinates is not None
            return Distance(self.coordinates, SPATIAL[self.kind], self.nugget)
        kinds: dict[str, Callable[[int], Shape]] = {
            "cs": CompoundSymmetry,
            "ar1": Autoregressive,
            "toep": Toeplitz,
            "ad": AnteDependence,
        }
        return kinds[self.kind](T)
