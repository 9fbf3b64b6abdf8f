"""Predictions of a generalised fit: linear predictors, means of known groups, of an average one, over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from fastlmm_core.errors import ModelError
from fastlmm_core.families import Ordinal, TwoPart
from fastlmm_core.fitting.coefficients import undetermined
from fastlmm_core.fitting.predict import included_columns, linear_predictor, target_rows
from fastlmm_core.fitting.zero_part import family_at
from fastlmm_core.inference.generalised.classes import check_kind, class_predictions, zero_probabilities
from fastlmm_core.inference.generalised.uncertainty import parameter_covariance, variances
from fastlmm_core.inference.levels import quantile_of_level
from fastlmm_core.inference.prediction import factors_of
from fastlmm_core.inference.transformations import of_link

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastlmm_core.families import Family, Link
    from fastlmm_core.fitting.generalised_model import GeneralisedModel
    from fastlmm_core.formula import NewDesign

__all__ = ["KINDS", "Kind", "marginal_mean", "predict"]

Array = NDArray[np.float64]
Kind = Literal["response", "link", "population", "marginal", "conditional", "zprob", "class"]
KINDS = ("response", "link", "population", "marginal", "conditional", "zprob", "class")

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
    return averaged(link.inverse, eta, variance)


def averaged(function: Callable[[Array], Array], eta: Array, variance: Array) -> Array:
    """E function(eta + e) for e ~ N(0, variance), (n,), by the trapezoid rule."""
    sd = np.sqrt(variance)
    step = 0.6 / max(float(np.fmax.reduce(sd, initial=0.0)), 1.2)
    k = int(np.ceil(REACH / step))
    nodes = np.arange(-k, k + 1) * step
    weights = np.exp(-0.5 * nodes**2)
    weights /= weights.sum()
    out = np.zeros_like(eta)
    for node, weight in zip(nodes, weights, strict=True):
        out += weight * function(eta + sd * node)
    return out


def marginal_response(
    family: Family, rho: Any, eta: Array, variance: Array, zero: Callable[[Any], Array] | None = None
) -> Array:
    """E of the response's mean at eta + e for e ~ N(0, variance), (n,); the link's mean by its closed form.

    ``zero`` has the variance (n,) of a zero part's log odds at rho, where they have random effects.
    """
    if isinstance(family, TwoPart):
        counts = marginal_response(family.base, family.split(rho)[1], eta, variance)
        if zero is None:
            return (1.0 - family.zero_probability(rho)) * counts
        return averaged(expit, -family.log_odds(rho), zero(rho)) * counts
    mean = marginal_mean(family.link, eta, variance)
    if family.plain:
        return mean

    def rest(at: Array) -> Array:
        mu = family.link.inverse(at)
        return family.response_mean(mu, rho) - mu

    return mean + averaged(rest, eta, variance)


def by_rho(family: Family, rho: Any, function: Callable[[Any], Array]) -> Array:
    """Derivatives (n, n_extra) of a function of rho with values (n,), by central differences."""
    at = family.extra(rho)
    columns = [
        (function(family.rho_of(at + STEP * unit)) - function(family.rho_of(at - STEP * unit))) / (2.0 * STEP)
        for unit in np.eye(len(at))
    ]
    return np.column_stack(columns) if columns else np.zeros((len(function(rho)), 0))


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
    check_kind(result.core.family, kind, interval)
    if interval not in (None, "confidence"):
        raise ModelError(
            f'interval must be "confidence" or None, not {interval!r}: quantiles of simulate(newdata=...) are limits '
            "of new responses"
        )
    design, core = result.design, result.core
    zero_form = "none" if kind in ("population", "marginal") else re_form
    if kind in ("population", "marginal", "zprob"):
        if re_form not in ("all", "none"):
            raise ModelError(f'kind="{kind}" has no random effects of known groups: leave re_form out')
        re_form = "none"
    masks = included_columns(design, re_form)
    rows = target_rows(design, newdata, masks, allow_new_levels=allow_new_levels, all_columns=kind == "marginal")
    eta = linear_predictor(rows, core, masks)  # type: ignore[arg-type]
    family, link = core.family, core.family.link
    if isinstance(family, TwoPart) and kind not in ("link", "conditional"):
        if family.effects and interval is not None and zero_form != "none":
            raise ModelError(
                f'kind="{kind}" has no interval at the modes of the zero part\'s random effects: use '
                'kind="population", kind="marginal" or, of kind="zprob", re_form="none"'
            )
        family = family_at(result, newdata, rows, re_form=zero_form, allow_new_levels=allow_new_levels)
    z = None if interval is None else quantile_of_level(level)
    if isinstance(family, Ordinal) and kind != "link":
        return class_predictions(
            family, core.rho, rows, eta, kind, lambda f: averaged(f, eta, term_variance(rows, core.L))
        )
    if isinstance(family, TwoPart) and kind == "zprob":
        return zero_probabilities(result, family, rows, z)

    def response(at: Array, rho: Any = core.rho) -> Array:
        if kind == "link":
            return at
        if isinstance(family, TwoPart) and kind == "conditional":
            return family.conditional_mean(link.inverse(at), rho)
        return family.response_mean(link.inverse(at), rho)

    if z is None:
        over = zero_variance(result, newdata, rows) if kind == "marginal" else None
        fit = _marginal_mean(result, family, rows, eta, over)(core.theta) if kind == "marginal" else response(eta)
        found = rows.by_row(fit)
        found.attrs["notes"] = undetermined(design, core, rows)  # type: ignore[arg-type]
        return found
    scale = of_link(link)
    if kind == "marginal":
        fit, se = _marginal(result, family, rows, eta, zero_variance(result, newdata, rows))
        floor = 0.0 if family.plain or family.vector else family.response_mean(np.zeros_like(fit), core.rho)
        centre = link(fit - floor)
        error = se / np.abs(link.derivatives(centre)[1])
        limits = [link.inverse(scale.within(centre, centre + side * error)) + floor for side in (-z, z)]
    else:
        fit = response(eta)
        error, slope = _errors(result, family, rows, masks, eta, None if kind == "link" else response)
        se = error * np.abs(slope)
        ends = [eta - z * error, eta + z * error]
        limits = ends if kind == "link" else [response(scale.within(eta, end)) for end in ends]
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


def _errors(
    result: GeneralisedModel,
    family: Family,
    rows: NewDesign,
    masks: Sequence[NDArray[np.bool_]],
    eta: Array,
    response: Callable[..., Array] | None,
) -> tuple[Array, Array]:
    """Standard errors (n,) on the scale of the linear predictor eta, and the slope of ``response`` there."""
    slope, moved = np.ones_like(eta), None
    if response is not None:
        slope = family.link.derivatives(eta)[1]
    if response is not None and not family.plain:  # rho moves the mean too: in units of the linear predictor
        slope = (response(eta + STEP) - response(eta - STEP)) / (2.0 * STEP)
        moved = by_rho(family, result.core.rho, lambda rho: response(eta, rho)) / slope[:, None]
    error = np.sqrt(variances(result, rows, masks, moved))
    error[np.isnan(eta)] = np.nan
    return error, slope


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


def zero_variance(result: GeneralisedModel, newdata: Any, rows: NewDesign) -> Callable[[Any], Array] | None:
    """The variance (n,) of a zero part's log odds as a function of rho; None where they have no random effects."""
    family, part = result.core.family, result.options.zero
    if not isinstance(family, TwoPart) or not family.effects:
        return None
    assert part is not None
    new = target_rows(part, newdata, included_columns(part, "none"), all_columns=True)
    used = slice(None) if rows.rows is None or newdata is None else rows.rows

    def variance(rho: Any) -> Array:
        found = term_variance(new, family.zero_factors(rho))
        return found if newdata is None else new.full(found)[used]

    return variance


def _marginal_mean(
    result: GeneralisedModel, family: Family, rows: NewDesign, eta: Array, zero: Callable[[Any], Array] | None
) -> Callable[..., Array]:
    """Marginal means (n,) as a function of theta, a shift of the linear predictor, and rho."""
    core = result.core
    widths = [len(factor) for factor in core.L]

    def mean(theta: Array, shift: float = 0.0, rho: Any = core.rho) -> Array:
        return marginal_response(family, rho, eta + shift, term_variance(rows, factors_of(widths, theta)), zero)

    return mean


def _marginal(
    result: GeneralisedModel, family: Family, rows: NewDesign, eta: Array, zero: Callable[[Any], Array] | None
) -> tuple[Array, Array]:
    """Marginal means and their standard errors by the delta method, theta's and rho's uncertainty included."""
    core = result.core
    nt, p = len(core.theta), len(core.beta)
    assert rows.X is not None
    mean = _marginal_mean(result, family, rows, eta, zero)
    j = np.zeros((len(eta), nt + p + family.n_extra))
    for k in range(nt):
        unit = STEP * np.eye(nt)[k]
        j[:, k] = (mean(core.theta + unit) - mean(core.theta - unit)) / (2.0 * STEP)
    slope = (mean(core.theta, STEP) - mean(core.theta, -STEP)) / (2.0 * STEP)
    j[:, nt : nt + p] = slope[:, None] * rows.X
    if not family.plain:
        j[:, nt + p :] = by_rho(family, core.rho, lambda rho: mean(core.theta, 0.0, rho))
    return mean(core.theta), np.sqrt(np.einsum("np,pq,nq->n", j, parameter_covariance(result), j))
