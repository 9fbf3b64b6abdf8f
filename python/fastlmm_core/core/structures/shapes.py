"""Shapes of residual covariance within a subject, up to standard deviations: values and two derivatives, on pairs.

A shape answers for any pairs of positions (visits or coordinates) at once. What a pair is to it is its *key*: the lag
for an autoregression, the distance for a spatial process, row and column of a table for an unstructured matrix.
Derivatives are in unconstrained parameters: R has to stay positive definite, and a singular R is never the optimum, so

    rho = eta / sqrt(1 + eta^2);    compound symmetry by a logistic onto (-1/(T - 1), 1);    log range              (1)
    Toeplitz: partial autocorrelations, each by (1), to autocorrelations by Durbin's and Levinson's recursion      (2)
    ante-dependence: c_ij = rho_i rho_{i+1} ... rho_{j-1}                                        (Gabriel 1962)  (3)
    unstructured: Cholesky factor with log diagonal                                                                (4)

`natural` gives the parameters that SAS prints with their two derivatives, which Kenward and Roger's adjustment needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Natural", "Shape", "separate"]

Array = NDArray[np.float64]
Index = NDArray[np.integer[Any]]
Keys = Any  # what `Shape.keys` made: an array, or a tuple of arrays


@dataclass(frozen=True)
class Natural:
    """Parameters as the literature prints them.

    Attributes
    ----------
    names : tuple of str
    values : (n,)
    jacobian : (n, n)
        Derivative of value c in unconstrained parameter a.
    second : (n, n, n)
        Second derivatives of value c in a and b.
    covariance : bool
        The values are covariances relative to sigma^2, otherwise free of units.
    """

    names: tuple[str, ...]
    values: Array
    jacobian: Array
    second: Array
    covariance: bool = False


class Shape(Protocol):
    """Covariance between two positions, as a function of `n` unconstrained parameters.

    `scaled` shapes are correlation matrices: their diagonal is one. `linear` ones stay linear in their natural
    parameters when they are multiplied by a variance. `definite` ones are well above singular at `start`.
    """

    n: int
    scaled: bool
    linear: bool
    definite: bool

    def start(self) -> Array:
        """Parameters (n,) of a moderate correlation."""
        ...

    def keys(self, a: Index, b: Index) -> Keys:
        """Keys of pairs of positions; `a` and `b` broadcast against one another."""
        ...

    def values(self, psi: Array, keys: Keys) -> tuple[Array, Array]:
        """Covariances of the pairs and their derivatives, (...) and (n, ...)."""
        ...

    def curvature(self, psi: Array, keys: Keys, g: Array) -> Array:
        """(n, n) sum over the pairs of `g` times the second derivatives."""
        ...

    def nearer(self, psi: Array) -> Array:
        """Parameters (n,) of weaker correlations, for a start that has to be positive definite."""
        ...

    def natural(self, psi: Array) -> Natural:
        """The printed parameters."""
        ...


def squash(eta: Array) -> tuple[Array, Array, Array]:
    """Equation (1): correlation and its two derivatives."""
    root = np.sqrt(1.0 + eta * eta)
    return eta / root, root**-3, -3.0 * eta * root**-5


def turn(alpha: Array) -> tuple[Array, Array, Array]:
    """Rho = sin(alpha), for covariances that may be singular."""
    return np.sin(alpha), np.cos(alpha), -np.sin(alpha)


def separate(names: tuple[str, ...], values: Array, first: Array, second: Array) -> Natural:
    """Natural parameters that are functions of one unconstrained parameter each."""
    n = len(values)
    third = np.zeros((n, n, n))
    third[range(n), range(n), range(n)] = second
    return Natural(names, np.asarray(values), np.diag(first), third)


class Independent:
    """Zero between different positions."""

    n, scaled, linear, definite = 0, True, True, True

    def nearer(self, psi: Array) -> Array:
        return psi

    def start(self) -> Array:
        return np.zeros(0)

    def keys(self, a: Index, b: Index) -> Keys:
        return (np.asarray(a) == np.asarray(b)).astype(np.float64)

    def values(self, psi: Array, keys: Keys) -> tuple[Array, Array]:
        return keys, np.zeros((0, *keys.shape))

    def curvature(self, psi: Array, keys: Keys, g: Array) -> Array:
        return np.zeros((0, 0))

    def natural(self, psi: Array) -> Natural:
        return Natural((), np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0, 0)))


class _Table(ABC):
    """A shape whose covariances are entries of a small table, looked up by an integer key."""

    n: int
    scaled, linear, definite = True, False, True

    def start(self) -> Array:
        return np.full(self.n, 0.3)

    def nearer(self, psi: Array) -> Array:
        return 0.5 * psi  # positive definite anywhere as they are

    @abstractmethod
    def table(self, psi: Array) -> tuple[Array, Array]:
        """(K,) values and (n, K) derivatives."""

    @abstractmethod
    def contraction(self, psi: Array, g: Array) -> Array:
        """(n, n) sum over the table of `g` (K,) times the second derivatives."""

    def values(self, psi: Array, keys: Keys) -> tuple[Array, Array]:
        value, first = self.table(psi)
        return value[keys], first[:, keys]

    def curvature(self, psi: Array, keys: Keys, g: Array) -> Array:
        size = len(self.table(psi)[0])
        return self.contraction(psi, np.bincount(keys.ravel(), g.ravel(), size).astype(np.float64))


class CompoundSymmetry(_Table):
    """One correlation for all pairs of `T` positions."""

    n, linear = 1, True

    def __init__(self, T: int, angle: bool = False) -> None:
        self.low, self.angle = -1.0 / max(T - 1, 1), angle

    def rho(self, psi: Array) -> tuple[float, float, float]:
        """The correlation with its derivatives."""
        if self.angle:
            half, (sine, d, dd) = 0.5 * (1.0 - self.low), turn(psi)
            return self.low + half * (1.0 + float(sine[0])), half * float(d[0]), half * float(dd[0])
        p, width = 1.0 / (1.0 + np.exp(-float(psi[0]))), 1.0 - self.low
        return self.low + width * p, width * p * (1 - p), width * p * (1 - p) * (1 - 2 * p)

    def start(self) -> Array:
        p = (0.3 - self.low) / (1.0 - self.low)
        if self.angle:
            return np.array([np.arcsin(2.0 * p - 1.0)])
        return np.array([np.log(p / (1.0 - p))])

    def keys(self, a: Index, b: Index) -> Keys:
        return (np.asarray(a) != np.asarray(b)).astype(np.intp)

    def table(self, psi: Array) -> tuple[Array, Array]:
        rho, d, _ = self.rho(psi)
        return np.array([1.0, rho]), np.array([[0.0, d]])

    def contraction(self, psi: Array, g: Array) -> Array:
        return np.array([[self.rho(psi)[2] * g[1]]])

    def natural(self, psi: Array) -> Natural:
        rho, d, dd = self.rho(psi)
        return separate(("rho",), np.array([rho]), np.array([d]), np.array([dd]))


class Autoregressive(_Table):
    """rho to the lag, lags counted in levels."""

    n = 1

    def __init__(self, T: int, angle: bool = False) -> None:
        self.T, self.link = T, turn if angle else squash

    def keys(self, a: Index, b: Index) -> Keys:
        return np.abs(np.asarray(a) - np.asarray(b)).astype(np.intp)

    def powers(self, psi: Array) -> tuple[Array, Array, Array]:
        """rho^k and its derivatives in eta, k = 0 .. T - 1."""
        rho, d, dd = self.link(np.asarray(psi[0]))
        k = np.arange(self.T)
        power = float(rho) ** np.maximum(np.arange(-2, self.T), 0)
        first = k * power[1 : self.T + 1] * (k > 0)
        second = k * (k - 1) * power[: self.T]
        return power[2:], first * d, second * d * d + first * dd

    def table(self, psi: Array) -> tuple[Array, Array]:
        value, first, _ = self.powers(psi)
        return value, first[None]

    def contraction(self, psi: Array, g: Array) -> Array:
        return np.array([[self.powers(psi)[2] @ g]])

    def natural(self, psi: Array) -> Natural:
        return separate(("rho",), *self.link(psi))


class Toeplitz(_Table):
    """A correlation for each lag, positive definite through partial autocorrelations, equation (2)."""

    linear = True

    def __init__(self, T: int, angle: bool = False) -> None:
        self.T, self.n, self.link = T, T - 1, turn if angle else squash
        self._last: tuple[bytes, tuple[Array, Array, Array]] | None = None

    def start(self) -> Array:
        return np.full(self.n, 0.2)

    def keys(self, a: Index, b: Index) -> Keys:
        return np.abs(np.asarray(a) - np.asarray(b)).astype(np.intp)

    def jets(self, psi: Array) -> tuple[Array, Array, Array]:
        """Autocorrelations (T,) with first (T, n) and second (T, n, n) derivatives, by forward differentiation."""
        key = psi.tobytes()
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        n = self.n
        pac, d, dd = self.link(psi)
        one = (1.0, np.zeros(n), np.zeros((n, n)))
        r: list[Jet] = [one]
        phi: list[Jet] = []
        v: Jet = one
        for k in range(n):
            g, h = np.zeros(n), np.zeros((n, n))
            g[k], h[k, k] = d[k], dd[k]
            a = (float(pac[k]), g, h)
            total = _times(a, v)
            for j in range(k):
                total = _plus(total, _times(phi[j], r[k - j]))
            r.append(total)
            phi = [_plus(phi[j], _times(a, phi[k - 1 - j]), -1.0) for j in range(k)] + [a]
            v = _plus(v, _times(v, _times(a, a)), -1.0)
        found = tuple(np.array(part) for part in zip(*r, strict=True))
        assert len(found) == 3
        self._last = (key, found)
        return found

    def table(self, psi: Array) -> tuple[Array, Array]:
        value, first, _ = self.jets(psi)
        return value, np.ascontiguousarray(first.T)

    def contraction(self, psi: Array, g: Array) -> Array:
        return np.asarray(np.tensordot(g, self.jets(psi)[2], 1))

    def natural(self, psi: Array) -> Natural:
        value, first, second = self.jets(psi)
        return Natural(tuple(f"rho{k}" for k in range(1, self.T)), value[1:], first[1:], second[1:])


Jet = tuple[float, Array, Array]


def _times(a: Jet, b: Jet) -> Jet:
    cross = np.outer(a[1], b[1])
    return a[0] * b[0], a[0] * b[1] + b[0] * a[1], a[0] * b[2] + b[0] * a[2] + cross + cross.T


def _plus(a: Jet, b: Jet, factor: float = 1.0) -> Jet:
    return a[0] + factor * b[0], a[1] + factor * b[1], a[2] + factor * b[2]


class AnteDependence(_Table):
    """A correlation for each pair of neighbours, and their products further apart, equation (3)."""

    def __init__(self, T: int, angle: bool = False) -> None:
        self.T, self.n, self.link = T, T - 1, turn if angle else squash

    def keys(self, a: Index, b: Index) -> Keys:
        a, b = np.asarray(a), np.asarray(b)
        return (np.minimum(a, b) * self.T + np.maximum(a, b)).astype(np.intp)

    def products(self, rho: Array) -> Array:
        """(T, T) upper triangle of c_ij, zero below."""
        c = np.eye(self.T)
        for j in range(1, self.T):
            c[:j, j] = c[:j, j - 1] * rho[j - 1]
        return c

    def table(self, psi: Array) -> tuple[Array, Array]:
        rho, d, _ = self.link(psi)
        c = self.products(rho)
        first = np.zeros((self.n, self.T, self.T))
        for a in range(self.n):
            first[a, : a + 1, a + 1 :] = d[a] * np.outer(c[: a + 1, a], c[a + 1, a + 1 :])
        return c.ravel(), first.reshape(self.n, -1)

    def contraction(self, psi: Array, g: Array) -> Array:
        rho, d, dd = self.link(psi)
        c = self.products(rho)
        # sum of g_ij c_ia c_b+1,j over i <= a, j > b; without rho_a .. rho_b of the product
        outer = (c.T @ np.triu(g.reshape(self.T, self.T), 1) @ c.T)[:-1, 1:]
        out = np.triu(outer * c[1:, :-1], 1) * np.outer(d, d)
        return np.asarray(out + out.T + np.diag(dd * np.diag(outer)))

    def natural(self, psi: Array) -> Natural:
        return separate(tuple(f"rho{k}" for k in range(1, self.T)), *self.link(psi))


class Unstructured(_Table):
    """Any positive definite matrix, equation (4); the first variance is one where the scale is elsewhere."""

    scaled, linear = False, True

    def __init__(self, T: int, scale: bool = False) -> None:
        self.T = T
        rows, columns = (
            np.array([(i, j) for j in range(T) for i in range(j, T)][0 if scale else 1 :], int).reshape(-1, 2).T
        )
        self.rows, self.columns, self.n = rows, columns, len(rows)
        self.on_diagonal = rows == columns

    def start(self) -> Array:
        return np.zeros(self.n)

    def keys(self, a: Index, b: Index) -> Keys:
        return (np.asarray(a) * self.T + np.asarray(b)).astype(np.intp)

    def factor(self, psi: Array) -> tuple[Array, Array]:
        """L (T, T), and the derivative (n,) of the entry that each parameter stands for."""
        entries = np.where(self.on_diagonal, np.exp(np.where(self.on_diagonal, psi, 0.0)), psi)
        L = np.eye(self.T)
        L[self.rows, self.columns] = entries
        return L, np.where(self.on_diagonal, entries, 1.0)

    def table(self, psi: Array) -> tuple[Array, Array]:
        L, slope = self.factor(psi)
        first = np.zeros((self.n, self.T, self.T))
        a = np.arange(self.n)
        first[a, self.rows, :] = slope[:, None] * L[:, self.columns].T
        first = first + first.transpose(0, 2, 1)
        return (L @ L.T).ravel(), first.reshape(self.n, self.T * self.T)  # with one visit there is no parameter

    def contraction(self, psi: Array, g: Array) -> Array:
        L, slope = self.factor(psi)
        both = g.reshape(self.T, self.T) + g.reshape(self.T, self.T).T
        same = self.columns[:, None] == self.columns
        out = both[self.rows[:, None], self.rows] * same * np.outer(slope, slope)
        bend = (both @ L)[self.rows, self.columns] * slope
        return np.asarray(out + np.diag(np.where(self.on_diagonal, bend, 0.0)))

    def natural(self, psi: Array) -> Natural:
        """The entries of the matrix, the lower triangle by columns, without one that is fixed."""
        L, slope = self.factor(psi)
        value, first = self.table(psi)
        places = self.rows * self.T + self.columns
        second = np.zeros((self.n,) * 3)
        same = self.columns[:, None] == self.columns
        for c, (i, j) in enumerate(zip(self.rows, self.columns, strict=True)):
            hit = ((self.rows == i)[:, None] & (self.rows == j)) * same * np.outer(slope, slope)
            bend = np.where(self.rows == i, L[j, self.columns], 0.0) + np.where(self.rows == j, L[i, self.columns], 0.0)
            second[c] = hit + hit.T + np.diag(np.where(self.on_diagonal, bend * slope, 0.0))
        names = tuple(f"{i + 1},{j + 1}" for i, j in zip(self.rows, self.columns, strict=True))
        return Natural(names, value[places], first[:, places].T, second, covariance=True)


class Grouped:
    """A shape of its own for each group of subjects; positions are numbered through, `T` a group."""

    def __init__(self, shapes: list[Shape], T: int, names: tuple[str, ...]) -> None:
        self.shapes, self.T, self.names = shapes, T, names
        self.n = sum(s.n for s in shapes)
        self.scaled, self.linear = shapes[-1].scaled, all(s.linear for s in shapes)
        self.definite = all(s.definite for s in shapes)
        ends = np.cumsum([0, *(s.n for s in shapes)])
        self.slices = [slice(a, b) for a, b in pairwise(ends)]

    def start(self) -> Array:
        return np.concatenate([s.start() for s in self.shapes])

    def nearer(self, psi: Array) -> Array:
        return np.concatenate([s.nearer(psi[where]) for s, where in zip(self.shapes, self.slices, strict=True)])

    def keys(self, a: Index, b: Index) -> Keys:
        a, b = np.broadcast_arrays(a, b)
        group = a // self.T
        inner = [s.keys((a % self.T)[group == g], (b % self.T)[group == g]) for g, s in enumerate(self.shapes)]
        return [group == g for g in range(len(self.shapes))], inner

    def values(self, psi: Array, keys: Keys) -> tuple[Array, Array]:
        masks, inner = keys
        value, first = np.zeros(masks[0].shape), np.zeros((self.n, *masks[0].shape))
        for shape, where, mask, own in zip(self.shapes, self.slices, masks, inner, strict=True):
            value[mask], first[where, mask] = shape.values(psi[where], own)
        return value, first

    def curvature(self, psi: Array, keys: Keys, g: Array) -> Array:
        out = np.zeros((self.n, self.n))
        for shape, where, mask, own in zip(self.shapes, self.slices, *keys, strict=True):
            out[where, where] = shape.curvature(psi[where], own, g[mask])
        return out

    def natural(self, psi: Array) -> Natural:
        parts = [s.natural(psi[where]) for s, where in zip(self.shapes, self.slices, strict=True)]
        names = tuple(f"{name} {n}" for name, part in zip(self.names, parts, strict=True) for n in part.names)
        n = len(names)
        jacobian, second, at = np.zeros((n, self.n)), np.zeros((n, self.n, self.n)), 0
        for part, where in zip(parts, self.slices, strict=True):
            rows = slice(at, at + len(part.names))
            jacobian[rows, where], second[rows, where, where] = part.jacobian, part.second
            at += len(part.names)
        values = np.concatenate([p.values for p in parts])
        return Natural(names, values, jacobian, second, parts[-1].covariance)
