"""Covariance of the rows of one unit (a subject, or what its random effects span), relative to sigma^2.

    R_ij = exp(eta'(d_i + d_j)) c_ij(psi) [same subject] + z_i'Sigma(theta)z_j                                     (1)

Log standard deviations are linear in known columns d: dummies of visits (heterogeneous variances), of strata, or the
logarithm of a covariate (its power). Random effects whose levels are the units are part of V, with theta the
parameters of their covariance: there is no Z then, and a zero variance is an ordinary point. The parameters are
phi = (eta, psi, theta).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.structures.covariances import Covariance
from fastlmm_core.core.structures.shapes import Shape

__all__ = ["Effects", "Prepared", "ResidualModel"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Effects:
    """One random-effects term whose levels are whole units, or lie within them.

    Attributes
    ----------
    z : (n, l)
    covariance : Covariance
        Sigma (l, l) as a function of theta.
    level : (n,) integers, optional
        Levels, where a unit has several.
    """

    z: Array
    covariance: Covariance
    level: NDArray[np.integer[Any]] | None = None

    @property
    def n(self) -> int:
        """Number of parameters."""
        return self.covariance.n


@dataclass(frozen=True)
class Prepared:
    """What equation (1) needs of some rows: k units of m rows each, as keys of their pairs.

    `share` has for each term which pairs share a level, None where all do.
    """

    keys: Any
    same: NDArray[np.bool_] | None
    d: Array
    z: tuple[Array, ...]
    share: tuple[NDArray[np.bool_] | None, ...] = ()


def alike(code: NDArray[np.integer[Any]] | None, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Which pairs of rows (k, m) have one code, (k, m, m); None where all have."""
    if code is None:
        return None
    mine = code[rows]
    same = mine[:, :, None] == mine[:, None, :]
    return None if same.all() else same


def only(values: Array, where: NDArray[np.bool_] | None) -> Array:
    """Zero outside of `where`."""
    return values if where is None else values * where


class ResidualModel:
    """Equation (1) with its derivatives.

    Parameters
    ----------
    shape : Shape
    positions : (n,) integers
        Position of each row in its subject.
    log_sd : (n, e)
        Columns d of the log standard deviations.
    effects : sequence of Effects
    subject : (n,) integers, optional
        Where units hold several subjects.
    """

    def __init__(
        self,
        shape: Shape,
        positions: NDArray[np.integer[Any]],
        log_sd: Array,
        effects: Sequence[Effects] = (),
        subject: NDArray[np.integer[Any]] | None = None,
    ) -> None:
        self.shape, self.positions, self.log_sd = shape, positions, log_sd
        self.effects, self.subject = tuple(effects), subject
        sizes = [log_sd.shape[1], shape.n, *(e.n for e in self.effects)]
        ends = np.cumsum([0, *sizes])
        self.n = int(ends[-1])
        self.of_sd, self.of_shape, *self.of_effects = [slice(int(a), int(b)) for a, b in pairwise(ends)]

    def start(self) -> Array:
        """Parameters (n,): equal variances, moderate correlations, random effects as large as the residual."""
        return np.concatenate(
            [np.zeros(self.log_sd.shape[1]), self.shape.start(), *(e.covariance.start() for e in self.effects)]
        )

    def prepare(self, rows: NDArray[np.int64]) -> Prepared:
        """Keys of the pairs among rows (k, m)."""
        at = self.positions[rows]
        a, b = at[:, :, None], at[:, None, :]
        same = alike(self.subject, rows)
        if same is not None:  # pairs of different subjects: any key, they are multiplied by zero
            a, b = np.where(same, a, a.min()), np.where(same, b, a.min())
        z, share = (
            zip(*((e.z[rows], alike(e.level, rows)) for e in self.effects), strict=True) if self.effects else ((), ())
        )
        return Prepared(self.shape.keys(a, b), same, self.log_sd[rows], z, share)

    def values(self, phi: Array, at: Prepared) -> tuple[Array, Array]:
        """R (k, m, m) and its directions (k, m, n, m)."""
        c, first = self.shape.values(phi[self.of_shape], at.keys)
        k, m, e = at.d.shape
        s = np.exp(at.d @ phi[self.of_sd]) if e else None
        if s is not None:
            both = s[:, :, None] * s[:, None, :]
            c, first = c * both, first * both
        if at.same is not None:
            c, first = c * at.same, first * at.same
        out = np.empty((k, m, self.n, m))
        if e:
            out[:, :, self.of_sd] = c[:, :, None] * (at.d[:, :, :, None] + at.d.transpose(0, 2, 1)[:, None])
        out[:, :, self.of_shape] = np.moveaxis(first, 0, 2)
        R = c
        for term, z, share, where in zip(self.effects, at.z, at.share, self.of_effects, strict=True):
            across = z.transpose(0, 2, 1)
            R = R + only(z @ term.covariance.sigma(phi[where]) @ across, share)
            for a, direction in enumerate(term.covariance.directions(phi[where]), start=where.start):
                out[:, :, a] = only(z @ direction @ across, share)
        return R, out

    def curvature(self, phi: Array, parts: Sequence[Prepared], weights: Sequence[Array]) -> Array:
        """(n, n) sum over all pairs of G (k, m, m), one a part, times the second derivatives of R."""
        out = np.zeros((self.n, self.n))
        psi, eta = phi[self.of_shape], phi[self.of_sd]
        for at, g in zip(parts, weights, strict=True):
            for z, share, term, where in zip(at.z, at.share, self.effects, self.of_effects, strict=True):
                l = z.shape[2]
                inner = z.reshape(-1, l).T @ (only(g, share) @ z).reshape(-1, l)
                out[where, where] += term.covariance.curvature(phi[where], inner)
            if at.same is not None:
                g = g * at.same
            if len(eta):
                s = np.exp(at.d @ eta)
                g = g * s[:, :, None] * s[:, None, :]
            out[self.of_shape, self.of_shape] += self.shape.curvature(psi, at.keys, g)
            if len(eta):
                c, first = self.shape.values(psi, at.keys)
                sums = at.d[:, :, None, :] + at.d[:, None, :, :]
                flat = sums.reshape(-1, len(eta))
                out[self.of_sd, self.of_sd] += flat.T @ (flat * (g * c).reshape(-1, 1))
                mixed = flat.T @ (first * g).reshape(len(psi), g.size).T
                out[self.of_sd, self.of_shape] += mixed
                out[self.of_shape, self.of_sd] += mixed.T
        return out
