"""Covariance parameters: which element of which factor each one is, and the map between users' and conditioned ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.terms import Group, Term

__all__ = ["SINGULAR", "ThetaMap", "theta_map"]

Array = NDArray[np.float64]

SINGULAR = 1e-4
"""A diagonal element of a (conditioned) relative factor below this makes a fit singular; lme4's tolerance."""


@dataclass(frozen=True)
class ThetaMap:
    """The parameters of one design.

    Attributes
    ----------
    index : (n_theta, 3) int64
        Group, row and column of each parameter, in the order of the terms.
    to_conditioned : (n_theta, n_theta)
        Maps the user's theta to the conditioned one.
    """

    index: NDArray[np.int64]
    to_conditioned: Array

    @cached_property
    def to_user(self) -> Array:
        """(n_theta, n_theta) the inverse map."""
        return np.asarray(np.linalg.inv(self.to_conditioned), np.float64)

    @cached_property
    def diagonal(self) -> NDArray[np.bool_]:
        """(n_theta,) whether a parameter is a diagonal element."""
        return self.index[:, 1] == self.index[:, 2]

    @cached_property
    def vector_diagonal(self) -> NDArray[np.bool_]:
        """(n_theta,) diagonal elements of factors that have others."""
        return self.diagonal & np.isin(self.index[:, 0], self.index[~self.diagonal, 0])

    @cached_property
    def columns(self) -> list[tuple[int, NDArray[np.int64]]]:
        """For each diagonal element, its place and those of its whole column."""
        same = [(self.index[:, 0] == g) & (self.index[:, 2] == c) for g, _, c in self.index]
        return [(int(a), np.flatnonzero(same[a])) for a in np.flatnonzero(self.diagonal)]

    def canonical(self, theta: Array) -> Array:
        """Signs of the columns (of theta (..., n_theta)) such that diagonals are not negative; same covariance."""
        if not (theta[..., self.diagonal] < 0).any():
            return theta
        out = theta.copy()
        for a, column in self.columns:
            out[..., column] *= np.where(theta[..., a] < 0, -1.0, 1.0)[..., None]
        return out

    @cached_property
    def diagonal_places(self) -> list[int]:
        """Places of the diagonal elements."""
        return [int(a) for a in np.flatnonzero(self.diagonal)]

    def is_singular(self, theta: Array) -> bool:
        """Whether some diagonal element of conditioned ``theta`` (n_theta,) is below the tolerance, or negative."""
        values = theta.tolist()  # a few floats: quicker than through arrays
        return min(values[a] for a in self.diagonal_places) < SINGULAR


def theta_map(
    terms: Sequence[Term], groups: Sequence[Group], transforms: Sequence[Array], weight_scale: float
) -> ThetaMap:
    """The parameters of some terms; conditioning makes column c of L into T^-1 L[:, c]."""
    place = {k: (g, o) for g, group in enumerate(groups) for k, o in zip(group.terms, group.offsets, strict=True)}
    rows = [(place[k][0], place[k][1] + i, place[k][1] + j) for k, term in enumerate(terms) for i, j in term.index()]
    out = np.zeros((len(rows), len(rows)))
    at = 0
    for term, t in zip(terms, transforms, strict=True):
        inverse = np.linalg.inv(t.T).T * np.sqrt(weight_scale)  # upper triangular: no pivoting
        l = len(t)
        for c in range(l):
            width = 1 if term.cov == "diag" else l - c
            out[at : at + width, at : at + width] = inverse[c : c + width, c : c + width]
            at += width
    return ThetaMap(np.array(rows, np.int64), out)
