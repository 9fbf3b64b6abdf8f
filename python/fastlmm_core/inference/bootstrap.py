"""Parametric and residual bootstrap, on the core's fits of many responses with one design."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.arguments import checked_count
from fastlmm_core.core.residuals import CrossedFit, PatternFit
from fastlmm_core.core.start import moment_start
from fastlmm_core.core.structures.structured import StructuredFit
from fastlmm_core.errors import ConvergenceWarning, DataError, FastLMMError, ModelError, warn
from fastlmm_core.fitting.fit import kept_model, refit
from fastlmm_core.fitting.models import arrays_of
from fastlmm_core.fitting.residual import parameter_labels
from fastlmm_core.fitting.residual import simulate as of_patterns
from fastlmm_core.fitting.structured_models import structure_labels
from fastlmm_core.inference.parameters import parameter_values, parameters
from fastlmm_core.inference.pattern_parameters import covariance_parameters
from fastlmm_core.inference.progress import counted
from fastlmm_core.inference.simulate import draw_responses, generators, recipe, spread

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import Design

__all__ = ["Statistic", "bootstrap", "jackknife"]

Array = NDArray[np.float64]
Statistic = Callable[["FittedModel"], Any]
Draw = Callable[[Sequence[np.random.Generator]], Array]

CHUNK_NUMBERS = 1 << 22
"""Responses are drawn and fitted as many at a time as have this many values."""

JACKKNIFE_BLOCKS = 200
"""Levels are left out one by one up to this number, in that many blocks beyond."""


def bootstrap(
    result: FittedModel,
    n: int = 1000,
    *,
    kind: Literal["parametric", "residual"] = "parametric",
    statistic: Statistic | None = None,
    seed: int | Sequence[int] | np.random.SeedSequence | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Fit drawn responses; see `LmerResult.bootstrap`."""
    import pandas as pd

    checked_count(n, "n")
    if kind not in ("parametric", "residual"):
        raise ModelError(f'kind must be "parametric" or "residual", not {kind!r}')
    structured = isinstance(result.core, PatternFit | StructuredFit | CrossedFit)
    if structured and kind == "residual":
        raise ModelError('kind="residual" is not available for covariance structures: use "parametric"')
    if structured and statistic is None:
        statistic = structured_parameters
    draw = parametric(result) if kind == "parametric" else residual(result)
    streams = generators(seed, n)
    index = pd.RangeIndex(1, n + 1, name="draw")
    with counted(n, progress, "bootstrap", "draw") as shown:
        if statistic is not None:
            rows, failed = _statistics(result, statistic, draw, streams, shown)
            return _checked(pd.DataFrame(rows, index=index), failed, n)
        values, failed = _estimates(result, draw, streams, shown)
    names = [p.name for p in parameters(result.design)]
    return _checked(pd.DataFrame(values, index=index, columns=names), failed, n)


def _checked(frame: pd.DataFrame, failed: int, n: int) -> pd.DataFrame:
    if failed:
        warn(f"{failed} of {n} bootstrap fits did not converge", ConvergenceWarning)
    return frame


def _estimates(
    result: FittedModel, draw: Draw, streams: Iterator[np.random.Generator], shown: Any
) -> tuple[Array, int]:
    """Parameters of every draw (n, n_parameters), and how many fits did not converge."""
    design, core = result.design, result.core
    model: Any = kept_model(result)
    # a singular fit is no place to start from: every zero is a stationary point
    start = core.cross.theta_map.to_user @ moment_start(core.cross) if core.is_singular else core.theta
    size = max(1, CHUNK_NUMBERS // core.n)
    if not shown.disable:
        size = min(size, 500)  # so that the bar moves; the numbers do not depend on it
    blocks, failed = [], 0
    while batch := list(islice(streams, size)):
        fits = model.fit_many(draw(batch), start=start)
        blocks.append(parameter_values(design, fits.theta, fits.sigma, fits.beta))
        failed += int(np.count_nonzero(~fits.converged))
        shown.update(len(batch))
    return np.concatenate(blocks), failed


def _statistics(
    result: FittedModel, statistic: Statistic, draw: Draw, streams: Iterator[np.random.Generator], shown: Any
) -> tuple[list[dict[str, Any]], int]:
    """What `statistic` says of the refitted result of every draw."""
    rows: list[dict[str, Any]] = []
    failed = 0
    for stream in streams:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            again = refit(result, draw([stream])[0])
        failed += not again.converged
        rows.append(named(statistic(again)))
        shown.update(1)
    return rows, failed


def named(value: Any) -> dict[str, Any]:
    """A statistic's value as columns: a mapping or Series by its keys, an array by position, or one number.

    Raises DataError for what is no number.
    """
    by_name = isinstance(value, Mapping) or hasattr(value, "items")
    array = np.asarray(list(value.values()) if isinstance(value, Mapping) else value)
    if array.dtype.kind not in "biufO" or any(item is None or isinstance(item, str) for item in array.ravel().tolist()):
        raise DataError(f"statistic has to give numbers (one, an array, or a mapping to numbers), not {value!r}")
    if by_name:
        return {str(key): item for key, item in value.items()}
    if array.ndim == 0:
        return {"statistic": array[()]}
    return {f"statistic_{i}": item for i, item in enumerate(array.ravel())}


def structured_parameters(result: FittedModel) -> pd.Series:
    """Parameters of a model with a covariance structure, as they are printed, and coefficients."""
    import pandas as pd

    coefficients = pd.Series(result.core.beta, index=list(result.design.x_names))
    if isinstance(result.core, PatternFit | CrossedFit) and result.design.residual is not None:
        covariance = covariance_parameters(result.design, result.core, 0.95)["estimate"]
        return pd.concat([covariance, coefficients])
    labels = parameter_labels(result.design) + structure_labels(result.design)
    theta = pd.Series(result.core.parameters, index=labels)
    return pd.concat([theta, pd.Series({"sigma": result.core.sigma}), coefficients])


def parametric(result: FittedModel) -> Draw:
    """Random effects and residuals from their normal distributions."""
    if isinstance(result.core, PatternFit | CrossedFit):
        design, core = result.design, result.core

        def of_units(streams: Sequence[np.random.Generator]) -> Array:
            return np.array([of_patterns(design, core, 1, stream)[:, 0] for stream in streams])

        return of_units
    source, _ = recipe(result)

    def draw(streams: Sequence[np.random.Generator]) -> Array:
        return draw_responses(source, streams)

    return draw


def residual(result: FittedModel) -> Draw:
    """Conditional modes and residuals resampled (Carpenter, Goldstein & Rasbash 2003).

    Both are centred and scaled first so that their empirical covariances are the estimated ones, as they are shrunk.
    Effects on one grouping factor are resampled together, level by level.
    """
    design, core = result.design, result.core
    root = np.ones(core.n) if design.weights is None else np.sqrt(design.weights)
    mean = design.X @ np.nan_to_num(core.beta)
    if design.offset is not None:
        mean = mean + design.offset
    effects = [reflated(b, core.sigma * factor) for b, factor in zip(core.b, core.L, strict=True)]
    noise = reflated(((design.y - core.fitted) * root)[:, None], np.array([[core.sigma]]))[:, 0]
    groups = {term.group: len(term.level_set) for term in design.random}

    def draw(streams: Sequence[np.random.Generator]) -> Array:
        out = np.empty((len(streams), core.n))
        for row, stream in zip(out, streams, strict=True):
            chosen = {group: stream.integers(0, q, q) for group, q in groups.items()}
            row[:] = mean + noise[stream.integers(0, core.n, core.n)] / root
            for term, b in zip(design.random, effects, strict=True):
                row += spread(b[None, chosen[term.group]], term.codes, term.z)[0]
        return out

    return draw


def reflated(values: Array, factor: Array) -> Array:
    """Rows (q, l) centred and transformed to have covariance factor factor' exactly, as far as they vary."""
    centred = values - values.mean(axis=0)
    spread_, vectors = np.linalg.eigh(centred.T @ centred / len(values))
    kept = spread_ > 1e-12 * max(float(spread_[-1]), 1e-300)
    inverse_root = (vectors[:, kept] / np.sqrt(spread_[kept])) @ vectors[:, kept].T
    size, axes = np.linalg.eigh(factor @ factor.T)
    return np.asarray(centred @ inverse_root @ ((axes * np.sqrt(np.maximum(size, 0.0))) @ axes.T))


def jackknife_rows(design: Design) -> Iterator[NDArray[np.intp]]:
    """Rows that are left with one block of levels at a time left out; see `jackknife`."""
    term = min(design.random, key=lambda t: len(t.level_set))
    q = len(term.level_set)
    if q < 3:
        raise ModelError(f"{term.group} has {q} levels: too few to leave one out, use percentile intervals")
    blocks = np.arange(q) * min(q, JACKKNIFE_BLOCKS) // q
    for block in range(int(blocks[-1]) + 1):
        yield np.flatnonzero(blocks[term.codes] != block)


def jackknife(result: FittedModel) -> Array:
    """Parameters with one level at a time left out, (blocks, n_parameters).

    The grouping factor is the one with the fewest levels, the outermost where factors are nested; beyond
    `JACKKNIFE_BLOCKS` levels, as many blocks of them are left out.

    Raises
    ------
    ModelError
        Fewer than three levels.
    """
    design, options = result.design, result.options
    start = None if result.is_singular else result.core.theta
    arrays, rows = arrays_of(design), []
    for kept in jackknife_rows(design):
        try:
            model = arrays.rows(kept, all_levels=False).model(options.reml, options.control)
            fit = model.fit(design.y[kept], start=start)
        except FastLMMError:  # too little is left without this level
            continue
        rows.append(parameter_values(design, fit.theta[None], np.array([fit.sigma]), fit.beta[None])[0])
    return np.array(rows).reshape(len(rows), -1)
