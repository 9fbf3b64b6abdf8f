"""Tests of the random effects: each term left out or reduced in turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from fastlmm_core.errors import ModelError
from fastlmm_core.inference.exact_ratio import exact_test_of
from fastlmm_core.inference.monte_carlo import warn_of_error
from fastlmm_core.inference.nested_tests import bootstrap_reduction
from fastlmm_core.inference.reductions import Reduction
from fastlmm_core.inference.table import Table, table

__all__ = ["NOTE", "ranova"]

Seed = int | Sequence[int] | np.random.SeedSequence | None

NOTE = (
    "a variance of zero lies on the boundary of the parameters: p, from chi-squared with df degrees of freedom, is too "
    "large; where one variance is removed, p_mixture is from the equal mixture of df and df - 1 degrees of freedom "
    "(Stram and Lee 1994)"
)


def ranova(
    result: Any,
    found: Iterable[tuple[Reduction, float]],
    *,
    test: str = "chisq",
    n: int | None = None,
    seed: Seed = None,
) -> Table:
    """Likelihood-ratio tests of the random effects, from reductions and their criteria; see `LmerResult.ranova`."""
    if test not in ("chisq", "bootstrap", "exact"):
        raise ModelError(f'test must be "chisq", "bootstrap" or "exact", not {test!r}')
    npar, criterion = result.df_model, result.criterion
    rows = [(npar, result.llf, result.aic, np.nan, np.nan, np.nan, np.nan)]
    labels, simulated, notes = ["<none>"], [np.nan], [NOTE]
    for reduction, value in found:
        df = reduction.df
        chisq = max(0.0, value - criterion)
        warn_of_error(result, chisq)
        p = float(chdtrc(df, chisq))
        mixture = np.nan
        if reduction.n_effects == 1:
            mixture = 0.5 * p + 0.5 * (float(chdtrc(df - 1, chisq)) if df > 1 else float(chisq <= 0.0))
        rows.append((npar - df, -0.5 * value, value + 2.0 * (npar - df), chisq, float(df), p, mixture))
        labels.append(reduction.label)
        if test == "bootstrap":
            simulated.append(bootstrap_reduction(result, reduction, 1000 if n is None else n, seed=seed).p)
        elif test == "exact":
            scalar = df == 1 and len(result.design.random[reduction.term].columns) == 1
            simulated.append(
                exact_test_of(result, reduction.term, chisq, 100_000 if n is None else n, seed).p if scalar else np.nan
            )
    frame = pd.DataFrame(
        rows, columns=["npar", "llf", "aic", "lrt", "df", "p", "p_mixture"], index=pd.Index(labels, name="term")
    )
    if test != "chisq":
        frame[f"p_{test}"] = simulated
    if test == "exact" and len(result.design.random) > 1:
        notes.append("p_exact leaves the other random terms out of the null distribution (Greven et al. 2008)")
    return table(frame, notes=notes)
