"""Leverages of a generalised fit, and its estimates without one observation or one group.

The matrix of leverages is that of the working linear model at the modes, H = W^1/2 (Z C Z' + M I^-1 M') W^1/2: C the
modes' covariance given the parameters, M the fixed columns less what the modes take of them, I = X'W M.

Deletion has no exact formula here. "one-step" takes one Newton step on the deviance of the remaining rows, in all
parameters at once, from the estimates of all rows (Pregibon 1981; Xiang, Tse and Lee 2002, for these models); "refit"
fits them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.core.engines import NO_FACTOR
from fastlmm_core.core.glmm.fitted import covariance
from fastlmm_core.errors import FastLMMError, ModelError
from fastlmm_core.fitting.generalised import glmm_of, options_of_rows
from fastlmm_core.fitting.models import arrays_of
from fastlmm_core.inference.generalised.rows import residuals
from fastlmm_core.inference.generalised.uncertainty import leverages, mode_derivatives
from fastlmm_core.inference.influence import Deleted, Influence, cases_of, collect
from fastlmm_core.inference.progress import each

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastlmm_core.fitting.generalised_model import GeneralisedModel

__all__ = ["cooks_distance", "fixed_leverages", "hatvalues", "influence", "leverage_parts"]

Array = NDArray[np.float64]

METHODS = ("one-step", "refit")


def leverage_parts(result: GeneralisedModel, w: Array) -> tuple[Array, Array]:
    """Leverages (n,) of the modes and of the fixed effects, at observed weights ``w``."""
    return w * leverages(result), fixed_leverages(result, w)


def fixed_leverages(result: GeneralisedModel, w: Array) -> Array:
    """Leverages (n,) of the fixed effects, at observed weights ``w``."""
    core, design = result.core, result.design
    keep = np.flatnonzero(~np.isnan(core.beta))
    X = design.X[:, keep]
    moved = X.copy()
    for term, slopes in zip(design.random, mode_derivatives(result), strict=True):
        z = np.ones((len(w), 1)) if term.z is None else term.z
        moved += np.einsum("pnl,nl->np", slopes[len(core.theta) + keep][:, term.codes], z)
    fixed = np.zeros(len(w))
    if len(keep):
        information = X.T @ (w[:, None] * moved)
        fixed = w * np.einsum("np,np->n", moved, np.linalg.solve(information, moved.T).T)
    return fixed


def hatvalues(result: GeneralisedModel) -> pd.Series:
    """Leverages of the rows used; see `GlmerResult.hatvalues`."""
    from fastlmm_core.inference.generalised.checks import row_weights

    modes, fixed = leverage_parts(result, row_weights(result, result.core.eta)[0])
    return result.design.by_row(modes + fixed)


def cooks_distance(result: GeneralisedModel) -> pd.Series:
    """Cook's distance of the rows used; see `GlmerResult.cooks_distance`."""
    h, r = hatvalues(result), residuals(result, "pearson")
    scale = result.core.family.scale(result.core.rho)
    return pd.Series((r / (1.0 - h)) ** 2 * h / (scale * (result.core.rank or np.nan)))


def influence(
    result: GeneralisedModel, by: str | ArrayLike = "obs", method: str = "one-step", *, progress: bool = False
) -> Influence:
    """Estimates without each observation or group; see `GlmerResult.influence`."""
    if method == "fixed":
        raise ModelError(
            "deletion at fixed theta has no exact formula in generalised models: use method='one-step' or 'refit'"
        )
    if method not in METHODS:
        raise ModelError(f"influence has no method {method!r}: use one of {', '.join(map(repr, METHODS))}")
    if method == "one-step" and result.monte_carlo is not None:
        raise ModelError("a step from the estimates is " + NO_FACTOR)
    design, core = result.design, result.core
    codes, cases, name = cases_of(design, by)
    out = Deleted.empty(len(cases), core)  # type: ignore[arg-type]
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=len(cases))
    members = np.split(order, np.cumsum(counts)[:-1])
    for case, rows in enumerate(each(members, progress, "influence", "case")):
        try:
            _without(result, rows, method, out, case)
        except FastLMMError:
            out.theta[case] = np.nan  # the reduced data do not determine the model: said by NaN
    return collect(design, core, out, cases, counts, name, method)  # type: ignore[arg-type]


def _without(result: GeneralisedModel, rows: NDArray[np.int64], method: str, out: Deleted, case: int) -> None:
    """One case."""
    design, core, options = result.design, result.core, result.options
    left = np.ones(len(design.y), dtype=bool)
    left[rows] = False
    model = glmm_of(arrays_of(design).rows(left), options_of_rows(options, left))
    keep, nt = np.flatnonzero(~np.isnan(core.beta)), len(core.theta)
    if not np.array_equal(model.design.keep, keep):
        raise ModelError("the remaining rows do not determine the coefficients")
    y = design.y[left]
    full = np.concatenate([core.theta, core.beta[keep], core.family.extra(core.rho)])
    if method == "refit":
        again = model.fit(y, start=core.again)
        sigma = np.sqrt(core.family.scale(again.rho))
        out.set(case, again.beta, again.cov_beta, float(sigma), keep)
        out.theta[case], out.converged[case] = again.theta, again.converged
        return
    objective = model.objective(y)
    objective.place = core.place
    _, gradient, hessian = objective.derivatives(full)
    values, vectors = np.linalg.eigh(hessian)
    floor = 1e-8 * max(float(np.abs(values).max()), 1e-300)
    x = full - vectors @ ((vectors.T @ gradient) / np.maximum(np.abs(values), floor))
    beta, cov = np.full(len(core.beta), np.nan), np.full((len(core.beta),) * 2, np.nan)
    beta[keep] = x[nt : nt + len(keep)]
    cov[np.ix_(keep, keep)] = covariance(hessian, nt)[nt : nt + len(keep), nt : nt + len(keep)]
    out.set(case, beta, cov, float(np.sqrt(core.family.scale(core.family.rho_of(x[nt + len(keep) :])))), keep)
    out.theta[case] = x[:nt]
