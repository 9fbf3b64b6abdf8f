"""Conditional variances of the random effects by probes, at one theta.

    Var(u | y) / sigma^2 = Lambda S^-1 Lambda'                         in the tail,
                           K_i + (K_i B_i Lambda) S^-1 (K_i B_i Lambda)'   of level i of the leading factor

The diagonal of S^-1 is E z o (x - x_1) + 1/D with z of independent signs, x = S^-1 z and the control x_1 of
`traces`, whose mean is known; the leading factor's part, E (K_i B_i Lambda z)(K_i B_i Lambda x)', is a small one beside
K_i (Bekas, Kokiopoulou and Saad 2007 for the diagonal).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.iterative.traces import rademacher
from fastlmm_core.core.terms import Group

__all__ = ["conditional_blocks"]

Array = NDArray[np.float64]

BLOCKS = 8
"""Of eight probes each."""

TOLERANCE = 1e-7


def conditional_blocks(
    system: System, groups: Sequence[Group], transforms: Sequence[Array], seed: int
) -> tuple[list[Array], list[Array]]:
    """Var(b | y) / sigma^2 of each level of each group.

    Parameters
    ----------
    system : System
    groups : sequence of Group
    transforms : sequence of (l, l)
        From conditioned effects to the user's, one a group; diagonal in the tail.
    seed : int

    Returns
    -------
    blocks : list of (q, l, l)
    errors : list of (q, l)
        Monte Carlo standard errors of their diagonals.
    """
    m = system.problem.rows.m
    inverse, lam = (1.0 / system.diagonal)[:, None], system.lam[:, None]
    widths = [g.n_columns for g in groups[1:]]
    ends = np.cumsum([g.size for g in groups[1:]])
    tail = [np.zeros((g.n_levels, l, l)) for g, l in zip(groups[1:], widths, strict=True)]
    tail_squares = [np.zeros((g.n_levels, l)) for g, l in zip(groups[1:], widths, strict=True)]
    own_lead = transforms[0] @ system.K
    lead = np.zeros_like(system.K)
    lead_squares = np.zeros(lead.shape[:2])
    for block in range(BLOCKS):
        z = rademacher(seed, 2, block, m)
        first = 2.0 * z * inverse - system.apply(np.ascontiguousarray(z * inverse)) * inverse
        x = system.solve(z, first, TOLERANCE)
        own = z * (x - first)
        for f, (end, l) in enumerate(zip(ends, widths, strict=True)):
            part = slice(end - groups[f + 1].size, end)
            zs, xs, diagonal = (v[part].reshape(l, -1, WIDTH) for v in (z, x, own))
            tail[f] += np.einsum("aqk,bqk->qab", zs, xs) * (1.0 - np.eye(l))
            tail[f][:, np.arange(l), np.arange(l)] += diagonal.sum(axis=2).T
            tail_squares[f] += (diagonal**2).sum(axis=2).T
        left, right = (own_lead @ system.lead_sums(lam * v) for v in (z, x))
        both = np.einsum("qak,qbk->qab", left, right)
        lead += (both + both.transpose(0, 2, 1)) / 2
        lead_squares += ((left * right) ** 2).sum(axis=2)
    s = BLOCKS * WIDTH

    def error(squares: Array, sums: Array) -> Array:
        return np.sqrt(np.maximum(squares / s - (sums / s) ** 2, 0.0) / (s - 1))

    blocks = [own_lead @ transforms[0].T + lead / s]
    errors = [error(lead_squares, np.diagonal(lead, axis1=1, axis2=2))]
    for f, (end, l) in enumerate(zip(ends, widths, strict=True)):
        part = slice(end - groups[f + 1].size, end)
        own_lam = system.lam[part].reshape(l, -1).T * np.diag(transforms[f + 1])
        spread = error(tail_squares[f], np.diagonal(tail[f], axis1=1, axis2=2))
        mean = tail[f] / s
        mean = (mean + mean.transpose(0, 2, 1)) / 2
        mean[:, np.arange(l), np.arange(l)] += (1.0 / system.diagonal[part]).reshape(l, -1).T
        blocks.append(own_lam[:, :, None] * mean * own_lam[:, None, :])
        errors.append(own_lam**2 * spread)
    return blocks, errors
