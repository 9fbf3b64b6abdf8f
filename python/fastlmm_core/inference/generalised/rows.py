"""The rows of a generalised fit: responses as means have them, residual kinds, densities and distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, xlogy

from fastlmm_core.errors import ModelError
from fastlmm_core.families import Ordinal, TwoPart
from fastlmm_core.inference.simulate import generators

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.families import Family
    from fastlmm_core.fitting.generalised_model import GeneralisedModel

__all__ = [
    "RESIDUALS",
    "ResidualKind",
    "deviance",
    "lawless",
    "observed",
    "prior_weights",
    "residuals",
    "unit_deviance",
]

Array = NDArray[np.float64]
ResidualKind = Literal["deviance", "pearson", "response", "working", "quantile", "simulated"]
RESIDUALS = ("deviance", "pearson", "response", "working", "quantile", "simulated")

COUNTS = ("poisson", "negativebinomial", "negativebinomial1")

WHOLE = dict(zip(("truncated_poisson", "truncated_nbinom2", "truncated_nbinom1"), COUNTS, strict=True))
"""Families without zeros, and those they are the positive part of."""

N_SIMULATED = 250
"""Responses among which a simulated residual is the rank."""

MAX_NEWTON = 100


def prior_weights(result: GeneralisedModel) -> Array:
    """Trials or prior weights (n,) of the rows, ones where there are none."""
    weights = result.design.weights
    return np.ones(len(result.design.y)) if weights is None else weights


def observed(result: GeneralisedModel) -> Array:
    """The response on the scale of its mean (n,): proportions for successes among trials."""
    return result.core.family.saturated(result.design.y, prior_weights(result))


def residuals(
    result: GeneralisedModel, kind: str = "deviance", *, seed: int | None = 0, n: int = N_SIMULATED
) -> pd.Series:
    """Residuals of the rows used; see `GlmerResult.residuals`."""
    if kind not in RESIDUALS:
        raise ModelError(f"kind must be one of {', '.join(map(repr, RESIDUALS))}, not {kind!r}")
    core, y, m = result.core, result.design.y, prior_weights(result)
    family, mu, rho = core.family, core.mu, core.rho
    if family.vector:
        known = RESIDUALS[4:] if isinstance(family, Ordinal) else ("pearson", "response", *RESIDUALS[4:])
        if kind not in known:
            raise ModelError(
                f"{kind} residuals of the {family.name} family are not defined: kind is one of "
                f"{', '.join(map(repr, known))}"
            )
    r = observed(result) - core.fitted
    if kind == "response":
        values = r
    elif kind == "pearson":
        sd = np.sqrt(family.variance(mu, m, rho) / family.scale(rho))
        values = np.divide(r, sd, out=np.zeros_like(r), where=(sd > 0.0) | (r != 0.0))  # 0 / 0: a mean at its limit
    elif kind == "working":
        values = r / family.link.derivatives(core.eta)[1]
    elif kind == "deviance":
        values = np.sign(r) * np.sqrt(np.maximum(unit_deviance(family, y, mu, m, rho), 0.0))
    else:
        stream = next(generators(seed, 1))
        if kind == "simulated":
            lower, upper = _ranks(result, n, seed)
        elif isinstance(family, Ordinal):
            upper = np.cumsum(family.probabilities(core.eta, rho), axis=1)[np.arange(len(y)), y.astype(int)]
            lower = upper - core.fitted
        else:
            lower, upper = distribution(family, y, mu, m, rho)
        values = lower + stream.random(len(y)) * (upper - lower)
        if kind == "quantile":
            values = ndtri(np.clip(values, 1e-16, 1.0 - 1e-16))
    return result.design.by_row(np.asarray(values, dtype=np.float64))


def deviance(result: GeneralisedModel) -> float:
    """Sum of the rows' deviances at the modes; NaN for families in which a row has none."""
    core = result.core
    if core.family.vector:
        return float("nan")
    rows = unit_deviance(core.family, result.design.y, core.mu, prior_weights(result), core.rho)
    return float(rows @ (np.ones(len(rows)) if result.options.freq_weights is None else result.options.freq_weights))


def _ranks(result: GeneralisedModel, n: int, seed: int | None) -> tuple[Array, Array]:
    """Shares of n simulated responses that are below each observed one, and not above it."""
    from fastlmm_core.inference.generalised.simulate import draws

    below, ties = np.zeros(len(result.design.y)), np.zeros(len(result.design.y))
    for drawn in draws(result, n, seed=seed):
        below += drawn < result.design.y
        ties += drawn == result.design.y
    return below / n, (below + ties) / n


def unit_deviance(family: Family, y: Array, mu: Array, m: Array, rho: float) -> Array:
    """Twice what each row's log density falls short of the best for that row, times the dispersion, (n,)."""
    match family.name:
        case "binomial":
            k = m - y
            return np.asarray(2.0 * (_relative(y, m * mu) + _relative(k, m * (1.0 - mu))))
        case "poisson":
            return np.asarray(2.0 * m * (_relative(y, mu) - (y - mu)))
        case "negativebinomial":
            size = np.exp(rho)
            return np.asarray(2.0 * m * (_relative(y, mu) - (y + size) * np.log((y + size) / (mu + size))))
        case "gamma":
            return np.asarray(2.0 * m * ((y - mu) / mu - np.log(y / mu)))
        case "inverse_gaussian":
            return np.asarray(m * (y - mu) ** 2 / (mu**2 * y))
        case "gaussian":
            return np.asarray(m * (y - mu) ** 2)
    eta = family.link(mu)
    return np.asarray(2.0 * (_best(family, y, m, rho) - family.row(y, eta, m, rho).l))


def _relative(y: Array, mean: Array) -> Array:
    """Y log(y / mean), zero where y is, also where the mean has vanished."""
    return np.asarray(xlogy(y, np.divide(y, mean, out=np.ones_like(mean), where=y > 0.0)))


def _best(family: Family, y: Array, m: Array, rho: float) -> Array:
    """The largest log density of each row over its linear predictor, by Newton's method."""
    eta = family.link(family.initial_mean(y, m))
    rows = family.row(y, eta, m, rho)
    for _ in range(MAX_NEWTON):
        step = np.clip(rows.s / np.maximum(rows.w, rows.we), -1.0, 1.0)
        trial = np.clip(eta + step, -30.0, 30.0)
        again = family.row(y, trial, m, rho)
        better = again.l > rows.l
        if not better.any():
            break
        eta = np.where(better, trial, eta)
        rows = family.row(y, eta, m, rho)
    return np.asarray(rows.l)


def lawless(family: Family, m: Array) -> bool:
    """Whether prior weights leave rows without a distribution: they multiply log densities, and mean nothing else."""
    if isinstance(family, TwoPart):
        family = family.base
    return WHOLE.get(family.name, family.name) in (*COUNTS, "beta") and bool((m != 1.0).any())


def distribution(family: Family, y: Array, mu: Array, m: Array, rho: float) -> tuple[Array, Array]:
    """P(Y < y) and P(Y <= y) of each row.

    Raises
    ------
    ModelError
        A family of the user's own, or prior weights that no distribution goes with.
    """
    if isinstance(family, TwoPart):
        p, own = family.zero_probability(rho), family.split(rho)[1]
        lower, upper = distribution(family.base, y, mu, m, own)
        lower, upper = np.where(y > 0.0, lower, 0.0), np.where(upper > 0.0, upper, 0.0)
        return np.where(y > 0.0, p + (1.0 - p) * lower, 0.0), p + (1.0 - p) * upper
    whole = WHOLE.get(family.name, family.name)
    if lawless(family, m):
        raise ModelError(f"quantile residuals need a distribution, and weighted {family.name} rows have none")
    from scipy import stats  # which takes as long to import as pandas does

    phi = family.scale(rho)
    match whole:
        case "binomial":
            law = stats.binom(m, mu)
        case "poisson":
            law = stats.poisson(mu)
        case "negativebinomial":
            size = np.exp(rho)
            law = stats.nbinom(size, size / (size + mu))
        case "negativebinomial1":
            alpha = np.exp(rho)
            law = stats.nbinom(mu / alpha, 1.0 / (1.0 + alpha))
        case "gamma":
            law = stats.gamma(m / phi, scale=mu * phi / m)
        case "inverse_gaussian":
            law = stats.invgauss(mu * phi / m, scale=m / phi)
        case "gaussian":
            law = stats.norm(mu, np.sqrt(phi / m))
        case "beta":
            precision = np.exp(rho)
            law = stats.beta(mu * precision, (1.0 - mu) * precision)
        case _:
            raise ModelError(f'quantile residuals need the {family.name} distribution: use kind="simulated"')
    upper = np.asarray(law.cdf(y))
    lower = np.asarray(law.cdf(y - 1.0)) if whole in ("binomial", *COUNTS) else upper
    if whole != family.name:  # without the zeros
        zero, seen = np.asarray(law.cdf(0.0)), np.asarray(law.sf(0.0))
        lower, upper = (lower - zero) / seen, (upper - zero) / seen
    return lower, upper
