"""Uncertainty of predictions, from the inverse of the mixed-model equations.

The prediction x'beta-hat + z'b-hat of x'beta + z'b has variance sigma^2 r'C r, r = (x, z) and C that inverse
(`joint_inverse`). To it are added, with Sigma = L L' the relative covariance of a term,

    a level not in the fit            sigma^2 z'Sigma z     its effect is predicted as zero, and unknown
    interval="prediction"             sigma^2 / w           the new observation's own error
      random effects left out         sigma^2 z'Sigma z     it comes from some group, drawn anew

Degrees of freedom by Satterthwaite's match of the estimated variance v to a chi-squared one: with the criterion's
Hessian K in theta and v(theta) taken along the profile sigma^2(theta) = r^2(theta) / nu,
    df = 2 v^2 / (v'_theta (2 K^-1) v_theta + 2 v^2 / nu)
(the profile and what is left around it are asymptotically independent). The gradient of v is by central differences, so
a call costs a few factorisations a parameter whatever the number of rows.

All this is at the estimated theta. `theta_known=False` adds twice Kackar and Harville's (1984) d'(2 K^-1) d, with d the
gradient in theta of the prediction itself: once for its spread, once for the bias of v (Prasad & Rao 1990).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from fastlmm_core.core.iterative import IterativeFit
from fastlmm_core.core.slopes import positive_inverse
from fastlmm_core.core.threads import bounded
from fastlmm_core.errors import DataError, ModelError, no_such
from fastlmm_core.fitting.coefficients import undetermined
from fastlmm_core.fitting.predict import included_columns, linear_predictor, row_weights, target_rows
from fastlmm_core.fitting.unidentified import unidentified_rows
from fastlmm_core.inference.information import observed_hessian
from fastlmm_core.inference.iterative_inverse import IterativeInverse, IterativeSource
from fastlmm_core.inference.joint_inverse import JointInverse, RowSet, row_set
from fastlmm_core.inference.levels import checked_level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.core import CoreFit, Objective
    from fastlmm_core.formula import Design, NewDesign

    Source = Objective | IterativeSource

__all__ = [
    "DDF",
    "INTERVALS",
    "Targets",
    "depends_on_unidentified",
    "factors_of",
    "predict_interval",
    "targets",
    "theta_covariance",
]

DDF = ("satterthwaite", "normal")
INTERVALS = ("confidence", "prediction")

SAME = 1e-6
"""Change of a variance, and of a squared prediction over it, below which neither depends on what is not identified."""

STEP = 1e-3
"""Of central differences, relative to the scale of conditioned theta: an error of about 1e-6."""


@dataclass(frozen=True)
class Targets:
    """What is predicted, in the rows' own terms.

    Attributes
    ----------
    rows : RowSet
        The part x'beta + z'b that the fit knows about.
    prior : tuple of (n, l) arrays
        One a term: columns of z that multiply effects drawn from the term's distribution.
    residual : (n,)
        Multiple of sigma^2 added: 1 / w for new observations, zero otherwise.
    """

    rows: RowSet
    prior: tuple[NDArray[np.float64], ...]
    residual: NDArray[np.float64]

    def at(self, objective: Source, theta: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Prediction variance (n,) at ``theta`` (user's), and the prediction itself up to a constant of the row."""
        if isinstance(objective, IterativeSource):
            inverse: JointInverse = IterativeInverse(objective, theta)
        else:
            inverse = JointInverse(objective, theta)
        extra = self.residual.copy()
        for z, factor in zip(self.prior, factors_of([z.shape[1] for z in self.prior], theta), strict=True):
            extra += ((z @ factor) ** 2).sum(axis=1)
        variance = inverse.scale * inverse.forms(self.rows) + inverse.sigma2 * extra
        return variance, inverse.predictions(self.rows)


def factors_of(widths: Sequence[int], theta: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Relative factors L (l, l) of terms with unstructured covariance."""
    out, at = [], 0
    for l in widths:
        factor = np.zeros((l, l))
        rows, columns = np.triu_indices(l)  # the lower triangle by columns is the upper one by rows
        factor[columns, rows] = theta[at : at + len(rows)]
        at += len(rows)
        out.append(factor)
    return out


def targets(
    design: Design,
    core: CoreFit,
    rows: NewDesign,
    masks: Sequence[NDArray[np.bool_]],
    *,
    observation: bool,
    weights: NDArray[np.float64] | None = None,
) -> Targets:
    """The quantities that a prediction of these rows aims at, with the random effects that `masks` includes.

    For an `observation` the effects left out and the residual, of variance σ² over `weights` (n,), are drawn anew.
    """
    assert rows.X is not None  # `fixed` is asked for by default
    known, prior = effects_of(rows, masks, observation=observation)
    residual = np.zeros(len(rows.X)) if weights is None else 1.0 / weights
    _one_level_a_factor(design, core, known)
    return Targets(row_set(core.cross, rows.X, known), tuple(prior), residual)


def effects_of(
    rows: NewDesign, masks: Sequence[NDArray[np.bool_]], *, observation: bool
) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.float64]] | None], list[NDArray[np.float64]]]:
    """Of each term, the levels and columns of z that the fit knows about, and those of effects drawn anew.

    Returns
    -------
    known : list of ((n,), (n, l)) or None
    prior : list of (n, l)
    """
    assert rows.X is not None
    n = len(rows.X)
    known: list[tuple[NDArray[np.int64], NDArray[np.float64]] | None] = []
    prior = []
    for part, mask in zip(rows.random, masks, strict=True):
        codes = np.full(n, -1) if part is None else np.asarray(part.codes, np.int64)
        full = np.ones((n, 1)) if part is None or part.z is None else part.z
        if full.shape[1] != len(mask):  # a term nobody asked for
            full = np.zeros((n, len(mask)))
        known.append((codes, full * mask) if mask.any() else None)
        is_new = (codes < 0)[:, None] & mask.any()
        # a known level's left-out effects, and all effects of a new one where an observation is predicted
        drawn = np.where(is_new, mask | observation, ~mask & observation)
        prior.append(full * drawn)
    return known, prior


def _one_level_a_factor(
    design: Design, core: CoreFit, parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]] | None]
) -> None:
    """Refuse rows at different levels of factors that the fit's rows do not tell apart, which the fit holds as one."""
    for group in core.cross.groups:
        given = [(k, part[0]) for k in group.terms if (part := parts[k]) is not None]
        for k, codes in given[1:]:
            first, others = given[0]
            apart = int(np.count_nonzero((codes >= 0) & (others >= 0) & (codes != others)))
            if apart:
                raise DataError(
                    f"{design.random[first].group} and {design.random[k].group} have the same level in each row of the "
                    f"fit, but different ones in {apart} {'row' if apart == 1 else 'rows'} of newdata: no standard "
                    "error of such a row is known here; predict() without interval= gives its value"
                )


def theta_covariance(objective: Source, theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance 2 K^-1 (n_theta, n_theta) of conditioned theta; directions without curvature get none."""
    if isinstance(objective, IterativeSource):
        return objective.covariance()
    return 2.0 * positive_inverse(observed_hessian(objective, objective.to_conditioned(theta)))[0]


def uncertain_theta(
    target: Targets, objective: Source, theta: NDArray[np.float64], variance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What not knowing theta does to predictions.

    Returns
    -------
    df : (n,)
        Satterthwaite's degrees of freedom of the prediction variance; see the module's note.
    moved : (n,)
        Kackar and Harville's variance of the prediction due to the estimate of theta.
    """
    at = objective.to_conditioned(theta)
    index, groups, n = objective.cross.theta_index, objective.cross.groups, objective.cross.n
    # the variance changes over theta itself, or where theta is small over a level's conditional deviation
    least = np.sqrt([groups[g].n_levels / n for g in index[:, 0]])
    return along_parameters(
        lambda x: target.at(objective, objective.to_user(x)),
        at,
        STEP * np.maximum(least, np.abs(at)),
        theta_covariance(objective, theta),
        variance,
        objective.nu,
    )


def along_parameters(
    at: Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]],
    x: NDArray[np.float64],
    steps: NDArray[np.float64],
    cov: NDArray[np.float64],
    variance: NDArray[np.float64],
    nu: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`uncertain_theta` of variances and predictions (n,) as a function of parameters (r,).

    Parameters
    ----------
    at : callable
    x, steps : (r,)
        Where, and how far to either side differences are taken.
    cov : (r, r)
    variance : (n,)
        At x.
    nu : float
        Degrees of freedom of sigma^2.
    """
    slopes, drift = np.zeros((2, len(x), len(variance)))
    for a in np.flatnonzero(cov.diagonal()):
        step = np.zeros(len(x))
        step[a] = steps[a]
        up, down = at(x + step), at(x - step)
        slopes[a], drift[a] = ((u - d) / (2.0 * step[a]) for u, d in zip(up, down, strict=True))
    noise = np.einsum("an,ab,bn->n", slopes, cov, slopes) + 2.0 * variance**2 / nu
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(noise > 0, 2.0 * variance**2 / noise, np.inf)
    return df, np.einsum("an,ab,bn->n", drift, cov, drift)


def depends_on_unidentified(target: Targets, objective: Source, core: CoreFit) -> NDArray[np.bool_]:
    """Rows (n,) whose prediction, or its variance, is another where variances that the criterion does not see are.

    The criterion is the same along each of `Unidentified.moves`, and so is what the data determine.
    """
    out = np.zeros(len(target.rows), dtype=bool)
    if core.unidentified is None:
        return out
    assert not isinstance(objective, IterativeSource)  # it refuses such models
    variance, prediction = target.at(objective, core.theta)
    for theta in moved(objective, core):
        other, at = target.at(objective, theta)
        out |= np.abs(other - variance) > SAME * variance
        out |= (at - prediction) ** 2 > SAME * variance
    return out


def moved(objective: Objective, core: CoreFit) -> Iterator[NDArray[np.float64]]:
    """Other covariance parameters (user's) at which the criterion is what it is at the fit's."""
    assert core.unidentified is not None
    index, groups = objective.cross.theta_index, objective.cross.groups
    at = objective.to_conditioned(core.theta)
    g, i, j = index.T
    for move in core.unidentified.moves:
        for step in (0.5, -0.5, 0.05, -0.05, 0.005, -0.005):
            residual = 1.0 + step * move[0]
            theta = np.zeros(len(at))
            for k, group in enumerate(groups):
                mine = g == k
                factor, change = np.zeros((2, group.n_columns, group.n_columns))
                factor[i[mine], j[mine]] = at[mine]
                change[i[mine], j[mine]] = change[j[mine], i[mine]] = move[1:][mine]
                values, vectors = np.linalg.eigh((factor @ factor.T + step * change) / residual)
                if values[0] < -1e-9:
                    break
                values = np.maximum(values, 1e-12 * max(1.0, values[-1]))
                theta[mine] = np.linalg.cholesky((vectors * values) @ vectors.T)[i[mine], j[mine]]
            else:
                yield objective.to_user(theta)
                break


def source_of(core: CoreFit) -> AbstractContextManager[Source]:
    """Where variances of predictions come from, as a context."""
    return nullcontext(IterativeSource(core)) if isinstance(core, IterativeFit) else core.workspace()


def check_asked(interval: str, ddf: str, level: float) -> None:
    """ModelError where an interval, its quantiles or its level do not exist."""
    if interval not in INTERVALS:
        raise ModelError(no_such("interval", interval, INTERVALS))
    if ddf not in DDF:
        raise ModelError(no_such("ddf", ddf, DDF))
    checked_level(level)


COLUMNS = ("fit", "std_error", "df", "lower", "upper")


def interval_table(
    rows: NewDesign,
    estimate: NDArray[np.float64],
    variance: NDArray[np.float64],
    df: NDArray[np.float64] | None,
    level: float,
    notes: list[str],
) -> pd.DataFrame:
    """Predictions (n,) with t intervals, normal ones where there are no degrees of freedom; NaN where either is."""
    if df is None:
        df, quantile = np.full(len(estimate), np.inf), np.full(len(estimate), ndtri(0.5 + 0.5 * level))
    else:
        quantile = stdtrit(np.minimum(df, 1e12), 0.5 + 0.5 * level)
    error = np.sqrt(np.maximum(variance, 0.0))
    error, df = (np.where(np.isnan(estimate) | np.isnan(variance), np.nan, values) for values in (error, df))
    figures = (estimate, error, df, estimate - quantile * error, estimate + quantile * error)
    found = pd.DataFrame(rows.full(np.column_stack(figures)), index=rows.index, columns=list(COLUMNS))
    found.attrs["notes"] = notes
    return found


@bounded
def predict_interval(
    design: Design,
    core: CoreFit,
    newdata: Any = None,
    *,
    re_form: str = "all",
    allow_new_levels: bool = False,
    interval: Literal["confidence", "prediction"] = "confidence",
    level: float = 0.95,
    ddf: Literal["satterthwaite", "normal"] = "satterthwaite",
    theta_known: bool = True,
    weights: ArrayLike | None = None,
) -> pd.DataFrame:
    """Predictions with standard errors and intervals; see `LmerResult.predict`."""
    check_asked(interval, ddf, level)
    observation = interval == "prediction"
    masks = included_columns(design, re_form)
    rows = target_rows(design, newdata, masks, allow_new_levels=allow_new_levels, all_columns=observation)
    estimate = linear_predictor(rows, core, masks)
    if len(estimate) == 0:  # no row is complete
        return interval_table(rows, estimate, estimate, None, level, [])
    w = row_weights(design, weights, rows, newdata is None) if observation else None
    target = targets(design, core, rows, masks, observation=observation, weights=w)
    df = None
    with source_of(core) as objective:
        variance, _ = target.at(objective, core.theta)
        blind = depends_on_unidentified(target, objective, core)
        if ddf == "satterthwaite" or not theta_known:
            degrees, moved = uncertain_theta(target, objective, core.theta, variance)
            df = degrees if ddf == "satterthwaite" else None
    if not theta_known:
        variance = variance + 2.0 * moved
    notes = undetermined(design, core, rows) + unidentified_rows(design, core, int(blind.sum()), len(blind))
    return interval_table(rows, estimate, np.where(blind, np.nan, variance), df, level, notes)
