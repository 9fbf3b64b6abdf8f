"""In words: what the criterion of a fit does not depend on, and which coefficients are without standard errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from fastlmm_core.core import CoreFit
    from fastlmm_core.core.glmm.fitted import GlmmFit
    from fastlmm_core.formula import Design

__all__ = [
    "undetermined_coefficients",
    "unidentified_elements",
    "unidentified_rows",
    "unidentified_variances",
    "unidentified_words",
]

SHOWN = 8
"""Coefficients listed by name, at most."""


def undetermined_coefficients(design: Design, core: CoreFit | GlmmFit) -> list[str]:
    """Names of the coefficients whose standard errors depend on what is not identified."""
    if core.unidentified is None or not core.unidentified.basis.size:
        return []
    kept = np.flatnonzero(~np.isnan(core.beta))
    unknown = kept[~cast("CoreFit", core).determined(np.eye(len(kept)))]  # of a generalised fit there is no basis
    return [design.x_names[j] for j in unknown]


def unidentified_elements(core: CoreFit | GlmmFit) -> set[tuple[int, int, int]]:
    """Elements (term, row, column) of covariance matrices that are not identified."""
    found = core.unidentified
    if found is None:
        return set()
    out = set(found.flat)
    widths = [term.shape[0] for term in core.L]
    for k, columns in found.spanned:
        out |= {(k, max(i, c), min(i, c)) for c in columns for i in range(widths[k])}
    for k, _ in found.aliased:
        out |= {(k, i, j) for i in range(widths[k]) for j in range(i + 1)}
    return out


def unidentified_variances(design: Design, core: CoreFit | GlmmFit) -> list[str]:
    """A sentence for each variance or group of them that is not identified; empty where all is well."""
    found = core.unidentified
    if found is None:
        return []
    criterion = "the REML criterion" if found.reml else "the likelihood"
    out = []
    for k, columns in found.spanned:
        every = len(columns) == len(design.random[k].columns)
        names = ", ".join(design.random[k].columns[c] for c in columns)
        what = _term(design, k) if every else f"{names} in {_term(design, k)}"
        out.append(
            f"{criterion} does not depend on the variance of {what}, since "
            + (
                "the fixed effects, or the term's other columns, span its columns"
                if found.reml
                else "its columns are zero or depend on the term's others"
            )
            + "; it is held at zero"
        )
    for k, other in found.aliased:
        whose = "the residual variance" if other is None else f"that of {_term(design, other)}"
        out.append(
            f"{criterion} cannot tell the variance of {_term(design, k)} from {whose}; the former is held at zero"
        )
    if found.flat or found.residual:
        residual = "the residual variance" if design.residual is None else "the residuals' covariance"
        elements = ", ".join(_element(design, *element) for element in found.flat)
        names = " and ".join([elements] * bool(elements) + [residual] * found.residual)
        if len(found.flat) == 1 and not found.residual:
            out.append(f"{criterion} does not depend on {names}, as other terms or the fixed effects say the same")
        else:
            out.append(
                f"{criterion} depends on fewer combinations of these than there are: {names}; they are not unique"
            )
    return out


def unidentified_words(design: Design, core: CoreFit | GlmmFit) -> list[str]:
    """`unidentified_variances`, and a sentence for the consequences."""
    out = unidentified_variances(design, core)
    unknown = undetermined_coefficients(design, core)
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        out.append(
            f"the standard errors of {', '.join(unknown[:SHOWN])}{more} depend on this and are NaN: leave out the "
            "random term, or the fixed effects that span it"
        )
    return out


def unidentified_rows(design: Design, core: CoreFit, count: int, total: int) -> list[str]:
    """A note on rows whose standard errors depend on what is not identified, if any."""
    if not count:
        return []
    which = f"{count} of {total} rows {'has' if count == 1 else 'have'} no standard error (NaN)"
    reasons = unidentified_words(design, core)[: -1 if undetermined_coefficients(design, core) else None]
    return [f"{which}, since it depends on what is not identified: {'; '.join(reasons)}"]


def _term(design: Design, k: int) -> str:
    term = design.random[k]
    return f"({' + '.join('1' if c == 'Intercept' else c for c in term.columns)} | {term.group})"


def _element(design: Design, k: int, i: int, j: int) -> str:
    columns, group = design.random[k].columns, design.random[k].grp
    return f"var({columns[i]} | {group})" if i == j else f"cov({columns[j]}, {columns[i]} | {group})"
