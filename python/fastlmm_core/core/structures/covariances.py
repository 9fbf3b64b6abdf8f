"""Covariance within a level of a random-effects term: Sigma(phi), relative to sigma^2, with two derivatives.

    us, diag, rr(d):  Sigma = L L', phi the free entries of L                                                       (1)
    the others:       Sigma = S C S, S = diag(sd), phi = (sd, parameters of the correlation C)                      (2)

Standard deviations are plain numbers, so that zero is an ordinary stationary point, and correlations go by an angle,
rho = sin(alpha) (compound symmetry: from -1/(l - 1) to 1, Toeplitz: partial autocorrelations). A correlation of one is
then an ordinary minimum of a smooth function. Sigma is wanted together with a residual only, and may be singular.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.structures.distance import Distance
from fastlmm_core.core.structures.shapes import (
    AnteDependence,
    Autoregressive,
    CompoundSymmetry,
    Independent,
    Shape,
    Toeplitz,
)
from fastlmm_core.errors import ModelError

__all__ = ["STRUCTURES", "Covariance", "Structure", "lower_factor"]

Array = NDArray[np.float64]

STRUCTURES = ("us", "diag", "cs", "ar1", "toep", "ad", "exp", "gau", "ou", "rr")
"""Names of the structures."""

SPATIAL = {"exp": 1, "ou": 1, "gau": 2}


class Covariance(Protocol):
    """Sigma (l, l) as a function of phi (n,).

    `keeps` says which linear maps of the columns keep the structure: lower triangular ones, diagonal ones, or scalars.
    """

    n: int
    l: int
    keeps: str

    def sigma(self, phi: Array) -> Array:
        """(l, l), symmetric, not negative definite."""
        ...

    def directions(self, phi: Array) -> Array:
        """(n, l, l) derivatives of Sigma."""
        ...

    def curvature(self, phi: Array, g: Array) -> Array:
        """(n, n) sums of symmetric `g` (l, l) times the second derivatives of Sigma."""
        ...

    def start(self) -> Array:
        """Parameters (n,) at which every column varies as much as a residual."""
        ...

    def canonical(self, phi: Array, zero: float) -> Array:
        """The same Sigma, signs turned so that standard deviations are not negative; those below `zero` are zero."""
        ...

    def rescaled(self, phi: Array, T: Array) -> Array:
        """Parameters of T Sigma T' for a map T (l, l) that keeps the structure."""
        ...

    def is_singular(self, phi: Array, zero: float) -> bool:
        """Whether a standard deviation, or a diagonal element of a factor, is below `zero`, or a correlation is one."""
        ...

    def labels(self, columns: Sequence[str]) -> list[str]:
        """Names of the parameters, given the columns'."""
        ...


class Entries:
    """Equation (1): the factor's entries are the parameters.

    Parameters
    ----------
    l : int
    entries : sequence of (row, column)
        Lower triangle, by columns.
    """

    def __init__(self, l: int, entries: Sequence[tuple[int, int]]) -> None:
        self.l, self.entries, self.n = l, list(entries), len(entries)
        self.rows, self.columns = np.array(self.entries, int).reshape(-1, 2).T
        self.keeps = "lower" if any(i != j for i, j in self.entries) else "diagonal"

    def factor(self, phi: Array) -> Array:
        """L (l, l)."""
        L = np.zeros((self.l, self.l))
        L[self.rows, self.columns] = phi
        return L

    def sigma(self, phi: Array) -> Array:
        L = self.factor(phi)
        return np.asarray(L @ L.T)

    def directions(self, phi: Array) -> Array:
        L = self.factor(phi)
        out = np.zeros((self.n, self.l, self.l))
        out[np.arange(self.n), self.rows] = L[:, self.columns].T
        return out + out.transpose(0, 2, 1)

    def curvature(self, phi: Array, g: Array) -> Array:
        same = self.columns[:, None] == self.columns
        return np.asarray((g + g.T)[self.rows[:, None], self.rows] * same)

    def start(self) -> Array:
        # entries off the diagonal of a reduced rank: zero would be a saddle
        full = self.columns.max(initial=0) == self.l - 1
        off = 0.0 if full else 0.3
        return np.where(self.rows == self.columns, 1.0, off * np.where((self.rows + self.columns) % 2, 1.0, -1.0))

    def canonical(self, phi: Array, zero: float) -> Array:
        out = phi.copy()
        for a in np.flatnonzero(self.rows == self.columns):
            if out[a] < 0:
                out[self.columns == self.columns[a]] *= -1.0
            if out[a] < zero:
                out[a] = 0.0
        return out

    def rescaled(self, phi: Array, T: Array) -> Array:
        return np.asarray((T @ self.factor(phi))[self.rows, self.columns])

    def is_singular(self, phi: Array, zero: float) -> bool:
        return bool((np.abs(phi[self.rows == self.columns]) < zero).any())

    def labels(self, columns: Sequence[str]) -> list[str]:
        return [columns[i] if i == j else f"{columns[i]}.{columns[j]}" for i, j in self.entries]


class Scaled:
    """Equation (2): standard deviations times a correlation matrix.

    Parameters
    ----------
    shape : Shape
        Correlations between columns, parametrised by angles.
    l : int
    hom : bool
        One standard deviation for all columns.
    """

    def __init__(self, shape: Shape, l: int, hom: bool) -> None:
        self.shape, self.l, self.hom = shape, l, hom
        self.k = 1 if hom else l
        self.n = self.k + shape.n
        at = np.arange(l)
        self.keys = shape.keys(at[:, None], at[None, :])
        self.keeps = "scalar" if hom else "diagonal"
        self.J = np.ones((1, l)) if hom else np.eye(l)

    def _parts(self, phi: Array) -> tuple[Array, Array, Array]:
        return phi[: self.k] @ self.J, *self.shape.values(phi[self.k :], self.keys)

    def sigma(self, phi: Array) -> Array:
        s, c, _ = self._parts(phi)
        return np.asarray(s[:, None] * c * s)

    def directions(self, phi: Array) -> Array:
        s, c, first = self._parts(phi)
        half = self.J[:, :, None] * c * s
        return np.concatenate([half + half.transpose(0, 2, 1), s[:, None] * first * s])

    def curvature(self, phi: Array, g: Array) -> Array:
        s, c, first = self._parts(phi)
        k = self.k
        out = np.zeros((self.n, self.n))
        out[:k, :k] = 2.0 * self.J @ (g * c) @ self.J.T
        out[:k, k:] = 2.0 * self.J @ np.einsum("ij,aij,j->ia", g, first, s)
        out[k:, :k] = out[:k, k:].T
        out[k:, k:] = self.shape.curvature(phi[k:], self.keys, g * s[:, None] * s)
        return out

    def start(self) -> Array:
        return np.concatenate([np.ones(self.k), self.shape.start()])

    def canonical(self, phi: Array, zero: float) -> Array:
        out = phi.copy()
        if self.hom or not self.shape.n:
            out[: self.k] = np.abs(out[: self.k])
        elif (out[: self.k] <= 0).all():
            out[: self.k] *= -1.0
        sd = out[: self.k]
        sd[np.abs(sd) < zero] = 0.0
        return out

    def rescaled(self, phi: Array, T: Array) -> Array:
        out = phi.copy()
        out[: self.k] *= np.diag(T)[: self.k]
        return out

    def is_singular(self, phi: Array, zero: float) -> bool:
        if (np.abs(phi[: self.k]) < zero).any():
            return True
        return bool(np.linalg.eigvalsh(self.shape.values(phi[self.k :], self.keys)[0])[0] < zero**2)

    def labels(self, columns: Sequence[str]) -> list[str]:
        sd = ["sd"] if self.hom else [f"sd.{name}" for name in columns]
        return [*sd, *(f"angle{k + 1}" if self.shape.n > 1 else "angle" for k in range(self.shape.n))]


@dataclass(frozen=True)
class Structure:
    """A term's structure by name.

    Attributes
    ----------
    name : str
        One of `STRUCTURES`.
    hom : bool
        One variance for all columns.
    rank : int
        Of "rr".
    coordinates : tuple of tuple of float
        Of the columns, for "exp", "gau" and "ou".
    """

    name: str = "us"
    hom: bool = False
    rank: int = 0
    coordinates: tuple[tuple[float, ...], ...] = ()

    def covariance(self, l: int) -> Covariance:
        """The structure for a term of l columns.

        Raises
        ------
        ModelError
            No such structure, a rank that is none, a structure that needs more columns.
        """
        if self.name not in STRUCTURES:
            raise ModelError(f"covariance {self.name!r} does not exist: use one of {', '.join(map(repr, STRUCTURES))}")
        if self.name == "us":
            return Entries(l, [(i, j) for j in range(l) for i in range(j, l)])
        if self.name == "rr":
            if not 1 <= self.rank <= l:
                raise ModelError(f"rr(..., d={self.rank}) of a term with {l} columns: d has to lie between 1 and {l}")
            return Entries(l, [(i, j) for j in range(self.rank) for i in range(j, l)])
        if self.name == "diag" and not self.hom:
            return Entries(l, [(j, j) for j in range(l)])
        return Scaled(self._shape(l), l, self.hom)

    def _shape(self, l: int) -> Shape:
        if self.name == "diag" or l == 1:
            return Independent()
        if self.name in SPATIAL:
            return Distance(np.array(self.coordinates), SPATIAL[self.name])
        if self.name == "cs":
            return CompoundSymmetry(l, angle=True)
        if self.name == "ar1":
            return Autoregressive(l, angle=True)
        if self.name == "toep":
            return Toeplitz(l, angle=True)
        assert self.name == "ad", self.name
        return AnteDependence(l, angle=True)


def lower_factor(sigma: Array) -> Array:
    """L (l, l) lower triangular with L L' = `sigma`, which may be singular; diagonal not negative."""
    try:
        return np.asarray(np.linalg.cholesky(sigma), np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(sigma)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        r = np.linalg.qr(root.T, mode="r")
        L = np.asarray(r).T
        return np.asarray(L * np.where(np.diag(L) < 0, -1.0, 1.0))
