"""Rows in Dask's hands: sums are made where the partitions are, in a tree; the fit is made here.

`prepare`, `stats`, `merge` and `finalise` are what `lmer` is made of; they know nothing of Dask.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastlmm_core.errors import DataError, DependencyError
from fastlmm_core.fitting.streaming import Partial, as_stream
from fastlmm_core.formula.recipe import Recipe, Survey
from fastlmm_core.results.cluster import finalise, merge, prepare, stats

if TYPE_CHECKING:
    from fastlmm_core.core import Control
    from fastlmm_core.results.result import LmerResult

__all__ = ["finalise", "lmer", "merge", "prepare", "stats"]

SPLIT_EVERY = 4
"""Partial sums that one task merges."""


def lmer(
    formula: str,
    data: Any,
    *,
    reml: bool = True,
    control: Control | None = None,
    weights: str | None = None,
    offset: str | None = None,
    subset: str | None = None,
    contrasts: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    split_every: int = SPLIT_EVERY,
) -> LmerResult:
    """Fit a linear mixed model to a Dask DataFrame.

    Parameters
    ----------
    formula : str
    data : dask.dataframe.DataFrame
        No row of it is gathered; of a model of several factors the codes are, 4 bytes a row and factor, unless the rows
        collapse into cells.
    reml, control, weights, offset, subset, contrasts, env
        As of `fastlmm_core.lmer`; the first three of the arguments for rows as texts only.
    split_every : int
        Partial sums that one task merges.

    Returns
    -------
    LmerResult
        Without rows, as of any stream.

    Raises
    ------
    DependencyError
        Dask or pyarrow is not installed.
    FormulaError, DataError, ModelError, MemoryLimitError, NumericalError
        As `fastlmm_core.lmer`.

    Notes
    -----
    Tasks run where Dask's scheduler puts them: in a `distributed.Client` where there is one, else in this process. A
    worker that dies takes its sums with it, and Dask makes them again.
    """
    try:
        from dask.delayed import delayed
    except ImportError:
        raise DependencyError("a Dask DataFrame needs Dask: pip install 'fastlmm-core[dask]'") from None
    if not hasattr(data, "to_delayed") or not hasattr(data, "columns"):
        raise DataError(
            f"data must be a Dask DataFrame, not {type(data).__name__}: fastlmm_core.lmer takes other tables"
        )
    names = [str(name) for name in data.columns]
    recipe = Recipe(
        formula,
        names,
        weights=weights,
        offset=offset,
        subset=subset,
        contrasts=contrasts,
        env=sys._getframe(1).f_globals if env is None else env,
    )
    parts = data[list(recipe.needed)].to_delayed()
    recipe.look(as_stream(data[list(recipe.needed)].head(512, npartitions=-1)).peek(recipe.needed))
    found = None
    if recipe.needs:
        looked = [delayed(survey)(recipe, part) for part in parts]
        found = tree(delayed, merged_surveys, looked, split_every).compute()
    recipe.settle(found)
    sums = [delayed(stats)(recipe, part) for part in parts]
    total: Partial = tree(delayed, merge, sums, split_every).compute()
    return finalise(total, reml=reml, control=control)


def survey(recipe: Recipe, rows: Any) -> Survey:
    """What the first pass finds in some rows."""
    found = Survey()
    for _, batch in as_stream(rows).batches(recipe.survey_columns):
        recipe.survey(batch, found)
    return found


def merged_surveys(found: Sequence[Survey]) -> Survey:
    """What several found."""
    out = Survey()
    for one in found:
        out.merge(one)
    return out


def tree(delayed: Any, function: Any, tasks: list[Any], width: int) -> Any:
    """A delayed value: tasks merged by ``width`` at a time until one is left."""
    while True:
        tasks = [delayed(function)(tasks[s : s + width]) for s in range(0, len(tasks), width)]
        if len(tasks) == 1:
            return tasks[0]
