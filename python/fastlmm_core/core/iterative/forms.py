"""Quadratic forms in the inverse of the mixed-model equations, by a solve for each.

With H = Lambda (Lambda'Z'WZ Lambda + I)^-1 Lambda' and a combination z of the effects, z_1 of one leading level's and
z_t of the tail's,

    z'Hz = z_1'K z_1 + v'S^-1 v,        v = Lambda_t'(z_t - B'K z_1)

eight at a time. It is exact to the solver's tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH, on_lines
from fastlmm_core.core.iterative.problem import Levels
from fastlmm_core.core.iterative.projection import EXACT
from fastlmm_core.core.iterative.system import System

__all__ = ["random_forms"]

Array = NDArray[np.float64]
Longs = NDArray[np.int64]


def random_forms(system: System[Levels], codes: Sequence[Longs], z: Sequence[Array]) -> Array:
    """Forms z'Hz (n,) in conditioned coordinates.

    Parameters
    ----------
    system : System
    codes : sequence of (n,) int64
        Level of each grouping factor, the leading one first; -1 for none.
    z : sequence of (n, l)
    """
    n, out = len(codes[0]), np.empty(len(codes[0]))
    for s in range(0, n, WIDTH):
        part = slice(s, min(s + WIDTH, n))
        out[part] = eight_forms(system, [c[part] for c in codes], [v[part] for v in z])
    return out


def eight_forms(system: System[Levels], codes: Sequence[Longs], z: Sequence[Array]) -> Array:
    """`random_forms` of at most eight combinations."""
    problem, k = system.problem, len(codes[0])
    rows = np.arange(k)
    u = np.zeros((problem.rows.q, problem.rows.l, WIDTH))
    lead = np.flatnonzero(codes[0] >= 0)
    moved = np.einsum("rab,rb->ra", system.K[codes[0][lead]], z[0][lead])
    u[codes[0][lead], :, lead] = -moved
    out = np.zeros(k)
    out[lead] = np.einsum("ra,ra->r", z[0][lead], moved)
    t = on_lines(problem.rows.m)
    t[:] = system.tail_sums(u)
    for group, levels, columns in zip(problem.groups, codes[1:], z[1:], strict=True):
        met = rows[levels >= 0]
        for c in range(group.l):
            t[group.columns.start + levels[met] * group.l + c, met] += columns[met, c]
    v = system.lam_t(t)
    return np.asarray(out + (v * system.solve(v, None, EXACT)).sum(axis=0)[:k])
