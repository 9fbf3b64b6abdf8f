"""Is a generalised fit sound: dispersion, the worth of Laplace's approximation, shares of variance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import chdtrc, polygamma

from fastlmm_core.core import Control
from fastlmm_core.core.engines import NO_FACTOR
from fastlmm_core.core.glmm.fitted import exact, resume
from fastlmm_core.core.glmm.laplace import Laplace
from fastlmm_core.errors import MemoryLimitError, ModelError
from fastlmm_core.fitting.generalised import engine_at, glmm_of
from fastlmm_core.inference.comparison import shares_of, variance_shares
from fastlmm_core.inference.generalised.influence import fixed_leverages, leverage_parts
from fastlmm_core.inference.generalised.predict import marginal_mean
from fastlmm_core.inference.generalised.rows import COUNTS, WHOLE, distribution, observed, prior_weights
from fastlmm_core.inference.generalised.uncertainty import leverages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastlmm_core.core.glmm.fitted import Engine
    from fastlmm_core.core.glmm.iterative.laplace import IterativeLaplace
    from fastlmm_core.fitting.generalised_model import GeneralisedModel

__all__ = ["LaplaceCheck", "dispersion", "icc", "laplace_check", "r2"]

Array = NDArray[np.float64]

MOST_ROWS = 20_000
"""Rows up to which the second-order term is summed over all pairs."""

RELIABLE = 3.0
"""Size of a part of the second-order term above which the expansion says nothing."""

SMALL = 0.1
"""Correction of the log-likelihood that changes no conclusion."""

BLOCK = 64

STEP = 1e-4


@dataclass(frozen=True)
class LaplaceCheck:
    """What Laplace's approximation leaves out of the log-likelihood at the estimates.

    Attributes
    ----------
    correction : float
        Second-order term of the expansion (Shun and McCullagh 1995), to be added to `llf`; NaN where the parts are so
        large that it says nothing.
    parts : tuple of float
        Its three parts.
    quadrature : float
        The same by adaptive Gauss-Hermite quadrature where there is one grouping factor of up to three effects; else
        NaN.
    verdict : str
    """

    correction: float
    parts: tuple[float, float, float]
    quadrature: float
    verdict: str

    def __repr__(self) -> str:
        return f"<LaplaceCheck: {self.verdict}>"


def row_weights(result: GeneralisedModel, eta: Array) -> tuple[Array, Array]:
    """Observed weights of the rows and their slopes at a linear predictor, times how often each row counts."""
    core, design = result.core, result.design
    rows = core.family.row(design.y, eta, prior_weights(result), core.rho)
    freq = result.options.freq_weights
    return (rows.w, rows.k) if freq is None else (rows.w * freq, rows.k * freq)


def dispersion(result: GeneralisedModel) -> pd.Series:
    """Pearson's X2 over its degrees of freedom, and zeros; see `GlmerResult.dispersion`."""
    core, design = result.core, result.design
    if core.family.name == "ordinal":
        raise ModelError('ordered categories have no variance to compare with: residuals("quantile") show misfit')
    m = prior_weights(result)
    w, _ = row_weights(result, core.eta)
    freq = np.ones(len(w)) if result.options.freq_weights is None else result.options.freq_weights
    x2 = float(freq @ ((observed(result) - core.fitted) ** 2 / core.family.variance(core.mu, m, core.rho)))
    if result.monte_carlo is None:
        parameters = sum(part.sum() for part in leverage_parts(result, w))
    else:  # leverages of the modes are known in sum
        with engine_at(result) as engine:
            parameters = cast("IterativeLaplace", engine).effective() + fixed_leverages(result, w).sum()
    df = float(freq.sum() - parameters)
    out = {"pearson_x2": x2, "df": df, "ratio": x2 / df, "p": float(chdtrc(df, x2))}
    if (core.family.name in COUNTS or core.family.vector) and (m == 1.0).all():
        _, at_zero = distribution(core.family, np.zeros(len(w)), core.mu, m, core.rho)
        out |= {"zeros_observed": float(freq @ (design.y == 0.0)), "zeros_expected": float(freq @ at_zero)}
    return pd.Series(out)


def laplace_check(result: GeneralisedModel) -> LaplaceCheck:
    """The second-order term; see `GlmerResult.laplace_check`."""
    if result.monte_carlo is not None:
        raise ModelError("covariances of all pairs of rows are " + NO_FACTOR)
    if result.options.n_agq > 1:
        raise ModelError("the fit is by quadrature, not by Laplace's approximation: compare it with more points")
    if result.options.zero_terms:
        raise ModelError("laplace_check() is not available where the zero part has random effects")
    quadrature = _quadrature(result)
    parts = (np.nan, np.nan, np.nan)
    if len(result.design.y) <= MOST_ROWS:
        parts = _second_order(result)
    elif np.isnan(quadrature):
        raise MemoryLimitError(f"the check sums over all pairs of rows, at most {MOST_ROWS:,} of them")
    total = float(sum(parts))
    known = max(map(abs, parts)) <= RELIABLE
    best = total if known else quadrature
    shown = ", ".join(f"{part:+.2f}" for part in parts)
    if np.isnan(best):
        verdict = (
            f"unknown: the parts of the second-order term ({shown}) are too large for it to say anything, as where "
            "levels have few rows for their effects; quadrature or bootstrap() can tell"
        )
    else:
        how = "quadrature" if not known else "the second-order term"
        worth = (
            "nothing that matters is left out"
            if abs(best) < SMALL
            else "likelihoods of models with different random effects should be compared with care"
        )
        verdict = f"the log-likelihood is {best:+.3f} from Laplace's by {how}: {worth}"
    return LaplaceCheck(total if known else float("nan"), parts, quadrature, verdict)


def _quadrature(result: GeneralisedModel) -> float:
    """Log-likelihood by quadrature less Laplace's, at the estimates."""
    design, core = result.design, result.core
    widths: dict[str, int] = {}
    for term in design.random:
        widths[term.group] = widths.get(term.group, 0) + len(term.columns)
    (width,) = widths.values() if len(widths) == 1 else (99,)
    if width > 3 or (core.family.code < 0 and not core.family.vector):
        return float("nan")
    control = replace(result.options.control or Control(), engine="auto")  # level by level, whatever fitted the model
    model = glmm_of(design, replace(result.options, control=control), n_agq={1: 25, 2: 15, 3: 9}[width])
    with engine_at(result) as engine:
        resume(model.engine, core.y, core.place)
        return -0.5 * (exact(model.engine).value(core.psi) - exact(engine).value(core.psi))


def _second_order(result: GeneralisedModel) -> tuple[float, float, float]:
    """-1/8 sum kappa4 g^2, 1/8 c'Gamma c and 1/12 kappa'(Gamma o Gamma o Gamma) kappa."""
    eta, g = result.core.eta, leverages(result)
    kappa = row_weights(result, eta)[1]
    fourth = (row_weights(result, eta + STEP)[1] - row_weights(result, eta - STEP)[1]) / (2.0 * STEP)
    c = kappa * g
    square, cube = 0.0, 0.0
    with engine_at(result) as engine:
        for rows, columns, block in _covariances(engine):
            square += float(c[rows] @ block @ c[columns])
            cube += float(kappa[rows] @ (block * block * block) @ kappa[columns])
    return float(-np.sum(fourth * g**2) / 8.0), float(square / 8.0), float(cube / 12.0)


def _covariances(engine: Engine) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64] | slice, Array]]:
    """Gamma = A M^-1 A' in blocks: rows, columns and the block; what is left out is zero."""
    design = engine.design
    if isinstance(engine, Laplace):
        for at in range(0, design.n, BLOCK):
            rows = np.arange(at, min(at + BLOCK, design.n))
            unit = np.zeros((len(rows), design.n))
            unit[np.arange(len(rows)), rows] = 1.0
            yield rows, slice(None), engine.linear(engine.solve(engine.theta, unit)[1])
        return
    z, codes, blocks = design.z[0], design.codes[0], engine.cond_var()[0]
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(blocks)))[:-1]
    for level, rows in enumerate(np.split(order, ends)):
        own = np.ones((len(rows), 1)) if z is None else z[rows]
        yield rows, rows, own @ blocks[level] @ own.T


def level_one_variance(result: GeneralisedModel) -> float:
    """Variance of a row's own distribution on the scale of the linear predictor (Nakagawa et al. 2017).

    Raises
    ------
    ModelError
        None is known for the family and link.
    """
    family, core = result.core.family, result.core
    known = {"logit": np.pi**2 / 3.0, "probit": 1.0, "cloglog": np.pi**2 / 6.0}
    if family.name in ("binomial", "ordinal") and family.link.name in known:
        return float(known[family.link.name])
    if family.link.name == "log" and family.name != "beta" and family.name not in WHOLE and not family.vector:
        _, random, _ = variance_shares(result.design, core)
        base = float(np.mean(result.design.X @ np.nan_to_num(core.beta)))
        mean = float(marginal_mean(family.link, np.array([base]), np.array([random.sum()]))[0])
        if family.name == "gamma":
            return float(polygamma(1, 1.0 / family.scale(core.rho)))
        variance = family.variance(np.array([mean]), np.ones(1), core.rho)[0]
        return float(np.log1p(variance / mean**2))
    raise ModelError(
        f"no variance of the {family.name} distribution on the {family.link.name} scale is known (logit, probit, "
        "cloglog for binomial, log for counts and positive responses)"
    )


def r2(result: GeneralisedModel) -> pd.Series:
    """Marginal and conditional R2; see `GlmerResult.r2`."""
    fixed, random, _ = variance_shares(result.design, result.core)
    return shares_of(fixed, random, level_one_variance(result))[0]


def icc(result: GeneralisedModel) -> pd.Series:
    """Intraclass correlations; see `GlmerResult.icc`."""
    fixed, random, _ = variance_shares(result.design, result.core)
    return shares_of(fixed, random, level_one_variance(result))[1]
