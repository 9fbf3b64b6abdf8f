"""Whether fits may be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastlmm_core.errors import DataError

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["check_same_data"]


def check_same_data(a: FittedModel, b: FittedModel, name_a: str, name_b: str) -> None:
    """DataError where two fits do not share rows, response and weights."""
    one, other = a.design, b.design
    if len(one.y) != len(other.y) or not np.array_equal(one.row_index, other.row_index):
        hint = "missing values in a variable of one of them?"
        raise DataError(f"{name_a!r} used {len(one.y)} rows and {name_b!r} {len(other.y)}, not the same ones: {hint}")
    if not np.array_equal(one.y, other.y):
        raise DataError(f"{name_a!r} and {name_b!r} have different responses: their likelihoods cannot be compared")
