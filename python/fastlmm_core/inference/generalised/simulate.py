"""Responses drawn from a generalised fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.arguments import checked_count
from fastlmm_core.errors import ModelError
from fastlmm_core.families import Ordinal, TwoPart
from fastlmm_core.fitting.generalised import trials_of
from fastlmm_core.fitting.zero_part import family_at
from fastlmm_core.inference.generalised.classes import categorical
from fastlmm_core.inference.generalised.rows import prior_weights
from fastlmm_core.inference.simulate import Recipe, generators, recipe, spread

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.core.glmm.two_predictors import ZeroPart
    from fastlmm_core.families import Family
    from fastlmm_core.fitting.generalised_model import GeneralisedModel
    from fastlmm_core.formula import Design, NewDesign

__all__ = ["drawer", "draws", "simulate"]

Array = NDArray[np.float64]
Seed = int | Sequence[int] | np.random.SeedSequence | None


def predictor(source: Recipe, stream: np.random.Generator) -> Array:
    """One linear predictor (n,), its random effects drawn anew."""
    eta = source.mean.copy()
    for term in source.terms:
        q, l = term.n_levels, len(term.factor)
        eta += spread(stream.standard_normal((1, q, l)) @ term.factor.T, term.codes, term.z)[0]
    return eta


def drawer(result: GeneralisedModel, source: Recipe | None = None) -> Callable[[np.random.Generator], Array]:
    """What draws a response (n,) for the rows of the fit; successes where they are counted among trials.

    Of the fit's own parameters where no others are given.
    """
    source = recipe(result)[0] if source is None else source
    m, core = prior_weights(result), result.core
    own = Families(result, "none")

    def draw(stream: np.random.Generator) -> Array:
        mu = possible(core.family, predictor(source, stream))
        return own(stream).simulate(stream, mu, m, core.rho)

    return draw


def draws(result: GeneralisedModel, n: int, *, seed: Seed = None) -> Iterator[Array]:
    """N responses for the rows of the fit, (n,) each."""
    return map(drawer(result), generators(seed, n))


class Families:
    """The family of each draw: where the log odds of a zero part have random effects, these are drawn anew.

    Parameters
    ----------
    re_form : {"all", "none"}
        At the modes, or drawn.
    rows : NewDesign, optional
        Of new data.
    """

    def __init__(
        self, result: GeneralisedModel, re_form: str, newdata: Any = None, rows: NewDesign | None = None
    ) -> None:
        own = result.design.own_rows() if rows is None else rows
        core, part = result.core, result.options.zero
        self.source: Recipe | None = None
        drawn = isinstance(core.family, TwoPart) and bool(core.family.effects) and re_form == "none"
        self.family = family_at(result, newdata, own, re_form=re_form)
        if drawn:
            assert part is not None
            assert core.zero_part is not None
            offset = replace(core.zero_part, beta=np.zeros(part.X.shape[1]))
            self.source, found = recipe(_Part(part, offset), newdata=newdata)  # type: ignore[arg-type]
            self.rows = None if newdata is None else found  # those of the fit are the counts' own
            self.used = slice(None) if own.rows is None else own.rows

    def __call__(self, stream: np.random.Generator) -> Family:
        if self.source is None:
            return self.family
        assert isinstance(self.family, TwoPart)
        odds = predictor(self.source, stream)
        return self.family.at(self.family.zero, odds if self.rows is None else self.rows.full(odds)[self.used])


class _Part(NamedTuple):
    """A zero part as `recipe` takes a fit."""

    design: Design
    core: ZeroPart


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
    families = Families(result, re_form, newdata, rows)
    family, known = families.family, ~np.isnan(source.mean)
    if isinstance(family, TwoPart):
        known &= ~np.isnan(np.broadcast_to(family.log_odds(core.rho), (k,)))
    out = np.full((k, n), np.nan)
    for column, stream in enumerate(generators(seed, n)):
        mu, own = possible(family, predictor(source, stream)[known]), families(stream)
        if isinstance(own, TwoPart):
            own = own.at(*(None if part is None else part[known] for part in (own.zero, own.offset)))
        out[known, column] = own.simulate(stream, mu, m[known], core.rho)
    if result.options.proportions:
        out /= m[:, None]
    frame = pd.DataFrame(rows.full(out), index=rows.index, columns=[f"sim_{i + 1}" for i in range(n)])
    if isinstance(family, Ordinal):
        return pd.DataFrame(
            {name: categorical(family, column.to_numpy()) for name, column in frame.items()}, index=frame.index
        )
    return frame
