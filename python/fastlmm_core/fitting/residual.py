"""From a design with a residual structure to the core's model of it, and the labels of its parameters."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastlmm_core.core.arguments import checked_count
from fastlmm_core.core.residuals import CrossedFit, PatternFit, Residual
from fastlmm_core.core.residuals.units import LARGE_UNIT, holds, outermost
from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.predict import sparse_part
from fastlmm_core.fitting.text import text_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.formula import Design
    from fastlmm_core.formula.residual import ResidualDesign

__all__ = [
    "check_random",
    "core_residual",
    "describe",
    "marginal_cov",
    "parameter_labels",
    "residual_cov",
    "residuals",
    "simulate",
    "variance_labels",
]

MUCH = 1e6
"""Multiplications of all units' factorisations beyond which larger units than subjects are not worth theirs."""


def core_residual(design: ResidualDesign) -> Residual:
    """The structure as the core takes it."""
    return Residual(
        design.subject,
        design.kind,
        design.positions,
        max(len(design.visits), 1),
        True if design.parsed is None else design.parsed.hom,
        design.coordinates,
        design.group,
        max(len(design.groups), 1),
        design.columns,
        design.parsed is not None and design.parsed.nugget,
    )


def in_units(design: Design) -> bool:
    """Whether levels and subjects lie within those of one factor whose levels are cheap to factor as a whole."""
    assert design.residual is not None
    codes: list[NDArray[Any]] = [term.codes for term in design.random]
    codes += [] if design.residual.parsed is None and codes else [design.residual.subject]
    outer = outermost(codes)
    if outer is None:
        return False
    sizes = np.bincount(codes[outer])
    if int(sizes.max()) > LARGE_UNIT:
        return False
    of_subjects = design.residual.parsed is not None and holds(design.residual.subject, codes[outer])
    return of_subjects or float(np.sum(sizes.astype(np.float64) ** 3)) <= MUCH


def check_random(design: Design) -> None:
    """Refuse random effects that share a constant with the residuals' structure, and subjects of too many rows."""
    residual = design.residual
    assert residual is not None
    parsed, subject = residual.parsed, residual.subject
    if parsed is None:
        return
    for term in design.random:
        same = holds(subject, term.codes) and holds(term.codes, subject)
        constant = term.spec is None or "Intercept" in term.columns
        if same and constant and (residual.kind == "us" or (residual.kind == "cs" and parsed.hom)):
            raise ModelError(
                f"(1 | {term.group}) and residual={parsed.text!r} share a constant within {term.group}: "
                f"leave (1 | {term.group}) out"
            )
    size = int(np.bincount(subject).max())
    if size > LARGE_UNIT:
        raise ModelError(
            f"a {':'.join(parsed.subject)} of residual={parsed.text!r} has {size} rows: subjects of at most "
            f"{LARGE_UNIT} are supported"
        )


def parameter_labels(design: Design) -> list[str]:
    """Labels of the covariance parameters that a residual structure has, in the order of the core's `theta`."""
    residual = design.residual
    if residual is None:
        return []
    core = core_residual(residual)
    _, count = core.variance_of()
    names = variance_labels(design)
    labels = [f"log_sd.{name}" for name in names[1:count]]
    if residual.dispersion is not None:
        labels += [f"log_sd.{name}" for name in residual.dispersion.names]
    labels += [f"{residual.kind}.{k + 1}" for k in range(core.shape().n)]
    return labels


def variance_labels(design: Design) -> list[str]:
    """What each residual variance belongs to: a visit, a group, or both; "Residual" where there is one."""
    residual = design.residual
    if residual is None:
        return ["Residual"]
    core = core_residual(residual)
    _, count = core.variance_of()
    if count == 1:
        return ["Residual"]
    if not core.heterogeneous:
        return list(residual.groups)
    if not residual.groups:
        return list(residual.visits)
    return [f"{group} {visit}" for group in residual.groups for visit in residual.visits]


def covariance_of(design: Design, core: PatternFit | CrossedFit, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Residual covariance (m, m) of some rows of the fit, weights included, in the response's units squared."""
    model = core.model.model
    at = model.prepare(rows[None])
    if model.effects:
        at = replace(at, z=tuple(np.zeros_like(z) for z in at.z))
    R = model.values(core.residual_phi, at)[0][0]
    if core.model.residual.kind == "none" or model.subject is not None:
        owner = core.model.residual.subject[rows]
        R = np.where(owner[:, None] == owner, R, 0.0)
    root = np.ones(len(rows)) if core.model.root is None else core.model.root[rows]
    return core.scale**2 * R / root[:, None] / root


def rows_of(design: Design, level: Hashable) -> NDArray[np.int64]:
    """Rows of a subject, or of a level of the random effects' factor."""
    within = design.residual
    found: list[tuple[str, NDArray[Any], NDArray[Any]]] = []
    if within is not None and within.parsed is not None and within.subjects is not None:
        found.append((":".join(within.parsed.subject), within.subjects.labels, within.subject))
    found += [(t.group, t.levels, t.codes) for t in design.random]
    if isinstance(level, tuple) and len(level) == 2:
        group, level = level
        found = [entry for entry in found if entry[0] == group] or found
    for _, labels, codes in found:
        hit = np.flatnonzero(np.asarray(labels, dtype=object).astype(str) == str(level))
        if hit.size:
            return np.flatnonzero(codes == hit[0])
    raise DataError(f"there is no level {level!r} of {' or '.join(dict.fromkeys(name for name, _, _ in found))}")


def residual_cov(design: Design, core: PatternFit | CrossedFit, subject: Hashable = None) -> pd.DataFrame:
    """See `StructuredResult.residual_cov`."""
    within = design.residual
    visits = () if within is None else within.visits
    if subject is not None:
        rows = rows_of(design, subject)
        names = list(rows) if within is None or not visits else [visits[k] for k in within.positions[rows]]
        return pd.DataFrame(covariance_of(design, core, rows), index=names, columns=names)
    names = list(visits) or ["Residual"]
    cov = np.full((1, 1), core.sigma**2) if within is None else group_cov(design, core, 0)
    return pd.DataFrame(cov, index=names, columns=names)


def marginal_cov(design: Design, core: PatternFit | CrossedFit, level: Hashable) -> NDArray[np.float64]:
    """See `StructuredResult.marginal_cov`."""
    rows = rows_of(design, level)
    cov = covariance_of(design, core, rows)
    for term, L in zip(design.random, core.L, strict=True):
        z = np.ones((len(rows), 1)) if term.z is None else term.z[rows]
        cov += core.sigma**2 * (z @ L) @ (z @ L).T * (term.codes[rows][:, None] == term.codes[rows])
    return cov


def residuals(design: Design, core: PatternFit | CrossedFit, kind: str) -> NDArray[np.float64]:
    """See `StructuredResult.residuals`."""
    if kind in ("response", "conditional"):
        return np.asarray(design.y - core.fitted)
    if kind == "marginal":
        offset = 0.0 if design.offset is None else design.offset
        return np.asarray(design.y - core.linear - sparse_part(design, core) - offset)
    if kind not in ("pearson", "scaled", "normalized"):
        raise ModelError(f"residuals of kind {kind!r} do not exist here: use response, marginal, pearson or normalized")
    e = design.y - core.fitted
    return core.standardized(e, whole=kind == "normalized")


def simulate(design: Design, core: PatternFit | CrossedFit, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(rows, n) draws from the marginal distribution."""
    n = checked_count(n, "n")
    mean = core.linear + (0.0 if design.offset is None else design.offset)
    out = mean[:, None] + core.coloured(rng.normal(size=(len(mean), n)))
    if isinstance(core, CrossedFit):  # of the others the random effects are part of the patterns' covariance
        for term, L in zip(design.random, core.L, strict=True):
            b = core.sigma * rng.normal(size=(n, len(term.level_set), len(L))) @ L.T
            rows = b[:, term.codes]
            out += (rows[:, :, 0] if term.z is None else np.einsum("snl,nl->sn", rows, term.z)).T
    return np.asarray(out)


def describe(design: Design, core: CoreFit) -> str:
    """The residual structure as text: heading, standard deviations, correlations; nothing where there is none."""
    within = design.residual
    if within is None or not isinstance(core, PatternFit | CrossedFit):
        return ""
    lines = []
    if within.parsed is not None and within.subjects is not None:
        subject, counts = ":".join(within.parsed.subject), sum(len(p.counts) for p in core.parts)
        lines.append(
            f"Residual: {within.parsed.title} of {' + '.join(within.parsed.visit)} within {subject} "
            f"({len(within.subjects)} subjects, {core.n} rows, {len(within.visits)} visits, {counts} patterns)"
        )
        shown = min(len(within.visits), 8)
        for g, group in enumerate(within.groups or ("",)):
            cov = group_cov(design, core, g)
            sd = np.sqrt(np.diag(cov))
            names = [v[:10] for v in within.visits[:shown]]
            if group:
                lines.append(f" {within.parsed.group} {group}")
            lines.append(text_table([" ", *names], [[" Std.Dev.", *(f"{v:.4g}" for v in sd[:shown])]], left=1))
            corr = cov / sd[:, None] / sd
            rows = shown if within.kind == "us" else 1
            table = [
                [f" {names[i]}", *(f"{corr[i, j]:.3f}" if (j < i if rows > 1 else j > 0) else "" for j in range(shown))]
                for i in range(1 if rows > 1 else 0, rows)
            ]
            lines.append(text_table([" Corr", *names], table, left=1))
    if within.dispersion is not None:
        at = core.model.n_variances - 1
        named = zip(within.dispersion.names, core.theta[at : at + len(within.dispersion.names)], strict=True)
        lines.append(f"Dispersion, log standard deviation: {', '.join(f'{name} {value:.4g}' for name, value in named)}")
    return "\n".join(lines)


def group_cov(design: Design, core: PatternFit | CrossedFit, g: int) -> NDArray[np.float64]:
    """Residual covariance (T, T) of all visits in group g, where the dispersion's columns are zero."""
    model, fit, within = core.model.model, core.model, design.residual
    assert within is not None
    T = max(len(within.visits), 1)
    at = np.arange(T) + g * T
    c = model.shape.values(core.residual_phi[model.of_shape], model.shape.keys(at[:, None], at[None, :]))[0]
    eta = np.append(0.0, core.theta[: fit.n_variances - 1])
    s = np.ones(T)
    if fit.residual.heterogeneous:
        s = np.exp(eta[at])
    elif fit.n_variances > 1:
        s = np.full(T, np.exp(eta[g]))
    return np.asarray(core.sigma**2 * s[:, None] * s * c)
