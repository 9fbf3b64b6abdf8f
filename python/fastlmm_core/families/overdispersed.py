"""Families with a shape of their own: negative binomial of two kinds, beta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import ModelError
from fastlmm_core.families.family import Family
from fastlmm_core.families.links import Link

__all__ = ["Beta", "NegativeBinomial", "NegativeBinomial1"]

Array = NDArray[np.float64]

NO_ALPHA = 1e-5
"""Overdispersion that counts as none."""

LIMIT = 18.0
"""-log alpha beyond which the Poisson family differs by nothing that a deviance shows."""

LEAST_ALPHA = 1e-3
"""Overdispersion that a search starts from where the moments show none."""


@dataclass(frozen=True, init=False)
class NegativeBinomialBase(Family):
    """Counts with more variance than their mean.

    Parameters
    ----------
    link : str or Link, optional
    alpha : float, optional
        Overdispersion; estimated when left out.

    Raises
    ------
    ModelError
        alpha is not positive.
    """

    links: ClassVar[tuple[str, ...]] = ("log", "identity", "sqrt")
    parameter = "alpha"

    def __init__(self, link: str | Link | None = None, *, alpha: float | None = None) -> None:
        super().__init__(link)
        if alpha is not None:
            if not 0.0 < alpha < np.inf:
                raise ModelError(f"alpha must be positive, not {alpha}; for no overdispersion use the poisson family")
            object.__setattr__(self, "fixed_rho", self.log_of(float(alpha)))

    def log_of(self, alpha: float) -> float:
        """Rho for a given alpha."""
        return float(np.log(alpha))

    def at_limit(self, rho: float) -> bool:
        """Whether there is no overdispersion left: the Poisson family is enough."""
        return self.natural(rho) < NO_ALPHA

    def check(self, y: Array, m: Array) -> None:
        """Refuse responses outside the support (DataError)."""
        self.refuse(~((y >= 0) & (y == np.rint(y))), "negative binomial responses must be whole numbers, not negative")

    def initial_mean(self, y: Array, m: Array) -> Array:
        """Means to start from."""
        return y + 0.1


@dataclass(frozen=True, init=False)
class NegativeBinomial(NegativeBinomialBase):
    """NB2: variance mu + alpha mu^2; rho is the logarithm of the size 1 / alpha."""

    name = "negativebinomial"
    concave_links: ClassVar[tuple[str, ...]] = ("log",)
    code = 2
    rho_range = (-np.inf, LIMIT)

    def log_of(self, alpha: float) -> float:
        """Rho for a given alpha."""
        return -float(np.log(alpha))

    def variance(self, mu: Array, m: Array, rho: float) -> Array:
        """Variance of a response, see `Family.variance`."""
        return (mu + mu**2 * np.exp(-rho)) / m

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row."""
        size = np.exp(rho)
        return rng.poisson(rng.gamma(size, mu / size)).astype(np.float64)

    def start_rho(self, y: Array, mu: Array, m: Array, rank: int) -> float:
        """A moment estimate of rho."""
        alpha = float((m * ((y - mu) ** 2 - mu)).sum() / (m * mu**2).sum())
        return -float(np.log(max(alpha, LEAST_ALPHA)))

    def natural(self, rho: float) -> float:
        """Alpha."""
        return float(np.exp(-rho))

    def natural_slope(self, rho: float) -> float:
        """D alpha / d rho."""
        return -float(np.exp(-rho))


@dataclass(frozen=True, init=False)
class NegativeBinomial1(NegativeBinomialBase):
    """NB1: variance mu (1 + alpha); rho is log alpha."""

    name = "negativebinomial1"
    code = 3
    rho_range = (-LIMIT, np.inf)

    def variance(self, mu: Array, m: Array, rho: float) -> Array:
        """Variance of a response, see `Family.variance`."""
        return mu * (1.0 + np.exp(rho)) / m

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row."""
        alpha = np.exp(rho)
        return rng.poisson(rng.gamma(mu / alpha, alpha)).astype(np.float64)

    def start_rho(self, y: Array, mu: Array, m: Array, rank: int) -> float:
        """A moment estimate of rho."""
        alpha = float((m * (y - mu) ** 2 / mu).sum()) / max(1, len(y) - rank) - 1.0
        return float(np.log(max(alpha, LEAST_ALPHA)))


@dataclass(frozen=True, init=False)
class Beta(Family):
    """Proportions strictly between 0 and 1 with precision phi: variance mu (1 - mu) / (1 + phi); rho is log phi."""

    name = "beta"
    links = ("logit", "probit", "cloglog", "cauchit")
    code = 7
    parameter = "precision"

    def variance(self, mu: Array, m: Array, rho: float) -> Array:
        """Variance of a response, see `Family.variance`."""
        return mu * (1.0 - mu) / (1.0 + np.exp(rho)) / m

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row."""
        phi = np.exp(rho)
        return rng.beta(mu * phi, (1.0 - mu) * phi)

    def check(self, y: Array, m: Array) -> None:
        """Refuse responses outside the support (DataError)."""
        self.refuse(~((y > 0) & (y < 1)), "beta responses must lie strictly between 0 and 1")

    def start_rho(self, y: Array, mu: Array, m: Array, rank: int) -> float:
        """A moment estimate of rho."""
        spread = float(((y - mu) ** 2 / (mu * (1.0 - mu))).sum()) / max(1, len(y) - rank)
        return float(np.log(max(1.0 / max(spread, 1e-10) - 1.0, 0.1)))
