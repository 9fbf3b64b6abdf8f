"""What models share without cross-products: X projected out of the response, and figures made by the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.arguments import as_floats, as_response, check_finite
from fastlmm_core.core.conditioning import condition_columns
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.estimability import NullSpace
from fastlmm_core.core.estimates import CoreFit, FitLog
from fastlmm_core.core.saved import saved_state
from fastlmm_core.core.terms import Term
from fastlmm_core.errors import ModelError
from fastlmm_core.lazy import cached_property

__all__ = ["Projected", "ProjectedFit", "ProjectedModel"]

Array = NDArray[np.float64]
Evaluations = list[tuple[Array, float, float, float]]

SPAN_TOLERANCE = 1e2 * np.finfo(float).eps
"""A residual this small beside the response is rounding."""


@dataclass(frozen=True, eq=False)
class Projected:
    """A response in the coordinates of Q.

    Attributes
    ----------
    response : (n,)
        Less the offset.
    coefficients : (rank,)
        Q'y, rows times the roots of their weights.
    rest : (n,)
        What Q leaves of it, with norm one.
    norm : float
        That norm before.
    """

    response: Array
    coefficients: Array
    rest: Array
    norm: float


class ProjectedModel:
    """Base of models without their response: rows, weights, and X as Q = diag(root) X[:, keep] r^-1, orthonormal.

    Parameters
    ----------
    X : (n, p) or None
    n : int
    weights : (n,), optional
        Positive; the residual variance of row i is divided by weights[i].
    offset : (n,), optional
    reml : bool
    control : Control, optional
    absorbed : int
        Fixed effects besides those of X.

    Raises
    ------
    DataError, ModelError
        Wrong lengths, values that are not finite, weights that are not positive, too few rows.
    """

    def __init__(
        self,
        X: ArrayLike | None,
        n: int,
        weights: ArrayLike | None,
        offset: ArrayLike | None,
        reml: bool,
        control: Control | None,
        absorbed: int = 0,
    ) -> None:
        self.X = np.empty((n, 0)) if X is None else as_floats(X, "X")
        self.n, self.reml, self.control = n, bool(reml), checked_control(control)
        self.offset = None if offset is None else as_floats(offset, "offset")
        self.root, self.log_weights = None, 0.0
        if weights is not None:
            w = as_floats(weights, "weights")
            if (w <= 0).any():
                raise ModelError(f"weights must be positive: {int((w <= 0).sum())} of {n} are not")
            self.root, self.log_weights = np.sqrt(w), float(np.log(w).sum())
        self.keep, self.r, self.null_space = self.independent_columns()
        self.rank = len(self.keep)
        if n <= self.rank + absorbed:
            raise ModelError(
                f"{n} observations cannot determine {self.rank + absorbed} fixed effects and a residual variance"
            )
        self.inverse = np.linalg.inv(self.r)
        q = self.X[:, self.keep] @ self.inverse
        self.Q = q if self.root is None else q * self.root[:, None]

    def independent_columns(self) -> tuple[NDArray[np.int64], Array, NullSpace | None]:
        """Columns of X that do not depend on earlier ones, r of their QR, and what the others depend on."""
        return condition_columns(self.X, self.root)

    def project(self, y: ArrayLike) -> Projected:
        """A response (n,) with X projected out.

        Raises
        ------
        DataError
            A wrong length, or values that are not finite.
        ModelError
            X reproduces it.
        """
        response = as_response(y, self.n)
        check_finite(response, "y")
        if self.offset is not None:
            response = response - self.offset
        coefficients, rest, size = self.split(response)
        norm = float(np.sqrt(rest @ rest))
        if not norm > SPAN_TOLERANCE * size:
            raise ModelError(
                "the response is constant, or the fixed effects reproduce it exactly: nothing is left to fit"
            )
        return Projected(response, coefficients, rest / norm, norm)

    def split(self, response: Array) -> tuple[Array, Array, float]:
        """Coefficients in Q of a response less the offset, what Q leaves of it, and its norm."""
        scaled = response if self.root is None else response * self.root
        coefficients = self.Q.T @ scaled
        rest = scaled - self.Q @ coefficients
        again = self.Q.T @ rest  # once more: rounding of the first pass
        return coefficients + again, rest - self.Q @ again, float(np.sqrt(scaled @ scaled))

    def constant(self, nu: float, norm: float) -> float:
        """What the criterion of the response has beyond that of `rest` given Q; nu rows, less the rank under REML."""
        out = 2.0 * nu * np.log(norm) - self.log_weights
        if self.reml:
            out += 2.0 * float(np.log(np.diag(self.r)).sum())
        return float(out)

    def coefficients(self, projected: Projected, of_rest: Array) -> Array:
        """Beta (p,) from the coefficients (rank,) of `rest` on Q; NaN for columns set aside."""
        beta = np.full(self.X.shape[1], np.nan)
        beta[self.keep] = self.inverse @ (projected.coefficients + projected.norm * of_rest)
        return beta


@dataclass(frozen=True, eq=False, kw_only=True)
class ProjectedFit(CoreFit, ABC):
    """Base of the fits of such models: a `CoreFit` without cross-products.

    Attributes
    ----------
    model : ProjectedModel
    response : (n,)
        Less the offset.
    evaluations : list of (theta, criterion, gradient norm, radius)
    """

    lacks: ClassVar[str]
    """What the error says that is raised where cross-products are asked for."""

    model: ProjectedModel = field(repr=False)
    response: Array = field(repr=False)
    evaluations: Evaluations = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return saved_state({**self.__dict__, "kept": {}})

    @property
    def cross(self) -> NoReturn:
        """Refused: the engine of ordinary models does not have these equations."""
        raise ModelError(self.lacks)

    def objective(self) -> NoReturn:
        """Refused, as `cross`."""
        raise ModelError(self.lacks)

    def workspace(self) -> NoReturn:
        """Refused, as `cross`."""
        raise ModelError(self.lacks)

    def complete(self) -> Self:
        """As `CoreFit.complete`; there is nothing to let go of."""
        return self

    def estimable(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """As `CoreFit.estimable`."""
        space = self.model.null_space
        return np.ones(len(np.atleast_2d(rows)), bool) if space is None else space.estimable(rows)

    @property
    @abstractmethod
    def half(self) -> Array:
        """H (rank, rank) with Cov(beta) = H H' for the columns kept."""

    @cached_property
    def cov_held(self) -> Array:
        """Covariance (p, p) of the fixed effects as if all that the criterion does not see were known."""
        cov = np.full((len(self.beta),) * 2, np.nan)
        cov[np.ix_(self.model.keep, self.model.keep)] = self.half @ self.half.T
        return cov

    def determined(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """See `CoreFit.determined`."""
        given = np.atleast_2d(np.asarray(rows, dtype=np.float64))
        if self.unidentified is None:
            return np.ones(len(given), dtype=bool)
        return self.unidentified.determined(given @ self.model.inverse)

    @cached_property
    def log(self) -> FitLog:
        """What the optimiser did."""
        columns = [np.array(c) for c in zip(*self.evaluations, strict=True)]
        return FitLog(*columns)

    @cached_property
    def linear(self) -> Array:
        """X beta, (n,)."""
        return np.asarray(self.model.X @ np.nan_to_num(self.beta))

    def with_modes(self, terms: tuple[Term, ...]) -> Array:
        """X beta + Z b + offset, (n,)."""
        out = self.linear.copy()
        if self.model.offset is not None:
            out += self.model.offset
        for term, modes in zip(terms, self.b, strict=True):
            rows = modes[term.codes]
            out += rows[:, 0] if term.z is None else np.einsum("ij,ij->i", term.z, rows)
        return out
