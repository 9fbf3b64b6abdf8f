"""Links: the mean of a response as a function of the linear predictor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit, ndtri

from fastlmm_core._native.families.pointwise import link_derivatives
from fastlmm_core.errors import ModelError, no_such

__all__ = ["LINKS", "Link", "as_link"]

Array = NDArray[np.float64]

LINKS = ("logit", "probit", "cloglog", "cauchit", "log", "identity", "inverse", "sqrt")
"""Names, in the order of the kernels' codes."""


@dataclass(frozen=True)
class Link:
    """A link g: eta = g(mu).

    Parameters
    ----------
    name : str
        One of `LINKS`.

    Raises
    ------
    ModelError
        No such link.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in LINKS:
            raise ModelError(no_such("link", self.name, LINKS))

    @property
    def code(self) -> int:
        """The kernels' number."""
        return LINKS.index(self.name)

    def inverse(self, eta: ArrayLike) -> Array:
        """The mean at linear predictors of any shape."""
        return self.derivatives(eta)[0]

    def derivatives(self, eta: ArrayLike) -> Array:
        """(4, ...): the mean and its first three derivatives in eta."""
        given = np.asarray(eta, np.float64)
        return link_derivatives(self.code, np.ascontiguousarray(given).ravel()).reshape(4, *given.shape)

    def __call__(self, mu: ArrayLike) -> Array:
        """The linear predictor of means of any shape; infinite or NaN outside the link's range."""
        m = np.asarray(mu, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            match self.name:
                case "logit":
                    return np.asarray(logit(m))
                case "probit":
                    return np.asarray(ndtri(m))
                case "cloglog":
                    return np.asarray(np.log(-np.log1p(-m)))
                case "cauchit":
                    return np.asarray(np.tan(np.pi * (m - 0.5)))
                case "log":
                    return np.asarray(np.log(m))
                case "inverse":
                    return np.asarray(1.0 / m)
                case "sqrt":
                    return np.asarray(np.sqrt(m))
        return m.copy()


def as_link(link: str | Link | None, allowed: tuple[str, ...], family: str) -> Link:
    """A link by name or instance, the first allowed one where None is given.

    Raises
    ------
    ModelError
        The family does not have it.
    """
    chosen = Link(allowed[0]) if link is None else link if isinstance(link, Link) else Link(link)
    if chosen.name not in allowed:
        raise ModelError(f"the {family} family has no {chosen.name} link: use one of {', '.join(map(repr, allowed))}")
    return chosen
