"""Models with a residual structure beside any random effects: crossed, of large levels, related, sparse fixed effects.

Where levels and subjects lie within units of moderate size `core.residuals.fit` is the engine; here are all others.
Parameters are (eta, psi) of the residuals as there, then those of the terms' structures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.control import Control
from fastlmm_core.core.residuals.columns import residual_columns, sigma_ratio
from fastlmm_core.core.residuals.criterion import PatternCriterion
from fastlmm_core.core.residuals.equations import ResidualEquations
from fastlmm_core.core.residuals.fit import PatternFit, PatternModel
from fastlmm_core.core.residuals.model import ResidualModel
from fastlmm_core.core.residuals.moments import Batch, batches
from fastlmm_core.core.residuals.residual import Residual
from fastlmm_core.core.residuals.start import defined_start, pattern_start
from fastlmm_core.core.residuals.units import LARGE_UNIT, outermost
from fastlmm_core.core.residuals.within import WithinSubjects
from fastlmm_core.core.structures.covariances import Structure
from fastlmm_core.core.structures.equations import Equations, Solved
from fastlmm_core.core.structures.equations_fit import EquationsFit, EquationsModel, Place
from fastlmm_core.core.structures.projected import Projected
from fastlmm_core.core.structures.relationship import Known
from fastlmm_core.core.structures.structured import check_parameters, factor_derivatives
from fastlmm_core.core.terms import Term
from fastlmm_core.lazy import cached_property

__all__ = ["CrossedFit", "CrossedModel"]

Array = NDArray[np.float64]


class CrossedModel(EquationsModel):
    """A model without its response.

    Parameters
    ----------
    X : (n, p) or None
    residual : Residual
    terms, structures, relationships, sparse, weights, offset, reml, control
        As of `EquationsModel`.
    """

    rotates = False

    def __init__(
        self,
        X: ArrayLike | None,
        residual: Residual,
        terms: Sequence[Term],
        structures: Sequence[Structure],
        relationships: Sequence[Known | None],
        sparse: Sequence[Term] = (),
        *,
        weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        reml: bool = True,
        control: Control | None = None,
    ) -> None:
        self.residual, self.structures = residual, tuple(structures)
        columns = residual_columns(residual)
        self.columns, self.n_variances = columns, columns.n_variances
        self.center, self.unit_of = columns.center, columns.unit_of
        positions = np.arange(len(residual.subject)) if residual.kind == "none" else residual.cells
        self.model = ResidualModel(residual.shape(), positions, columns.log_sd, (), residual.subject)
        super().__init__(
            X,
            terms,
            structures,
            relationships,
            sparse,
            weights=weights,
            offset=offset,
            reml=reml,
            control=control,
        )
        # the residual's parameters come first
        r = self.model.n
        self.slices = [slice(r + w.start, r + w.stop) for w in self.slices]
        self.n_parameters += r

    @property
    def kind(self) -> type[EquationsFit]:
        """What a fit is."""
        return CrossedFit

    def in_units(self) -> PatternModel | None:
        """The same model of independent units; None where levels cross, are large, related, or beside sparse effects.

        An evaluation of it is dear where this engine was taken, but the inference that needs V^-1 of a unit does one.
        """
        residual = self.residual
        codes = [t.codes for t in self.terms] + ([] if residual.kind == "none" and self.terms else [residual.subject])
        outer = outermost(codes)
        if outer is None or self.sparse or any(r is not None for r in self.relationships):
            return None
        sizes = np.bincount(codes[outer]).astype(np.float64)
        copies = 8 * (self.n_parameters + 4)  # of V^-1 and its derivatives
        if sizes.max() > LARGE_UNIT or copies * float(np.square(sizes).sum()) > self.control.n_bytes:
            return None
        return PatternModel(
            self.X,
            residual,
            self.terms,
            weights=None if self.root is None else np.square(self.root),
            offset=self.offset,
            reml=self.reml,
            control=self.control,
            structures=self.structures,
        )

    def parts(self, D: Array) -> list[Batch]:
        """Patterns of the subjects with sums of D (n, d)."""
        return batches(self.residual.subject.astype(np.int64), self.columns.cell, self.columns.size, D)

    def equations(self, rest: Array) -> ResidualEquations:
        """The equations of what X leaves of a response (n,)."""
        return ResidualEquations(
            self.model,
            self.parts(np.column_stack([self.Q, rest])),
            self._conditioned(),
            self.relationships,
            len(self.sparse),
            self.root,
            self.Q,
            rest,
            self.reml,
            self.control.n_threads,
            self.control.n_bytes,
        )

    def start(self, projected: Projected) -> Array:
        """Working parameters (r,) of the first evaluation."""
        first = pattern_start(self.model, self.residual, projected.norm * projected.rest)
        criterion = PatternCriterion(self.model, self.parts(projected.rest[:, None]), self.n, 0, self.reml, 0.0)
        return np.concatenate([defined_start(criterion, first), super().start(projected)])

    def general_start(self) -> Array:
        """Parameters (r,) whatever the response."""
        return np.concatenate([self.model.start(), super().general_start()])

    def residual_images(self, phi: Array) -> Callable[[Array], Array]:
        """What R, at phi, and its derivatives make of columns: (n, c) -> (1 + number of these, n, c)."""
        r, parts = self.model.n, self.parts(np.ones((self.n, 1)))
        found = [self.model.values(phi[:r], self.model.prepare(part.rows)) for part in parts]

        def images(columns: Array) -> Array:
            out = np.empty((r + 1, *columns.shape))
            for part, (R, S) in zip(parts, found, strict=True):
                rows = columns[part.units]
                out[0, part.units] = R[part.pattern] @ rows
                for a in range(r):
                    out[a + 1, part.units] = S[:, :, a][part.pattern] @ rows
            return out

        return images

    def solve(self, equations: Equations, phi: Array) -> Solved:
        """The equations at phi (r,), working coordinates."""
        assert isinstance(equations, ResidualEquations)
        _, _, logdet = equations.at_residual(phi[: self.model.n])
        found = equations.solve(self.factors(phi))
        return replace(found, value=found.value + logdet)

    def at(self, equations: Equations, phi: Array, constant: float = 0.0) -> Place:
        """Criterion, gradient and model of the Hessian at phi (r,), working coordinates."""
        assert isinstance(equations, ResidualEquations)
        r, p, model = self.model.n, self.rank, self.model
        inverses, changes, logdet = equations.at_residual(phi[:r])
        parts = [factor_derivatives(c, phi[where]) for c, where in zip(self.covariances, self.slices, strict=True)]
        solved = equations.solve([L for L, _, _ in parts])
        solved = replace(solved, value=solved.value + logdet)
        g = equations.images(solved, [(k, dL) for k, (_, first, _) in enumerate(parts) for dL in first])
        Zr, Xr, along, products = equations.moved(solved, inverses, changes)
        Cg = equations.C @ g
        within = np.block([[np.zeros((r, r)), Zr.T @ g], [g.T @ Zr, g.T @ Cg]])
        for P, S, turned, K in (
            zip(
                inverses,
                changes,
                map(list, zip(*products, strict=True)),
                equations.residuals_adjoint(solved),
                strict=True,
            )
            if r
            else ()
        ):
            for a in range(r):
                for b in range(a + 1):
                    within[a, b] = within[b, a] = within[a, b] + np.sum((turned[a] @ S[:, :, b] @ P) * K)
        hessian = equations.average(
            solved,
            within,
            np.column_stack([Zr, Cg]),
            np.column_stack([Xr, equations.ZE[:, :p].T @ g]),
            np.concatenate([along, g.T @ solved.residual]),
        )
        gradient = np.zeros(self.n_parameters)
        inverse = equations.inverse_on_blocks(solved)
        self._of_factors(parts, equations.gradients(solved, inverse), gradient, hessian)
        weights = []
        for part, P, S, K in zip(
            equations.fold.parts, inverses, changes, equations.products_adjoint(solved, inverse), strict=True
        ):
            G = part.counts[:, None, None] * P - P @ K @ P
            gradient[:r] += np.einsum("kst,ksat->a", G, S, optimize=True)
            weights.append(G)
        hessian[:r, :r] += model.curvature(phi[:r], equations.prepared, weights)
        return Place(solved.value + constant, gradient, 0.5 * (hessian + hessian.T), solved)

    def to_user(self, phi: Array) -> Array:
        """Parameters in the user's units: log standard deviations per unit of a column, and for z as given."""
        out = phi.copy()
        out[self.model.of_sd] /= self.unit_of
        for c, T, where in zip(self.covariances, self.transforms, self.slices, strict=True):
            out[where] = c.rescaled(phi[where], T * self.sigma_ratio(phi))
        return out

    def to_working(self, phi: Array) -> Array:
        """The inverse of `to_user`."""
        check_parameters(phi, self.n_parameters)
        out = phi.copy()
        out[self.model.of_sd] *= self.unit_of
        for c, T, where in zip(self.covariances, self.transforms, self.slices, strict=True):
            out[where] = c.rescaled(phi[where], np.asarray(np.linalg.inv(T), np.float64) / self.sigma_ratio(out))
        return out

    def sigma_ratio(self, phi: Array) -> float:
        """Working sigma over the user's: centred columns have their origin elsewhere."""
        return sigma_ratio(self.center, phi[self.model.of_sd] / self.unit_of)


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossedFit(EquationsFit, WithinSubjects):
    """A fitted model with a residual structure, as a `CoreFit` whose figures come from the mixed-model equations."""

    lacks = "not available for a model with a residual structure, which has other equations"
    model: CrossedModel = field(repr=False)

    @property
    def residual_phi(self) -> Array:
        """Residual parameters (r,), working coordinates."""
        return self.working[: self.model.model.n]

    @cached_property
    def parts(self) -> list[Batch]:  # type: ignore[override]
        """Patterns of the subjects."""
        return self.model.parts(np.ones((self.n, 1)))

    @property
    def by_units(self) -> PatternFit | None:
        """The same fit from the covariance matrices of whole units, kept; None where `CrossedModel.in_units` is."""
        if "by_units" not in self.kept:
            model, offset = self.model.in_units(), self.model.offset
            y = self.response if offset is None else self.response + offset
            self.kept["by_units"] = None if model is None else model.at_estimates(y, self.theta)
        found: PatternFit | None = self.kept["by_units"]
        return found

    def equations(self) -> ResidualEquations:
        """The model's equations with this response, made again, at the estimates."""
        found = super().equations()
        assert isinstance(found, ResidualEquations)
        found.at_residual(self.residual_phi)
        return found
