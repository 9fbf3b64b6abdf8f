"""The small table that tests of designs read, and its design."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fastlmm_core.formula import Design, build_design

__all__ = ["DATA", "N", "build", "with_values"]

RNG = np.random.default_rng(3)
N = 48
DATA = pd.DataFrame(
    {
        "y": RNG.normal(size=N),
        "x": RNG.normal(size=N),
        "z": RNG.uniform(1, 2, N),
        "w": RNG.uniform(1, 2, N),
        "f": pd.Categorical(RNG.choice(["lo", "hi"], N), categories=["lo", "hi"]),
        "g": np.tile([f"g{i}" for i in range(6)], 8),
        "h": np.repeat([30, 4, 100], 16),
        "few": np.tile(["p", "q"], 24),
        "a b": RNG.normal(size=N),
    },
    index=[f"row{i}" for i in range(N)],
)


def build(formula: str = "y ~ x + (1 | g)", data: Any = DATA, **kwargs: Any) -> Design:
    return build_design(formula, data, **kwargs)


def with_values(column: str, values: dict[int, float]) -> pd.DataFrame:
    data = DATA.copy()
    for row, value in values.items():
        data.iloc[row, data.columns.get_loc(column)] = value
    return data
