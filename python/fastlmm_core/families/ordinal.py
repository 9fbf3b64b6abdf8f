"""Ordered categories: cumulative links with flexible thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.families.several import ordinal_rows
from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.families.links import Link
from fastlmm_core.families.vector import VectorFamily, VectorRows

__all__ = ["Ordinal"]

Array = NDArray[np.float64]


@dataclass(frozen=True, init=False, eq=False)
class Ordinal(VectorFamily):
    """Ordered categories 0 ... K - 1:  P(y <= k) = F(alpha_k - eta),  F the inverse link.

    The thresholds alpha_0 < ... < alpha_{K-2} are the extra parameters, and the linear predictor has no intercept:
    larger values of it make higher categories likelier (McCullagh 1980, J. R. Stat. Soc. B 42).

    Parameters
    ----------
    link : {"logit", "probit", "cloglog"}
        Proportional odds, ordered probit, grouped proportional hazards.
    levels : sequence of str or int
        The categories' labels in order, or their number.

    Raises
    ------
    ModelError
        Fewer than three categories.
    """

    levels: tuple[str, ...]

    name = "ordinal"
    links = ("logit", "probit", "cloglog")
    concave_links = links
    no_intercept = True

    def __init__(self, link: str | Link | None = None, *, levels: Sequence[Any] | int) -> None:
        super().__init__(link)
        names = tuple(map(str, range(levels) if isinstance(levels, int) else levels))
        if len(names) < 3:
            raise ModelError(
                f"an ordinal response has three or more levels, not {len(names)} ({', '.join(names)}): for two use "
                'family="binomial"'
            )
        object.__setattr__(self, "levels", names)

    @property
    def names(self) -> tuple[str, ...]:
        """The thresholds' names, "low|high"."""
        return tuple(f"{a}|{b}" for a, b in pairwise(self.levels))

    def thresholds(self, rho: Any) -> Array:
        """Minus infinity, the thresholds, infinity, (K + 1,)."""
        return np.concatenate([[-np.inf], np.asarray(rho, np.float64), [np.inf]])

    def vector_rows(self, y: Array, eta: Array, m: Array, rho: Any, threads: int = 1) -> VectorRows:
        """Derivatives of rows, see `VectorFamily.vector_rows`."""
        r, n = len(rho), len(y)
        o = ordinal_rows(self.link.code, y, eta, self.thresholds(rho), threads)
        o *= m
        l, s, w, slope, la, lb, laa, lbb, lab, sa, sb, wa, wb = o
        k = y.astype(np.int64)
        above, below = np.flatnonzero(k < r), np.flatnonzero(k > 0)  # rows with an upper and with a lower threshold
        up, down = k[above], k[below] - 1
        sr, wr = np.zeros((r, n)), np.zeros((r, n))
        sr[up, above], wr[up, above] = sa[above], wa[above]
        sr[down, below], wr[down, below] = sb[below], wb[below]
        lr = np.asarray(np.bincount(up, la[above], r) + np.bincount(down, lb[below], r), dtype=np.float64)
        lrr = np.diag(np.bincount(up, laa[above], r) + np.bincount(down, lbb[below], r))
        between = np.bincount(k, lab, r + 1)[1:r]
        lrr[np.arange(r - 1), np.arange(1, r)] = between
        lrr[np.arange(1, r), np.arange(r - 1)] = between
        return VectorRows(l, s, w, slope, w, lr, lrr, sr, wr)

    def constant(self, y: Array, m: Array, freq: Array, rho: Any) -> tuple[float, Any, Any]:
        """Nothing is left out of the log density."""
        return 0.0, np.zeros(len(rho)), np.zeros((len(rho), len(rho)))

    # ------------------------------------------------------------------ moments

    def probabilities(self, eta: Array, rho: Any) -> Array:
        """P(y = k), (n, K)."""
        given = np.ascontiguousarray(eta)
        each = [self.fitted(np.full(len(given), float(k)), given, rho) for k in range(len(self.levels))]
        return np.column_stack(each)

    def fitted(self, y: Array, eta: Array, rho: Any) -> Array:
        """Probability of the category seen, as `fitted` of R's ordinal has it."""
        return np.exp(ordinal_rows(self.link.code, y, eta, self.thresholds(rho), 1)[0])

    def variance(self, mu: Array, m: Array, rho: Any) -> Array:
        """Categories have none (ModelError)."""
        raise ModelError("ordered categories have no variance: their probabilities are predict()'s")

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: Any) -> Array:
        """A category drawn for each row."""
        drawn = self.link(rng.random(len(mu))) + self.link(mu)
        return np.searchsorted(np.asarray(rho), drawn).astype(np.float64)

    # ------------------------------------------------------------------ data and starts

    def check(self, y: Array, m: Array) -> None:
        """Refuse responses outside the support, and categories without rows (DataError)."""
        top = len(self.levels) - 1
        self.refuse(~((y >= 0) & (y <= top) & (y == np.rint(y))), f"categories must be whole numbers from 0 to {top}")
        empty = np.flatnonzero(np.bincount(y.astype(np.int64), minlength=top + 1) == 0)
        if len(empty):
            names = ", ".join(repr(self.levels[k]) for k in empty)
            raise DataError(f"no row has the level {names} of the response: its thresholds have no estimates")

    def initial_mean(self, y: Array, m: Array) -> Array:
        """The middle of the linear predictor's scale."""
        return self.link.inverse(np.zeros_like(y))

    def first_rho(self, y: Array, m: Array) -> Array:
        """Thresholds that fit the categories' shares."""
        counts = np.bincount(y.astype(np.int64), m, minlength=len(self.levels))
        return self.link(np.cumsum(counts)[:-1] / counts.sum())

    def start_rho(self, y: Array, mu: Array, m: Array, rank: int) -> Any:
        """As `first_rho`."""
        return self.first_rho(y, m)
