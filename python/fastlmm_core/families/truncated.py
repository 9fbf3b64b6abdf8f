"""Counts without zeros: Poisson and negative binomial rows given that they are positive."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expm1, log1p

from fastlmm_core.families.exponential import Poisson
from fastlmm_core.families.family import Family
from fastlmm_core.families.overdispersed import NegativeBinomial, NegativeBinomial1

__all__ = ["TruncatedNegativeBinomial", "TruncatedNegativeBinomial1", "TruncatedPoisson"]

Array = NDArray[np.float64]

STARTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Values of rho to start from."""


class Positive(Family):
    """What the families without zeros share.

    The link is that of mu, the mean of the counts with their zeros, which are what the parameters are about; a
    response has the mean mu / P(y > 0). A subclass has the family of whole counts as its next base.
    """

    @abstractmethod
    def zero(self, mu: Array, rho: float) -> Array:
        """-log P(y = 0) of the whole counts."""

    def response_mean(self, mu: Array, rho: float) -> Array:
        """Mean of the positive counts."""
        with np.errstate(invalid="ignore"):
            return np.where(mu > 0.0, mu / -expm1(-self.zero(mu, rho)), 1.0)

    def variance(self, mu: Array, m: Array, rho: float) -> Array:
        """Variance of a response, see `Family.variance`."""
        whole = super().variance(mu, np.ones_like(mu), rho)  # type: ignore[safe-super]
        mean = self.response_mean(mu, rho)
        return np.asarray(((whole / mu + mu) * mean - mean**2) / m)

    def check(self, y: Array, m: Array) -> None:
        """Refuse responses outside the support (DataError)."""
        self.refuse(~((y >= 1) & (y == np.rint(y))), f"{self.name} responses must be whole numbers above zero")

    def arrivals(self, rng: np.random.Generator, rate: Array) -> Array:
        """Share of a Poisson process' time that is left after its first arrival, given that there is one."""
        first = -log1p(rng.random(len(rate)) * expm1(-rate))
        return np.asarray(np.clip(1.0 - first / rate, 0.0, 1.0), dtype=np.float64)


@dataclass(frozen=True, init=False)
class TruncatedPoisson(Positive, Poisson):
    """Poisson counts above zero."""

    name = "truncated_poisson"
    links = ("log",)
    code = 8

    def zero(self, mu: Array, rho: float) -> Array:
        """-log P(y = 0) of the whole counts."""
        return mu

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row: the first arrival, and those after it."""
        return np.asarray(1.0 + rng.poisson(mu * self.arrivals(rng, mu)), dtype=np.float64)


class PositiveNegativeBinomial(Positive):
    """Negative binomial counts above zero."""

    @abstractmethod
    def size(self, mu: Array, rho: float) -> Array:
        """Mean over (variance over mean, less one)."""

    def zero(self, mu: Array, rho: float) -> Array:
        """-log P(y = 0) of the whole counts."""
        size = self.size(mu, rho)
        return np.asarray(size * log1p(mu / size))

    def start_rho(self, y: Array, mu: Array, m: Array, rank: int) -> float:
        """The likeliest of some values given the means: moments of the whole counts are not seen."""
        eta = np.log(mu)
        return float(max(STARTS, key=lambda rho: self.loglik(y, eta, m, rho)))

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row.

        A negative binomial is a Poisson number of clusters of logarithmic sizes (Quenouille 1949): the first cluster,
        and those after it.
        """
        size = self.size(mu, rho)
        left = self.arrivals(rng, self.zero(mu, rho))
        first = rng.logseries(np.clip(mu / (size + mu), 1e-300, 1.0 - 1e-16))
        rest = np.where(left > 0.0, left, 1e-300)
        return np.asarray(first + rng.poisson(rng.gamma(size * rest, mu / size)), dtype=np.float64)


@dataclass(frozen=True, init=False)
class TruncatedNegativeBinomial(PositiveNegativeBinomial, NegativeBinomial):
    """NB2 counts above zero; rho is the logarithm of the size 1 / alpha."""

    name = "truncated_nbinom2"
    links = ("log",)
    concave_links = ()
    code = 9

    def size(self, mu: Array, rho: float) -> Array:
        """1 / alpha."""
        return np.full_like(mu, np.exp(rho))


@dataclass(frozen=True, init=False)
class TruncatedNegativeBinomial1(PositiveNegativeBinomial, NegativeBinomial1):
    """NB1 counts above zero; rho is log alpha."""

    name = "truncated_nbinom1"
    links = ("log",)
    code = 10

    def size(self, mu: Array, rho: float) -> Array:
        """Mu / alpha."""
        return np.asarray(mu / np.exp(rho))
