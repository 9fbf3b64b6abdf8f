"""Models with covariance structures fitted again: without some rows, without a random term."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.control import checked_control
from fastlmm_core.core.residuals import PatternFit, PatternModel, Residual
from fastlmm_core.core.threads import bounded
from fastlmm_core.errors import FastLMMError, ModelError
from fastlmm_core.fitting.models import core_terms, model_of
from fastlmm_core.inference.influence import Deleted, Influence, Method, cases_of, collect
from fastlmm_core.inference.progress import each
from fastlmm_core.inference.reductions import Reduction

if TYPE_CHECKING:
    from fastlmm_core.core import CoreFit
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.fitting.options import FitOptions
    from fastlmm_core.formula import Design

__all__ = ["leverages", "structured_influence", "structured_reductions", "without_rows"]

METHODS = ("fixed", "refit")


def without_rows(design: Design, keep: NDArray[np.bool_]) -> Design:
    """The design of some of its rows, for the core: levels keep their numbers, labels of rows are those of all."""
    of_codes = {id(t.codes): t.codes[keep] for t in design.random}  # terms of one factor share the array
    random = tuple(replace(t, codes=of_codes[id(t.codes)], z=None if t.z is None else t.z[keep]) for t in design.random)
    within = design.residual
    if within is not None:
        numbers = np.unique(within.subject[keep], return_inverse=True)[1].reshape(-1)
        within = replace(
            within,
            subject=numbers.astype(np.int64),
            positions=within.positions[keep],
            group=None if within.group is None else within.group[keep],
            columns=None if within.columns is None else within.columns[keep],
        )
    return replace(
        design,
        y=design.y[keep],
        X=design.X[keep],
        random=random,
        weights=None if design.weights is None else design.weights[keep],
        offset=None if design.offset is None else design.offset[keep],
        residual=within,
        sparse=tuple(replace(s, codes=s.codes[keep], z=s.z[keep]) for s in design.sparse),
    )


@bounded
def structured_influence(
    result: FittedModel, labels: list[str], by: str | ArrayLike, method: str, *, progress: bool = False
) -> Influence:
    """Estimates without each case, each from the remaining rows; see `LmerResult.influence`.

    Parameters
    ----------
    result : fit
    labels : list of str
        Of the covariance parameters.
    by : str or (n,) labels
        "obs", a grouping factor, the subject of a residual structure, or one label a row.
    method : {"fixed", "refit"}
        The covariance parameters keep their estimates, or are estimated again.
    """
    if method not in METHODS:
        raise ModelError(
            f"influence of a model with a covariance structure has no method {method!r}: use 'fixed' or 'refit'"
        )
    design, core, options = result.design, result.core, result.options
    codes, cases, name = _cases(design, by)
    parameters = core.parameters
    out = Deleted.empty(len(cases), core)
    out.theta = np.tile(parameters, (len(cases), 1))
    counts = np.bincount(codes, minlength=len(cases))
    control = checked_control(options.control)
    options = replace(options, control=replace(control, max_evaluations=1) if method == "fixed" else control)
    kept = np.flatnonzero(~np.isnan(core.beta))
    for case in each(range(len(cases)), progress, "influence", "case"):
        try:
            again = _fit(without_rows(design, codes != case), options, parameters)
        except FastLMMError:
            out.theta[case] = np.nan  # the reduced data do not determine the model: said by NaN
            continue
        out.set(case, again.beta, again.cov_beta, again.sigma, kept)
        if method == "refit":
            out.theta[case], out.converged[case] = again.parameters, again.converged
    return collect(design, core, out, cases, counts, name, cast("Method", method), labels)


def _cases(design: Design, by: str | ArrayLike) -> tuple[NDArray[np.int64], pd.Index, str]:
    """As `cases_of`; the subject of a residual structure will do."""
    within = design.residual
    if isinstance(by, str) and within is not None and within.parsed is not None and within.subjects is not None:
        subject = ":".join(within.parsed.subject)
        if by == subject and all(t.group != by for t in design.random):
            return within.subject, pd.Index(within.subjects.labels, name=by), by
    return cases_of(design, by)


def _fit(design: Design, options: FitOptions, start: NDArray[np.float64] | None) -> CoreFit:
    return model_of(design, options).fit(design.y, start=start)


def structured_reductions(result: FittedModel) -> Iterator[tuple[Reduction, float]]:
    """Each random term left out as a whole, and the criterion without it.

    Raises
    ------
    ModelError
        There is none.
    """
    design = result.design
    if not design.random:
        raise ModelError(
            "ranova tests random effects, and this model has none: compare residual structures by anova() of two fits"
        )
    terms = core_terms(design)
    for k, random in enumerate(design.random):
        left = replace(design, random=tuple(t for h, t in enumerate(design.random) if h != k))
        if left.random or left.residual is not None or left.sparse:
            again = _fit(left, result.options, None)
        else:  # of independent rows
            alone = Residual(np.arange(len(design.y), dtype=np.int64))
            asked = {"weights": left.weights, "offset": left.offset, "reml": result.options.reml}
            again = PatternModel(left.X, alone, **asked).fit(left.y)  # type: ignore[arg-type]
        df = len(result.core.parameters) - len(again.parameters)
        others = tuple(t for h, t in enumerate(terms) if h != k)
        yield Reduction(random.grp, k, others, df, len(random.columns)), again.criterion


def leverages(core: PatternFit) -> NDArray[np.float64]:
    """Diagonal (n,) of the matrix that takes the response to the fitted values, at the estimated parameters.

    y - fitted = R V^-1 (y - X beta), so that H = I - B (I - X Cov X'V^-1), B = R V^-1.
    """
    model = core.model
    root = np.ones(core.n) if model.root is None else model.root
    X = model.Q
    moved = core.solve(X / root[:, None]) / root[:, None]  # V^-1 X, rows times the roots of their weights
    out = np.empty(core.n)
    for part, R, P in zip(core.parts, core.covariances(marginal=False), core.inverses, strict=True):
        B = (R @ P)[part.pattern]
        left = (B @ X[part.units]) @ core.point.Phi
        out[part.units] = 1.0 - np.diagonal(B, axis1=1, axis2=2) + np.sum(left * moved[part.units], axis=2)
    return out
