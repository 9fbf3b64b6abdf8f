"""Cross-products as the rest of the core reads them: of a design and its responses, whoever added up their rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.conditioning import Conditioning
from fastlmm_core.core.estimability import NullSpace
from fastlmm_core.core.identifiability import Unidentified
from fastlmm_core.core.rows_at_hand import RowsAtHand
from fastlmm_core.core.terms import Group, Shaped
from fastlmm_core.core.theta import ThetaMap
from fastlmm_core.lazy import cached_property
from fastlmm_core.records import quick

__all__ = ["Cells", "CrossProducts", "DesignSums", "Responses"]

Array = NDArray[np.float64]
Cells = tuple[NDArray[np.int64], NDArray[np.int32], Array]


@quick
@dataclass(frozen=True)
class CrossProducts:
    """Z'WZ, Z'W[X y] and [X y]'W[X y] in conditioned coordinates, and the way back.

    Attributes
    ----------
    n : int
        Observations.
    groups : tuple of Group
        Grouping factors, the leading one first.
    blocks : tuple of (q, l, l) arrays
        Diagonal blocks of Z'WZ, one array a group.
    pairs : dict (g, h) -> (ptr, idx, val)
        Cells of Z_g'WZ_h, g < h, as block compressed rows.
    dense : tuple of (q * l, rank + 1) arrays
        Z'W[X y], one array a group.
    dtd : (rank + 1, rank + 1)
        [X y]'W[X y].
    conditioning : Conditioning
    transforms : tuple of (l, l) arrays
        T of each term.
    theta_map : ThetaMap
    weighted : bool
        Weights were given.
    """

    n: int
    groups: tuple[Group, ...]
    blocks: tuple[Array, ...]
    pairs: dict[tuple[int, int], Cells]
    dense: tuple[Array, ...]
    dtd: Array
    conditioning: Conditioning
    transforms: tuple[Array, ...]
    theta_map: ThetaMap
    weighted: bool

    @property
    def rank(self) -> int:
        """Columns of X kept."""
        return self.conditioning.rank

    @property
    def theta_index(self) -> NDArray[np.int64]:
        """(n_theta, 3) group, row and column of each parameter."""
        return self.theta_map.index

    @property
    def to_conditioned(self) -> Array:
        """(n_theta, n_theta) maps the user's theta to the conditioned one."""
        return self.theta_map.to_conditioned


@quick
@dataclass(frozen=True)
class Responses:
    """Conditioned cross-products of k responses with one design.

    Attributes
    ----------
    coefficients : (rank, k)
    shift : (rank, k) or None
        y = Q coefficients + X shift + norm e; None stands for zeros.
    norms : (k,)
    dense : tuple of (q * l, k)
        Z'We, one array a group.
    xty : (rank, k)
        Q'We, zero but for rounding.
    """

    coefficients: Array
    shift: Array | None
    norms: Array
    dense: tuple[Array, ...]
    xty: Array


class DesignSums(ABC):
    """What the cross-products owe to X, the terms and the weights, whether their rows are at hand or gone.

    Attributes
    ----------
    n, n_columns : int
        Rows, columns of X.
    terms : sequence of Shaped
    groups, transforms, theta_map, blocks, pairs
        As `CrossProducts`.
    dense : tuple of (q * l, rank)
        Z'WQ.
    xtx : (rank, rank)
        Q'WQ, the identity but for rounding.
    keep, r, null_space
        As `condition_columns`.
    inverse : (rank, rank)
        Of r.
    log_det : float
        log|r'r|.
    weight_scale, log_weights : float
        As `Conditioning`.
    weighted : bool
    unidentified : Unidentified or None
        What `identify` found.
    """

    n: int
    n_columns: int
    terms: tuple[Shaped, ...]
    groups: tuple[Group, ...]
    transforms: tuple[Array, ...]
    theta_map: ThetaMap
    blocks: tuple[Array, ...]
    dense: tuple[Array, ...]
    xtx: Array
    keep: NDArray[np.int64]
    r: Array
    null_space: NullSpace | None
    inverse: Array
    log_det: float
    weight_scale: float
    log_weights: float
    weighted: bool
    unidentified: Unidentified | None = None

    @cached_property
    def rank(self) -> int:
        """Columns of X kept."""
        return len(self.keep)

    @property
    def has_rows(self) -> bool:
        """Whether there are rows `at_hand`, for products by the row."""
        return True

    @property
    @abstractmethod
    def at_hand(self) -> RowsAtHand:
        """The rows, where there are any."""

    @property
    @abstractmethod
    def pairs(self) -> dict[tuple[int, int], Cells]:
        """Cells of Z_g'WZ_h, g < h, as in `CrossProducts`."""

    @abstractmethod
    def spans(self, g: int, o: int, direction: Array, size: float, left: float, reml: bool) -> bool:
        """Whether columns Z_j c of a term, c a ``direction``, lie in the span of X; see `spanned_columns`."""

    @abstractmethod
    def fitted(self, beta: Array, b: Sequence[Array]) -> Array:
        """X beta + Z b + offset, (n,)."""

    def complete(self, found: Responses, k: int = 0, *, pairs: bool = True) -> CrossProducts:
        """Cross-products of the design with the k-th of some responses, on demand without the cells of `pairs`."""
        p = self.rank
        shift = np.zeros(p) if found.shift is None else found.shift[:, k].copy()
        r = np.zeros((p + 1, p + 1))
        r[:p, :p], r[:p, p], r[p, p] = self.r, found.coefficients[:, k], found.norms[k]
        dense, dtd = self.sums(found, k)
        return CrossProducts(
            self.n,
            self.groups,
            self.blocks,
            self.pairs if pairs else {},
            dense,
            dtd,
            Conditioning(self.keep, r, self.n_columns, self.weight_scale, self.log_weights, shift, self.null_space),
            self.transforms,
            self.theta_map,
            self.weighted,
        )

    def sums(self, found: Responses, k: int = 0) -> tuple[tuple[Array, ...], Array]:
        """Z'W[X y] of each group and [X y]'W[X y], y the k-th of some responses."""
        p = self.rank
        dtd = np.empty((p + 1, p + 1))
        dtd[:p, :p], dtd[:p, p], dtd[p, :p], dtd[p, p] = self.xtx, found.xty[:, k], found.xty[:, k], 1.0
        both = zip(self.dense, found.dense, strict=True)
        return tuple([np.concatenate((x, y[:, k : k + 1]), axis=1) for x, y in both]), dtd

    def constant(self, nu: float, reml: bool, norm: Array | np.float64) -> Array | np.float64:
        """`Conditioning.constant` of a response whose residual has the norm given, or of several (k,)."""
        return 2.0 * nu * np.log(norm) - self.log_weights + (self.log_det if reml else 0.0)
