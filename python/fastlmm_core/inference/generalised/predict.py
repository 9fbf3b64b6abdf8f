"""Predictions of a generalised fit: linear predictors, means of known groups, of an average one, over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr

from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.coefficients import undetermined
from fastlmm_core.fitting.predict import included_columns, linear_predictor, target_rows
from fastlmm_core.inference.generalised.uncertainty import parameter_covariance, variances
from fastlmm_core.inference.prediction import factors_of
from fastlmm_core.inference.profile import quantile_of_level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastlmm_core.families import Link
    from fastlmm_core.fitting.generalised_model import GeneralisedModel
    from fastlmm_core.formula import NewDesign

__all__ = ["KINDS", "Kind", "marginal_mean", "predict"]

Array = NDArray[np.float64]
Kind = Literal["response", "link", "population", "marginal"]
KINDS = ("response", "link", "population", "marginal")

REACH = 8.5
"""Standard deviations over which a mean is integrated."""

STEP = 1e-4
"""Of central differences in theta."""


def marginal_mean(link: Link, eta: Array, variance: Array) -> Array:
    """E g^-1(eta + e) for e ~ N(0, variance), (n,): closed for log, identity and probit, else the trapezoid rule.

    The rule's error falls exponentially with the number of points for functions as smooth as these (Trefethen and
    Weideman 2014); a finer step for large variances follows the inverse link's width.
    """
    if link.name == "log":
        return np.asarray(np.exp(eta + 0.5 * variance))
    if link.name == "identity":
        return eta.copy()
    if link.name == "probit":
        return np.asarray(ndtr(eta / np.sqrt(1.0 + variance)))
    sd = np.sqrt(variance)
    step = 0.6 / max(float(sd.max(initial=0.0)), 1.2)
    k = int(np.ceil(REACH / step))
    nodes = np.arange(-k, k + 1) * step
    weights = np.exp(-0.5 * nodes**2)
    weights /= weights.sum()
    out = np.zeros_like(eta)
    for node, weight in zip(nodes, weights, strict=True):
        out += weight * link.inverse(eta + sd * node)
    return out


def predict(
    result: GeneralisedModel,
    newdata: Any = None,
    *,
    kind: str = "response",
    re_form: str = "all",
    allow_new_levels: bool = False,
    interval: str | None = None,
    level: float = 0.95,
) -> pd.Series | pd.DataFrame:
    """Predictions; see `GlmerResult.predict`."""
    if kind not in KINDS:
        raise ModelError(f"kind must be one of {', '.join(map(repr, KINDS))}, not {kind!r}")
    if interval not in (None, "confidence"):
        raise ModelError(
            f'interval must be "confidence" or None, not {interval!r}: quantiles of simulate(newdata=...) are limits '
            "of new responses"
        )
    design, core = result.design, result.core
    if kind in ("population", "marginal"):
        if re_form not in ("all", "none"):
            raise ModelError(f'kind="{kind}" has no random effects of known groups: leave re_form out')
        re_form = "none"
    masks = included_columns(design, re_form)
    rows = target_rows(design, newdata, masks, allow_new_levels=allow_new_levels, all_columns=kind == "marginal")
    eta = linear_predictor(rows, core, masks)  # type: ignore[arg-type]
    link = core.family.link
    if interval is None:
        if kind == "marginal":
            fit = marginal_mean(link, eta, term_variance(rows, core.L))
        else:
            fit = eta if kind == "link" else link.inverse(eta)
        found = rows.by_row(fit)
        found.attrs["notes"] = undetermined(design, core, rows)  # type: ignore[arg-type]
        return found
    z = quantile_of_level(level)
    if kind == "marginal":
        fit, se = _marginal(result, rows, eta)
        centre = link(fit)
        error = se / np.abs(link.derivatives(centre)[1])
    else:
        centre, error = eta, np.sqrt(variances(result, rows, masks))
        error[np.isnan(eta)] = np.nan
        fit, slope = (eta, 1.0) if kind == "link" else link.derivatives(eta)[:2]
        se = error * np.abs(slope)
    limits = [centre - z * error, centre + z * error]
    if kind != "link":
        limits = [link.inverse(part) for part in limits]
    frame = pd.DataFrame(
        {
            "fit": rows.full(fit),
            "std_error": rows.full(se),
            "lower": rows.full(np.minimum(*limits)),
            "upper": rows.full(np.maximum(*limits)),
        },
        index=rows.index,
    )
    frame.attrs["notes"] = undetermined(design, core, rows)  # type: ignore[arg-type]
    return frame


def term_variance(rows: NewDesign, factors: Sequence[Array]) -> Array:
    """Sum over the terms of z'Sigma z, (n,)."""
    assert rows.X is not None
    out = np.zeros(len(rows.X))
    for part, factor in zip(rows.random, factors, strict=True):
        z = None if part is None else part.z
        if z is None:
            out += float(factor[0] @ factor[0])
        else:
            out += ((z @ factor) ** 2).sum(axis=1)
    return out


def _marginal(result: GeneralisedModel, rows: NewDesign, eta: Array) -> tuple[Array, Array]:
    """Marginal means and their standard errors by the delta method, theta's uncertainty included."""
    core, link = result.core, result.core.family.link
    widths = [len(factor) for factor in core.L]
    nt, p = len(core.theta), len(core.beta)
    assert rows.X is not None

    def mean(theta: Array, shift: float = 0.0) -> Array:
        return marginal_mean(link, eta + shift, term_variance(rows, factors_of(widths, theta)))

    j = np.zeros((len(eta), nt + p + core.family.n_extra))
    for k in range(nt):
        unit = STEP * np.eye(nt)[k]
        j[:, k] = (mean(core.theta + unit) - mean(core.theta - unit)) / (2.0 * STEP)
    slope = (mean(core.theta, STEP) - mean(core.theta, -STEP)) / (2.0 * STEP)
    j[:, nt : nt + p] = slope[:, None] * rows.X
    return mean(core.theta), np.sqrt(np.einsum("np,pq,nq->n", j, parameter_covariance(result), j))
