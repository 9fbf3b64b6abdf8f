"""Responses drawn from a fitted model: the same numbers for the same seed, whatever the number of draws or threads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.arguments import checked_count, seed_sequence
from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.predict import included_columns

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import NewDesign

__all__ = ["Recipe", "TermRecipe", "draw_responses", "generators", "recipe", "simulate"]

Array = NDArray[np.float64]

DRAWS_PER_STREAM = 32
"""Draws that one spawned generator serves, one after another."""


@dataclass(frozen=True, eq=False)
class TermRecipe:
    """Random effects of one term that are drawn anew.

    Attributes
    ----------
    codes : (n,) integers
    z : (n, l) or None
        None is a column of ones.
    n_levels : int
    factor : (l, l)
        Cholesky factor of the effects' covariance, in the response's units; rows of effects not drawn are zero.
    """

    codes: NDArray[np.integer[Any]]
    z: Array | None
    n_levels: int
    factor: Array


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a response is drawn from.

    Attributes
    ----------
    mean : (n,)
        Everything that is not random.
    terms : tuple of TermRecipe
    sd : (n,)
        Residual standard deviation of each row.
    """

    mean: Array
    terms: tuple[TermRecipe, ...]
    sd: Array

    @property
    def n_normals(self) -> int:
        """Standard normal numbers that a draw takes: effects term by term, then residuals."""
        return sum(t.n_levels * len(t.factor) for t in self.terms) + len(self.mean)


def generators(seed: int | Sequence[int] | np.random.SeedSequence | None, n: int) -> Iterator[np.random.Generator]:
    """The generator of each of n draws, to be used in this order: draw i is the same however many there are.

    Every `DRAWS_PER_STREAM` draws a new one is spawned from the seed; one a draw would take longer than a small draw. A
    SeedSequence is taken for its entropy and key, and not advanced.
    """
    root = seed_sequence(seed)
    for block in range(-(-n // DRAWS_PER_STREAM)):
        child = np.random.SeedSequence(root.entropy, spawn_key=(*root.spawn_key, block))
        stream = np.random.Generator(np.random.PCG64(child))
        yield from repeat(stream, min(DRAWS_PER_STREAM, n - block * DRAWS_PER_STREAM))


def draw_responses(source: Recipe, streams: Sequence[np.random.Generator]) -> Array:
    """One response (row) from each generator: (k, n)."""
    k, n = len(streams), len(source.mean)
    normals = np.empty((k, source.n_normals))
    for row, stream in zip(normals, streams, strict=True):
        stream.standard_normal(out=row)
    out: Array = normals[:, -n:] * source.sd
    out += source.mean
    at = 0
    for term in source.terms:
        q, l = term.n_levels, len(term.factor)
        effects = normals[:, at : at + q * l].reshape(k, q, l) @ term.factor.T
        at += q * l
        out += spread(effects, term.codes, term.z)
    return out


def spread(effects: Array, codes: NDArray[np.integer[Any]], z: Array | None) -> Array:
    """Z b for k sets of effects (k, q, l): (k, n)."""
    if z is None:
        return effects[:, codes, 0]
    out = effects[:, codes, 0] * z[:, 0]
    for c in range(1, z.shape[1]):
        out += effects[:, codes, c] * z[:, c]
    return out


def recipe(
    result: FittedModel,
    *,
    re_form: str = "none",
    newdata: Any = None,
    params: Mapping[str, ArrayLike] | None = None,
) -> tuple[Recipe, NewDesign]:
    """Mean, random terms and residual deviations for the rows of the fit or for new ones, and these rows."""
    design, core = result.design, result.core
    beta, factors, sigma = _values(result, params)
    masks = included_columns(design, re_form)
    if params and any(mask.any() for mask in masks):
        raise ModelError("random effects at their conditional modes belong to the fit's own parameters: drop params")
    kept = [k for k, mask in enumerate(masks) if mask.any()]
    others = [k for k in range(len(masks)) if k not in kept]
    rows = design.own_rows()
    if newdata is not None:
        advice = 're_form="none" draws the effects of every group anew'
        rows = design.rebuild(newdata, random=kept, coded_anew=others, new_level_advice=advice)
    assert rows.X is not None  # `fixed` is asked for by default
    own_weights = design.weights if newdata is None else None
    sd = np.full(len(rows.X), sigma) if own_weights is None else sigma / np.sqrt(own_weights)
    mean: Array = rows.X @ np.nan_to_num(beta)
    mean[~core.estimable(rows.X)] = np.nan  # what the data do not determine
    if rows.offset is not None:
        mean = mean + rows.offset
    terms = []
    for part, b, mask, factor in zip(rows.random, core.b, masks, factors, strict=True):
        assert part is not None  # every term is asked for in one way or the other
        if mask.any():
            mean = mean + spread(np.where(mask, b, 0.0)[None], part.codes, part.z)[0]
        if not mask.all():
            effects = np.where(mask[:, None], 0.0, sigma * factor)
            terms.append(TermRecipe(part.codes, part.z, part.n_levels, effects))
    return Recipe(mean, tuple(terms), sd), rows


def _values(result: FittedModel, params: Mapping[str, ArrayLike] | None) -> tuple[Array, list[Array], float]:
    """beta, the relative factors and sigma: the fit's, or those given."""
    core = result.core
    given = {} if params is None else dict(params)
    unknown = sorted(set(given) - {"beta", "theta", "sigma"})
    if unknown:
        raise ModelError(f"params takes beta, theta and sigma, not {unknown[0]!r}")
    beta = np.array(given.get("beta", core.beta), dtype=float)
    theta = np.array(given.get("theta", core.theta), dtype=float)
    sigma = float(np.asarray(given.get("sigma", core.sigma), dtype=float))
    for name, values, like in (("beta", beta, core.beta), ("theta", theta, core.theta)):
        if values.shape != like.shape:
            raise DataError(f"params[{name!r}] has shape {values.shape}, but the model has {len(like)} values")
        if name in given and not np.isfinite(values).all():
            raise DataError(f"params[{name!r}] has values that are not finite")
    if not 0.0 <= sigma < np.inf:
        raise DataError(f"params['sigma'] must be a number that is not negative, not {sigma}")
    factors, at = [], 0
    for own in core.L:
        l = len(own)
        factor = np.zeros((l, l))
        for j in range(l):
            factor[j:, j] = theta[at : at + l - j]
            at += l - j
        factors.append(factor)
    return beta, factors, sigma


def simulate(
    result: FittedModel,
    n: int = 1,
    *,
    seed: int | Sequence[int] | np.random.SeedSequence | None = None,
    re_form: str = "none",
    newdata: Any = None,
    params: Mapping[str, ArrayLike] | None = None,
) -> pd.DataFrame:
    """Draw responses; see `LmerResult.simulate`."""
    import pandas as pd

    checked_count(n, "n")
    source, rows = recipe(result, re_form=re_form, newdata=newdata, params=params)
    drawn = draw_responses(source, list(generators(seed, n)))
    return pd.DataFrame(rows.full(drawn.T), index=rows.index, columns=[f"sim_{i + 1}" for i in range(n)])
