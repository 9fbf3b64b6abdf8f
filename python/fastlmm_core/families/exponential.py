"""Exponential families: binomial, Poisson, gamma, inverse Gaussian, Gaussian."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.families.family import Family

__all__ = ["Binomial", "Gamma", "Gaussian", "InverseGaussian", "Poisson"]

Array = NDArray[np.float64]


@dataclass(frozen=True, init=False)
class Binomial(Family):
    """Successes among m trials; one trial is a Bernoulli response."""

    name = "binomial"
    links = ("logit", "probit", "cloglog", "cauchit", "log", "identity")
    concave_links = ("logit", "probit", "cloglog", "log", "identity")
    code = 0
    mean_range = (0.0, 1.0)

    def variance(self, mu: Array, m: Array, rho: float) -> Array:
        """Variance of a response, see `Family.variance`."""
        return mu * (1.0 - mu) / m

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row."""
        return rng.binomial(m.astype(np.int64), mu).astype(np.float64)

    def saturated(self, y: Array, m: Array) -> Array:
        """The mean that fits a row best."""
        return y / m

    def check(self, y: Array, m: Array) -> None:
        """Refuse responses outside the support (DataError)."""
        self.refuse(~((m >= 1) & (m == np.rint(m))), "trials must be positive whole numbers")
        whole = (y >= 0) & (y == np.rint(y))
        self.refuse(~whole, "binomial responses must be whole numbers of successes")
        if (m == 1.0).all():
            self.refuse(y > 1, "binomial responses without trials must be 0 or 1")
        self.refuse(y > m, "binomial responses must not exceed the number of trials")

    def initial_mean(self, y: Array, m: Array) -> Array:
        """Means to start from."""
        return (y + 0.5) / (m + 1.0)


@dataclass(frozen=True, init=False)
class Poisson(Family):
    """Counts whose variance is their mean."""

    name = "poisson"
    links: ClassVar[tuple[str, ...]] = ("log", "identity", "sqrt")
    concave_links: ClassVar[tuple[str, ...]] = ("log", "identity")
    code = 1
    mean_range = (0.0, np.inf)

    def variance(self, mu: Array, m: Array, rho: float) -> Array:
        """Variance of a response, see `Family.variance`."""
        return mu / m

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row."""
        return rng.poisson(mu).astype(np.float64)

    def check(self, y: Array, m: Array) -> None:
        """Refuse responses outside the support (DataError)."""
        self.refuse(~((y >= 0) & (y == np.rint(y))), "poisson responses must be whole numbers, not negative")

    def initial_mean(self, y: Array, m: Array) -> Array:
        """Means to start from."""
        return y + 0.1


@dataclass(frozen=True, init=False)
class Dispersed(Family):
    """Families with a dispersion phi, which a row's prior weight divides: rho is log phi."""

    parameter = "phi"

    @abstractmethod
    def unit_variance(self, mu: Array) -> Array:
        """The variance function."""

    def variance(self, mu: Array, m: Array, rho: float) -> Array:
        """Variance of a response, see `Family.variance`."""
        return self.unit_variance(mu) * np.exp(rho) / m

    def start_rho(self, y: Array, mu: Array, m: Array, rank: int) -> float:
        """A moment estimate of rho."""
        phi = float((m * (y - mu) ** 2 / self.unit_variance(mu)).sum()) / max(1, len(y) - rank)
        return float(np.log(max(phi, 1e-300)))

    def scale(self, rho: float) -> float:
        """Dispersion phi."""
        return float(np.exp(rho))


@dataclass(frozen=True, init=False)
class Gamma(Dispersed):
    """Positive responses with a constant coefficient of variation: variance phi mu^2."""

    name = "gamma"
    links = ("log", "inverse", "identity")
    concave_links = ("log", "inverse")
    code = 4
    mean_range = (0.0, np.inf)

    def unit_variance(self, mu: Array) -> Array:
        """The variance function."""
        return mu**2

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row."""
        shape = m * np.exp(-rho)
        return rng.gamma(shape, mu / shape)

    def check(self, y: Array, m: Array) -> None:
        """Refuse responses outside the support (DataError)."""
        self.refuse(~(y > 0), "gamma responses must be positive")


@dataclass(frozen=True, init=False)
class InverseGaussian(Dispersed):
    """Positive responses with variance phi mu^3."""

    name = "inverse_gaussian"
    links = ("log", "inverse", "identity")
    concave_links = ("inverse",)
    code = 5
    mean_range = (0.0, np.inf)

    def unit_variance(self, mu: Array) -> Array:
        """The variance function."""
        return mu**3

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row."""
        return rng.wald(mu, m * np.exp(-rho))

    def check(self, y: Array, m: Array) -> None:
        """Refuse responses outside the support (DataError)."""
        self.refuse(~(y > 0), "inverse gaussian responses must be positive")


@dataclass(frozen=True, init=False)
class Gaussian(Dispersed):
    """Responses with constant variance phi; with the identity link this is the linear mixed model."""

    name = "gaussian"
    links = ("identity", "log", "inverse", "sqrt")
    concave_links = ("identity",)
    code = 6

    def unit_variance(self, mu: Array) -> Array:
        """The variance function."""
        return np.ones_like(mu)

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: float) -> Array:
        """A response drawn for each row."""
        return mu + np.sqrt(np.exp(rho) / m) * rng.standard_normal(len(mu))

    def initial_mean(self, y: Array, m: Array) -> Array:
        """Means to start from."""
        if self.link.name == "identity":
            return y
        positive = y[y > 0]
        floor = 0.1 * float(positive.mean()) if len(positive) else 1.0
        return np.maximum(y, floor)
