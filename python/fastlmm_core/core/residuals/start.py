"""Where a fit of patterns begins: moments of the residuals of ordinary least squares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.residuals.criterion import PatternCriterion
from fastlmm_core.core.residuals.model import ResidualModel
from fastlmm_core.core.residuals.residual import Residual
from fastlmm_core.errors import NumericalError

__all__ = ["best_scale", "defined_start", "pattern_start"]

Array = NDArray[np.float64]

SHRINKAGE = (1.0, 0.9, 0.7, 0.4, 0.0)
"""Of mean products of few pairs, which need not fit together in one covariance matrix."""

NEAR_SINGULAR = 1e8
"""Entries of an inverse, relative to the variance, from which a start keeps away."""

HALVINGS = 20
"""Of ranges, on the way to a start."""

SIZES = (1.0, 0.1, 10.0, 100.0, 1000.0)
"""Relative standard deviations at which a term's start is tried."""


def pattern_start(model: ResidualModel, residual: Residual, rest: Array) -> Array:
    """Parameters (r,): the residuals' (n,) variances and, of an unstructured matrix, their covariances."""
    phi = model.start()
    variance, count = residual.variance_of()
    if count > 1:
        mean = np.bincount(variance, np.square(rest), count) / np.bincount(variance, minlength=count)
        if (mean > 0).all():
            phi[model.of_sd][: count - 1] = 0.5 * np.log(mean[1:] / mean[0])
    if residual.kind == "us":
        found = unstructured_start(residual, rest)
        if found is not None:
            phi[model.of_shape] = found
    return phi


def defined_start(criterion: PatternCriterion, phi: Array) -> Array:
    """Where the criterion is defined: ranges are halved until all covariances are well above singular.

    Close places make a Gaussian correlation singular at ranges that are not large.
    """
    model = criterion.model
    found = phi.copy()
    for _ in range(0 if model.shape.definite else HALVINGS):
        try:
            if all(np.abs(P).max() < NEAR_SINGULAR for P, _ in criterion.inverses(found)[0]):
                return found
        except NumericalError:
            pass
        found[model.of_shape] = model.shape.nearer(found[model.of_shape])
    return phi


def best_scale(criterion: PatternCriterion, phi: Array) -> Array:
    """Start from the best of some sizes of the effects whose columns share one variance.

    Columns of very different units give that criterion several minima: one fits the large column, one the small.
    """
    model = criterion.model
    shared = [
        where
        for effects, where in zip(model.effects, model.of_effects, strict=True)
        if effects.covariance.keeps == "scalar" and units_differ(effects.z)
    ]
    if not shared:
        return phi
    best, chosen = np.inf, phi
    for size in SIZES:
        trial = phi.copy()
        for where in shared:
            trial[where.start] *= size
        try:
            value = criterion(trial).value
        except NumericalError:
            continue
        if value < best:
            best, chosen = value, trial
    return chosen


def units_differ(z: Array) -> bool:
    """Whether some column of z (n, l) is several times as large as another."""
    size = np.sqrt(np.mean(np.square(z), axis=0))
    return bool(size.max() > 3.0 * size.min())


def unstructured_start(residual: Residual, rest: Array) -> Array | None:
    """Cholesky factors of each group's mean products of residuals, relative to the first variance of all."""
    T, subject, at = residual.n_positions, residual.subject, residual.positions
    table = np.zeros((int(subject.max()) + 1, T))
    seen = np.zeros_like(table)
    table[subject, at], seen[subject, at] = rest, 1.0
    owner = np.zeros(len(table), np.int64)
    if residual.group is not None:
        owner[subject] = residual.group
    out: list[float] = []
    scale = 0.0
    for g in range(residual.n_groups):
        mine = owner == g
        products = table[mine].T @ table[mine] / np.maximum(seen[mine].T @ seen[mine], 1.0)
        scale = scale or float(products[0, 0])
        if not (np.diag(products) > 0).all():
            return None
        L = nearest_factor(products / scale)
        entries = [np.log(L[i, i]) if i == j else L[i, j] for j in range(T) for i in range(j, T)]
        out += entries if g else entries[1:]
    return np.array(out)


def nearest_factor(products: Array) -> Array:
    """Cholesky factor of a matrix with positive diagonal, its correlations shrunk until it is positive definite."""
    on = np.eye(len(products), dtype=bool)
    for shrink in SHRINKAGE:
        mixed = np.where(on, products, shrink * products)
        if np.linalg.eigvalsh(mixed)[0] > 1e-3 * np.diag(mixed).min():
            break
    return np.asarray(np.linalg.cholesky(mixed), np.float64)
