"""Models side by side: coefficients with standard errors, variance components, sizes and criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.spelling import explained
from fastlmm_core.fitting.text import html_table, latex_table, markdown_table, text_table

if TYPE_CHECKING:
    from fastlmm_core.results.glmer_result import GlmerResult
    from fastlmm_core.results.result import LmerResult

__all__ = ["ModelTable", "model_table"]

Cells = dict[str, str]
"""Label of a row -> its cell of one model."""


@dataclass(frozen=True, eq=False)
class ModelTable:
    """A column a model; `str()` is text, notebooks show HTML, and there are Markdown and LaTeX.

    Attributes
    ----------
    names : tuple of str
        Of the models.
    rows : tuple of tuple of str
        Label and cells; a standard error stands in the row beneath its estimate, whose label is empty.
    sections : tuple of int
        Where the variance components and the figures of the fits begin.
    notes : tuple of str
        What the cells are.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sections: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def _header(self) -> list[str]:
        return ["", *self.names]

    def __str__(self) -> str:
        return "\n".join([text_table(self._header, self.rows), "", *self.notes])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_frame(self) -> pd.DataFrame:
        """The cells as texts, a column a model."""
        return pd.DataFrame([row[1:] for row in self.rows], index=[row[0] for row in self.rows], columns=self.names)

    def to_html(self) -> str:
        """A table with the notes beneath."""
        from html import escape

        return "\n".join([html_table(self._header, self.rows), *(f"<p>{escape(note)}</p>" for note in self.notes)])

    def to_markdown(self) -> str:
        """A pipe table of GitHub's Markdown."""
        return "\n\n".join([markdown_table(self._header, self.rows), *self.notes])

    def to_latex(self) -> str:
        """A `tabular` of booktabs, with a rule before each section."""
        return latex_table(self._header, self.rows, rules=self.sections)


@explained
def model_table(
    *fits: LmerResult | GlmerResult,
    names: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    stars: bool = False,
    digits: int = 3,
    ddf: str = "satterthwaite",
) -> ModelTable:
    """Fitted models side by side.

    Parameters
    ----------
    *fits : LmerResult or GlmerResult
    names : sequence of str, optional
        Headings; "(1)", "(2)", ... by default.
    labels : mapping, optional
        What to call coefficients: ``{"Days": "Days without sleep"}``.
    stars : bool
        Mark p below 0.05, 0.01 and 0.001 with one to three stars.
    digits : int
        Significant digits of each standard error, to whose last decimal its estimate is given too; of other figures.
    ddf : str
        Degrees of freedom behind the stars, as in `LmerResult.coef_table`.

    Returns
    -------
    ModelTable
        `print` it, or `.to_markdown()`, `.to_latex()`, `.to_html()`, `.to_frame()`.

    Raises
    ------
    ModelError
        No fit, another number of names than of fits, or names that repeat.

    Examples
    --------
    >>> from fastlmm_core import lmer, load_dataset, model_table
    >>> data = load_dataset("sleepstudy")
    >>> fits = lmer("Reaction ~ Days + (1 | Subject)", data), lmer("Reaction ~ Days + (Days | Subject)", data)
    >>> print(model_table(*fits))
                                      (1)      (2)
    Intercept                      251.41   251.41
                                   (9.75)   (6.82)
    Days                           10.467    10.47
                                  (0.804)   (1.55)
    sd Intercept | Subject           37.1     24.7
    sd Days | Subject                         5.92
    cor Days, Intercept | Subject            0.066
    sd residual                      31.0     25.6
    Observations                      180      180
    Subject                            18       18
    REML criterion                 1786.5   1743.6
    AIC                            1794.5   1755.6
    BIC                            1807.2   1774.8
    <BLANKLINE>
    Standard errors in parentheses.
    """
    if not fits:
        raise ModelError("model_table needs a fit: model_table(fit, other)")
    given = [f"({k})" for k in range(1, len(fits) + 1)] if names is None else [str(name) for name in names]
    if len(given) != len(fits) or len(set(given)) < len(given):
        raise ModelError(f"names must be {len(fits)} different ones, one a fit, not {given}")
    known = dict(labels or {})
    columns = [_coefficients(fit, known, digits, ddf if stars else None) for fit in fits]
    rows: list[tuple[str, ...]] = []
    for label in dict.fromkeys(label for cells in columns for label in cells):
        pairs = [cells.get(label, ("", "")) for cells in columns]
        rows += [(label, *(pair[0] for pair in pairs)), ("", *(pair[1] for pair in pairs))]
    sections = []
    for cells in ([_variances(fit, digits) for fit in fits], [_figures(fit) for fit in fits]):
        sections.append(len(rows))
        rows += [(label, *(c.get(label, "") for c in cells)) for label in _merged(cells)]
    notes = ["Standard errors in parentheses."]
    if stars:
        notes.append("* p < 0.05, ** p < 0.01, *** p < 0.001")
    return ModelTable(tuple(given), tuple(rows), tuple(sections), tuple(notes))


def _merged(columns: Sequence[Cells]) -> list[str]:
    """The labels of all columns, each new one after the one that precedes it in its own column."""
    out: list[str] = []
    for cells in columns:
        at = 0
        for label in cells:
            if label not in out:
                out.insert(at, label)
            at = out.index(label) + 1
    return out


def _coefficients(
    fit: LmerResult | GlmerResult, labels: Mapping[str, str], digits: int, ddf: str | None
) -> dict[str, tuple[str, str]]:
    p = np.full(len(fit.params), np.nan)
    if ddf is not None:
        p = (fit.coef_table() if isinstance(fit, GeneralisedModel) else fit.coef_table(ddf))["p"].to_numpy()
    out = {}
    for name, estimate, error, value in zip(fit.params.index, fit.params, fit.bse, p, strict=True):
        if np.isnan(estimate):
            cell = ("dropped", "")
        else:
            decimals = _decimals(error if error > 0.0 else estimate, digits)
            mark = "*" * sum(value < bound for bound in (0.05, 0.01, 0.001))
            cell = (f"{estimate:.{decimals}f}{mark}", f"({error:.{decimals}f})")
        out[labels.get(str(name), str(name))] = cell
    return out


def _variances(fit: LmerResult | GlmerResult, digits: int) -> Cells:
    out: Cells = {}
    components = fit.var_corr()
    for term in components.terms:
        corr = term.corr
        for i, column in enumerate(term.columns):
            out[f"sd {column} | {term.grp}"] = _number(float(term.sd[i]), digits)
        for i, column in enumerate(term.columns):
            for j in range(i):
                out[f"cor {column}, {term.columns[j]} | {term.grp}"] = f"{corr[i, j]:.3f}"
    if isinstance(fit, GeneralisedModel):
        out |= {name: _number(value, digits) for name, value in fit.core.family_params.items()}
    else:
        out["sd residual"] = _number(components.sigma, digits)
    return out


def _figures(fit: LmerResult | GlmerResult) -> Cells:
    out: Cells = {"Observations": str(int(fit.nobs)), **{name: str(q) for name, q in fit.n_groups.items()}}
    words = "-2 log-likelihood" if isinstance(fit, GeneralisedModel) else "REML criterion" if fit.reml else "Deviance"
    out[words] = f"{fit.criterion:.1f}"
    return {**out, "AIC": f"{fit.aic:.1f}", "BIC": f"{fit.bic:.1f}"}


def _number(value: Any, digits: int) -> str:
    return f"{value:.{_decimals(value, digits)}f}"


def _decimals(value: float, digits: int) -> int:
    """Decimals that show so many significant digits, at most a dozen."""
    if not np.isfinite(value) or value == 0.0:
        return digits
    return int(np.clip(digits - 1 - np.floor(np.log10(abs(value))), 0, 12))
