"""The Hessian of a deviance whose gradient is exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.threads import one_blas_thread

__all__ = ["forward_differences", "second_derivatives"]

Array = NDArray[np.float64]
Derivatives = Callable[[Array], tuple[float, Array, Array]]

STEP = 3e-4
"""Step of the differences of the gradient, in units of a parameter's standard error."""


def steps(model: Array, psi: Array) -> Array:
    """Steps (n_free,) of the differences, from a model of the Hessian."""
    diagonal = model.diagonal()
    size = STEP * np.sqrt(2.0 / np.maximum(diagonal, 1e-8 * max(diagonal.max(), 1e-300)))
    return np.asarray(np.minimum(size, STEP * np.maximum(1.0, np.abs(psi))))


def forward_differences(derivatives: Derivatives, psi: Array) -> tuple[Array, Array]:
    """Gradient (n_free,) at psi, and a Hessian (n_free, n_free) by one-sided differences of it, for a search.

    The derivatives' value is left taken at psi.
    """
    with one_blas_thread():
        _, gradient, model = derivatives(psi)
        out = np.empty_like(model)
        for j, h in enumerate(steps(model, psi)):
            x = psi.copy()
            x[j] += h
            out[j] = (derivatives(x)[1] - gradient) / h
        derivatives(psi)
    return gradient, 0.5 * (out + out.T)


def second_derivatives(derivatives: Derivatives, psi: Array) -> Array:
    """Second derivatives (n_free, n_free) of a deviance at psi, by central differences of its exact gradient."""
    with one_blas_thread():
        _, _, model = derivatives(psi)
        size = steps(model, psi)
        out = np.empty_like(model)
        for j, h in enumerate(size):
            ends = []
            for sign in (1.0, -1.0):
                x = psi.copy()
                x[j] += sign * h
                ends.append(derivatives(x)[1])
            out[j] = (ends[0] - ends[1]) / (2.0 * h)
    return 0.5 * (out + out.T)
