"""Fixed-effects estimates with their standard errors, as labelled pandas objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fastlmm_core.fitting.text import listed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.core.glmm.fitted import GlmmFit
    from fastlmm_core.formula import Design, NewDesign

__all__ = ["bse", "cov_params", "dropped_columns", "labelled", "undetermined", "why_undetermined"]


def labelled(design: Design, values: NDArray[np.float64], name: str | None = None) -> pd.Series:
    """`values` (p,) as a Series indexed by the names of the fixed-effects columns."""
    return pd.Series(values, index=list(design.x_names), name=name, dtype=float, copy=True)


def bse(core: CoreFit) -> NDArray[np.float64]:
    """Standard errors (p,): square roots of the diagonal of `cov_beta`, NaN where the column was dropped."""
    return np.sqrt(np.diagonal(core.cov_beta))


def cov_params(design: Design, core: CoreFit) -> pd.DataFrame:
    """σ² (Xᵀ V⁻¹ X)⁻¹ as a labelled table."""
    names = list(design.x_names)
    return pd.DataFrame(core.cov_beta.copy(), index=names, columns=names)


def undetermined(design: Design, core: CoreFit, rows: NewDesign) -> list[str]:
    """A note on the rows whose Xβ the data do not determine, as some columns depend on others, if any."""
    assert rows.X is not None
    unknown = int((~core.estimable(rows.X)).sum())
    if not unknown:
        return []
    count = f"{unknown} of {len(rows.X)} rows {'is' if unknown == 1 else 'are'} not estimable"
    return [f"{count} (NaN), {why_undetermined(design, core)}"]


def why_undetermined(design: Design, core: CoreFit) -> str:
    """The reason why something is not estimable, as the end of a sentence."""
    dropped = dropped_columns(design, core)
    return f"as {listed(dropped)} {'depends' if len(dropped) == 1 else 'depend'} linearly on other columns"


def dropped_columns(design: Design, core: CoreFit | GlmmFit) -> list[str]:
    """Names of the fixed-effects columns that depend linearly on the others and have no coefficient of their own."""
    if core.rank == len(design.x_names):
        return []
    return [name for name, value in zip(design.x_names, core.beta, strict=True) if np.isnan(value)]
