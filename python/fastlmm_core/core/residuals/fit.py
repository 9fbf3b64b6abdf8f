"""Models whose units are independent: fitted from patterns, without random effects' equations.

    y_i ~ N(X_i beta, sigma^2 V_i(phi)),    V_i = R_i + sum_k Z_ik Sigma_k Z_ik'

Generalised least squares with an estimated covariance (SAS's REPEATED, mmrm, nlme's gls), and random effects whose
levels are the units.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.control import Control
from fastlmm_core.core.descent import Report, Search, minimise
from fastlmm_core.core.identifiability import Unidentified
from fastlmm_core.core.residuals.columns import residual_columns, sigma_ratio
from fastlmm_core.core.residuals.criterion import Evaluation, PatternCriterion
from fastlmm_core.core.residuals.model import Effects, ResidualModel, alike, only
from fastlmm_core.core.residuals.moments import Batch, batches
from fastlmm_core.core.residuals.residual import Residual
from fastlmm_core.core.residuals.start import best_scale, defined_start, pattern_start
from fastlmm_core.core.residuals.units import combine, outermost, places
from fastlmm_core.core.residuals.within import WithinSubjects
from fastlmm_core.core.structures.covariances import Covariance, Structure, lower_factor
from fastlmm_core.core.structures.projected import Projected, ProjectedFit, ProjectedModel
from fastlmm_core.core.structures.structured import check_parameters, structure_transform
from fastlmm_core.core.structures.unseen import unseen_by_patterns
from fastlmm_core.core.structures.vanishing import MOST_OF_PATTERNS, Limits, larger, scaled_search, without_residuals
from fastlmm_core.core.terms import Term
from fastlmm_core.core.theta import SINGULAR
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ModelError, NumericalError
from fastlmm_core.lazy import cached_property

__all__ = ["PatternFit", "PatternModel"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

NEARLY_REPEATED = 1e-8
"""Part of a row's variance beside the unit's other rows below which a second search looks for smaller residuals."""

WORTH_A_WARNING = 1e-2
"""What a second search that did not settle must lower the criterion by to be taken for one that did."""

LEAST_SHARE = 1e-13
"""Part of a row's variance beside the unit's other rows below which the criterion has no three digits left."""

LEAST_UNSETTLED = 1e-10
"""The same where a search could not settle: the criterion's rounding is then what it could not settle in."""


class PatternModel(ProjectedModel):
    """A model with independent units, without its response.

    Parameters
    ----------
    X : (n, p) or None
    residual : Residual
    terms : sequence of Term
        Random effects; levels and subjects lie within those of the coarsest of them, the units.
    weights : (n,), optional
        Positive; the residual variance of row i is divided by weights[i].
    offset : (n,), optional
    reml : bool
    control : Control, optional
    structures : sequence of Structure, optional
        Of the terms; what their `cov` says by default.

    Raises
    ------
    DataError, ModelError
        Wrong lengths, values that are not finite, weights that are not positive, too few rows, no common units.
    """

    def __init__(
        self,
        X: ArrayLike | None,
        residual: Residual,
        terms: Sequence[Term] = (),
        *,
        weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        reml: bool = True,
        control: Control | None = None,
        structures: Sequence[Structure] | None = None,
    ) -> None:
        self.residual, self.terms = residual, tuple(terms)
        self.structures = tuple(Structure(t.cov) for t in terms) if structures is None else tuple(structures)
        self._found: dict[str, Unidentified | None] = {}
        super().__init__(X, len(residual.subject), weights, offset, reml, control)
        self._model()

    def _model(self) -> None:
        """R as a function of phi, and the cells that tell rows apart."""
        residual = self.residual
        columns = residual_columns(residual)
        self.n_variances, self.center, self.unit_of = columns.n_variances, columns.center, columns.unit_of
        cell, size, log_sd = columns.cell, columns.size, columns.log_sd
        effects: list[Effects] = []
        self.transforms: list[Array] = []
        for term, structure in zip(self.terms, self.structures, strict=True):
            covariance = structure.covariance(term.n_columns)
            transform = structure_transform(term, covariance, self.root)
            self.transforms.append(transform)
            z = np.ones((self.n, 1)) if term.z is None else term.z @ transform
            z = z if self.root is None else z * self.root[:, None]
            for j in range(z.shape[1]):
                cell, size = combine(cell, size, z[:, j])
            effects.append(Effects(z, covariance))
        codes = [term.codes for term in self.terms] + [residual.subject]
        of_unit = outermost(codes)
        if of_unit is None:
            raise ModelError("random effects beside a residual structure need levels and subjects within one factor")
        unit = codes[of_unit].astype(np.int64)
        inner = []
        for k, code in enumerate(codes):
            within = None if k == of_unit else places(unit, code)
            inner.append(None if within is None else code)
            if within is not None:
                cell, size = combine(*within, cell)
        *levels, subject = inner
        effects = [replace(e, level=level) for e, level in zip(effects, levels, strict=True)]
        self.unit, self.cell, self.n_cells = unit, cell, size
        # rows without a structure are each a position of their own, though any two with equal columns are alike
        positions = np.arange(self.n) if residual.kind == "none" else residual.cells
        self.model = ResidualModel(residual.shape(), positions, log_sd, effects, subject)

    def prepare(self, y: ArrayLike) -> tuple[PatternCriterion, Projected]:
        """The criterion of a response (n,), with what brings it back."""
        projected = self.project(y)
        parts = batches(self.unit, self.cell, self.n_cells, np.column_stack([self.Q, projected.rest]))
        constant = self.constant(self.n - self.rank if self.reml else self.n, projected.norm)
        return PatternCriterion(self.model, parts, self.n, self.rank, self.reml, constant), projected

    def fit(self, y: ArrayLike, *, start: ArrayLike | None = None, on_evaluation: Report | None = None) -> PatternFit:
        """Fit a response (n,).

        Parameters
        ----------
        y : (n,)
        start : (r,), optional
            Parameters as `PatternFit.theta`.
        on_evaluation : callable, optional
            Called with (number, theta, criterion, gradient norm, radius) for each evaluation, afterwards.

        Raises
        ------
        DataError, ModelError
        NumericalError
            The covariance is not positive definite at the start.
        """
        with one_blas_thread():
            criterion, projected = self.prepare(y)
            if start is None:
                first = pattern_start(self.model, self.residual, projected.norm * projected.rest)
                first = best_scale(criterion, defined_start(criterion, first))
            else:
                first = self.to_working(np.asarray(start, np.float64))
            found = minimise(criterion, first, **self.limits)
            if start is None and self.terms and (share := criterion.share_left(found.x)) < NEARLY_REPEATED:
                with suppress(NumericalError):  # where that is no start, there is the first search
                    other = self.search_again(criterion, share)
                    gain = found.point.value - other.point.value
                    found = other if gain > (0.0 if other.converged else WORTH_A_WARNING) else found
            if start is None:
                found = without_residuals(
                    criterion, found, self.of_terms, most=MOST_OF_PATTERNS, exact=True, **self.limits
                )
            refuse_repeated(criterion, found)
            found = self.canonical(criterion, found)
            found.report(on_evaluation, self.to_user)
            return self._estimates(criterion, found, projected)

    def at_estimates(self, y: ArrayLike, theta: Array) -> PatternFit:
        """The fit of a response (n,) whose parameters (r,), as `PatternFit.theta`, another engine has found."""
        with one_blas_thread():
            criterion, projected = self.prepare(y)
            phi = self.to_working(theta)
            return self._estimates(criterion, Search(criterion(phi), phi, True, "converged"), projected)

    def search_again(self, criterion: PatternCriterion, share: float) -> Search[Evaluation]:
        """Search from effects that leave a share of the variance to residuals, in units of their size.

        Where residuals are small beside the effects, slopes along the effects' parameters are too small for the first
        search to see, and correlations near one make a valley that rounding ends.
        """
        phi = larger(self.model.start(), self.of_terms, 1.0 / np.sqrt(share))
        return scaled_search(criterion, phi, self.of_terms, exact=True, **self.limits)

    @property
    def of_terms(self) -> list[tuple[Covariance, slice]]:
        """Covariance of each random-effects term, and its place among the parameters."""
        return [(e.covariance, where) for e, where in zip(self.model.effects, self.model.of_effects, strict=True)]

    @property
    def limits(self) -> Limits:
        """Of searches."""
        return {"tol": self.control.tol, "max_evaluations": self.control.max_evaluations}

    def unseen(self, criterion: PatternCriterion) -> Unidentified | None:
        """What the criterion does not see of the parameters, whatever the response: looked for once."""
        if "unseen" not in self._found:
            self._found["unseen"] = unseen_by_patterns(criterion)
        return self._found["unseen"]

    def canonical(self, criterion: PatternCriterion, found: Search[Evaluation]) -> Search[Evaluation]:
        """Signs of the factors' columns such that diagonals are not negative; all but zero ones are set to zero."""
        x = found.point.phi.copy()
        for term, where in zip(self.model.effects, self.model.of_effects, strict=True):
            x[where] = term.covariance.canonical(x[where], SINGULAR)
        if (x != found.point.phi).any():
            try:
                there = criterion(x)
            except NumericalError:
                return found
            if there.value <= found.point.value + 1e-9 + 1e-12 * abs(found.point.value):
                return Search(there, x, found.converged, found.message, found.log)
        return found

    def to_user(self, phi: Array) -> Array:
        """Parameters in the user's units: log standard deviations per unit of a column, entries of L for z as given."""
        out = phi.copy()
        out[self.model.of_sd] /= self.unit_of
        for term, T, where in zip(self.model.effects, self.transforms, self.model.of_effects, strict=True):
            out[where] = term.covariance.rescaled(phi[where], T * self._sigma_ratio(out[self.model.of_sd]))
        return out

    def to_working(self, theta: Array) -> Array:
        """The inverse of `to_user`."""
        check_parameters(theta, self.model.n)
        out = theta.copy()
        out[self.model.of_sd] *= self.unit_of
        for term, T, where in zip(self.model.effects, self.transforms, self.model.of_effects, strict=True):
            back = np.asarray(np.linalg.inv(T), np.float64) / self._sigma_ratio(theta[self.model.of_sd])
            out[where] = term.covariance.rescaled(theta[where], back)
        return out

    def _sigma_ratio(self, eta: Array) -> float:
        """Working sigma over the user's: centred columns have their origin elsewhere."""
        return sigma_ratio(self.center, eta)

    def _estimates(self, criterion: PatternCriterion, found: Search[Evaluation], projected: Projected) -> PatternFit:
        point = found.point
        theta = self.to_user(point.phi)
        working = projected.norm * np.sqrt(point.r2 / point.nu)
        singular = any(
            term.covariance.is_singular(point.phi[where], SINGULAR)
            for term, where in zip(self.model.effects, self.model.of_effects, strict=True)
        )
        return PatternFit(
            theta=theta,
            beta=self.coefficients(projected, point.beta),
            sigma=float(working / self._sigma_ratio(theta[self.model.of_sd])),
            criterion=point.value,
            reml=self.reml,
            n=self.n,
            rank=self.rank,
            is_singular=singular,
            converged=found.converged,
            message=found.message,
            control=self.control,
            unidentified=self.unseen(criterion),
            _solution=None,
            model=self,
            parts=criterion.parts,
            point=point,
            working=float(working),
            response=projected.response,
            evaluations=[(self.to_user(x), value, size, radius) for x, value, size, radius in found.log],
        )


def refuse_repeated(criterion: PatternCriterion, found: Search[Evaluation]) -> None:
    """NumericalError where a search ended with rows of a unit so alike that double precision has lost the criterion."""
    share = criterion.share_left(found.x)
    if share < (LEAST_SHARE if found.converged else LEAST_UNSETTLED):
        raise NumericalError(
            "the rows of a subject, or of a level of the random effects, all but determine one another: what is "
            f"left is {np.sqrt(share):.1g} of their standard deviation, and double precision leaves the residuals' "
            "covariance too few digits. Fit one row a level, or the means"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class PatternFit(WithinSubjects, ProjectedFit):
    """A fitted model with independent units, as a `CoreFit` whose figures come from the patterns.

    Attributes
    ----------
    theta : (r,)
        Covariance parameters: log standard deviations relative to sigma, the shape's unconstrained parameters,
        entries of the random effects' relative factors.
    sigma : float
        Standard deviation of the first variance (of a row of weight 1).
    model : PatternModel
    parts : list of Batch
    point : Evaluation
        At the optimum, in working coordinates.
    working : float
        Sigma in working coordinates.
    """

    lacks = "not available for a model with a residual structure, which has no random effects' equations"
    model: PatternModel = field(repr=False)
    parts: list[Batch] = field(repr=False)
    point: Evaluation = field(repr=False)
    working: float = field(repr=False)

    @property
    def residual_phi(self) -> Array:
        """Parameters (r,), working coordinates; the random effects' too."""
        return self.point.phi

    @property
    def all_phi(self) -> Array:
        """All parameters, working coordinates."""
        return self.point.phi

    @property
    def effects(self) -> list[tuple[Covariance, Array, slice]]:
        """Covariance, transform and place among the parameters of each random-effects term."""
        model = self.model.model
        return [
            (e.covariance, T, where)
            for e, T, where in zip(model.effects, self.model.transforms, model.of_effects, strict=True)
        ]

    @property
    def scale(self) -> float:
        """Sigma in working coordinates."""
        return self.working

    @cached_property
    def half(self) -> Array:
        """H (rank, rank) with Cov(beta) = H H' for the columns kept."""
        root = np.linalg.cholesky(self.point.Phi) if self.rank else np.zeros((0, 0))
        return np.asarray(self.working * self.model.inverse @ root)

    @cached_property
    def L(self) -> tuple[Array, ...]:
        """Relative covariance factor of each random-effects term, tuple of (l, l)."""
        model = self.model.model
        return tuple(
            lower_factor(e.covariance.sigma(self.theta[where]))
            for e, where in zip(model.effects, model.of_effects, strict=True)
        )

    @cached_property
    def inverses(self) -> list[Array]:
        """V^-1 (k, m, m) of each batch's patterns, relative to `working`^2, weights taken out of the rows."""
        criterion = PatternCriterion(self.model.model, self.parts, self.n, self.rank, self.reml, 0.0)
        return [P for P, _ in criterion.inverses(self.point.phi)[0]]

    def solve(self, columns: Array, within: NDArray[np.integer[Any]] | None = None) -> Array:
        """V^-1 times columns (n, c), V relative to `working`^2 and with the weights; pairs of equal `within` alone."""
        root = self.model.root
        scaled = columns if root is None else columns * root[:, None]
        out = np.empty_like(scaled)
        for part, P in zip(self.parts, self.inverses, strict=True):
            out[part.units] = only(P[part.pattern], alike(within, part.units)) @ scaled[part.units]
        return out if root is None else out * root[:, None]

    @cached_property
    def solved(self) -> Array:
        """V^-1 (y - X beta), (n,)."""
        return self.solve((self.response - self.linear)[:, None])[:, 0]

    @cached_property
    def b(self) -> tuple[Array, ...]:
        """Conditional modes of each random-effects term, tuple of (q, l)."""
        out = []
        ratio = self.working / self.sigma
        for term, L in zip(self.model.terms, self.L, strict=True):
            z = np.ones((self.n, 1)) if term.z is None else term.z
            assert term.n_levels is not None
            sums = np.zeros((term.n_levels, z.shape[1]))
            np.add.at(sums, term.codes, z * self.solved[:, None])
            out.append(sums @ (L @ L.T).T / ratio**2)
        return tuple(out)

    @cached_property
    def fitted(self) -> Array:
        """X beta + Z b + offset, (n,)."""
        return self.with_modes(self.model.terms)

    def cond_var(self) -> tuple[Array, ...]:
        """Conditional covariance Var(b | y) of each level of each term, tuple of (q, l, l)."""
        out = []
        ratio = self.working / self.sigma
        for term, L in zip(self.model.terms, self.L, strict=True):
            z = np.ones((self.n, 1)) if term.z is None else term.z
            l, S = z.shape[1], L @ L.T / ratio**2
            assert term.n_levels is not None
            inner = np.zeros((term.n_levels, l, l))
            # the columns of one level only, at once for all levels
            moved = self.solve(z, term.codes)
            np.add.at(inner, term.codes, z[:, :, None] * moved[:, None, :])
            out.append(self.working**2 * (S - S @ inner @ S))
        return tuple(out)
