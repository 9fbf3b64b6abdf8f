"""What belongs to one theta of a model, in the user's units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.criterion import Objective
from fastlmm_core.core.terms import Shaped

__all__ = ["conditional_variances", "relative_factors"]

Array = NDArray[np.float64]


def relative_factors(terms: Sequence[Shaped], theta: Array) -> tuple[Array, ...]:
    """L (l, l) of each term from theta in the user's units."""
    factors, at = [], 0
    for term in terms:
        factor = np.zeros((term.n_columns, term.n_columns))
        rows, columns = zip(*term.index(), strict=True)
        factor[rows, columns] = theta[at : at + term.n_theta]
        at += term.n_theta
        factors.append(factor)
    return tuple(factors)


def conditional_variances(model: Objective, theta: Array, sigma: float) -> tuple[Array, ...]:
    """Var(b | y) of each term in the user's units."""
    cross = model.cross
    by_group = model.at(theta).cond_var()
    # conditioned effects relate to sigma by the scaled weights
    scale = sigma**2 / cross.conditioning.weight_scale
    out: list[Array] = [np.empty(0)] * len(cross.transforms)
    for group, blocks in zip(cross.groups, by_group, strict=True):
        for k, o in zip(group.terms, group.offsets, strict=True):
            t = cross.transforms[k]
            part = blocks[:, o : o + len(t), o : o + len(t)]
            out[k] = scale * (t @ part @ t.T)
    return tuple(out)
