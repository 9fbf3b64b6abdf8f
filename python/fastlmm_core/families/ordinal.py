"""Ordered categories: cumulative links with flexible thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit, log_ndtr

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.families.links import Link
from fastlmm_core.families.vector import VectorFamily, VectorRows

__all__ = ["Ordinal"]

Array = NDArray[np.float64]

FAR = 300.0
"""Beyond which a threshold says the same for every link, and e to it squared overflows."""

LOG_ROOT_2PI = 0.5 * np.log(2.0 * np.pi)


class Side:
    """One threshold of each row: F at it less eta, where it is finite, in logarithms.

    Attributes
    ----------
    below, above, density : (n,)
        log F, log(1 - F), log f; of a threshold at minus or plus infinity -inf where they are zero.
    g, g1 : (n,)
        (log f)' and (log f)''; zero at infinity.
    """

    def __init__(self, link: str, x: Array) -> None:
        finite = np.isfinite(x)
        at = np.where(finite, np.minimum(x, FAR), 0.0)
        if link == "logit":
            below, above = log_expit(at), log_expit(-at)
            density = below + above
            g = np.exp(above) - np.exp(below)
            g1 = -2.0 * np.exp(density)
        elif link == "probit":
            below, above = log_ndtr(at), log_ndtr(-at)
            density, g, g1 = -0.5 * at**2 - LOG_ROOT_2PI, -at, np.full(len(at), -1.0)
        else:  # cloglog
            rate = np.exp(at)
            below, above = np.log(-np.expm1(-rate)), -rate
            density, g, g1 = at - rate, 1.0 - rate, -rate
        high = x > 0.0
        self.below = np.where(finite, below, np.where(high, 0.0, -np.inf))
        self.above = np.where(finite, above, np.where(high, -np.inf, 0.0))
        self.density = np.where(finite, density, -np.inf)
        self.g, self.g1 = np.where(finite, g, 0.0), np.where(finite, g1, 0.0)


def log_difference(high: Array, low: Array) -> Array:
    """log(e^high - e^low); NaN where low is not the lower one."""
    return high + np.log(-np.expm1(np.where(low == -np.inf, -np.inf, low - high)))


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

    def sides(self, y: Array, eta: Array, rho: Any) -> tuple[NDArray[np.int64], Side, Side, Array]:
        """Category, upper and lower threshold of each row, and the logarithm of what is between them."""
        k = y.astype(np.int64)
        bounds = np.concatenate([[-np.inf], rho, [np.inf]])
        a, b = Side(self.link.name, bounds[k + 1] - eta), Side(self.link.name, bounds[k] - eta)
        from_above = b.below > a.above  # the tails' difference whose terms are the smaller
        with np.errstate(divide="ignore", invalid="ignore"):  # thresholds out of order
            logs = log_difference(np.where(from_above, b.above, a.below), np.where(from_above, a.above, b.below))
        return k, a, b, logs

    def vector_rows(self, y: Array, eta: Array, m: Array, rho: Any) -> VectorRows:
        """Derivatives of rows, see `VectorFamily.vector_rows`."""
        k, a, b, logs = self.sides(y, eta, rho)
        # P_a / P and -P_b / P, then log P's derivatives in the two thresholds
        ra, rb = np.exp(a.density - logs), np.exp(b.density - logs)
        la, lb = ra, -rb
        laa, lbb, lab = ra * a.g - ra**2, -rb * b.g - rb**2, ra * rb
        laaa = ra * (a.g**2 + a.g1) - 3.0 * ra**2 * a.g + 2.0 * ra**3
        lbbb = -rb * (b.g**2 + b.g1) - 3.0 * rb**2 * b.g - 2.0 * rb**3
        laab, labb = ra * rb * (a.g - 2.0 * ra), ra * rb * (b.g + 2.0 * rb)
        w = -m * (laa + 2.0 * lab + lbb)
        rows = len(rho), len(y)
        sr, wr = np.zeros(rows), np.zeros(rows)
        lr, lrr = np.zeros(len(rho)), np.zeros((len(rho), len(rho)))
        for j in range(len(rho)):
            up, down = k == j, k == j + 1
            sr[j] = -m * (np.where(up, laa + lab, 0.0) + np.where(down, lbb + lab, 0.0))
            wr[j] = -m * np.where(up, laaa + 2.0 * laab + labb, 0.0)
            wr[j] -= m * np.where(down, lbbb + 2.0 * labb + laab, 0.0)
            lr[j] = m[up] @ la[up] + m[down] @ lb[down]
            lrr[j, j] = m[up] @ laa[up] + m[down] @ lbb[down]
            if j:
                lrr[j, j - 1] = lrr[j - 1, j] = m[up] @ lab[up]
        slope = m * (laaa + 3.0 * laab + 3.0 * labb + lbbb)
        return VectorRows(m * logs, -m * (la + lb), w, slope, w, lr, lrr, sr, wr)

    def constant(self, y: Array, m: Array, freq: Array, rho: Any) -> tuple[float, Any, Any]:
        """Nothing is left out of the log density."""
        return 0.0, np.zeros(len(rho)), np.zeros((len(rho), len(rho)))

    # ------------------------------------------------------------------ moments

    def probabilities(self, eta: Array, rho: Any) -> Array:
        """P(y = k), (n, K)."""
        n = len(eta)
        each = [self.sides(np.full(n, float(k)), eta, rho)[3] for k in range(len(self.levels))]
        return np.exp(np.column_stack(each))

    def fitted(self, y: Array, eta: Array, rho: Any) -> Array:
        """Probability of the category seen, as `fitted` of R's ordinal has it."""
        return np.exp(self.sides(y, eta, rho)[3])

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
