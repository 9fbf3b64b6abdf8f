"""Conditional variances of the random effects by probes, at one theta.

    Var(u | y) / sigma^2 = Lambda S^-1 Lambda'                         in the tail,
                           K_i + (K_i B_i Lambda) S^-1 (K_i B_i Lambda)'   of level i of the leading factor

A level's block of S^-1 is E z_j (x - x_1)_j' + D_j^-1 with z of independent signs, x = S^-1 z and the control x_1 of
`traces`, whose mean is known; the leading factor's part, E (K_i B_i Lambda z)(K_i B_i Lambda x)', is a small one beside
K_i (Bekas, Kokiopoulou and Saad 2007 for the diagonal).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.iterative.problem import Levels
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.iterative.traces import rademacher
from fastlmm_core.core.terms import Group, Shaped

__all__ = ["conditional_blocks", "conditional_covariances"]

Array = NDArray[np.float64]

BLOCKS = 8
"""Of eight probes each."""

TOLERANCE = 1e-7


class Transformed(Protocol):
    """A design: its terms, the grouping factors they share, and each term's way back from conditioned effects."""

    @property
    def terms(self) -> Sequence[Shaped]:
        """In the user's order."""

    @property
    def groups(self) -> Sequence[Group]:
        """The leading one first."""

    @property
    def transforms(self) -> Sequence[Array]:
        """(l, l) of each term."""


def conditional_covariances(
    system: System[Levels], design: Transformed, unit: float, seed: int
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Var(b | y) of each level of each term in the user's coordinates, and errors of its roots.

    Parameters
    ----------
    system : System
    design : Transformed
    unit : float
        sigma^2.
    seed : int

    Returns
    -------
    covariances : tuple of (q, l, l)
    errors : tuple of (q, l)
        Monte Carlo standard errors of the square roots of their diagonals.
    """
    transforms = [block_diag(*(design.transforms[k] for k in g.terms)) for g in design.groups]
    blocks, errors = conditional_blocks(system, design.groups, transforms, seed)
    out: list[Array] = [np.empty(0)] * len(design.terms)
    sds: list[Array] = [np.empty(0)] * len(design.terms)
    for group, own, error in zip(design.groups, blocks, errors, strict=True):
        for k, o in zip(group.terms, group.offsets, strict=True):
            columns = slice(o, o + design.terms[k].n_columns)
            out[k] = unit * own[:, columns, columns]
            sd = np.sqrt(np.diagonal(out[k], axis1=1, axis2=2))
            sds[k] = np.divide(unit * error[:, columns], 2.0 * sd, out=np.zeros_like(sd), where=sd > 0.0)
    return tuple(out), tuple(sds)


def conditional_blocks(
    system: System[Levels], groups: Sequence[Group], transforms: Sequence[Array], seed: int
) -> tuple[list[Array], list[Array]]:
    """Var(b | y) / sigma^2 of each level of each group.

    Parameters
    ----------
    system : System
    groups : sequence of Group
    transforms : sequence of (l, l)
        From conditioned effects to the user's, one a group.
    seed : int

    Returns
    -------
    blocks : list of (q, l, l)
    errors : list of (q, l)
        Monte Carlo standard errors of their diagonals.
    """
    problem = system.problem
    s = BLOCKS * WIDTH
    own = [transforms[0] @ system.K, *(t @ factor for t, factor in zip(transforms[1:], system.tail_L, strict=True))]
    sums = [np.zeros((g.n_levels, g.n_columns, g.n_columns)) for g in groups]
    squares = [np.zeros((g.n_levels, g.n_columns)) for g in groups]
    for block in range(BLOCKS):
        z = rademacher(seed, 2, block, problem.rows.m)
        near = system.jacobi(z)
        first = 2.0 * near - system.jacobi(system.apply(near))
        x = system.solve(z, first, TOLERANCE)
        pairs = [(own[0] @ system.lead_sums(system.lam(z)), own[0] @ system.lead_sums(system.lam(x)))]
        for group, matrix in zip(problem.groups, own[1:], strict=True):
            pairs.append((matrix @ group.of_level(z), matrix @ group.of_level(x - first)))
        for (left, right), total, squared in zip(pairs, sums, squares, strict=True):
            both = np.einsum("qak,qbk->qab", left, right)
            total += (both + both.transpose(0, 2, 1)) / 2
            squared += ((left * right) ** 2).sum(axis=2)
    exact = [own[0] @ transforms[0].T, *(m @ d @ m.T for m, d in zip(own[1:], system.inverse, strict=True))]
    blocks, errors = [], []
    for known, total, squared in zip(exact, sums, squares, strict=True):
        mean = np.diagonal(total, axis1=1, axis2=2) / s
        blocks.append(known + total / s)
        errors.append(np.sqrt(np.maximum(squared / s - mean**2, 0.0) / (s - 1)))
    return blocks, errors
