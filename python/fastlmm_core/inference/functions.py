"""Linear functions of the coefficients, which the data determine or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.estimability import TOLERANCE, NullSpace, null_space
from fastlmm_core.core.structures.projected import ProjectedFit
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.lazy import cached_property

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["Functions", "functions_of"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Functions:
    """Linear functions of the coefficients, and whether the data determine them.

    Attributes
    ----------
    L : (k, p)
        Over all columns of X; NaN where there is nothing to average.
    offset : (k,)
    kept : (p,) bool
        Columns that have a coefficient.
    space : NullSpace or None
        Of X, where its columns depend on one another.
    """

    L: Array
    offset: Array
    kept: NDArray[np.bool_]
    space: NullSpace | None = None

    @cached_property
    def estimable(self) -> NDArray[np.bool_]:
        """(k,) whether each function has a value."""
        finite: NDArray[np.bool_] = np.all(np.isfinite(self.L), axis=1)
        return finite if self.space is None else finite & self.space.estimable(np.where(finite[:, None], self.L, 0.0))

    @cached_property
    def rows(self) -> Array:
        """(k, rank) over the columns kept; zero where not estimable."""
        return np.ascontiguousarray(np.where(self.estimable[:, None], self.L, 0.0)[:, self.kept])

    def determined(self, which: NDArray[np.int64]) -> tuple[Array, Array]:
        """Rows (c, rank) and offsets (c,) that span every combination of some functions that has a value.

        Functions without values may have combinations with one: differences of means over the same empty cells.
        """
        if self.estimable[which].all():
            return self.rows[which], self.offset[which]
        known = which[np.all(np.isfinite(self.L[which]), axis=1)]
        if self.space is None or not len(known):
            return self.rows[known], self.offset[known]
        size = np.maximum(1.0, np.linalg.norm(self.L[known] / self.space.scale, axis=1))
        outside = self.L[known] @ self.space.basis / size[:, None]
        _, sizes, directions = np.linalg.svd(outside.T)
        C = directions[int(np.sum(sizes > TOLERANCE)) :] / size
        L = C @ self.L[known]
        L[np.abs(L) < 1e-12 * np.abs(C) @ np.abs(self.L[known])] = 0.0
        return np.ascontiguousarray(L[:, self.kept]), C @ self.offset[known]

    def combined(self, C: Array) -> Functions:
        """Functions C (c, k) of these; a coefficient of zero asks nothing of its function."""
        known = np.all(np.isfinite(self.L), axis=1)
        L: Array = C @ np.where(known[:, None], self.L, 0.0)
        L[np.any(C[:, ~known] != 0.0, axis=1)] = np.nan
        return Functions(L, C @ self.offset, self.kept, self.space)


def functions_of(result: FittedModel, L: Array, offset: Array) -> Functions:
    """Functions of a fit's coefficients, with what decides whether they are estimable."""
    core = result.core
    kept = ~np.isnan(core.beta)
    if kept.all():
        return Functions(L, offset, kept)
    return Functions(L, offset, kept, _null_space(result, kept))


def _null_space(result: FittedModel, kept: NDArray[np.bool_]) -> NullSpace | None:
    core = result.core
    if isinstance(result, GeneralisedModel):
        X = result.design.X
        return null_space(np.asarray(np.linalg.qr(X, mode="r")), np.flatnonzero(kept), len(X))
    model = core.model if isinstance(core, ProjectedFit) else core.cross.conditioning
    return model.null_space
