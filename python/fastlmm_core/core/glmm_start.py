"""Where a generalised model's search starts: a GLM for beta, moments for theta and the family's extra parameter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.start import ridge_sums
from fastlmm_core.core.glmm_design import GlmmDesign
from fastlmm_core.errors import NumericalError

__all__ = ["glmm_start"]

Array = NDArray[np.float64]

MAX_STEPS = 25

ENOUGH = 1e-3
"""Change of the coefficients, conditioned, at which the search for a start ends."""

START_RANGE = (0.1, 3.0)
"""Smallest and largest standard deviation of a term to start from; the largest is in units of the linear predictor,
the smallest in those of one row's information."""


def glmm_start(design: GlmmDesign, y: Array) -> Array:
    """Psi (n_free,) to start from.

    With s_j = Z_j's a level's scores at the GLM's estimates and A_j its block of Z'WZ, E[s_j s_j'] = A + A Sigma A if
    no other factor contributes: the ridge estimates of `core.start` with a noise of one.
    """
    family = design.family
    rho = family.fixed_rho or 0.0
    gamma = glm(design, y, rho)
    mu = family.mean(design.columns @ gamma + design.offset)
    if family.n_extra:
        rho = family.start_rho(family.saturated(y, design.m), mu, design.m, design.rank)
        gamma = glm(design, y, rho, gamma)
    rows = family.row(y, design.columns @ gamma + design.offset, design.m, rho)
    w = np.maximum(rows.we, 0.0) * design.counts
    theta = moments(design, w, rows.s * design.counts)
    return np.concatenate([theta, gamma, [rho] * family.n_extra])


def glm(design: GlmmDesign, y: Array, rho: float, gamma: Array | None = None) -> Array:
    """Coefficients (rank,) of the model without random effects, by scoring; rough, as the search moves on from them.

    Raises
    ------
    NumericalError
        No means inside the support were found.
    """
    family, x, counts = design.family, design.columns, design.counts
    if gamma is None:
        eta = np.asarray(family.link(family.initial_mean(y, design.m)))
        gamma = np.zeros(design.rank)
        before = -np.inf
    else:
        eta = x @ gamma + design.offset
        before = float((family.row(y, eta, design.m, rho).l * counts).sum())
    for _ in range(MAX_STEPS):
        rows = family.row(y, eta, design.m, rho)
        w = rows.we * counts
        z = w * (eta - design.offset) + rows.s * counts
        if not np.isfinite(z).all():
            break
        gram = (x.T * w) @ x
        gram[np.diag_indices(len(gram))] *= 1.0 + 1e-10
        target = np.linalg.solve(gram, x.T @ z)
        scale = 1.0
        while True:  # halve steps that leave the support or lower the likelihood
            trial = gamma + scale * (target - gamma)
            eta = x @ trial + design.offset
            with np.errstate(all="ignore"):
                value = float((family.row(y, eta, design.m, rho).l * counts).sum())
            if value >= before - 1e-9 * abs(before) and np.isfinite(value):
                break
            scale *= 0.5
            if scale < 1e-6:
                trial, value = gamma, before
                eta = x @ trial + design.offset
                break
        change = float(np.abs(trial - gamma).max(initial=0.0))
        gamma, before = trial, value
        if change <= ENOUGH * max(1.0, float(np.abs(gamma).max(initial=0.0))):
            break
    if not np.isfinite(before):
        raise NumericalError(
            f"no coefficients were found whose {family.link.name} means lie in the {family.name} family's support: "
            "give start="
        )
    return gamma


def moments(design: GlmmDesign, w: Array, s: Array) -> Array:
    """Conditioned theta (n_theta,) from weights and scores of the rows."""
    mean = max(float(w.mean()), 1e-300)
    low, high = START_RANGE
    natural = design.family.link.name not in ("identity", "inverse", "sqrt")
    floor = low / np.sqrt(mean)
    ceiling = max(high, 2.0 * floor) if natural else 10.0 / np.sqrt(mean)
    if natural:
        floor = min(floor, 1.0)
    factors = []
    index = design.theta_map.index
    for g, (blocks, sums) in enumerate(zip(design.blocks(w), design.sums(s[:, None]), strict=True)):
        bb, spread, kept, _, _ = ridge_sums(blocks, sums[:, 0], mean)
        root = np.sqrt(np.maximum(kept / len(blocks), 1e-8))
        estimate = (bb - spread) / (len(blocks) * np.outer(root, root))
        free = np.zeros(estimate.shape, bool)
        own = index[index[:, 0] == g]
        free[own[:, 1], own[:, 2]] = True
        values, vectors = np.linalg.eigh(np.where(free | free.T, estimate, 0.0))
        factors.append(np.linalg.cholesky((vectors * np.clip(values, floor**2, ceiling**2)) @ vectors.T))
    return np.array([factors[g][i, j] for g, i, j in index.tolist()])
