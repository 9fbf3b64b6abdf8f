"""Where a generalised model's search starts: a GLM for beta, moments for theta and the family's extra parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.start import clipped_roots, group_moment
from fastlmm_core._native.families.scoring import score_glm
from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.errors import NumericalError
from fastlmm_core.families import VectorFamily

__all__ = ["glmm_start"]

Array = NDArray[np.float64]

MAX_STEPS = 25

ENOUGH = 1e-3
"""Change of the coefficients, conditioned, at which the search for a start ends."""

FAR = 30.0
"""Linear predictors beyond this, of a link to all numbers, are on their way to infinity."""

WORSE = 1e-6
"""Relative loss of log density against a constant mean at which coefficients are no start."""

START_RANGE = (0.1, 3.0)
"""Smallest and largest standard deviation of a term to start from; the largest is in units of the linear predictor,
the smallest in those of one row's information."""


def glmm_start(design: GlmmDesign, y: Array) -> Array:
    """Psi (n_free,) to start from.

    With s_j = Z_j's a level's scores at the GLM's estimates and A_j its block of Z'WZ, E[s_j s_j'] = A + A Sigma A if
    no other factor contributes: the ridge estimates of `core.start` with a noise of one.
    """
    family = design.family
    rho: Any = family.first_rho(y, design.m) if isinstance(family, VectorFamily) else family.fixed_rho or 0.0
    gamma, eta = glm(design, y, rho)
    if family.n_extra:
        rho = family.start_rho(y, family.mean(eta), design.m, design.rank)
        gamma, eta = glm(design, y, rho, eta)
    out = np.empty((3, design.n))
    family.working(y, eta, design.m, design.freq, rho, out, False)
    theta = moments(design, np.maximum(out[2], 0.0), out[0])
    return np.concatenate([theta, gamma, family.extra(rho)])


def glm(design: GlmmDesign, y: Array, rho: Any, eta: Array | None = None) -> tuple[Array, Array]:
    """Coefficients (rank,) of the model without random effects and its linear predictors (n,); rough.

    Raises
    ------
    NumericalError
        No means inside the support were found.
    """
    family, counts = design.family, design.freq
    if eta is None:
        eta = family.link(family.initial_mean(y, design.m))
    if family.code >= 0:
        gamma, value = score_glm(
            family.code, family.link.code, y, design.m, counts, design.offset, design.columns, rho, eta,
            MAX_STEPS, ENOUGH,
        )  # fmt: skip
    else:
        gamma, value = score(design, y, rho, eta)
    open_ended = bool(family.n_extra) and family.link.name not in ("identity", "inverse", "sqrt")
    far = open_ended and np.abs(design.columns @ gamma).max(initial=0.0) > FAR
    if family.n_extra or not np.isfinite(value):
        level = level_start(design, y, rho)
        # the search has gone astray, or off to infinity: a constant mean is better
        if not value >= level[1] - WORSE * abs(level[1]) or (far and np.isfinite(level[1])):
            gamma, value = level
    if not np.isfinite(value):
        raise NumericalError(
            f"no coefficients were found whose {family.link.name} means lie in the {family.name} family's support: "
            "give start="
        )
    return gamma, design.columns @ gamma + design.offset


def level_start(design: GlmmDesign, y: Array, rho: Any) -> tuple[Array, float]:
    """Coefficients of the least squares nearest to one mean for all rows, and the log density there."""
    family, x = design.family, design.columns
    mean = float(np.mean(y / design.m) if family.name == "binomial" else np.mean(y))
    with np.errstate(all="ignore"):
        level = float(family.link(np.array([mean]))[0])
    gram = x.T @ x
    out = np.empty((3, design.n))
    with np.errstate(all="ignore"):
        gamma = np.linalg.solve(gram, x.T @ (level - design.offset)) if len(gram) else np.zeros(0)
        value = family.working(y, x @ gamma + design.offset, design.m, design.freq, rho, out, False)[0]
    return gamma, value if np.isfinite(value) else -np.inf


def score(design: GlmmDesign, y: Array, rho: Any, eta: Array) -> tuple[Array, float]:
    """`score_glm` for families written in Python."""
    family, x, counts = design.family, design.columns, design.counts
    gamma, before = np.zeros(design.rank), -np.inf
    for _ in range(MAX_STEPS):
        rows = family.row(y, eta, design.m, rho)
        w = rows.we * counts
        gram = (x.T * w) @ x
        gram[np.diag_indices(len(gram))] += 1e-10 * gram.max(initial=0.0)
        target = np.linalg.solve(gram, x.T @ (w * (eta - design.offset) + rows.s * counts))
        scale, value = 1.0, np.nan
        while scale >= 1e-6:  # halve steps that leave the support or lower the likelihood
            trial = gamma + scale * (target - gamma)
            eta = x @ trial + design.offset
            with np.errstate(all="ignore"):
                value = float((family.row(y, eta, design.m, rho).l * counts).sum())
            if np.isfinite(value) and not value < before - 1e-9 * abs(before):
                break
            scale *= 0.5
        if scale < 1e-6:
            break
        change = float(np.abs(trial - gamma).max(initial=0.0))
        gamma, before = trial, value
        if change <= ENOUGH * max(1.0, float(np.abs(gamma).max(initial=0.0))):
            break
    return gamma, before


def moments(design: GlmmDesign, w: Array, s: Array) -> Array:
    """Conditioned theta (n_theta,) from weights and scores of the rows."""
    mean = max(float(w.mean()), 1e-300)
    low, high = START_RANGE
    natural = design.family.link.name not in ("identity", "inverse", "sqrt")
    floor = low / np.sqrt(mean)
    ceiling = max(high, 2.0 * floor) if natural else 10.0 / np.sqrt(mean)
    if natural:
        floor = min(floor, 1.0)
    blocks, sums = design.blocks(w), design.sums(s[:, None])
    estimates = [group_moment(a, t[:, 0], mean, 0, 0.0, 1.0) for a, t in zip(blocks, sums, strict=True)]
    # the scores of a model that fits far too well may be no numbers
    estimates = [e if np.isfinite(e).all() else np.eye(len(e)) for e in estimates]
    return clipped_roots(estimates, 1.0, design.theta_map.index, float(floor), float(ceiling))
