"""Confidence intervals of every parameter: Wald, profile likelihood, bootstrap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from fastlmm_core.core.residuals import PatternFit
from fastlmm_core.core.structures.equations_fit import EquationsFit
from fastlmm_core.core.structures.structured import StructuredFit
from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.unidentified import undetermined_coefficients, unidentified_elements
from fastlmm_core.inference.bootstrap import bootstrap, jackknife
from fastlmm_core.inference.coef_table import coef_table
from fastlmm_core.inference.levels import quantile_of_level
from fastlmm_core.inference.parameters import Parameter, choose, parameter_values, parameters
from fastlmm_core.inference.profile import profile
from fastlmm_core.inference.structured_profile import structured_profile
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["bootstrap_limits", "conf_int"]

Array = NDArray[np.float64]
Kind = Literal["percentile", "basic", "norm", "bca"]
Ddf = Literal["normal", "residual", "satterthwaite", "kenward-roger"]

METHODS = ("wald", "profile", "boot")
KINDS = ("percentile", "basic", "norm", "bca")
SPELLINGS = {"bootstrap": "boot", "perc": "percentile"}
"""Other names for the same, R's among them."""


def conf_int(
    result: FittedModel,
    method: str = "wald",
    level: float = 0.95,
    parm: str | Iterable[str] | None = None,
    *,
    ddf: str = "satterthwaite",
    kind: str = "percentile",
    n: int = 1000,
    seed: int | Sequence[int] | np.random.SeedSequence | None = None,
    draws: pd.DataFrame | None = None,
    progress: bool = False,
    cov_type: str = "model",
    cluster: Any = None,
) -> Table:
    """Intervals; see `LmerResult.conf_int`."""
    quantile_of_level(level)
    way, sort = option("method", method, METHODS), option("kind", kind, KINDS)
    if way != "wald" and isinstance(result.core, PatternFit | StructuredFit | EquationsFit):
        if way == "profile":
            return structured_profile(result, parm, level=level, progress=progress).conf_int(level)
        raise ModelError(
            'conf_int(method="boot") is not available for covariance structures: use "profile", or quantiles of '
            "bootstrap()"
        )
    every = parameters(result.design)
    chosen = choose(every, parm)
    names = [p.name for p in chosen]
    if way == "profile":
        return profile(result, names, level=level, progress=progress).conf_int(level)
    if way == "wald":
        limits = _wald(result, chosen, level, ddf, cov_type, cluster)
    else:
        if draws is None:
            draws = bootstrap(result, n, seed=seed, progress=progress)
        limits = _bootstrapped(result, every, chosen, draws, level, sort)
    return table({"lower": limits[:, 0], "upper": limits[:, 1]}, names)


def option(what: str, given: str, known: Sequence[str]) -> str:
    """One of several names in any case, R's included; ModelError for another."""
    name = str(given).strip().lower()
    name = SPELLINGS.get(name, name)
    if name not in known:
        *most, last = (f'"{k}"' for k in known)
        raise ModelError(f"{what} must be {', '.join(most)} or {last}, not {given!r}")
    return name


def _wald(
    result: FittedModel, chosen: Sequence[Parameter], level: float, ddf: str, cov_type: str, cluster: Any
) -> Array:
    """Estimate and quantile times standard error; NaN for standard deviations and correlations, as in lme4."""
    limits = np.full((len(chosen), 2), np.nan)
    if not any(p.kind == "beta" for p in chosen):
        return limits
    coefficients = coef_table(result, ddf=ddf, cov_type=cov_type, cluster=cluster)
    estimate, se, df = (np.asarray(coefficients[name], dtype=float) for name in ("estimate", "std_error", "df"))
    quantile = np.where(np.isinf(df), quantile_of_level(level), stdtrit(np.minimum(df, 1e12), 0.5 + 0.5 * level))
    for row, p in zip(limits, chosen, strict=True):
        if p.kind == "beta":
            row[:] = estimate[p.row] + np.array([-1.0, 1.0]) * quantile[p.row] * se[p.row]
    return limits


def _bootstrapped(
    result: FittedModel,
    every: Sequence[Parameter],
    chosen: Sequence[Parameter],
    draws: pd.DataFrame,
    level: float,
    kind: str,
) -> Array:
    names = [p.name for p in chosen]
    absent = [name for name in names if name not in draws]
    if absent:
        raise DataError(f"draws has no column {absent[0]!r}: take them from bootstrap() without a statistic")
    core = result.core
    estimates = parameter_values(result.design, core.theta[None], np.array([core.sigma]), core.beta[None])[0]
    at = [every.index(p) for p in chosen]
    left_out = jackknife(result)[:, at] if kind == "bca" else None
    limits = bootstrap_limits(draws[names].to_numpy(dtype=float), estimates[at], level, kind, left_out)
    blind, unknown = unidentified_elements(core), undetermined_coefficients(result.design, core)
    for row, p in zip(limits, chosen, strict=True):  # basic and normal ones may leave the parameter's range
        if p.kind in ("sd", "sigma"):
            np.maximum(row, 0.0, out=row)
        elif p.kind == "cor":
            np.clip(row, -1.0, 1.0, out=row)
        name = result.design.x_names[p.row] if p.kind == "beta" else ""
        if name in unknown or p.element in blind:
            row[:] = np.nan
    return limits


def bootstrap_limits(draws: Array, estimates: Array, level: float, kind: str, left_out: Array | None = None) -> Array:
    """Bootstrap intervals (Davison & Hinkley 1997, chapter 5; Efron 1987).

    Parameters
    ----------
    draws : (n, m)
        Bootstrap estimates; a NaN (a correlation with an effect that does not vary) is left out.
    estimates : (m,)
    level : float
    kind : {"percentile", "basic", "norm", "bca"}
        "norm" takes the bias off the estimate and the standard deviation of the draws for its standard error.
    left_out : (k, m), optional
        Jackknife estimates, for "bca": they give the acceleration.

    Returns
    -------
    ndarray (m, 2)
    """
    kind = option("kind", kind, KINDS)
    tails = np.array([0.5 - 0.5 * level, 0.5 + 0.5 * level])
    limits = np.full((len(estimates), 2), np.nan)
    for j, estimate in enumerate(estimates):
        values = draws[:, j][~np.isnan(draws[:, j])]
        if not len(values) or np.isnan(estimate):
            continue
        if kind == "percentile":
            limits[j] = np.quantile(values, tails)
        elif kind == "basic":
            limits[j] = 2.0 * estimate - np.quantile(values, tails[::-1])
        elif kind == "norm":
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
            limits[j] = 2.0 * estimate - values.mean() + ndtri(tails) * spread
        else:
            assert left_out is not None
            limits[j] = np.quantile(values, _bca_tails(values, estimate, left_out[:, j], tails))
    return limits


def _bca_tails(values: Array, estimate: float, left_out: Array, tails: Array) -> Array:
    """Probabilities corrected for bias and acceleration (Efron 1987, equation 2.3); ties count half.

    Variances of zero are ties, though an optimiser leaves some a little above.
    """
    tie = 1e-3 * float(np.std(values))
    below = (
        np.count_nonzero(values < estimate - tie) + 0.5 * np.count_nonzero(np.abs(values - estimate) <= tie)
    ) / len(values)
    smallest = 0.5 / len(values)
    bias = ndtri(min(max(below, smallest), 1.0 - smallest))
    gap = np.nanmean(left_out) - left_out[~np.isnan(left_out)]
    square = float(gap @ gap)
    acceleration = float(np.sum(gap**3)) / (6.0 * square**1.5) if square > 0.0 else 0.0
    z = bias + ndtri(tails)
    return np.asarray(ndtr(bias + z / (1.0 - acceleration * z)))
