"""Predictions of families whose response is not one mean: probabilities of categories, zeros' own part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from fastlmm_core.errors import ModelError
from fastlmm_core.inference.generalised.uncertainty import parameter_covariance

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastlmm_core.families import Ordinal, TwoPart
    from fastlmm_core.fitting.generalised_model import GeneralisedModel
    from fastlmm_core.formula import NewDesign

__all__ = ["categorical", "check_kind", "class_predictions", "zero_probabilities"]

Array = NDArray[np.float64]


def class_predictions(
    family: Ordinal, rho: Array, rows: NewDesign, eta: Array, kind: str, averaged: Callable[..., Array]
) -> pd.DataFrame | pd.Series:
    """Probabilities (n, K) of the categories as a table, or the likeliest category of each row.

    Parameters
    ----------
    averaged : callable
        From a function of the linear predictor to its mean over new groups, for ``kind="marginal"``.
    """
    if kind == "marginal":
        columns = [averaged(lambda at, k=k: family.probabilities(at, rho)[:, k]) for k in range(len(family.levels))]
        p = np.column_stack(columns)
    else:
        p = family.probabilities(eta, rho)
    p[np.isnan(eta)] = np.nan
    if kind != "class":
        return pd.DataFrame(rows.full(p), index=rows.index, columns=list(family.levels))
    likeliest = np.where(np.isnan(eta), np.nan, np.argmax(np.nan_to_num(p), axis=1))
    return pd.Series(categorical(family, rows.full(likeliest)), index=rows.index)


def categorical(family: Ordinal, numbers: Array) -> pd.Categorical:
    """Categories by their numbers (n,), NaN for missing ones."""
    codes = np.where(np.isnan(numbers), -1.0, np.nan_to_num(numbers)).astype(np.int64)
    return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(list(family.levels), ordered=True))


def zero_probabilities(
    result: GeneralisedModel, family: TwoPart, rows: NewDesign, z: float | None
) -> pd.DataFrame | pd.Series:
    """Probabilities of a zero that is not the counts', with limits made on the scale of its log odds."""
    assert rows.X is not None
    n, k = len(rows.X), len(family.columns)
    odds = np.broadcast_to(family.log_odds(result.core.rho), (n,))
    p = expit(odds)
    if z is None:
        return rows.by_row(p)
    columns = np.ones((n, 1)) if family.zero is None else family.zero
    at = len(result.core.theta) + len(result.core.beta)
    v = parameter_covariance(result)[at : at + k, at : at + k]
    error = np.sqrt(np.einsum("np,pq,nq->n", columns, v, columns))
    parts: dict[str, Any] = {
        "fit": p,
        "std_error": p * (1.0 - p) * error,
        "lower": expit(odds - z * error),
        "upper": expit(odds + z * error),
    }
    return pd.DataFrame({name: rows.full(values) for name, values in parts.items()}, index=rows.index)


def check_kind(family: Any, kind: str, interval: str | None) -> None:
    """ModelError for a kind of prediction that the family does not have, or has no limits of."""
    ordinal, two = family.name == "ordinal", hasattr(family, "zero_probability")
    if kind == "class" and not ordinal:
        raise ModelError('kind="class" is for ordinal models')
    if kind in ("conditional", "zprob") and not two:
        raise ModelError(f'kind="{kind}" is for models with a part for zeros (zero=)')
    if ordinal and interval is not None and kind != "link":
        raise ModelError(
            'intervals of ordinal models are those of the linear predictor, kind="link"; for probabilities there is '
            "bootstrap(statistic=...)"
        )
