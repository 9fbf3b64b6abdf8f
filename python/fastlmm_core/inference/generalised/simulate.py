"""Responses drawn from a generalised fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.terms import checked_count
from fastlmm_core.errors import ModelError
from fastlmm_core.families import Ordinal, TwoPart
from fastlmm_core.fitting.generalised import family_at, trials_of
from fastlmm_core.inference.generalised.classes import categorical
from fastlmm_core.inference.generalised.rows import prior_weights
from fastlmm_core.inference.simulate import Recipe, generators, recipe, spread

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.families import Family
    from fastlmm_core.fitting.generalised_model import GeneralisedModel

__all__ = ["draws", "simulate"]

Array = NDArray[np.float64]
Seed = int | Sequence[int] | np.random.SeedSequence | None


def predictor(source: Recipe, stream: np.random.Generator) -> Array:
    """One linear predictor (n,), its random effects drawn anew."""
    eta = source.mean.copy()
    for term in source.terms:
        q, l = term.n_levels, len(term.factor)
        eta += spread(stream.standard_normal((1, q, l)) @ term.factor.T, term.codes, term.z)[0]
    return eta


def draws(result: GeneralisedModel, n: int, *, seed: Seed = None, source: Recipe | None = None) -> Iterator[Array]:
    """N responses for the rows of the fit, (n,) each; successes where they are counted among trials."""
    source = recipe(result)[0] if source is None else source
    m, core = prior_weights(result), result.core
    for stream in generators(seed, n):
        yield core.family.simulate(stream, possible(core.family, predictor(source, stream)), m, core.rho)


def possible(family: Family, eta: Array) -> Array:
    """The means at linear predictors (n,).

    Raises
    ------
    ModelError
        Some are none of the family's.
    """
    mu = family.mean(eta)
    low, high = family.mean_range
    bad = ~((mu >= low) & (mu <= high)) & ~np.isnan(eta)
    if bad.any():
        raise ModelError(
            f"{int(bad.sum())} of {len(mu)} means drawn are outside the {family.name} family's support, the first "
            f"{mu[bad][0]:.3g}: normal random effects reach there by the {family.link.name} link. "
            're_form="all" draws at the estimated ones'
        )
    return mu


def simulate(
    result: GeneralisedModel,
    n: int = 1,
    *,
    seed: Seed = None,
    re_form: str = "none",
    newdata: Any = None,
    params: Mapping[str, ArrayLike] | None = None,
) -> pd.DataFrame:
    """Draw responses; see `GlmerResult.simulate`."""
    import pandas as pd

    checked_count(n, "n")
    if params and "sigma" in params:
        raise ModelError("params takes beta and theta: a generalised model has no sigma")
    source, rows = recipe(result, re_form=re_form, newdata=newdata, params=params)
    core, k = result.core, len(source.mean)
    m = prior_weights(result)
    if newdata is not None:
        given = trials_of(result, newdata)
        m = np.ones(k) if given is None else rows.taken(given, "trials")
    family = family_at(result, newdata, rows)
    known = ~np.isnan(source.mean)
    if isinstance(family, TwoPart) and family.zero is not None:
        known &= ~np.isnan(family.zero).any(axis=1)
        family = family.at(family.zero[known])
    out = np.full((k, n), np.nan)
    for column, stream in enumerate(generators(seed, n)):
        mu = possible(family, predictor(source, stream)[known])
        out[known, column] = family.simulate(stream, mu, m[known], core.rho)
    if result.options.proportions:
        out /= m[:, None]
    frame = pd.DataFrame(rows.full(out), index=rows.index, columns=[f"sim_{i + 1}" for i in range(n)])
    if isinstance(family, Ordinal):
        return pd.DataFrame(
            {name: categorical(family, column.to_numpy()) for name, column in frame.items()}, index=frame.index
        )
    return frame
