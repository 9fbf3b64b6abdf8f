"""Structured covariances of random effects on any number of grouping factors: a chain rule above the evaluator.

The evaluator sees entries of the factors L and gives value, gradient g and a model H of the Hessian in them. With phi
the structures' parameters, Sigma = L L' and h(.) the lower triangle with half its diagonal,

    L_a = L h(L^-1 Sigma_a L^-T),     L_ab = L h(L^-1 (Sigma_ab - L_a L_b' - L_b L_a') L^-T)                       (1)
    gradient J'g,     Hessian J'H J + sum_e g_e L_ab,e                                                           (2)

Where entries of L are the parameters (us, diag, rr) J is the identity on them. Elsewhere a Sigma that is all but
singular is lifted by 1e-10 of its diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.arguments import checked_flag
from fastlmm_core.core.conditioning import condition_term
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.criterion import Objective
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.descent import Point, Report, Search, minimise
from fastlmm_core.core.estimates import CoreFit, estimates
from fastlmm_core.core.identifiability import Unidentified
from fastlmm_core.core.structures.covariances import Covariance, Entries, Structure
from fastlmm_core.core.structures.unseen import unseen_by_products
from fastlmm_core.core.structures.vanishing import MOST_OF_PRODUCTS, Limits, without_residuals
from fastlmm_core.core.terms import Term
from fastlmm_core.core.theta import SINGULAR
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.core.workspaces import Workspaces
from fastlmm_core.errors import DataError, NumericalError

__all__ = [
    "StructuredFit",
    "StructuredModel",
    "TermStructures",
    "check_parameters",
    "factor_derivatives",
    "structure_transform",
]

Array = NDArray[np.float64]
P = TypeVar("P", bound=Point)

LIFT = 1e-10
"""Of the diagonal of a Sigma whose factor has a squared pivot below a thousand times this fraction of it."""


def lower_half(m: Array) -> Array:
    """Lower triangle with half the diagonal, of (..., l, l)."""
    out = np.tril(m)
    i = np.arange(m.shape[-1])
    out[..., i, i] *= 0.5
    return out


def factor_derivatives(covariance: Covariance, phi: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
    """L (l, l), its derivatives (n, l, l), and the function that contracts G (l, l) with the second ones, (n, n)."""
    if isinstance(covariance, Entries):
        first = np.zeros((covariance.n, covariance.l, covariance.l))
        first[np.arange(covariance.n), covariance.rows, covariance.columns] = 1.0
        return covariance.factor(phi), first, lambda g: np.zeros((covariance.n, covariance.n))
    sigma, directions = covariance.sigma(phi), covariance.directions(phi)
    scale = np.maximum(np.diag(sigma), 1e-300)
    try:
        L = np.linalg.cholesky(sigma)
        lifted = bool((np.diag(L) ** 2 < 1e3 * LIFT * scale).any())
    except np.linalg.LinAlgError:
        lifted = True
    if lifted:
        L = np.linalg.cholesky(sigma + LIFT * np.diag(np.maximum(scale, LIFT * float(scale.max()) + 1e-200)))
    L = np.asarray(L, np.float64)
    inverse = np.linalg.inv(L)
    first = L @ lower_half(inverse @ directions @ inverse.T)

    def contract(g: Array) -> Array:
        # <g, L h(L^-1 M L^-T)> = <L^-T h*(L'g) L^-1, M>, h* the adjoint of h
        w = lower_half(L.T @ g)
        adjoint = inverse.T @ (0.5 * (w + w.T)) @ inverse
        cross = np.einsum("aij,ik,bkj->ab", first, adjoint, first, optimize=True)
        return np.asarray(covariance.curvature(phi, adjoint) - cross - cross.T)

    return np.asarray(L, np.float64), np.asarray(first, np.float64), contract


@dataclass(frozen=True)
class Place:
    """A structured criterion at one phi, for the optimiser."""

    value: float
    gradient: Array
    hessian: Array
    theta: Array
    jacobian: Array
    theta_gradient: Array


class TermStructures:
    """Base of models whose terms have structures: parameters for z as given, and working ones for columns of unit size.

    Parameters
    ----------
    terms : sequence of Term
    structures : sequence of Structure
        One a term.
    """

    control: Control

    def __init__(self, terms: Sequence[Term], structures: Sequence[Structure]) -> None:
        self.covariances = [s.covariance(t.n_columns) for s, t in zip(structures, terms, strict=True)]
        self.transforms = [structure_transform(t, c) for t, c in zip(terms, self.covariances, strict=True)]
        ends = np.cumsum([0, *(c.n for c in self.covariances)])
        self.slices = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        self.n_parameters = int(ends[-1])

    def to_user(self, phi: Array) -> Array:
        """Parameters for z as given."""
        out = phi.copy()
        for c, T, where in zip(self.covariances, self.transforms, self.slices, strict=True):
            out[where] = c.rescaled(phi[where], T)
        return out

    def to_working(self, phi: Array) -> Array:
        """The inverse of `to_user`; DataError for a wrong number."""
        check_parameters(phi, self.n_parameters)
        out = phi.copy()
        for c, T, where in zip(self.covariances, self.transforms, self.slices, strict=True):
            out[where] = c.rescaled(phi[where], np.asarray(np.linalg.inv(T), np.float64))
        return out

    def canonical(self, phi: Array) -> Array:
        """Working parameters with signs turned, and what is all but zero set to it."""
        out = phi.copy()
        for c, where in zip(self.covariances, self.slices, strict=True):
            out[where] = c.canonical(out[where], SINGULAR)
        return out

    def is_singular(self, phi: Array) -> bool:
        """Whether some covariance is, at working parameters."""
        return any(c.is_singular(phi[w], SINGULAR) for c, w in zip(self.covariances, self.slices, strict=True))

    def search(self, function: Callable[[Array], P], start: Array, *, limit: bool) -> Search[P]:
        """Minimise a function of working parameters, whose Hessian is a model, from ``start`` (r,).

        With ``limit`` the limit of vanishing residuals is looked at too.
        """
        limits: Limits = {"tol": self.control.tol, "max_evaluations": self.control.max_evaluations}
        found = minimise(function, start, exact=False, **limits)
        if not limit:
            return found
        terms = list(zip(self.covariances, self.slices, strict=True))
        return without_residuals(function, found, terms, most=MOST_OF_PRODUCTS, exact=False, **limits)


class StructuredModel(TermStructures):
    """A linear mixed model with structured terms, without its response.

    Parameters
    ----------
    X, terms, weights, offset, reml, control
        As in `Model`; the terms' `cov` is not used.
    structures : sequence of Structure
        One a term.
    """

    def __init__(
        self,
        X: ArrayLike | None,
        terms: Sequence[Term],
        structures: Sequence[Structure],
        *,
        weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        reml: bool = True,
        control: Control | None = None,
    ) -> None:
        # the evaluator's theta: full triangles, or diagonals where nothing else is asked for
        super().__init__(terms, structures)
        simple = ["diag" if isinstance(c, Entries) and c.keeps == "diagonal" else "us" for c in self.covariances]
        self.terms = [Term(t.codes, t.z, cov, t.n_levels) for t, cov in zip(terms, simple, strict=True)]
        self.control, self.reml = checked_control(control), checked_flag(reml)
        # what an unstructured covariance would leave undetermined, a structure may determine: nothing is held
        with one_blas_thread():
            self.products = DesignProducts(X, self.terms, weights=weights, offset=offset)
        self._workspaces = Workspaces(self.reml, self.control)
        self._found: dict[str, Unidentified | None] = {}

    def objective(self, y: ArrayLike) -> Objective:
        """The criterion of entries of the factors with response ``y`` (n,), in a workspace of its own."""
        return Objective(self.products.cross(y), self.reml, self.control)

    def start(self) -> Array:
        """Parameters (n,) in working coordinates."""
        return np.concatenate([c.start() for c in self.covariances])

    def factors(self, phi: Array) -> tuple[Array, Array, list[tuple[slice, Array, Callable[[Array], Array]]]]:
        """Theta of the evaluator (m,), its derivatives (m, n), and what second derivatives need of each term."""
        theta, rows, parts, at = [], [], [], 0
        for term, c, T, where in zip(self.terms, self.covariances, self.transforms, self.slices, strict=True):
            L, first, contract = factor_derivatives(c, phi[where])
            i, j = zip(*term.index(), strict=True)
            theta.append((T @ L)[i, j])
            block = np.zeros((len(i), self.n_parameters))
            block[:, where] = (T @ first)[:, i, j].T
            rows.append(block)
            parts.append((slice(at, at + len(i)), T, contract))
            at += len(i)
        return np.concatenate(theta), np.concatenate(rows), parts

    def at(self, objective: Objective, phi: Array) -> Place:
        """Equation (2) at phi (n,), working coordinates."""
        theta, jacobian, parts = self.factors(phi)
        value, g, h = objective.derivatives(theta)
        hessian = jacobian.T @ h @ jacobian
        for term, (places, T, contract), where in zip(self.terms, parts, self.slices, strict=True):
            G = np.zeros((term.n_columns, term.n_columns))
            i, j = zip(*term.index(), strict=True)
            G[i, j] = g[places]
            hessian[where, where] += contract(T.T @ G)
        if not np.isfinite(value):
            raise NumericalError("the criterion is not finite")
        return Place(value, jacobian.T @ g, hessian, theta, jacobian, g)

    def fit(
        self, y: ArrayLike, *, start: ArrayLike | None = None, on_evaluation: Report | None = None
    ) -> StructuredFit:
        """Fit a response (n,); `start` and what `on_evaluation` gets are `StructuredFit.phi`'s."""
        spaces = self._workspaces
        with one_blas_thread():
            found = self.products.response(y)
            objective = spaces.take(self.products, found)
            try:
                first = self.start() if start is None else self.to_working(np.asarray(start, np.float64))
                search = self.search(lambda phi: self.at(objective, phi), first, limit=start is None)
                phi, theta = self._canonical(objective, search)
                search.report(on_evaluation, self.to_user)
                rows = [np.append(self.factors(x)[0], [v, s, r]) for x, v, s, r in search.log if np.isfinite(v)]
                evaluations = np.array(rows)
                evaluations[:, :-3] = evaluations[:, :-3] @ objective.theta_map.to_conditioned.T
                at = objective.to_conditioned(theta)
                core = estimates(objective, at, evaluations, search.message, self.products, found, spaces)
            finally:
                spaces.give_back(objective)
        out = object.__new__(StructuredFit)
        if "unseen" not in self._found:
            self._found["unseen"] = unseen_by_products(self)
        out.__dict__.update(
            {**core.__dict__, "unidentified": self._found["unseen"]},
            phi=self.to_user(phi),
            working=phi,
            structured=self,
            converged=search.converged,
            message=search.message,
            is_singular=self.is_singular(phi),
        )
        return out

    def _canonical(self, objective: Objective, search: Search[Place]) -> tuple[Array, Array]:
        """Phi and theta with signs turned and what is all but zero set to it, where the criterion does not rise."""
        phi = self.canonical(search.x)
        theta = self.factors(phi)[0]
        if objective(theta) > search.point.value + 1e-9 + 1e-12 * abs(search.point.value):
            return search.x, search.point.theta
        return phi, theta


def check_parameters(given: Array, n: int) -> None:
    """DataError where a start does not have n values."""
    if given.shape != (n,):
        raise DataError(f"start has {given.size} values, but the covariances have {n} parameters")


def structure_transform(term: Term, covariance: Covariance, root: Array | None = None) -> Array:
    """T (l, l) that gives the columns of z T unit size and keeps the structure; rows times root (n,) for triangles."""
    if term.z is None:
        return np.eye(1)
    if covariance.keeps == "scalar":
        size = float(np.sqrt(np.mean(np.square(term.z)) * term.z.shape[1]))
        return np.eye(term.z.shape[1]) / (size if size > 0 else 1.0)
    return condition_term(term.z, "us" if covariance.keeps == "lower" else "diag", root)


@dataclass(frozen=True, eq=False, kw_only=True)
class StructuredFit(CoreFit):
    """A `CoreFit` whose theta came from structures.

    Attributes
    ----------
    phi : (n,)
        Parameters of the structures, term by term, for z as given.
    working : (n,)
        The same in working coordinates.
    structured : StructuredModel
    """

    phi: Array
    working: Array = field(repr=False)
    structured: StructuredModel = field(repr=False)

    @property
    def parameters(self) -> Array:
        """The structures' parameters, phi."""
        return self.phi
