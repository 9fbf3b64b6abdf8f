"""Models fitted from the mixed-model equations: relationships between levels, sparse fixed effects, any structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.conditioning import condition_columns
from fastlmm_core.core.control import Control
from fastlmm_core.core.descent import Report, Search
from fastlmm_core.core.estimability import NullSpace
from fastlmm_core.core.identifiability import Unidentified
from fastlmm_core.core.iterative.choice import SMALL
from fastlmm_core.core.structures.covariances import Covariance, Entries, Structure
from fastlmm_core.core.structures.equations import Equations, Factor, Solved, level_columns
from fastlmm_core.core.structures.fixed_space import FixedSpace
from fastlmm_core.core.structures.probed_factor import ProbedFactor
from fastlmm_core.core.structures.projected import Projected, ProjectedFit, ProjectedModel
from fastlmm_core.core.structures.relationship import Known, KnownCovariance
from fastlmm_core.core.structures.rotated import RotatedEquations, Rotation
from fastlmm_core.core.structures.sparse_factor import OutOfReach, SparseFactor
from fastlmm_core.core.structures.structured import TermStructures, factor_derivatives
from fastlmm_core.core.structures.unseen import unseen_by_equations
from fastlmm_core.core.terms import Term
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import MemoryLimitError
from fastlmm_core.lazy import cached_property

__all__ = ["EquationsFit", "EquationsModel"]

Array = NDArray[np.float64]
Parts = tuple[Array, Array, Callable[[Array], Array]]

DEPENDENT = 1e-9
"""Squared norm of what the sparse columns leave of a column of X, relative to its own, that makes it dependent."""

REACH = 4.0
"""Predicted seconds of an evaluation on one core above which an exact fit is out of reach. Probes of these equations
cost a tenth of the factor then, and their errors are a hundredth of a standard error."""

LIFT = 1e-3
"""Added to the diagonal of a factor that is inverted for the curvature of Sigma = L L', a model only."""


@dataclass(frozen=True, eq=False)
class Place:
    """The criterion at one phi, for the optimiser."""

    value: float
    gradient: Array
    hessian: Array
    solved: Solved


class EquationsModel(ProjectedModel, TermStructures):
    """A model without its response.

    Parameters
    ----------
    X : (n, p) or None
    terms : sequence of Term
        Random effects; codes are places in the relationship's levels where a term has one.
    structures : sequence of Structure
    relationships : sequence of Relationship, KnownCovariance or None
    sparse : sequence of Term
        Fixed effects with a coefficient a level; a row whose z is zero belongs to a reference level.
    weights, offset, reml, control
        As in `Model`.
    """

    rotates: ClassVar[bool] = True
    """Whether one dense covariance of an intercept may be rotated away: residuals are independent."""

    def __init__(
        self,
        X: ArrayLike | None,
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
        n = len(terms[0].codes) if terms else len(sparse[0].codes)
        self.terms, self.sparse, self.relationships = tuple(terms), tuple(sparse), tuple(relationships)
        self._found: dict[str, tuple[Unidentified | None, tuple[NDArray[np.bool_], ...]]] = {}
        TermStructures.__init__(self, self.terms, structures)
        absorbed = sum(int(t.n_levels or 0) for t in self.sparse)
        ProjectedModel.__init__(self, X, n, weights, offset, reml, control, absorbed)

    def independent_columns(self) -> tuple[NDArray[np.int64], Array, NullSpace | None]:
        """As `ProjectedModel.independent_columns`, besides the sparse ones."""
        found = super().independent_columns()
        if not self.sparse:
            return found
        outer = found[0]
        X = self.X[:, outer] if self.root is None else self.X[:, outer] * self.root[:, None]
        X = X / np.maximum(np.sqrt(np.square(X).sum(axis=0)), 1e-300)
        left = X.T @ FixedSpace(self.sparse, self.root, X).rest
        chosen: list[int] = []
        for j in range(X.shape[1]):
            rest = left[j, j]
            if chosen:
                rest -= left[j, chosen] @ np.linalg.solve(left[np.ix_(chosen, chosen)], left[chosen, j])
            if rest > DEPENDENT:
                chosen.append(j)
        keep = outer[chosen]
        inner, r, space = condition_columns(self.X[:, keep], self.root)
        return keep[inner], r, space

    @property
    def kind(self) -> type[EquationsFit]:
        """What a fit is."""
        return EquationsFit

    def sigma_ratio(self, phi: Array) -> float:
        """Sigma of working coordinates over the user's."""
        return 1.0

    def _conditioned(self) -> list[Term]:
        out = []
        for term, T in zip(self.terms, self.transforms, strict=True):
            out.append(Term(term.codes, None if term.z is None else term.z @ T, n_levels=term.n_levels))
        return [*out, *self.sparse]

    @cached_property
    def rotation(self) -> Rotation | None:
        """Of a model of one random intercept or slope, related by a dense covariance, and nothing beside it."""
        if not self.rotates or len(self.terms) != 1 or self.sparse or self.terms[0].n_columns != 1:
            return None
        known = self.relationships[0]
        if not isinstance(known, KnownCovariance):
            return None
        return Rotation.of(level_columns(self._conditioned()[0], self.root), known)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "rotation"}

    def equations(self, rest: Array) -> Equations:
        """The equations of what X leaves of a response (n,)."""
        if self.rotation is not None:
            term = self._conditioned()[0]
            return RotatedEquations(self.rotation, term, self.root, self.Q, rest, self.reml)
        return Equations(
            self._conditioned(),
            self.relationships,
            len(self.sparse),
            self.root,
            self.Q,
            rest,
            self.reml,
            self.make_factor,
        )

    @property
    def iterates(self) -> bool:
        """Whether a fit goes without a factor where none is within reach."""
        plain = all(isinstance(c, Entries) and c.n in (c.l, c.l * (c.l + 1) // 2) for c in self.covariances)
        return self.rotates and plain and self.control.engine in ("auto", "iterative")

    def make_factor(self, m: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Factor:
        """The factor of a pattern, or what stands in for it."""
        control, reason = self.control, "it was asked for"
        if control.engine != "iterative":
            reach = REACH if self.iterates and control.engine == "auto" and m > SMALL else np.inf
            try:
                return SparseFactor(m, rows, columns, control.n_threads, control.n_bytes, reach)
            except OutOfReach as error:
                reason = str(error)
            except MemoryLimitError as error:
                if not self.iterates or control.engine != "auto":
                    raise
                reason = str(error).split(":")[0]
        return ProbedFactor(m, rows, columns, control.seed, reason)

    def fit(self, y: ArrayLike, *, start: ArrayLike | None = None, on_evaluation: Report | None = None) -> EquationsFit:
        """Fit a response (n,); `start` and what `on_evaluation` gets are `EquationsFit.theta`'s."""
        with one_blas_thread():
            projected = self.project(y)
            equations = self.equations(projected.rest)
            constant = self.constant(equations.nu, projected.norm)
            first = self.start(projected) if start is None else self.to_working(np.asarray(start, np.float64))
            if not equations.factor.exact:
                from fastlmm_core.core.structures.iterative import iterate

                began = None if start is None else np.array(start, np.float64)
                return replace(iterate(self, equations, first, projected, constant, on_evaluation), began=began)
            found = self.search(lambda phi: self.at(equations, phi, constant), first, limit=start is None)
            found.report(on_evaluation, self.to_user)
            return self._estimates(equations, found, projected, constant)

    def start(self, projected: Projected) -> Array:
        """Working parameters (r,) of the first evaluation."""
        starts = (0.5 * c.start() if c.keeps == "lower" else c.start() for c in self.covariances)
        return np.concatenate([np.zeros(0), *starts])

    def general_start(self) -> Array:
        """Parameters (r,) whatever the response."""
        return np.concatenate([np.zeros(0), *(c.start() for c in self.covariances)])

    def residual_images(self, phi: Array) -> Callable[[Array], Array]:
        """What R, at phi, and its derivatives make of columns: (n, c) -> (1 + number of these, n, c)."""
        return lambda columns: columns[None]

    def solve(self, equations: Equations, phi: Array) -> Solved:
        """The equations at phi (r,), working coordinates."""
        return equations.solve(self.factors(phi))

    def unseen(self, equations: Equations) -> tuple[Unidentified | None, tuple[NDArray[np.bool_], ...]]:
        """What the criterion does not see, whatever the response, and sparse levels (q,) that depend on it."""
        if "unseen" not in self._found:
            self._found["unseen"] = unseen_by_equations(self, equations)
        return self._found["unseen"]

    def effects_of(self, u: Array) -> list[Array]:
        """Solutions u (m,) as u (q, l) of each term, the sparse ones last: b = u L'."""
        if self.rotation is not None:
            return [self.rotation.to_levels(u[:, None])]
        out, at = [], 0
        for term in (*self.terms, *self.sparse):
            q, l = int(term.n_levels or 0), term.n_columns
            out.append(u[at : at + q * l].reshape(q, l))
            at += q * l
        return out

    def factors(self, phi: Array) -> list[Array]:
        """L (l, l) of each term in working coordinates."""
        return [factor_derivatives(c, phi[where])[0] for c, where in zip(self.covariances, self.slices, strict=True)]

    def at(self, equations: Equations, phi: Array, constant: float = 0.0) -> Place:
        """Criterion, gradient and model of the Hessian at phi (r,), working coordinates."""
        parts = [factor_derivatives(c, phi[where]) for c, where in zip(self.covariances, self.slices, strict=True)]
        solved = equations.solve([L for L, _, _ in parts])
        directions = [(k, dL) for k, (_, first, _) in enumerate(parts) for dL in first]
        hessian = equations.information(solved, directions)
        gradient = np.empty(self.n_parameters)
        self._of_factors(parts, equations.gradients(solved), gradient, hessian)
        return Place(solved.value + constant, gradient, 0.5 * (hessian + hessian.T), solved)

    def _of_factors(self, parts: Sequence[Parts], gradients: Sequence[Array], gradient: Array, hessian: Array) -> None:
        """Write the terms' share of the gradient, and add the curvature of their factors to the Hessian's model."""
        for (_, first, _), g, where in zip(parts, gradients, self.slices, strict=True):
            gradient[where] = np.einsum("aij,ij->a", first, g)
        self.add_curvature(parts, gradients, hessian)

    def add_curvature(self, parts: Sequence[Parts], gradients: Sequence[Array], hessian: Array) -> None:
        """Add the curvature of the terms' factors to the Hessian's model; ``gradients`` are matrices (l, l)."""
        for (L, first, contract), g, where in zip(parts, gradients, self.slices, strict=True):
            hessian[where, where] += contract(np.tril(g))
            lifted = L + np.diag(np.where(L.diagonal() < 0.0, -LIFT, LIFT))  # away from zero: L may have any sign
            G = 0.5 * g @ np.linalg.inv(lifted)
            hessian[where, where] += np.einsum("aik,ij,bjk->ab", first, G + G.T, first, optimize=True)

    def _estimates(
        self, equations: Equations, found: Search[Place], projected: Projected, constant: float
    ) -> EquationsFit:
        phi = self.canonical(found.x)
        same = bool((phi == found.x).all())
        solved = found.point.solved if same else self.solve(equations, phi)
        if solved.value + constant > found.point.value + 1e-9 + 1e-12 * abs(found.point.value):
            phi, solved = found.x, found.point.solved
        figures = self.figures(equations, phi, solved, projected, constant)
        log = [(self.to_user(x), value, size, radius) for x, value, size, radius in found.log]
        return self.kind(**figures, converged=found.converged, message=found.message, evaluations=log)

    def figures(
        self, equations: Equations, phi: Array, solved: Solved, projected: Projected, constant: float
    ) -> dict[str, Any]:
        """What a fit has of the equations at phi (r,), working coordinates."""
        unidentified, blind = self.unseen(equations)
        return {
            "theta": self.to_user(phi),
            "beta": self.coefficients(projected, solved.beta),
            "sigma": float(projected.norm * np.sqrt(solved.r2 / equations.nu)) / self.sigma_ratio(phi),
            "criterion": solved.value + constant,
            "reml": self.reml,
            "n": self.n,
            "rank": self.rank,
            "is_singular": self.is_singular(phi),
            "control": self.control,
            "unidentified": unidentified,
            "blind": blind,
            "_solution": None,
            "model": self,
            "working": phi,
            "norm": projected.norm,
            "solved": solved,
            "response": projected.response,
            "constant": constant,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class EquationsFit(ProjectedFit):
    """A fitted model, as a `CoreFit` whose figures come from the mixed-model equations.

    Attributes
    ----------
    theta : (r,)
        Parameters of the structures.
    model : EquationsModel
    working : (r,)
        The same in working coordinates.
    norm : float
        Of the response's residual on X.
    solved : Solved
    """

    lacks = "not available for a model with known relationships or sparse fixed effects"
    model: EquationsModel = field(repr=False)
    working: Array = field(repr=False)
    norm: float = field(repr=False)
    solved: Solved = field(repr=False)
    constant: float = field(repr=False)
    blind: tuple[NDArray[np.bool_], ...] = field(repr=False)

    @property
    def n_parameters(self) -> int:
        """Covariance parameters, sigma apart, and the coefficients of sparse fixed effects."""
        return len(self.theta) + sum(int(t.n_levels or 0) for t in self.model.sparse)

    def equations(self) -> Equations:
        """The model's equations with this response, made again."""
        return self.model.equations(self.model.split(self.response)[1] / self.norm)

    @cached_property
    def half(self) -> Array:
        """H (rank, rank) with Cov(beta) = H H' for the columns kept."""
        root = np.linalg.inv(np.linalg.cholesky(self.solved.D)).T if self.rank else np.zeros((0, 0))
        return np.asarray(self.scale * self.model.inverse @ root)

    @property
    def scale(self) -> float:
        """Sigma of working coordinates."""
        return self.sigma * self.model.sigma_ratio(self.working)

    @property
    def all_phi(self) -> Array:
        """All parameters, working coordinates."""
        return self.working

    @property
    def effects(self) -> list[tuple[Covariance, Array, slice]]:
        """Covariance, transform and place among the parameters of each random-effects term."""
        return list(zip(self.model.covariances, self.model.transforms, self.model.slices, strict=True))

    @cached_property
    def relative(self) -> tuple[Array, ...]:
        """Covariance factor of each random-effects term relative to `scale`, tuple of (l, l)."""
        return tuple(T @ L for T, L in zip(self.model.transforms, self.solved.factors, strict=True))

    @cached_property
    def L(self) -> tuple[Array, ...]:
        """Relative covariance factor of each random-effects term, tuple of (l, l)."""
        ratio = self.model.sigma_ratio(self.working)
        return tuple(ratio * L for L in self.relative)

    @cached_property
    def b(self) -> tuple[Array, ...]:
        """Conditional modes of each random-effects term, tuple of (q, l)."""
        effects = self.model.effects_of(self.solved.u)
        return tuple(self.norm * u @ L.T for u, L in zip(effects, self.relative, strict=False))

    @cached_property
    def absorbed(self) -> tuple[Array, ...]:
        """Coefficients of the levels of each sparse fixed factor, tuple of (q,)."""
        effects = self.model.effects_of(self.solved.u)[len(self.model.terms) :]
        return tuple(self.norm * u[:, 0] for u in effects)

    @cached_property
    def inverse_blocks(self) -> tuple[list[Array], list[Array]]:
        """For each term, blocks (q, l, l) of the inverse equations' diagonal: beta known, and estimated with it."""
        return self.equations().inverse_blocks(self.solved.factors)

    def cond_var(self) -> tuple[Array, ...]:
        """Conditional covariance Var(b | y) of each level of each term, tuple of (q, l, l)."""
        known, _ = self.inverse_blocks
        return tuple(self.scale**2 * (L @ T @ L.T) for L, T in zip(self.relative, known, strict=False))

    def prediction_var(self) -> tuple[Array, ...]:
        """Var(b^ - b) of each level of each term, the estimation of beta included; tuple of (q, l, l)."""
        _, joint = self.inverse_blocks
        return tuple(self.scale**2 * (L @ T @ L.T) for L, T in zip(self.relative, joint, strict=False))

    def absorbed_var(self) -> tuple[Array, ...]:
        """Variances of `absorbed`, tuple of (q,); NaN where they depend on what is not identified."""
        _, joint = self.inverse_blocks
        return tuple(
            np.where(blind, np.nan, self.scale**2 * T[:, 0, 0])
            for T, blind in zip(joint[len(self.model.terms) :], self.blind, strict=True)
        )

    @cached_property
    def fitted(self) -> Array:
        """X beta + the sparse fixed effects + Z b + offset, (n,)."""
        return np.asarray(self.with_modes(self.model.terms) + self.sparse_part)

    @cached_property
    def sparse_part(self) -> Array:
        """Sparse fixed effects of each row, (n,)."""
        out = np.zeros(self.n)
        for term, values in zip(self.model.sparse, self.absorbed, strict=True):
            out += values[term.codes] * (1.0 if term.z is None else term.z[:, 0])
        return out
