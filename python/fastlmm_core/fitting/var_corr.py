"""Variances, standard deviations and correlations of the random effects, printed as lme4's table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fastlmm_core.fitting.text import format_numbers, html_table, text_table
from fastlmm_core.fitting.unidentified import unidentified_elements, unidentified_variances

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.core.glmm.fitted import GlmmFit
    from fastlmm_core.formula import Design

__all__ = ["TermCov", "VarCorr", "theta_labels", "var_corr"]


@dataclass(frozen=True, eq=False)
class TermCov:
    """Covariance of one random term.

    Attributes
    ----------
    grp : str
        The term's own name: "Subject", and "Subject.1" for a second term on the same group.
    group : str
        The grouping factor.
    columns : tuple of str
        Names of the l effects of a level.
    cov : ndarray (l, l)
        σ² L Lᵀ, in the response's units squared; NaN where the data do not identify it.
    """

    grp: str
    group: str
    columns: tuple[str, ...]
    cov: NDArray[np.float64]

    @property
    def sd(self) -> NDArray[np.float64]:
        """Standard deviations (l,)."""
        return np.sqrt(np.diagonal(self.cov))

    @property
    def corr(self) -> NDArray[np.float64]:
        """Correlations (l, l); NaN beside an effect whose variance is zero."""
        sd = self.sd
        with np.errstate(invalid="ignore", divide="ignore"):
            corr = self.cov / sd[:, None] / sd[None, :]
        np.fill_diagonal(corr, 1.0)
        return corr


@dataclass(frozen=True, eq=False)
class VarCorr:
    """The variance components of a fit: iterate over its terms, index one by name, or take the long table.

    Attributes
    ----------
    terms : tuple of TermCov
        In the model's order.
    sigma : float
        Residual standard deviation; NaN for a generalised model, whose tables have no residual row.
    notes : tuple of str
        Why an element is NaN.

    Examples
    --------
    >>> from fastlmm_core import lmer, load_dataset
    >>> vc = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy")).var_corr()
    >>> vc["Subject"].round(1)
               Intercept  Days
    Intercept      612.1   9.6
    Days             9.6  35.1
    """

    terms: tuple[TermCov, ...]
    sigma: float
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[TermCov]:
        return iter(self.terms)

    def __len__(self) -> int:
        return len(self.terms)

    def __getitem__(self, grp: str) -> pd.DataFrame:
        """Covariance matrix of the term named `grp`, labelled by its columns."""
        for term in self.terms:
            if term.grp == grp:
                return pd.DataFrame(term.cov, index=list(term.columns), columns=list(term.columns))
        raise KeyError(f"no random term {grp!r}; the terms are {', '.join(t.grp for t in self.terms)}")

    def to_frame(self) -> pd.DataFrame:
        """One row a parameter, as lme4's `as.data.frame(VarCorr(m))`.

        Returns
        -------
        DataFrame
            Columns grp, var1, var2, vcov, sdcor. Per term the variances first (var2 is None; sdcor is the standard
            deviation), then the covariances (both set; sdcor is the correlation), the lower triangle column by column.
            The last row is the residual's. ``attrs["notes"]`` says why an element is NaN, if one is.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
        >>> fit.var_corr().to_frame().round({"vcov": 2, "sdcor": 3})
                grp       var1  var2    vcov   sdcor
        0     Batch  Intercept  None  1764.05  42.001
        1  Residual       None  None  2451.25  49.510
        """
        rows: list[tuple[str, str | None, str | None, float, float]] = []
        for t in self.terms:
            sd, corr = t.sd, t.corr
            rows += [(t.grp, c, None, float(t.cov[i, i]), float(sd[i])) for i, c in enumerate(t.columns)]
            rows += [
                (t.grp, t.columns[j], t.columns[i], float(t.cov[i, j]), float(corr[i, j]))
                for j in range(len(t.columns))
                for i in range(j + 1, len(t.columns))
            ]
        if not np.isnan(self.sigma):
            rows.append(("Residual", None, None, self.sigma**2, self.sigma))
        frame = pd.DataFrame(rows, columns=["grp", "var1", "var2", "vcov", "sdcor"])
        # object columns keep None as None, so that a missing name can be told from the text "nan"
        names = [[r[k] for r in rows] for k in (1, 2)]
        frame = frame.assign(var1=pd.Series(names[0], dtype=object), var2=pd.Series(names[1], dtype=object))
        if self.notes:
            frame.attrs["notes"] = self.notes
        return frame

    def cells(self, *, variance: bool, digits: int) -> tuple[list[str], list[list[str]]]:
        """Heading and rows of lme4's table as text: the variance column only where `variance`."""
        last = [] if np.isnan(self.sigma) else [self.sigma]
        sd = format_numbers([s for t in self.terms for s in t.sd] + last, digits)
        var = format_numbers([v for t in self.terms for v in np.diagonal(t.cov)] + [s**2 for s in last], digits)
        widest = max((len(t.columns) for t in self.terms), default=1) - 1
        rows: list[list[str]] = []
        for t in self.terms:
            corr = t.corr
            for i, column in enumerate(t.columns):
                k = len(rows)
                numbers = [var[k], sd[k]] if variance else [sd[k]]
                r = [f"{corr[i, j]:.{2 if variance else 3}f}".replace("nan", "NaN") for j in range(i)]
                rows.append([t.grp if i == 0 else "", column, *numbers, *r, *[""] * (widest - i)])
        if last:
            rows.append(["Residual", "", *([var[-1], sd[-1]] if variance else [sd[-1]]), *[""] * widest])
        header = ["Groups", "Name", *(["Variance"] if variance else []), "Std.Dev."]
        return header + (["Corr"] + [""] * (widest - 1) if widest else []), rows

    def __str__(self) -> str:
        header, rows = self.cells(variance=False, digits=5)
        return "\n".join([text_table(header, rows, left=2, indent=" "), *self.notes])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        header, rows = self.cells(variance=False, digits=5)
        return html_table(header, rows, left=2)


def var_corr(design: Design, core: CoreFit | GlmmFit) -> VarCorr:
    """σ² L Lᵀ of every term of a fit, NaN where the data do not identify it; a generalised model has no σ."""
    from fastlmm_core.core.glmm.two_predictors import ZeroPart

    generalised = hasattr(core, "family") or isinstance(core, ZeroPart)
    covs = [core.sigma**2 * (L @ L.T) for L in core.L]
    for k, i, j in unidentified_elements(core):
        covs[k][i, j] = covs[k][j, i] = np.nan
    return VarCorr(
        tuple(
            TermCov(term.grp, term.group, tuple(term.columns), cov)
            for term, cov in zip(design.random, covs, strict=True)
        ),
        float("nan") if generalised else float(core.sigma),
        tuple(unidentified_variances(design, core)),
    )


def theta_labels(design: Design) -> list[str]:
    """lme4's names of θ, the lower triangle column by column: "Subject.Intercept", "Subject.Days.Intercept", ...

    The grouping factor's name is used, as lme4 does; where two terms would share a label, the terms' own names are.
    """

    def labels(own_name: bool) -> list[str]:
        out = []
        for term in design.random:
            name = term.grp if own_name else term.group
            for j, column in enumerate(term.columns):
                out.append(f"{name}.{column}")
                out += [f"{name}.{row}.{column}" for row in term.columns[j + 1 :]]
        return out

    shared = labels(own_name=False)
    return shared if len(set(shared)) == len(shared) else labels(own_name=True)
