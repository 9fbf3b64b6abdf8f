"""What fits with a residual structure know about the residuals of a subject, whatever engine made them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.residuals.model import ResidualModel
from fastlmm_core.core.residuals.moments import Batch

__all__ = ["WithinModel", "WithinSubjects"]

Array = NDArray[np.float64]


class WithinModel(Protocol):
    """What is needed of the model."""

    model: ResidualModel
    root: Array | None


class WithinSubjects(ABC):
    """Residuals and their covariances, from the patterns of the rows.

    Of a fit that has `model` (a `WithinModel`), `parts` (batches of patterns), `residual_phi` (r,), the residual's
    parameters in working coordinates, and `scale`, sigma in these.
    """

    model: WithinModel
    parts: list[Batch]

    @property
    @abstractmethod
    def residual_phi(self) -> Array:
        """Parameters of the residuals (r,), working coordinates."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """Sigma in working coordinates."""

    def covariances(self, marginal: bool) -> list[Array]:
        """V (k, m, m) of each batch's patterns relative to `scale`^2, or R without the random effects."""
        model, out = self.model.model, []
        for part in self.parts:
            at = model.prepare(part.rows)
            if not marginal:
                at = replace(at, z=tuple(np.zeros_like(z) for z in at.z))
            out.append(model.values(self.residual_phi, at)[0])
        return out

    def standardized(self, e: Array, whole: bool) -> Array:
        """Residuals (n,) over their standard deviations, or multiplied by the inverse factor of all of a unit's R."""
        scaled = e if self.model.root is None else e * self.model.root
        out = np.empty_like(scaled)
        for part, R in zip(self.parts, self.covariances(marginal=False), strict=True):
            rows = scaled[part.units]
            if whole:
                L = np.linalg.inv(np.linalg.cholesky(R))
                out[part.units] = np.einsum("uij,uj->ui", L[part.pattern], rows)
            else:
                out[part.units] = rows / np.sqrt(np.diagonal(R, axis1=1, axis2=2))[part.pattern]
        return out / self.scale

    def coloured(self, white: Array) -> Array:
        """White noise (n, k) given the covariance of the patterns' rows."""
        out = np.empty_like(white)
        for part, V in zip(self.parts, self.covariances(marginal=True), strict=True):
            out[part.units] = np.linalg.cholesky(V)[part.pattern] @ white[part.units]
        out *= self.scale
        return out if self.model.root is None else out / self.model.root[:, None]
