"""What `summary()` shows: lme4's page, as data that can be printed as text or as HTML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fastlmm_core.fitting.coefficients import dropped_columns
from fastlmm_core.fitting.spelling import answering
from fastlmm_core.fitting.text import (
    abbreviate,
    format_pvalue,
    html_table,
    latex_table,
    latex_text,
    markdown_table,
    text_table,
)
from fastlmm_core.fitting.unidentified import unidentified_words
from fastlmm_core.fitting.var_corr import VarCorr

if TYPE_CHECKING:
    from fastlmm_core.results.glmer_result import GlmerResult
    from fastlmm_core.results.result import LmerResult

__all__ = ["Summary", "correlations", "fit_notes", "residual_quantiles", "summary"]

MAX_CORRELATION = 12
"""Correlations of the fixed effects are shown for at most this many coefficients, as in lme4."""

_HEADINGS = {"estimate": "Estimate", "std_error": "Std. Error", "t": "t value", "z": "z value"}
_METHODS = {
    "satterthwaite": "t-tests use Satterthwaite's method",
    "kenward-roger": "t-tests use Kenward-Roger's method",
    "kenward-roger-linear": "t-tests use Kenward-Roger's method without second derivatives",
    "residual": "t-tests use residual degrees of freedom",
    "normal": "tests use the normal distribution",
}


@answering
@dataclass(frozen=True, eq=False)
class Summary:
    """The parts of a summary; `str()` gives lme4's page and notebooks show it as tables.

    Attributes
    ----------
    title, formula : str
        Methods of estimation and of the tests, and the model.
    criteria : dict
        "REML criterion" alone; or AIC, BIC, logLik, deviance and df.resid of an ML fit.
    residuals : Series or None
        Quantiles of the scaled residuals: Min, 1Q, Median, 3Q, Max; None where no rows are kept.
    var_corr : VarCorr
        Variance components.
    nobs, n_missing : int
        Rows used, and rows dropped for missing values.
    n_groups : dict
        Levels of each grouping factor.
    coefficients : DataFrame
        estimate, std_error, df, t, p, a row an estimated coefficient; z instead of df and t with normal p-values.
    correlation : DataFrame
        Correlations of the estimated coefficients.
    notes : tuple of str
        Singular fit, no convergence, dropped columns.
    residual : str
        The residual structure in words and figures, where there is one.
    """

    title: str
    formula: str
    criteria: dict[str, float]
    residuals: pd.Series | None
    var_corr: VarCorr
    nobs: int
    n_missing: int
    n_groups: dict[str, int]
    coefficients: pd.DataFrame
    correlation: pd.DataFrame
    notes: tuple[str, ...]
    residual: str = ""

    def __str__(self) -> str:
        parts = [f"{self.title}\nFormula: {self.formula}", self._criteria_text()]
        if self.residuals is not None:
            parts.append("Scaled residuals:\n" + text_table(*self._quantiles(self.residuals), left=0))
        header, rows = self.var_corr.cells(variance=True, digits=4)
        heading = "Random effects" if len(self.var_corr) else "Residual variance"
        parts.append(f"{heading}:\n{text_table(header, rows, left=2, indent=' ')}\n{self._counts()}")
        if self.residual:
            parts.append(self.residual)
        if len(self.coefficients):
            parts.append("Fixed effects:\n" + text_table(*self._coefficient_cells()))
        if self._shows_correlation():
            parts.append("Correlation of Fixed Effects:\n" + text_table(*self._correlation_cells()))
        return "\n\n".join([*parts, *(["\n".join(self.notes)] if self.notes else [])])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        names, values = self._criteria_cells()
        header, rows = self.var_corr.cells(variance=True, digits=4)
        parts = [
            f"<p><b>{escape(self.title)}</b><br><code>{escape(self.formula)}</code></p>",
            html_table(names, [values], left=0),
            *([] if self.residuals is None else [self._quantiles_html(self.residuals)]),
            html_table(header, rows, 2, "Random effects"),
            f"<p>{escape(self._counts())}</p>",
            *([f"<pre>{escape(self.residual)}</pre>"] if self.residual else []),
        ]
        if len(self.coefficients):
            parts.append(html_table(*self._coefficient_cells(), 1, "Fixed effects"))
        if self._shows_correlation():
            parts.append(html_table(*self._correlation_cells(), 1, "Correlation of Fixed Effects"))
        parts += [f"<p>{escape(note)}</p>" for note in self.notes]
        return "<div>" + "\n".join(parts) + "</div>"

    def _quantiles(self, residuals: pd.Series) -> tuple[list[str], list[list[str]]]:
        largest = float(residuals.abs().max())
        decimals = 4 - int(np.floor(np.log10(largest))) if 0.0 < largest < np.inf else 4
        return list(residuals.index), [_fixed(residuals, max(0, decimals))]

    def _quantiles_html(self, residuals: pd.Series) -> str:
        return html_table(*self._quantiles(residuals), 0, "Scaled residuals")

    def _criteria_cells(self) -> tuple[list[str], list[str]]:
        return list(self.criteria), [f"{v:.0f}" if k == "df.resid" else f"{v:.1f}" for k, v in self.criteria.items()]

    def _criteria_text(self) -> str:
        names, values = self._criteria_cells()
        if len(names) == 1:
            return f"{names[0]} at convergence: {values[0]}"
        return text_table(names, [values], left=0)

    def _counts(self) -> str:
        groups = "; ".join(f"{name}, {q}" for name, q in self.n_groups.items())
        text = f"Number of obs: {self.nobs}, groups: {groups}"
        if self.n_missing:
            text += f"\n({self.n_missing} row{'s' if self.n_missing > 1 else ''} with missing values dropped)"
        return text

    def _coefficient_cells(self) -> tuple[list[str], list[list[str]]]:
        columns = {}
        for name in self.coefficients.columns:
            values = self.coefficients[name]
            if name in ("estimate", "std_error"):
                columns[name] = _fixed(values, _decimals(self.coefficients[["estimate", "std_error"]].to_numpy()))
            elif name == "p":
                columns[name] = list(map(format_pvalue, values))
            else:
                columns[name] = _fixed(values, 3 if name in ("t", "z") else 2)
        rows = [
            [str(n), *cells]
            for n, cells in zip(self.coefficients.index, zip(*columns.values(), strict=True), strict=True)
        ]
        tail = f"Pr(>|{'z' if 'z' in columns else 't'}|)"
        return ["", *(tail if name == "p" else _HEADINGS.get(name, name) for name in columns)], rows

    def to_markdown(self) -> str:
        """The page in GitHub's Markdown: a pipe table for the random effects and one for the coefficients."""
        return self._page(markdown_table, lambda text: text, "**{}**", "`{}`")

    def to_latex(self) -> str:
        """The page in LaTeX: a `tabular` of booktabs for the random effects and one for the coefficients."""
        return self._page(latex_table, latex_text, r"\textbf{{{}}}", r"\texttt{{{}}}")

    def _page(self, table: Callable[..., str], escaped: Callable[[str], str], heading: str, formula: str) -> str:
        header, rows = self.var_corr.cells(variance=True, digits=4)
        figures = ", ".join(f"{name} {value}" for name, value in zip(*self._criteria_cells(), strict=True))
        parts = [heading.format(escaped(self.title)), formula.format(escaped(self.formula)), escaped(figures)]
        parts += [heading.format("Random effects"), table(header, rows, 2), escaped(self._counts())]
        if self.residual:
            parts.append(escaped(self.residual))
        if len(self.coefficients):
            parts += [heading.format("Fixed effects"), table(*self._coefficient_cells())]
        return "\n\n".join([*parts, *map(escaped, self.notes)])

    def _shows_correlation(self) -> bool:
        return 1 < len(self.correlation) <= MAX_CORRELATION

    def _correlation_cells(self) -> tuple[list[str], list[list[str]]]:
        names = list(map(str, self.correlation.index))
        r = self.correlation.to_numpy()
        p = len(names)
        rows = [[names[i], *(f"{r[i, j]:.3f}" if j < i else "" for j in range(p - 1))] for i in range(1, p)]
        short = ["(Intr)" if name == "Intercept" else abbreviate(name, 6) for name in names[:-1]]
        return ["", *short], rows


def _decimals(values: np.ndarray) -> int:
    """Decimals at which the smallest value shows four significant digits; at least one."""
    size = np.abs(values[np.isfinite(values) & (values != 0.0)])
    return max(1, 3 - int(np.floor(np.log10(size.min())))) if size.size else 1


def _fixed(values: pd.Series, decimals: int) -> list[str]:
    """Fixed notation; scientific where fixed would run past twelve characters."""
    fixed = [f"{v:.{decimals}f}" for v in values]
    return fixed if max(map(len, fixed), default=0) <= 12 else [f"{v:.3e}" for v in values]


def summary(
    result: LmerResult, ddf: str = "satterthwaite", residual: str = "", quantiles: pd.Series | None = None
) -> Summary:
    """The summary of a fit, its coefficients with the degrees of freedom of `LmerResult.coef_table`.

    `quantiles` are those of the scaled residuals, made here where they are not given.
    """
    from fastlmm_core.inference.coef_table import coef_table
    from fastlmm_core.inference.ddf import method_name

    design, core = result.design, result.core
    table, method = coef_table(result, ddf=ddf), method_name(ddf)
    coefficients = table.drop(columns="df").rename(columns={"t": "z"}) if method == "normal" else table
    estimated = ~np.isnan(core.beta)
    if result.reml:
        criteria = {"REML criterion": result.criterion}
    else:
        criteria = {
            "AIC": result.aic,
            "BIC": result.bic,
            "logLik": result.llf,
            "deviance": result.criterion,
            "df.resid": result.df_resid,
        }
    return Summary(
        title=f"Linear mixed model fit by {'REML' if result.reml else 'maximum likelihood'}; {_METHODS[method]}",
        formula=result.formula,
        criteria=criteria,
        residuals=residual_quantiles(result) if quantiles is None else quantiles,
        var_corr=result.var_corr(),
        nobs=result.nobs,
        n_missing=result.n_missing,
        n_groups=result.n_groups,
        coefficients=coefficients[estimated],
        correlation=correlations(core.cov_beta, design.x_names, estimated),
        notes=(*result.notes, *fit_notes(result), *table.attrs["notes"]),
        residual=residual,
    )


def residual_quantiles(result: LmerResult) -> pd.Series | None:
    """Quantiles of √w (y − ŷ)/σ̂; None where the rows are gone."""
    from fastlmm_core.core.residuals import CrossedFit, PatternFit

    if result.design.streamed:
        return None
    if isinstance(result.core, PatternFit | CrossedFit):  # a standard deviation for each row
        scaled = result.core.standardized(result.design.y - result.core.fitted, whole=False)
    else:
        scaled = (result.design.y - result.core.fitted) / result.sigma
        if result.design.weights is not None:
            scaled = scaled * np.sqrt(result.design.weights)
    quantiles = np.quantile(scaled, [0.0, 0.25, 0.5, 0.75, 1.0])
    return pd.Series(quantiles, index=["Min", "1Q", "Median", "3Q", "Max"])


def correlations(cov: np.ndarray, names: tuple[str, ...], estimated: np.ndarray) -> pd.DataFrame:
    """Correlations of the estimated coefficients, labelled."""
    cov = cov[np.ix_(estimated, estimated)]
    sd = np.sqrt(np.diagonal(cov))
    kept = [name for name, keep in zip(names, estimated, strict=True) if keep]
    return pd.DataFrame(cov / sd[:, None] / sd[None, :], index=kept, columns=kept)


def fit_notes(result: LmerResult | GlmerResult) -> tuple[str, ...]:
    """Sentences on dropped columns, a fit on the boundary, one that did not converge."""
    notes = []
    dropped = dropped_columns(result.design, result.core)
    if dropped:
        notes.append(f"rank deficient: dropped {', '.join(dropped)}")
    if result.monte_carlo is not None:
        notes.append(f"iterative engine: {result.monte_carlo}")
    notes += unidentified_words(result.design, result.core)
    if result.is_singular:
        notes.append("boundary (singular) fit: a variance is zero or a correlation is one in absolute value")
    if not result.converged:
        notes.append(f"did not converge: {result.message}")
    return tuple(notes)
