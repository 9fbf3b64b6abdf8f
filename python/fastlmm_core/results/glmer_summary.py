"""The summary of a generalised fit: lme4's page, with what the approximation is and what its words mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import ndtr

from fastlmm_core.fitting.text import format_pvalue, text_table
from fastlmm_core.results.summary import Summary, correlations, fit_notes

if TYPE_CHECKING:
    from fastlmm_core.families import Family
    from fastlmm_core.inference.generalised.rows import ResidualKind
    from fastlmm_core.results.glmer_result import GlmerResult

__all__ = ["residual_quantiles", "summary"]


def method_words(n_agq: int) -> str:
    """How the likelihood is approximated."""
    if n_agq == 0:
        return "a first look (fixed effects found with the modes)"
    return "Laplace's approximation" if n_agq == 1 else f"adaptive Gauss-Hermite quadrature, {n_agq} points"


def own_table(result: GlmerResult) -> str:
    """Thresholds, or the zero part's coefficients with z tests, and the counts' own parameter."""
    family, params = result.core.family, result.family_params
    ordinal = family.name == "ordinal"
    lines, rows, notes = [], [], []
    for (name, row), log in zip(params.iterrows(), family.logs, strict=True):
        estimate, error = float(row["estimate"]), float(row["std_error"])
        if log:
            notes.append(f"Family's parameter: {name} {estimate:.4g} (std. error {error:.4g})")
            continue
        if str(name).startswith(("zi.sd_", "zi.cor_")):  # var_corr("zero") has them
            continue
        z = estimate / error
        cells = [str(name).removeprefix("zi."), f"{estimate:.4f}", f"{error:.4f}", f"{z:.3f}"]
        rows.append(cells if ordinal else [*cells, format_pvalue(2.0 * float(ndtr(-abs(z))))])
    header = ["", "Estimate", "Std. Error", "z value", *([] if ordinal else ["Pr(>|z|)"])]
    lines.append("Thresholds:" if ordinal else "Zero part, log odds of a zero that is not the counts':")
    if result.core.zero_part is not None:
        notes = ["Zero part, random effects:", str(result.var_corr("zero")), *(["", *notes] if notes else [])]
    return "\n".join([*lines, text_table(header, rows), *(["", *notes] if notes else [])])


def residual_kind(family: Family) -> ResidualKind:
    """The residuals whose quantiles are shown."""
    return "quantile" if family.name == "ordinal" else "pearson"


def residual_quantiles(result: GlmerResult) -> pd.Series:
    """Quantiles of the residuals over the root of phi."""
    scaled = result.residuals(residual_kind(result.core.family)).to_numpy() / np.sqrt(result.scale)
    return pd.Series(np.nanquantile(scaled, [0.0, 0.25, 0.5, 0.75, 1.0]), index=["Min", "1Q", "Median", "3Q", "Max"])


def summary(result: GlmerResult, quantiles: pd.Series | None = None) -> Summary:
    """The summary of a fit; see `GlmerResult.summary`. Quantiles of residuals are made where they are not given."""
    core = result.core
    family = core.family
    estimated = ~np.isnan(core.beta)
    title = (
        f"Generalized linear mixed model fit by maximum likelihood ({method_words(result.options.n_agq)})\n"
        f"Family: {family.name} ({family.link.name}); z-tests use the normal distribution"
    )
    if residual_kind(family) == "quantile":
        title += "; quantile residuals"
    own = own_table(result) if family.vector else ""
    for name, row in () if family.vector else result.family_params.iterrows():
        given = "given" if np.isnan(row["std_error"]) and not family.n_extra else f"std. error {row['std_error']:.4g}"
        own = f"Family's parameter: {name} {row['estimate']:.4g} ({given})"
    return Summary(
        title=title,
        formula=result.formula,
        criteria={
            "AIC": result.aic,
            "BIC": result.bic,
            "logLik": result.llf,
            "-2 log-likelihood": result.criterion,
            "df.resid": result.df_resid,
        },
        residuals=residual_quantiles(result) if quantiles is None else quantiles,
        var_corr=result.var_corr(),
        nobs=result.nobs,
        n_missing=result.n_missing,
        n_groups=result.n_groups,
        coefficients=result.coef_table()[estimated],
        correlation=correlations(core.cov_beta, result.design.x_names, estimated),
        notes=(*result.notes, *fit_notes(result)),
        residual=own,
    )
