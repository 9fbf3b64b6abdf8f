"""Families with several extra parameters: rho is an array, and rows have derivatives in each of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.families.family import Family, Rows

__all__ = ["VectorFamily", "VectorRows"]

Array = NDArray[np.float64]


class VectorRows(NamedTuple):
    """Derivatives of rows whose family has r extra parameters, times how often each row counts.

    Attributes
    ----------
    l, s, w, k, we : (n,)
        As in `Rows`.
    lr, lrr : (r,), (r, r)
        Sums over the rows of first and second derivatives of l in rho.
    sr, wr : (r, n)
        Derivatives of s and w in rho.
    """

    l: Array
    s: Array
    w: Array
    k: Array
    we: Array
    lr: Array
    lrr: Array
    sr: Array
    wr: Array


@dataclass(frozen=True, init=False, eq=False)
class VectorFamily(Family):
    """Base of the families with an array of extra parameters; `vector_rows` takes the place of `row`.

    Observed weights only: expected ones serve as steps where those are not positive definite.
    """

    vector = True

    @abstractmethod
    def vector_rows(self, y: Array, eta: Array, m: Array, rho: Any, threads: int = 1) -> VectorRows:
        """Derivatives of rows; ``m`` (n,) multiplies their log densities."""

    @abstractmethod
    def first_rho(self, y: Array, m: Array) -> Array:
        """Extra parameters to start from, before anything is known of the linear predictor."""

    def rho_of(self, extra: Array) -> Any:
        """Rho is the array of extra parameters."""
        return np.array(extra, dtype=np.float64)

    def row(self, y: Array, eta: Array, m: Array, rho: Any) -> Rows:
        """Derivatives of rows; those in rho as in `VectorRows`."""
        o = self.vector_rows(y, eta, m, rho)
        return Rows(o.l, o.s, o.w, o.k, o.we, o.k, o.lr, o.sr, o.wr, o.wr, o.lrr)

    def working(
        self, y: Array, eta: Array, m: Array, freq: Array, rho: Any, out: Array, full: bool, threads: int = 1
    ) -> tuple[float, Any, Any]:
        """As `Family.working`: ``out`` (5 + 3 r, n) has s, w, we, k, ke, then sr, wr and wer of each parameter."""
        with np.errstate(all="ignore"):
            o = self.vector_rows(y, eta, m * freq if len(freq) else m, rho, threads)
        out[0], out[1], out[2] = o.s, o.w, o.we
        if full:
            r = len(o.lr)
            out[3], out[4] = o.k, o.k
            if len(out) == 5 + 3 * r:
                out[5 : 5 + r], out[5 + r : 5 + 2 * r], out[5 + 2 * r :] = o.sr, o.wr, o.wr
        return float(o.l.sum()), o.lr, o.lrr

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """What the extra parameters are called."""

    @property
    def n_extra(self) -> int:
        """Extra parameters."""
        return len(self.names)

    @property
    def logs(self) -> tuple[bool, ...]:
        """Which of the extra parameters are logarithms of what users know."""
        return (False,) * self.n_extra

    def naturals(self, rho: Any) -> Array:
        """The extra parameters as users know them."""
        return np.asarray(rho, np.float64)

    def natural_slopes(self, rho: Any) -> Array:
        """Their derivatives in rho, each in its own."""
        return np.ones(self.n_extra)
