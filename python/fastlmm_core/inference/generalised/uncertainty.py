"""Uncertainty of linear predictors at the modes, and the leverages of the rows.

With C = Lambda M^-1 Lambda' the modes' covariance given the parameters psi = (theta, beta, rho) and V that of psi, the
predictor eta = x'beta + z'b~(psi) has the variance z'C z + j'V j, j = d eta / d psi, the modes' own movement included
(Kass and Steffey 1989). Derivatives of the modes are central differences: two evaluations a parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.engines import NO_FACTOR
from fastlmm_core.core.glmm.effects import Effects
from fastlmm_core.core.glmm.laplace import Laplace
from fastlmm_core.core.glmm.two_predictors import TwoPredictors
from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.generalised import engine_at
from fastlmm_core.inference.iterative_inverse import check_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastlmm_core.core.glmm.fitted import Engine
    from fastlmm_core.core.glmm.iterative.laplace import IterativeLaplace
    from fastlmm_core.fitting.generalised_model import GeneralisedModel
    from fastlmm_core.formula import NewDesign

__all__ = ["leverages", "mode_derivatives", "parameter_covariance", "variances"]

Array = NDArray[np.float64]
Parts = list[tuple[NDArray[np.int64], Array] | None]

STEP = 1e-4
"""Of central differences, in units of the standard errors (or of 1)."""

CHUNK_NUMBERS = 1 << 22
"""Numbers in a block of right-hand sides."""


def parameter_covariance(result: GeneralisedModel) -> Array:
    """Covariance of (theta, beta, rho), zero where it is not known (theta on the boundary, dropped columns)."""
    return np.nan_to_num(result.core.cov, nan=0.0)


def mode_derivatives(result: GeneralisedModel) -> list[Array]:
    """D b~ / d(theta, beta, rho) of each term, (n_parameters, q, l); zero for dropped columns."""
    core = result.core
    nt, p = len(core.theta), len(core.beta)
    out = [np.zeros((nt + p + core.family.n_extra, *b.shape)) for b in core.b]
    with engine_at(result) as engine:
        design = engine.design
        places = np.concatenate([np.arange(nt), nt + design.keep, nt + p + np.arange(core.family.n_extra)])
        for column, k in enumerate(places):
            ends = []
            for sign in (1.0, -1.0):
                unit = design.to_conditioned[:, column]
                step = STEP / max(float(np.abs(unit).max()), 1e-300)
                engine.locate(core.psi + sign * step * unit)
                ends.append(design.user_modes(engine.modes()))
            for target, high, low in zip(out, *ends, strict=True):
                target[k] = (high - low) / (2.0 * step)
        engine.locate(core.psi)
    return out


def conditioned_rows(engine: Engine, parts: Parts) -> list[tuple[NDArray[np.int64], Array]]:
    """Codes and z of each group of terms, in the coordinates of the engine; code -1 adds nothing."""
    design, out = engine.design, []
    n = next(len(part[0]) for part in parts if part is not None)
    for group in design.groups:
        codes, z = np.full(n, -1, np.int64), np.zeros((n, group.n_columns))
        for k, o in zip(group.terms, group.offsets, strict=True):
            part = parts[k]
            if part is None:
                continue
            t = design.transforms[k]
            codes = np.maximum(codes, part[0])
            z[:, o : o + len(t)] = np.where(part[0][:, None] < 0, 0.0, part[1] @ t)
        out.append((codes, z))
    return out


def conditional_forms(engine: Engine, parts: Parts) -> Array:
    """Z'C z (n,) of rows, where the engine's value was last taken."""
    if isinstance(engine, TwoPredictors):  # whose own engine has the zero part's effects beside
        engine, parts = engine.inner, [*parts, *[None] * len(engine.design.zero_terms)]
    groups = conditioned_rows(engine, parts)
    if len(groups) == 1:
        codes, z = groups[0]
        return np.asarray(np.einsum("ni,nij,nj->n", z, engine.cond_var()[0][codes], z))
    key = np.column_stack([np.column_stack([codes[:, None], z]) for codes, z in groups])
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    if not isinstance(engine, Laplace):
        check_number(len(first))
        solved = cast("IterativeLaplace", engine)
        return solved.forms([codes[first] for codes, _ in groups], [z[first] for _, z in groups])[inverse.ravel()]
    forms = np.empty(len(first))
    width = max(1, CHUNK_NUMBERS // sum(engine.size))
    for at in range(0, len(first), width):
        rows = first[at : at + width]
        right = sides(engine, [(codes[rows], z[rows]) for codes, z in groups])
        forms[at : at + width] = engine.forms(right)
    return forms[inverse.ravel()]


def sides(engine: Laplace, groups: Sequence[tuple[NDArray[np.int64], Array]]) -> Effects:
    """Rows' z as vectors over all random effects, (k, .)."""
    k = len(groups[0][0])
    lead, tail = np.zeros((k, engine.size[0])), np.zeros((k, engine.size[1]))
    rows = np.arange(k)
    for g, (codes, z) in enumerate(groups):
        l = z.shape[1]
        for c in range(l):
            known = codes >= 0
            if g < engine.own:
                lead[rows[known], codes[known] * l + c] = z[known, c]
            else:
                tail[rows[known], engine.places[g - engine.own][codes[known], c]] = z[known, c]
    return Effects(lead, tail)


def variances(
    result: GeneralisedModel, rows: NewDesign, masks: Sequence[NDArray[np.bool_]], by_rho: Array | None = None
) -> Array:
    """Variance (n,) of x'beta + z'b for the random effects that ``masks`` includes; a new level adds its own.

    ``by_rho`` (n, n_extra) are derivatives of a part of the rows' own in the family's parameters, to be added.
    """
    assert rows.X is not None
    core = result.core
    n, nt, p = len(rows.X), len(core.theta), len(core.beta)
    j = np.zeros((n, nt + p + core.family.n_extra))
    j[:, nt : nt + p] = rows.X
    if by_rho is not None:
        j[:, nt + p :] = by_rho
    extra = np.zeros(n)
    if any(mask.any() for mask in masks):
        derivatives = mode_derivatives(result)
        parts: Parts = []
        for k, (part, mask) in enumerate(zip(rows.random, masks, strict=True)):
            if part is None or not mask.any():
                parts.append(None)
                continue
            codes = np.asarray(part.codes, np.int64)
            z = (np.ones((n, 1)) if part.z is None else part.z) * mask
            parts.append((codes, z))
            new = codes < 0
            extra[new] += ((z[new] @ core.L[k]) ** 2).sum(axis=1)
            seen = np.flatnonzero(~new)
            j[seen] += np.einsum("pnl,nl->np", derivatives[k][:, codes[seen]], z[seen])
        with engine_at(result) as engine:
            extra += conditional_forms(engine, parts)
    return np.asarray(extra + np.einsum("np,pq,nq->n", j, parameter_covariance(result), j))


def leverages(result: GeneralisedModel) -> Array:
    """z_i'C z_i (n,) of the rows of the fit."""
    if result.monte_carlo is not None:
        raise ModelError("leverages of single rows are " + NO_FACTOR)
    with engine_at(result) as engine:
        if isinstance(engine, (Laplace, TwoPredictors)):
            return engine.leverages()
        design = engine.design
        z = design.z[0]
        blocks = engine.cond_var()[0][design.codes[0]]
        return blocks[:, 0, 0] if z is None else np.asarray(np.einsum("ni,nij,nj->n", z, blocks, z))
