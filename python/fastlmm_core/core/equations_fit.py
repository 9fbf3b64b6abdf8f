"""Models fitted from the mixed-model equations: relationships between levels, sparse fixed effects, any structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.conditioning import condition_columns
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.covariances import Structure
from fastlmm_core.core.equations import Equations, Solved
from fastlmm_core.core.estimability import NullSpace
from fastlmm_core.core.fit import CoreFit, FitLog
from fastlmm_core.core.pedigree import Relationship
from fastlmm_core.core.saved import saved_state
from fastlmm_core.core.structured import factor_derivatives, structure_transform
from fastlmm_core.core.terms import Term, as_floats, as_response, check_finite
from fastlmm_core.core.theta import SINGULAR
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.core.trust_region import Search, minimise
from fastlmm_core.errors import ModelError

__all__ = ["EquationsFit", "EquationsModel"]

Array = NDArray[np.float64]
Report = Callable[[int, Array, float, float, float], None]

SPAN_TOLERANCE = 1e2 * np.finfo(float).eps

DEPENDENT = 1e-9
"""Squared norm of what the sparse columns leave of a column of X, relative to its own, that makes it dependent."""

LIFT = 1e-3
"""Added to the diagonal of a factor that is inverted for the curvature of Sigma = L L', a model only."""


@dataclass(frozen=True, eq=False)
class Place:
    """The criterion at one phi, for the optimiser."""

    value: float
    gradient: Array
    hessian: Array
    solved: Solved


class EquationsModel:
    """A model without its response.

    Parameters
    ----------
    X : (n, p) or None
    terms : sequence of Term
        Random effects; codes are places in the relationship's levels where a term has one.
    structures : sequence of Structure
    relationships : sequence of Relationship or None
    sparse : sequence of Term
        Fixed effects with a coefficient a level; a row whose z is zero belongs to a reference level.
    weights, offset, reml, control
        As in `Model`.
    """

    def __init__(
        self,
        X: ArrayLike | None,
        terms: Sequence[Term],
        structures: Sequence[Structure],
        relationships: Sequence[Relationship | None],
        sparse: Sequence[Term] = (),
        *,
        weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        reml: bool = True,
        control: Control | None = None,
    ) -> None:
        n = len(terms[0].codes) if terms else len(sparse[0].codes)
        self.X = np.empty((n, 0)) if X is None else as_floats(X, "X")
        self.terms, self.sparse, self.relationships = tuple(terms), tuple(sparse), tuple(relationships)
        self.n, self.reml, self.control = n, bool(reml), checked_control(control)
        self.offset = None if offset is None else as_floats(offset, "offset")
        self.root, self.log_weights = None, 0.0
        if weights is not None:
            w = as_floats(weights, "weights")
            if (w <= 0).any():
                raise ModelError(f"weights must be positive: {int((w <= 0).sum())} of {n} are not")
            self.root, self.log_weights = np.sqrt(w), float(np.log(w).sum())
        self.covariances = [s.covariance(t.n_columns) for s, t in zip(structures, terms, strict=True)]
        self.transforms = [structure_transform(t, c) for t, c in zip(self.terms, self.covariances, strict=True)]
        ends = np.cumsum([0, *(c.n for c in self.covariances)])
        self.slices = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        self.n_parameters = int(ends[-1])
        self.keep, self.r, self.null_space = condition_columns(self.X, self.root)
        if self.sparse:
            self.keep, self.r, self.null_space = self._beside_sparse()
        self.rank = len(self.keep)
        absorbed = sum(int(t.n_levels or 0) for t in self.sparse)
        if n <= self.rank + absorbed:
            raise ModelError(
                f"{n} observations cannot determine {self.rank + absorbed} fixed effects and a residual variance"
            )
        self.inverse = np.linalg.inv(self.r)
        q = self.X[:, self.keep] @ self.inverse
        self.Q = q if self.root is None else q * self.root[:, None]

    def _beside_sparse(self) -> tuple[NDArray[np.int64], Array, NullSpace | None]:
        """Columns of X that do not depend on earlier ones and the sparse ones."""
        X = self.X[:, self.keep] if self.root is None else self.X[:, self.keep] * self.root[:, None]
        X = X / np.maximum(np.sqrt(np.square(X).sum(axis=0)), 1e-300)
        absorbed = Equations(self.sparse, (), len(self.sparse), self.root, X, np.ones(self.n), True)
        absorbed.factor.refactor(absorbed.matrix(()))
        left = X.T @ X - absorbed.ZE[:, :-1].T @ absorbed.factor.solve(absorbed.ZE[:, :-1])
        chosen: list[int] = []
        for j in range(X.shape[1]):
            rest = left[j, j]
            if chosen:
                rest -= left[j, chosen] @ np.linalg.solve(left[np.ix_(chosen, chosen)], left[chosen, j])
            if rest > DEPENDENT:
                chosen.append(j)
        keep = self.keep[chosen]
        inner, r, space = condition_columns(self.X[:, keep], self.root)
        return keep[inner], r, space

    def _conditioned(self) -> list[Term]:
        out = []
        for term, T in zip(self.terms, self.transforms, strict=True):
            out.append(Term(term.codes, None if term.z is None else term.z @ T, n_levels=term.n_levels))
        return [*out, *self.sparse]

    def fit(self, y: ArrayLike, *, start: ArrayLike | None = None, on_evaluation: Report | None = None) -> EquationsFit:
        """Fit a response (n,); `start` and what `on_evaluation` gets are `EquationsFit.theta`'s."""
        with one_blas_thread():
            response = as_response(y, self.n)
            check_finite(response, "y")
            if self.offset is not None:
                response = response - self.offset
            scaled = response if self.root is None else response * self.root
            coefficients = self.Q.T @ scaled
            rest = scaled - self.Q @ coefficients
            norm = float(np.sqrt(rest @ rest))
            if not norm > SPAN_TOLERANCE * float(np.sqrt(scaled @ scaled)):
                raise ModelError(
                    "the response is constant, or the fixed effects reproduce it exactly: nothing is left to fit"
                )
            equations = Equations(
                self._conditioned(),
                self.relationships,
                len(self.sparse),
                self.root,
                self.Q,
                rest / norm,
                self.reml,
                self.control.n_threads,
            )
            constant = 2.0 * equations.nu * np.log(norm) - self.log_weights
            if self.reml:
                constant += 2.0 * float(np.log(np.diag(self.r)).sum())
            first = (
                np.concatenate([0.5 * c.start() if c.keeps == "lower" else c.start() for c in self.covariances])
                if start is None
                else self.to_working(np.asarray(start, np.float64))
            )
            found = minimise(
                lambda phi: self.at(equations, phi, constant),
                first,
                exact=False,
                tol=self.control.tol,
                max_evaluations=self.control.max_evaluations,
            )
            if on_evaluation is not None:
                for k, (x, value, size, radius) in enumerate(found.log, 1):
                    on_evaluation(k, self.to_user(x), value, size, radius)
            return self._estimates(equations, found, coefficients, norm, response, constant)

    def factors(self, phi: Array) -> list[Array]:
        """L (l, l) of each term in working coordinates."""
        return [factor_derivatives(c, phi[where])[0] for c, where in zip(self.covariances, self.slices, strict=True)]

    def at(self, equations: Equations, phi: Array, constant: float = 0.0) -> Place:
        """Criterion, gradient and model of the Hessian at phi (r,), working coordinates."""
        parts = [factor_derivatives(c, phi[where]) for c, where in zip(self.covariances, self.slices, strict=True)]
        solved = equations.solve([L for L, _, _ in parts])
        directions = [(k, dL) for k, (_, first, _) in enumerate(parts) for dL in first]
        hessian = equations.information(solved, directions)
        gradients = equations.gradients(solved)
        gradient = np.empty(self.n_parameters)
        for (L, first, contract), g, where in zip(parts, gradients, self.slices, strict=True):
            gradient[where] = np.einsum("aij,ij->a", first, g)
            hessian[where, where] += contract(np.tril(g))
            lifted = L + LIFT * np.eye(len(L))
            G = 0.5 * g @ np.linalg.inv(lifted)
            hessian[where, where] += np.einsum("aik,ij,bjk->ab", first, G + G.T, first, optimize=True)
        return Place(solved.value + constant, gradient, 0.5 * (hessian + hessian.T), solved)

    def to_user(self, phi: Array) -> Array:
        """Parameters for z as given."""
        out = phi.copy()
        for c, T, where in zip(self.covariances, self.transforms, self.slices, strict=True):
            out[where] = c.rescaled(phi[where], T)
        return out

    def to_working(self, theta: Array) -> Array:
        """The inverse of `to_user`."""
        if theta.shape != (self.n_parameters,):
            raise ModelError(f"start has {theta.size} values, but the covariances have {self.n_parameters} parameters")
        out = theta.copy()
        for c, T, where in zip(self.covariances, self.transforms, self.slices, strict=True):
            out[where] = c.rescaled(theta[where], np.asarray(np.linalg.inv(T), np.float64))
        return out

    def _estimates(
        self,
        equations: Equations,
        found: Search[Place],
        coefficients: Array,
        norm: float,
        response: Array,
        constant: float,
    ) -> EquationsFit:
        phi = found.x.copy()
        for c, where in zip(self.covariances, self.slices, strict=True):
            phi[where] = c.canonical(phi[where], SINGULAR)
        solved = equations.solve(self.factors(phi))
        if solved.value + constant > found.point.value + 1e-9 + 1e-12 * abs(found.point.value):
            phi = found.x
            solved = equations.solve(self.factors(phi))
        beta = np.full(self.X.shape[1], np.nan)
        beta[self.keep] = self.inverse @ (coefficients + norm * solved.beta)
        singular = any(c.is_singular(phi[w], SINGULAR) for c, w in zip(self.covariances, self.slices, strict=True))
        return EquationsFit(
            theta=self.to_user(phi),
            beta=beta,
            sigma=float(norm * np.sqrt(solved.r2 / equations.nu)),
            criterion=solved.value + constant,
            reml=self.reml,
            n=self.n,
            rank=self.rank,
            is_singular=singular,
            converged=found.converged,
            message=found.message,
            control=self.control,
            _solution=None,
            model=self,
            working=phi,
            norm=norm,
            solved=solved,
            response=response,
            constant=constant,
            evaluations=[(self.to_user(x), value, size, radius) for x, value, size, radius in found.log],
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class EquationsFit(CoreFit):
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
    response : (n,)
        Less the offset.
    """

    model: EquationsModel = field(repr=False)
    working: Array = field(repr=False)
    norm: float = field(repr=False)
    solved: Solved = field(repr=False)
    response: Array = field(repr=False)
    constant: float = field(repr=False)
    evaluations: list[tuple[Array, float, float, float]] = field(repr=False)

    @property
    def n_parameters(self) -> int:
        """Covariance parameters, sigma apart, and the coefficients of sparse fixed effects."""
        return len(self.theta) + sum(int(t.n_levels or 0) for t in self.model.sparse)

    def __getstate__(self) -> dict[str, Any]:
        return saved_state({**self.__dict__, "_cache": {}})

    @property
    def cross(self) -> NoReturn:
        """Refused: the engine of ordinary models does not have these equations."""
        raise ModelError("not available for a model with known relationships or sparse fixed effects")

    def objective(self) -> NoReturn:
        """Refused, as `cross`."""
        _ = self.cross
        raise AssertionError

    def workspace(self) -> NoReturn:
        """Refused, as `objective`."""
        self.objective()

    def complete(self) -> EquationsFit:
        """As `CoreFit.complete`; there is nothing to let go of."""
        return self

    def equations(self) -> Equations:
        """The model's equations with this response, made again."""
        model = self.model
        scaled = self.response if model.root is None else self.response * model.root
        rest = (scaled - model.Q @ (model.Q.T @ scaled)) / self.norm
        return Equations(
            model._conditioned(),
            model.relationships,
            len(model.sparse),
            model.root,
            model.Q,
            rest,
            self.reml,
            self.control.n_threads,
        )

    @cached_property
    def half(self) -> Array:
        """H (rank, rank) with Cov(beta) = H H' for the columns kept."""
        root = np.linalg.inv(np.linalg.cholesky(self.solved.D)).T if self.rank else np.zeros((0, 0))
        return np.asarray(self.sigma * self.model.inverse @ root)

    @cached_property
    def cov_beta(self) -> Array:
        """Covariance (p, p) of the fixed effects, NaN in rows and columns set aside."""
        cov = np.full((len(self.beta),) * 2, np.nan)
        cov[np.ix_(self.model.keep, self.model.keep)] = self.half @ self.half.T
        return cov

    @cached_property
    def L(self) -> tuple[Array, ...]:
        """Relative covariance factor of each random-effects term, tuple of (l, l)."""
        return tuple(T @ L for T, L in zip(self.model.transforms, self.solved.factors, strict=True))

    @cached_property
    def log(self) -> FitLog:
        """What the optimiser did."""
        columns = [np.array(c) for c in zip(*self.evaluations, strict=True)]
        return FitLog(*columns)

    def _terms(self) -> list[tuple[int, int, slice]]:
        """Levels, columns and place among the solutions of each term, the sparse ones last."""
        out, at = [], 0
        for term in (*self.model.terms, *self.model.sparse):
            q, l = int(term.n_levels or 0), term.n_columns
            out.append((q, l, slice(at, at + q * l)))
            at += q * l
        return out

    @cached_property
    def b(self) -> tuple[Array, ...]:
        """Conditional modes of each random-effects term, tuple of (q, l)."""
        return tuple(
            self.norm * self.solved.u[where].reshape(q, l) @ L.T
            for (q, l, where), L in zip(self._terms(), self.L, strict=False)
        )

    @cached_property
    def absorbed(self) -> tuple[Array, ...]:
        """Coefficients of the levels of each sparse fixed factor, tuple of (q,)."""
        places = self._terms()[len(self.model.terms) :]
        return tuple(self.norm * self.solved.u[where] for _, _, where in places)

    @cached_property
    def inverse_blocks(self) -> tuple[list[Array], list[Array]]:
        """For each term, blocks (q, l, l) of the inverse equations' diagonal: beta known, and estimated with it."""
        equations = self.equations()
        solved = equations.solve(self.solved.factors)
        selected = equations.factor.inverse()
        known: list[Array] = []
        at = 0
        for block in equations.blocks:
            values = selected[at : at + len(block.entries)]
            at += len(block.entries)
            if block.k == block.other:
                known.append(equations._block_inverse(block, values)[block.a == block.b])
        D = np.linalg.inv(solved.D)
        joint = []
        for k, T in enumerate(known):
            rows = equations._rows(solved.U, k)
            joint.append(T + rows @ D @ rows.transpose(0, 2, 1))
        return known, joint

    def cond_var(self) -> tuple[Array, ...]:
        """Conditional covariance Var(b | y) of each level of each term, tuple of (q, l, l)."""
        known, _ = self.inverse_blocks
        return tuple(self.sigma**2 * (L @ T @ L.T) for L, T in zip(self.L, known, strict=False))

    def prediction_var(self) -> tuple[Array, ...]:
        """Var(b^ - b) of each level of each term, the estimation of beta included; tuple of (q, l, l)."""
        _, joint = self.inverse_blocks
        return tuple(self.sigma**2 * (L @ T @ L.T) for L, T in zip(self.L, joint, strict=False))

    def absorbed_var(self) -> tuple[Array, ...]:
        """Variances of `absorbed`, tuple of (q,)."""
        _, joint = self.inverse_blocks
        return tuple(self.sigma**2 * T[:, 0, 0] for T in joint[len(self.model.terms) :])

    @cached_property
    def fitted(self) -> Array:
        """X beta + the sparse fixed effects + Z b + offset, (n,)."""
        out = self.model.X @ np.nan_to_num(self.beta)
        if self.model.offset is not None:
            out = out + self.model.offset
        for term, modes in zip(self.model.terms, self.b, strict=True):
            rows = modes[term.codes]
            out += rows[:, 0] if term.z is None else np.einsum("ij,ij->i", term.z, rows)
        for term, values in zip(self.model.sparse, self.absorbed, strict=True):
            out += values[term.codes] * (1.0 if term.z is None else term.z[:, 0])
        return np.asarray(out)
