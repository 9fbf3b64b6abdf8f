"""Uncertainty of predictions of models with a residual structure, structured effects or relationships.

The target of a row is x'beta + u, u = z'b + [conditional: a'e] + [a new observation: the residual, or what a'e leaves],
see `core.residuals.new_rows` for a. With c = Cov(y, u), the best linear unbiased predictor and its error are

    x'beta-hat + c'V^-1 (y - X beta-hat)
    Var(u) - c'V^-1 c + d'(X'V^-1X)^-1 d,     d = x - X'V^-1 c                                                    (1)

(Goldberger 1962; Harville 1976; kriging: Cressie 1993, section 3.4), which is what SAS's PROC MIXED gives rows without
a response. In units that are factored as a whole V^-1 is at hand. Elsewhere x'beta + z'b + a'e, e = y - X beta - Z b,
is the combination (x - X'a)'beta + (z - Z'a)'b of what the mixed-model equations estimate, plus a'y, and its error

    w'M^-1 w + g'D^-1 g,   w = Lambda'(z - Z'a),   g = x - X'a - U'w   (`core.structures.equations`)                (2)

To both are added the variance of what is drawn anew. Satterthwaite's degrees of freedom and the effect of estimating
the covariance parameters are as in `inference.prediction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.residuals import CrossedFit, PatternFit
from fastlmm_core.core.residuals.new_rows import NewRows, ResidualRows, meetings, residual_inverses
from fastlmm_core.core.structures.equations_fit import EquationsFit
from fastlmm_core.core.threads import bounded, one_blas_thread
from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.coefficients import undetermined
from fastlmm_core.fitting.predict import included_columns, linear_predictor, row_weights, target_rows
from fastlmm_core.fitting.residual_prediction import check_residual, known_residuals, new_rows
from fastlmm_core.inference.prediction import STEP, along_parameters, check_asked, effects_of, interval_table
from fastlmm_core.inference.structured import information_of

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.formula import Design, NewDesign

__all__ = ["EquationTargets", "UnitTargets", "structured_interval", "structured_targets"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Known = Sequence[tuple[Index, Array] | None]

AT_ONCE = 1 << 22
"""Entries of the right-hand sides that are solved at a time."""


ROUNDING = 1e-12
"""Of the residual variance: a prediction variance below it is that of a response that is given back, and none."""


class UnitTargets:
    """Equation (1), for models of independent units.

    Parameters
    ----------
    fit : PatternFit
    y : (n,)
        The response, its offset included.
    X : (k, p)
        Fixed effects of the rows that are predicted.
    known, prior
        Their random effects, as `effects_of` has them.
    new : NewRows
    conditional, observation : bool
        Whether the residuals of a subject's other rows are used; whether a new observation is predicted.
    """

    def __init__(
        self,
        fit: PatternFit,
        y: Array,
        X: Array,
        known: Known,
        prior: Sequence[Array],
        new: NewRows,
        *,
        conditional: bool,
        observation: bool,
    ) -> None:
        self.fit, model = fit, fit.model
        self.conditional, self.observation = conditional, observation
        self.criterion, self.projected = model.prepare(y)
        self.nu = self.criterion.nu
        self.x = X[:, model.keep] @ model.inverse
        self.known = [None if k is None else (k[0], k[1] @ T) for k, T in zip(known, model.transforms, strict=True)]
        self.prior = [z @ T for z, T in zip(prior, model.transforms, strict=True)]
        self.residual = ResidualRows(model, new) if conditional or observation else None
        pairs = [self._pairs(model.terms[k].codes, part[0]) for k, part in enumerate(self.known) if part is not None]
        if conditional:
            pairs.append(self._pairs(model.residual.subject, new.subject))
        self.pairs = np.unique(np.concatenate(pairs), axis=0) if pairs else np.zeros((0, 2), np.int64)

    def _pairs(self, codes: NDArray[np.integer[Any]], of_new: Index) -> Index:
        """New rows and the unit in which their level or subject is, (m, 2)."""
        unit = np.empty(int(codes.max()) + 1, np.int64)
        unit[codes] = self.fit.model.unit
        rows = np.flatnonzero(of_new >= 0)
        return np.column_stack([rows, unit[of_new[rows]]])

    def at(self, phi: Array) -> tuple[Array, Array]:
        """Variance (n,) and prediction (n,), offset apart, at phi (r,), working coordinates, and sigma of its own."""
        model, projected = self.fit.model, self.projected
        within = model.model
        point, (found, _) = self.criterion(phi), self.criterion.inverses(phi)
        e = projected.norm * (projected.rest - model.Q @ point.beta)
        prediction = self.x @ (projected.coefficients + projected.norm * point.beta)
        d, variance = self.x.copy(), np.zeros(len(self.x))
        sigmas = [t.covariance.sigma(phi[at]) for t, at in zip(within.effects, within.of_effects, strict=True)]
        for sigma, part, prior in zip(sigmas, self.known, self.prior, strict=True):
            variance += np.einsum("ni,ij,nj->n", prior, sigma, prior)
            if part is not None:
                z = np.where(part[0][:, None] >= 0, part[1], 0.0)
                variance += np.einsum("ni,ij,nj->n", z, sigma, z)
        if self.residual is not None and self.observation:
            variance += self.residual.variances(phi)
        alone = residual_inverses(within, self.fit.parts, phi) if self.conditional and not self.observation else None
        for meeting in meetings(self.fit.parts, model.unit, self.pairs[:, 0], self.pairs[:, 1]):
            c = np.zeros(meeting.rows.shape)
            for k, (sigma, part) in enumerate(zip(sigmas, self.known, strict=True)):
                if part is not None:
                    codes, z = part[0][meeting.new], part[1][meeting.new]
                    share = model.terms[k].codes[meeting.rows] == codes[:, None]
                    c += np.einsum("kml,kl->km", within.effects[k].z[meeting.rows] @ sigma, z) * share
            if self.residual is not None and self.conditional:
                r = self.residual.covariances(phi, meeting)
                c += r
                if alone is not None:
                    q = np.einsum("ki,kij,kj->k", r, alone[meeting.batch][meeting.pattern], r)
                    np.add.at(variance, meeting.new, q)
            Pc = (found[meeting.batch][0][meeting.pattern] @ c[:, :, None])[:, :, 0]
            np.add.at(prediction, meeting.new, (Pc * e[meeting.rows]).sum(axis=1))
            np.subtract.at(variance, meeting.new, (Pc * c).sum(axis=1))
            np.subtract.at(d, meeting.new, np.einsum("km,kmp->kp", Pc, model.Q[meeting.rows]))
        variance += np.einsum("ni,ij,nj->n", d, point.Phi, d)
        return projected.norm**2 * point.r2 / point.nu * variance, prediction


class EquationTargets:
    """Equation (2), for models fitted from the mixed-model equations; parameters as of `UnitTargets`."""

    def __init__(
        self,
        fit: EquationsFit,
        X: Array,
        known: Known,
        prior: Sequence[Array],
        new: NewRows,
        *,
        conditional: bool,
        observation: bool,
    ) -> None:
        self.fit, model = fit, fit.model
        self.conditional, self.observation, self.new = conditional, observation, new
        self.equations = fit.equations()
        self.nu = self.equations.nu
        self.coefficients, rest, _ = model.split(fit.response)
        self.rest = rest / fit.norm
        self.x = X[:, model.keep] @ model.inverse
        self.prior = [z @ T for z, T in zip(prior, model.transforms, strict=True)]
        self.z, self.unknown = self.equations.of_levels(self._columns(known))
        self.residual = None
        if isinstance(fit, CrossedFit) and (conditional or observation):
            self.residual = ResidualRows(fit.model, new)
        self.known = np.flatnonzero(new.subject >= 0) if conditional else np.zeros(0, np.int64)

    def _columns(self, known: Known) -> sp.csr_array:
        """Z of the new rows (n, levels): the effects that the fit knows about."""
        model, n, places = self.fit.model, len(self.x), self.equations.of_effects
        rows, columns, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
        for part, T, where in zip(known, model.transforms, places, strict=False):
            if part is None:
                continue
            seen = np.flatnonzero(part[0] >= 0)
            z = part[1][seen] @ T
            l = z.shape[1]
            rows.append(np.repeat(seen, l))
            columns.append((where.start + part[0][seen][:, None] * l + np.arange(l)).ravel())
            values.append(z.ravel())
        at = (np.concatenate(rows), np.concatenate(columns))
        return sp.csr_array(sp.coo_array((np.concatenate(values), at), shape=(n, places[-1].stop if places else 0)))

    def at(self, phi: Array) -> tuple[Array, Array]:
        """As `UnitTargets.at`."""
        model, equations, norm = self.fit.model, self.equations, self.fit.norm
        solved = model.solve(equations, phi)
        b = equations.unscaled(solved.factors, solved.u[:, None])[:, 0]
        x, z = self.x, self.z
        extra = self.unknown * solved.factors[0][0, 0] ** 2 if self.unknown.any() else np.zeros(len(x))
        prediction = x @ (self.coefficients + norm * solved.beta) + norm * (z @ b)
        for L, prior in zip(solved.factors, self.prior, strict=True):
            extra += np.square(prior @ L).sum(axis=1)
        if self.observation:
            extra += 1.0 / self.new.weights if self.residual is None else self.residual.variances(phi)
        if self.residual is not None and self.conditional:
            A, explained = self._shares(phi)
            e = norm * (self.rest - model.Q @ solved.beta - equations.Z @ b)
            prediction, x, z = prediction + A @ e, x - A @ model.Q, sp.csr_array(z - A @ equations.Z)
            if self.observation:
                extra -= explained
        variance = extra + self._forms(solved, x, z)
        return norm**2 * solved.r2 / equations.nu * variance, prediction

    def _shares(self, phi: Array) -> tuple[sp.csr_array, Array]:
        """Every a' of the new rows (k, n), and r'R^-1 r."""
        assert isinstance(self.fit, CrossedFit)
        assert self.residual is not None
        model, parts = self.fit.model, self.fit.parts
        own = phi[: model.model.n]
        inverses, q = residual_inverses(model.model, parts, own), np.zeros(len(self.x))
        rows, columns, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
        for meeting in meetings(parts, self.residual.subject, self.known, self.new.subject[self.known]):
            r = self.residual.covariances(own, meeting)
            a = (inverses[meeting.batch][meeting.pattern] @ r[:, :, None])[:, :, 0]
            q[meeting.new] = (a * r).sum(axis=1)
            rows.append(np.repeat(meeting.new, a.shape[1]))
            columns.append(meeting.rows.ravel())
            values.append(a.ravel())
        places = (np.concatenate(rows), np.concatenate(columns))
        shape = (len(self.x), self.fit.n)
        return sp.csr_array(sp.coo_array((np.concatenate(values), places), shape=shape)), q

    def _forms(self, solved: Any, x: Array, z: sp.csr_array) -> Array:
        """Equation (2) of every row (n,)."""
        equations, out = self.equations, np.empty(len(x))
        step = max(1, AT_ONCE // max(equations.m, 1))
        for at in range(0, len(x), step):
            piece = slice(at, at + step)
            w = equations.scaled(solved.factors, np.asarray(z[piece].todense()).T)
            g = x[piece] - w.T @ solved.U
            out[piece] = (w * equations.factor.solve(w)).sum(axis=0)
            out[piece] += np.einsum("ni,in->n", g, np.linalg.solve(solved.D, g.T)) if g.shape[1] else 0.0
        return out


def structured_targets(
    design: Design,
    core: PatternFit | EquationsFit,
    rows: NewDesign,
    masks: Sequence[NDArray[np.bool_]],
    new: NewRows,
    *,
    conditional: bool,
    observation: bool,
) -> UnitTargets | EquationTargets:
    """The quantities that a prediction of these rows aims at.

    Raises
    ------
    ModelError
        Effects of related levels are drawn anew.
    """
    assert rows.X is not None
    known, prior = effects_of(rows, masks, observation=observation)
    for term, z in zip(design.random, prior, strict=True):
        if term.relationship is not None and z.any():
            raise ModelError(
                f"a new level's effect of {term.group} depends on its relatives, and so does its variance: give known "
                'levels, and re_form="all" or interval="confidence"'
            )
    if isinstance(core, CrossedFit) and core.by_units is not None:
        core = core.by_units
    if isinstance(core, PatternFit):
        return UnitTargets(core, design.y, rows.X, known, prior, new, conditional=conditional, observation=observation)
    return EquationTargets(core, rows.X, known, prior, new, conditional=conditional, observation=observation)


@bounded
def structured_interval(
    design: Design,
    core: PatternFit | EquationsFit,
    newdata: Any,
    *,
    re_form: str,
    allow_new_levels: bool,
    residual: str,
    interval: str,
    level: float,
    ddf: str,
    theta_known: bool,
    weights: ArrayLike | None,
) -> pd.DataFrame:
    """Predictions with standard errors and intervals; see `StructuredResult.predict`."""
    check_asked(interval, ddf, level)
    conditional, observation = check_residual(design, residual), interval == "prediction"
    if core.unidentified is not None:
        raise ModelError(
            "intervals of predictions are not available where the data do not identify all variances; predict() "
            "without interval= gives the values"
        )
    masks = included_columns(design, re_form)
    rows = target_rows(
        design,
        newdata,
        masks,
        allow_new_levels=allow_new_levels,
        all_columns=observation,
        residual="known" if conditional else "variance" if observation else "none",
    )
    estimate = linear_predictor(rows, core, masks)
    if len(estimate) == 0:  # no row is complete
        return interval_table(rows, estimate, estimate, None, level, [])
    new = new_rows(design, rows, row_weights(design, weights, rows, newdata is None))
    if conditional:
        estimate = estimate + known_residuals(design, core, new)
    with one_blas_thread():
        target = structured_targets(design, core, rows, masks, new, conditional=conditional, observation=observation)
        phi = target.fit.all_phi
        variance = target.at(phi)[0]
        variance = np.where(variance < ROUNDING * target.fit.scale**2, 0.0, variance)
        df = None
        if ddf == "satterthwaite" or not theta_known:
            cov = information_of(target.fit).cov[: len(phi), : len(phi)]
            steps = STEP * np.maximum(1.0, np.abs(phi))
            degrees, moved = along_parameters(target.at, phi, steps, cov, variance, target.nu)
            df = np.where(variance > 0, degrees, np.inf) if ddf == "satterthwaite" else None
            variance = variance if theta_known else variance + 2.0 * moved * (variance > 0)
    return interval_table(rows, estimate, variance, df, level, undetermined(design, core, rows))
