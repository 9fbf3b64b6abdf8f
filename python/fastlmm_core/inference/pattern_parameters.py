"""Covariance parameters of models with a residual structure: estimates, standard errors, Wald intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.core.residuals import PatternFit
from fastlmm_core.core.residuals.natural import parameters_of, printed
from fastlmm_core.core.structures.equations_fit import EquationsFit
from fastlmm_core.core.structures.structured import StructuredFit
from fastlmm_core.fitting.residual import variance_labels
from fastlmm_core.fitting.unidentified import unidentified_elements
from fastlmm_core.inference.levels import quantile_of_level
from fastlmm_core.inference.structured import information_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.formula import Design

__all__ = ["Structured", "covariance_parameters", "labels", "parameter_cov"]

Structured = PatternFit | EquationsFit | StructuredFit


def covariance_parameters(design: Design, core: Structured, level: float) -> pd.DataFrame:
    """See `StructuredResult.covariance_parameters`; by the delta method from the observed information."""
    found = printed(parameters_of(core))
    unknown = _unknown(core, found.kinds, found.labels)
    names = labels(design, found.kinds, found.labels)
    cov = found.jacobian @ parameter_cov(core) @ found.jacobian.T
    se = np.sqrt(np.maximum(np.diag(cov), 0.0))
    quantile = quantile_of_level(level)
    lower, upper = np.empty(len(se)), np.empty(len(se))
    for k, (label, value) in enumerate(zip(found.labels, found.values, strict=True)):
        positive = names[k].startswith("var ") or label.endswith("range")
        correlation = "rho" in label and abs(value) < 1.0
        sign = np.array([-1.0, 1.0]) * quantile * se[k]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            if positive:
                lower[k], upper[k] = value * np.exp(sign / value)
            elif correlation:
                lower[k], upper[k] = np.tanh(np.arctanh(value) + sign / (1.0 - value**2))
            else:
                lower[k], upper[k] = value + sign
    values = np.where(unknown, np.nan, found.values)
    for column in (se, lower, upper):
        column[unknown | (se == 0.0)] = np.nan  # at a boundary there is no such error
    return pd.DataFrame(
        {"kind": list(found.kinds), "estimate": values, "std_error": se, "lower": lower, "upper": upper},
        index=pd.Index(names, name="parameter"),
    )


def _unknown(core: Structured, kinds: tuple[str, ...], given: tuple[str, ...]) -> NDArray[np.bool_]:
    """Parameters that the criterion does not see, and correlations with effects that are zero."""
    terms = {k for k, _, _ in unidentified_elements(core)}
    residual = core.unidentified is not None and core.unidentified.residual
    out = np.zeros(len(kinds), np.bool_)
    for a, (kind, label) in enumerate(zip(kinds, given, strict=True)):
        if kind != "effects":
            out[a] = residual
            continue
        number, _, place = label.partition(":")
        k = int(number)
        zero = "rho" in place and not np.abs(core.L[k]).sum(axis=1).all()
        out[a] = k in terms or zero
    return out


def parameter_cov(core: Structured) -> NDArray[np.float64]:
    """Covariance (r + 1, r + 1) of (phi, log sigma^2)."""
    cov = information_of(core).cov
    if not isinstance(core, StructuredFit):
        return cov
    unit = np.ones(len(cov))
    unit[-1] = 2.0  # log sigma there
    return cov * np.outer(unit, unit)


def labels(design: Design, kinds: tuple[str, ...], given: tuple[str, ...]) -> list[str]:
    """Names with the user's visits, columns and grouping factors in them."""
    within, variances = design.residual, variance_labels(design)
    groups = () if within is None else within.groups
    out = []
    for kind, label in zip(kinds, given, strict=True):
        if kind == "variance":
            if within is None or within.kind != "us" or variances != ["Residual"]:
                out.append(f"var {variances[int(label)]}")
                continue
            out.append(f"var {within.visits[0]}{f' {groups[0]}' if groups else ''}")
        elif kind == "dispersion":
            assert within is not None
            assert within.dispersion is not None
            name = within.dispersion.names[int(label)]
            out.append(f"dispersion {name}" if name in design.x_names else name)  # profiles and draws have both
        elif kind == "effects":
            k, _, place = label.partition(":")
            if "," not in place:
                out.append(f"{place} | {design.random[int(k)].grp}")
                continue
            i, j = (int(v) for v in place.split(","))
            term = design.random[int(k)]
            name = "var" if i == j else "cov"
            pair = term.columns[i] if i == j else f"{term.columns[i]}, {term.columns[j]}"
            out.append(f"{name} {pair} | {term.grp}")
        elif within is not None and within.kind == "us":
            number, _, pair = label.rpartition(" ")
            i, j = (int(v) - 1 for v in pair.split(","))
            name = f"var {within.visits[i]}" if i == j else f"cov {within.visits[i]}, {within.visits[j]}"
            out.append(f"{name} {groups[int(number)]}" if number else name)
        else:
            assert within is not None
            number, _, name = label.rpartition(" ")
            out.append(f"{name} {groups[int(number)]}" if number else name)
    return out
