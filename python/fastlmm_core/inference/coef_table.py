"""The table of coefficients with degrees of freedom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fastlmm_core.inference.ddf import ddf_method, t_pvalues

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["coef_table"]


def coef_table(result: FittedModel, *, ddf: str = "satterthwaite") -> pd.DataFrame:
    """Estimates, standard errors, degrees of freedom, t and p; see `LmerResult.coef_table`."""
    method = ddf_method(result, ddf)
    kept = ~np.isnan(result.core.beta)
    columns = np.full((5, len(kept)), np.nan)
    se = np.sqrt(np.diagonal(method.cov))
    df = method.df(np.eye(len(method.beta)))
    t = method.beta / se
    columns[:, kept] = method.beta, se, df, t, t_pvalues(t, df)
    frame = pd.DataFrame(
        dict(zip(("estimate", "std_error", "df", "t", "p"), columns, strict=True)),
        index=list(result.design.x_names),
    )
    frame.attrs["notes"] = list(method.notes)
    return frame
