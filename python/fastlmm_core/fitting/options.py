"""What a fit is asked for beside its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DataError
from fastlmm_core.records import quick

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.core import Control
    from fastlmm_core.formula import Design

__all__ = ["FitOptions", "checked_start"]


@quick
@dataclass(frozen=True, eq=False)
class FitOptions:
    """What a fit was asked for beside its data; `refit` asks for the same again.

    Attributes
    ----------
    reml : bool
        REML criterion rather than ML.
    control : Control, optional
        Engine, tolerances and limits of the core.
    start : ndarray (n_theta,), optional
        θ at which the optimiser starts, in lme4's order.
    verbose : int
        Above 0: one line an evaluation on standard error.
    given : mapping
        The other arguments of `lmer` as the user gave them, those that were left out not among them.
    """

    reml: bool = True
    control: Control | None = None
    start: NDArray[np.float64] | None = None
    verbose: int = 0
    given: Mapping[str, Any] = field(default_factory=dict)


def n_theta(design: Design) -> int:
    """Number of variance parameters: l(l+1)/2 a term."""
    return sum(len(t.columns) * (len(t.columns) + 1) // 2 for t in design.random)


def checked_start(start: ArrayLike | None, design: Design) -> NDArray[np.float64] | None:
    """`start` as an array (n_theta,); DataError where it has another length or is not finite."""
    if start is None:
        return None
    try:
        theta = np.array(start, dtype=float).ravel()
    except (TypeError, ValueError) as error:
        raise DataError(f"start is not numeric: {error}") from None
    if theta.size != n_theta(design):
        raise DataError(
            f"start has {theta.size} values, but the random terms have {n_theta(design)} variance parameters "
            f"({', '.join(f'{t.grp}: {len(t.columns) * (len(t.columns) + 1) // 2}' for t in design.random)})"
        )
    if not np.isfinite(theta).all():
        raise DataError("start has values that are not finite")
    return theta
