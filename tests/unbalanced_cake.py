"""Unbalanced data with two crossed factors and a covariate."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["unbalanced_cake"]


def unbalanced_cake() -> pd.DataFrame:
    """197 of cake's 270 rows, with a covariate."""
    from fastlmm_core import load_dataset

    cake = load_dataset("cake")
    data = cake[(np.arange(len(cake)) * 7919 % 11) >= 3].reset_index(drop=True)
    codings = {name: pd.Categorical(data[name].astype(str)) for name in ("recipe", "temperature", "replicate")}
    return data.assign(x=((np.arange(len(data)) * 37) % 29) / 7.0, **codings)
