"""Variances of predictions from fits without a factor: a solve for each distinct combination of effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.iterative.forms import random_forms
from fastlmm_core.core.iterative.problem import crossed_problem
from fastlmm_core.core.iterative.projection import project
from fastlmm_core.core.iterative.system import System, relative_factor
from fastlmm_core.errors import ModelError
from fastlmm_core.inference.joint_inverse import JointInverse, RowSet

if TYPE_CHECKING:
    from fastlmm_core.core.iterative import IterativeFit

__all__ = ["MOST", "IterativeInverse", "IterativeSource", "check_number"]

Array = NDArray[np.float64]

MOST = 512
"""Distinct combinations of effects that are solved for, eight at a time, at each theta that is looked at."""


def check_number(combinations: int) -> None:
    """Refuse more than `MOST` distinct combinations of levels and slopes.

    Raises
    ------
    ModelError
        There are more.
    """
    if combinations > MOST:
        raise ModelError(
            f"intervals of {combinations} different combinations of levels and slopes are not available for a fit by "
            f"the iterative engine, which has no factor and solves for each: ask for at most {MOST} of them at a "
            "time, or leave the random effects out by re_form"
        )


class IterativeSource:
    """What `Objective` is to predictions, without a factor.

    Parameters
    ----------
    core : IterativeFit
    """

    def __init__(self, core: IterativeFit) -> None:
        self.core, self.cross = core, core.cross
        self.problem = crossed_problem(core.design, core.found, core.control)
        self.nu = float(core.n - core.rank if core.reml else core.n)

    def to_conditioned(self, theta: Array) -> Array:
        """The user's theta in conditioned coordinates."""
        return np.asarray(self.cross.theta_map.to_conditioned @ theta)

    def to_user(self, theta: Array) -> Array:
        """Conditioned theta in the user's coordinates."""
        return np.asarray(self.cross.theta_map.to_user @ theta)

    def covariance(self) -> Array:
        """Of conditioned theta (n_theta, n_theta), by the average information; none where it is at zero."""
        return np.nan_to_num(self.core.search.sampling)


class IterativeInverse(JointInverse):
    """`JointInverse` as far as variances of rows go.

    Parameters
    ----------
    source : IterativeSource
    theta : (n_theta,)
        In the user's coordinates.
    """

    def __init__(self, source: IterativeSource, theta: Array) -> None:
        problem, cross = source.problem, source.cross
        self.cross = cross
        self.system = System(problem, source.to_conditioned(theta))
        at = project(self.system)
        self.l_x = np.asarray(np.linalg.cholesky(at.gram), np.float64)
        self.scale = float(at.r2 * cross.conditioning.y_scale**2 / source.nu)
        self.sigma2 = self.scale * cross.conditioning.weight_scale
        L = relative_factor(problem.lead, self.system.theta, problem.rows.l)
        blocks, modes = [L @ (L.T @ at.lead_x)], [at.b_lead]
        for group, factor in zip(problem.groups, self.system.tail_L, strict=True):
            blocks.append(factor @ (factor.T @ group.of_level(at.tail_x)))
            modes.append(group.of_level(at.b_tail[:, None])[:, :, 0])
        self.n_blocks, self.modes, self.gamma = tuple(blocks), tuple(modes), at.beta

    def random_forms(self, rows: RowSet) -> Array:
        """Forms z'Hz of the rows, (n,), by a solve for each distinct one.

        Raises
        ------
        ModelError
            There are more than `MOST`.
        """
        stacked = np.column_stack([*rows.codes, *rows.z])
        _, first, inverse = np.unique(stacked, axis=0, return_index=True, return_inverse=True)
        check_number(len(first))
        part = rows.take(first)
        return random_forms(self.system, part.codes, part.z)[inverse.ravel()]
