"""Is the fit sound: residuals, singularity, the random effects' principal components, a report on convergence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from fastlmm_core.core.iterative import IterativeFit
from fastlmm_core.core.theta import smallest_singular_value
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.predict import sparse_part
from fastlmm_core.fitting.spelling import explained
from fastlmm_core.fitting.unidentified import unidentified_words
from fastlmm_core.fitting.var_corr import theta_labels
from fastlmm_core.inference.information import observed_hessian
from fastlmm_core.inference.leverage import leverages

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import Design

__all__ = [
    "RESIDUALS",
    "ConvergenceReport",
    "ResidualKind",
    "advice",
    "convergence_report",
    "cooks_distance",
    "hatvalues",
    "is_singular",
    "re_pca",
    "residuals",
    "weighted_residuals",
]

ResidualKind = Literal[
    "response", "conditional", "marginal", "pearson", "scaled", "studentized", "deleted", "deviance", "working"
]
RESIDUALS = (
    "response",
    "conditional",
    "marginal",
    "pearson",
    "scaled",
    "studentized",
    "deleted",
    "deviance",
    "working",
)

GRADIENT_TOLERANCE = 1e-3
"""A Newton step that promises more than this much of the criterion is worth a remark."""

DETERMINED = 1e-10
"""A leverage closer to one than this is one: the residual is zero whatever the response, and 0 / 0 says nothing."""

CONDITION_LIMIT = 1e8
"""Condition of the Hessian, in scale-free coordinates, above which some direction of theta is all but undetermined."""


def residuals(design: Design, core: CoreFit, kind: ResidualKind = "response") -> pd.Series:
    """Residuals of the rows used; see `LmerResult.residuals`."""
    if kind not in RESIDUALS:
        raise ModelError(f"residuals of kind {kind!r} do not exist: use one of {', '.join(map(repr, RESIDUALS))}")
    if kind == "marginal":
        values = design.y - design.X @ np.nan_to_num(core.beta) - sparse_part(design, core)
        values = values if design.offset is None else values - design.offset
    elif kind in ("response", "conditional", "working"):
        values = design.y - core.fitted
    else:
        values = weighted_residuals(design, core)
        if kind not in ("pearson", "deviance"):
            values = values / core.sigma
        if kind in ("studentized", "deleted"):
            values = values / np.sqrt(what_others_say(leverages(design, core)))
        if kind == "deleted":
            nu = core.n - core.rank if core.reml else core.n
            with np.errstate(divide="ignore", invalid="ignore"):
                values = values * np.sqrt((nu - 1.0) / (nu - values**2))
    return design.by_row(values)


def weighted_residuals(design: Design, core: CoreFit) -> NDArray[np.float64]:
    """sqrt(w) (y - fitted), (n,)."""
    values: NDArray[np.float64] = design.y - core.fitted
    return values if design.weights is None else np.sqrt(design.weights) * values


def what_others_say(h: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - h (n,), NaN where rounding is all that is left of it: the row alone determines its own fitted value."""
    return np.where(h > 1.0 - DETERMINED, np.nan, 1.0 - h)


def hatvalues(design: Design, core: CoreFit) -> pd.Series:
    """Leverages of the rows used; see `LmerResult.hatvalues`."""
    return design.by_row(leverages(design, core))


def cooks_distance(design: Design, core: CoreFit) -> pd.Series:
    """lme4's Cook's distance of the rows used, NaN without fixed effects; see `LmerResult.cooks_distance`."""
    h = leverages(design, core)
    r = weighted_residuals(design, core)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (r / what_others_say(h)) ** 2 * h / (core.sigma**2 * (core.rank or np.nan))
    return design.by_row(values)


@explained
def is_singular(fit: FittedModel, tol: float = 1e-4) -> bool:
    """Whether the fit lies on the boundary of the parameter space, as lme4's `isSingular`.

    Parameters
    ----------
    fit : FittedModel
    tol : float
        A singular value of a term's relative covariance factor below it counts as zero: a standard deviation, in
        units of sigma, of some combination of the term's columns. The columns are made orthonormal first, so a
        covariate's unit and origin make no difference (in lme4, which looks at elements of theta, they do).

    Examples
    --------
    >>> from fastlmm_core import is_singular, lmer, load_dataset
    >>> is_singular(lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")))
    False
    >>> is_singular(lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2")))
    True
    """
    parameters = fit.core.cross.theta_map
    values = (parameters.to_conditioned @ fit.core.theta).tolist()
    return any(smallest_singular_value(rows, values) < tol for rows in parameters.factors)


def re_pca(design: Design, core: CoreFit) -> dict[str, pd.DataFrame]:
    """Principal components of each grouping factor's random effects; see `LmerResult.re_pca`."""
    out = {}
    for group in dict.fromkeys(t.group for t in design.random):
        members = [k for k, t in enumerate(design.random) if t.group == group]
        names = [
            f"{design.random[k].grp}.{c}" if len(members) > 1 else c for k in members for c in design.random[k].columns
        ]
        factor = np.zeros((len(names), len(names)))
        at = 0
        for k in members:
            l = len(core.L[k])
            factor[at : at + l, at : at + l] = core.L[k]
            at += l
        rotation, sd, _ = np.linalg.svd(factor)
        # signs are arbitrary: the largest loading of a component is positive
        rotation = rotation * np.where(rotation[np.abs(rotation).argmax(axis=0), np.arange(at)] < 0, -1.0, 1.0)
        total = (sd**2).sum()
        share = sd**2 / total if total > 0 else np.full(at, np.nan)
        frame = pd.DataFrame(
            {"sd": sd, "proportion": share, "cumulative": np.cumsum(share)},
            index=pd.Index([f"PC{j + 1}" for j in range(at)], name=group),
        )
        out[group] = frame.join(pd.DataFrame(rotation.T, index=frame.index, columns=names))
    return out


@dataclass(frozen=True, eq=False)
class ConvergenceReport:
    """What there is to know about an optimum; `print` it for the words.

    Attributes
    ----------
    converged : bool
    message : str
        The optimiser's.
    n_evaluations : int
    gradient : Series
        Derivative of the criterion in theta, by theta's labels.
    promise : float
        Decrease of the criterion that a Newton step from here predicts: the gradient in the Hessian's own metric.
    eigenvalues : ndarray (n_theta,)
        Of the criterion's observed Hessian in scale-free coordinates, ascending.
    boundary : tuple of str
        Parameters at zero: standard deviations (or what earlier effects of the term leave of them).
    unidentified : tuple of str
        What the criterion does not depend on, in words; such parameters take part in none of the above.
    negative : bool
        The criterion falls along some direction.
    """

    converged: bool
    message: str
    n_evaluations: int
    gradient: pd.Series
    promise: float
    eigenvalues: NDArray[np.float64]
    boundary: tuple[str, ...]
    unidentified: tuple[str, ...]
    negative: bool
    advice: tuple[str, ...]

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; infinite where a direction is flat."""
        low, high = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        return high / low if low > 0 else float("inf")

    @property
    def ok(self) -> bool:
        """Whether nothing stands out but, perhaps, a variance of zero."""
        if self.unidentified:
            return False
        flat = self.condition > CONDITION_LIMIT and not self.boundary
        return self.converged and self.promise <= GRADIENT_TOLERANCE and not self.negative and not flat

    def __str__(self) -> str:
        lines = [f"{'Converged' if self.converged else 'Not converged'}: {self.message}"]
        lines[0] += f" ({self.n_evaluations} evaluations)."
        if not np.isfinite(self.promise):
            lines.append("Derivatives: not to be had here, nor standard errors: a coefficient may run to infinity.")
        else:
            largest = self.gradient.abs().idxmax()
            lines.append(
                f"Gradient: at most {self.gradient.abs().max():.2g} in absolute value ({largest}); a further Newton "
                f"step promises {self.promise:.2g} of the criterion."
            )
        if self.negative:
            lines.append(f"Hessian: has a negative eigenvalue ({self.eigenvalues[0]:.2g}): not a minimum.")
        elif np.isfinite(self.promise):
            lines.append(f"Hessian: positive, condition {self.condition:.2g} in scale-free coordinates.")
        if self.boundary:
            lines.append(f"Boundary: {', '.join(self.boundary)} at zero (a singular fit).")
        lines += [f"Not identified: {text}." for text in self.unidentified]
        lines += [f"Try: {text}" for text in self.advice]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def convergence_report(design: Design, core: CoreFit) -> ConvergenceReport:
    """Gradient, curvature and boundary at the optimum; see `LmerResult.convergence_report`."""
    if isinstance(core, IterativeFit):
        return iterative_report(design, core)
    with core.workspace() as objective, one_blas_thread():
        evaluation = objective.at(core.theta)
        at, (_, gradient, _) = evaluation.theta, evaluation.conditioned
    free = np.ones(len(at), dtype=bool)
    if objective.theta_map.held is not None:
        free[objective.theta_map.held] = False
    gradient = np.where(free, gradient, 0.0)
    hessian = observed_hessian(objective, at)
    if free.any():
        hessian = hessian[np.ix_(free, free)]
    index = core.cross.theta_index
    labels = theta_labels(design)
    diagonal = index[:, 1] == index[:, 2]
    boundary = tuple(labels[a] for a in np.flatnonzero(diagonal & free & (np.abs(at) < 1e-4)))
    shown = pd.Series(core.cross.to_conditioned.T @ gradient, index=labels)
    return report_of(design, core, gradient[free] if free.any() else gradient, hessian, shown, boundary)


def iterative_report(design: Design, core: IterativeFit) -> ConvergenceReport:
    """The report of a fit without a factor: its search's last estimate of the gradient, and average information."""
    end, index = core.search, core.design.theta_map.index
    free = np.isfinite(end.sampling.diagonal())
    gradient = np.where(free, end.gradient, 0.0)
    labels = theta_labels(design)
    boundary = tuple(labels[a] for a in np.flatnonzero((index[:, 1] == index[:, 2]) & (end.theta == 0.0)))
    hessian = np.where(np.outer(free, free), end.hessian, 0.0)
    if free.any():
        hessian = hessian[np.ix_(free, free)]
    shown = pd.Series(core.cross.to_conditioned.T @ gradient, index=labels)
    report = report_of(design, core, gradient[free] if free.any() else gradient, hessian, shown, boundary)
    return replace(report, message=f"{report.message}; {core.monte_carlo}")


def report_of(
    design: Design,
    core: CoreFit,
    gradient: NDArray[np.float64],
    hessian: NDArray[np.float64],
    shown: pd.Series,
    boundary: tuple[str, ...],
) -> ConvergenceReport:
    """The report from the gradient (r,) and Hessian (r, r) in scale-free coordinates, and the gradient as shown."""
    values, vectors = np.linalg.eigh(hessian)
    along = vectors.T @ gradient
    floor = 1e-10 * max(float(np.abs(values).max()), 1e-300)
    promise = float((along**2 / (2.0 * np.maximum(np.abs(values), floor))).sum())
    report = ConvergenceReport(
        converged=core.converged,
        message=core.message,
        n_evaluations=len(core.log),
        gradient=shown,
        promise=promise,
        eigenvalues=values,
        boundary=boundary,
        unidentified=tuple(unidentified_words(design, core)),
        negative=bool(values[0] < -1e-6 * max(float(np.abs(values).max()), 1e-300)),
        advice=(),
    )
    return replace(report, advice=tuple(advice(report, design)))


def advice(report: ConvergenceReport, design: Design) -> list[str]:
    """What to try."""
    out = []
    if not report.converged:
        out.append("more evaluations, control=Control(max_evaluations=...), or another start")
    if report.converged and report.promise > GRADIENT_TOLERANCE:
        out.append("a smaller tolerance, control=Control(tol=...), started from this fit's theta")
    if report.negative:
        out.append("another start: this one ended on a saddle")
    if report.boundary:
        wide = [t for t in design.random if len(t.columns) > 1]
        if wide:
            out.append(
                "re_pca(), to see how many dimensions the data support; then no correlations, (x || g), or fewer slopes"
            )
        else:
            out.append("the model without the term, or accept a variance of zero: the estimates are the same")
    elif report.condition > CONDITION_LIMIT and not report.unidentified:
        out.append("a simpler random part: some combination of its parameters is all but undetermined by these data")
    return out
