"""A fit of rows that lie on many machines, in four functions that any of them can call: Dask, Ray, Spark.

recipe = prepare(formula, rows)                       once, of a few rows; what it needs first is said by name
partials = [stats(recipe, part) for part in parts]    on the machines that have the parts
total = merge(partials)                               in a tree, in any order
result = finalise(total)                              on one machine
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastlmm_core.core.arguments import checked_flag
from fastlmm_core.core.control import checked_control
from fastlmm_core.fitting import streaming
from fastlmm_core.fitting.options import FitOptions
from fastlmm_core.fitting.streaming import Partial, merge, stats
from fastlmm_core.results.streamed import fit_streamed

if TYPE_CHECKING:
    from fastlmm_core.core import Control
    from fastlmm_core.formula.recipe import Recipe
    from fastlmm_core.results.result import LmerResult

__all__ = ["finalise", "merge", "prepare", "stats"]


def prepare(
    formula: str,
    rows: Any,
    *,
    weights: str | None = None,
    offset: str | None = None,
    subset: str | None = None,
    contrasts: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
) -> Recipe:
    """What a model needs to know before its rows are added up; picklable.

    Parameters
    ----------
    formula : str
        As of `lmer`.
    rows : table or stream
        All rows, where the formula has factors whose levels it does not give, or transforms that learn from the rows
        (`scale`, `poly`, splines); else a few are enough. A pandas, polars or pyarrow table, or what `stream` takes.
    weights, offset, subset : str, optional
    contrasts, env : mapping, optional
        As of `lmer`.

    Returns
    -------
    Recipe
        Its `needs` are what it has taken from the rows given.

    Raises
    ------
    FormulaError, DataError, ModelError
        As `lmer`.
    """
    source = streaming.as_stream(rows)
    return streaming.prepare(
        formula, source, weights=weights, offset=offset, subset=subset, contrasts=contrasts, env=env
    )


def finalise(total: Partial, *, reml: bool = True, control: Control | None = None) -> LmerResult:
    """The fit of rows that have been added up.

    Parameters
    ----------
    total : Partial
        From `stats` or `merge`.
    reml : bool
    control : Control, optional

    Returns
    -------
    LmerResult

    Raises
    ------
    DataError, ModelError, MemoryLimitError, NumericalError
        As `lmer`.

    Examples
    --------
    >>> from fastlmm_core import load_dataset
    >>> from fastlmm_core.dask import finalise, merge, prepare, stats
    >>> table = load_dataset("sleepstudy")
    >>> recipe = prepare("Reaction ~ Days + (Days | Subject)", table)
    >>> total = merge([stats(recipe, table[:100]), stats(recipe, table[100:])])
    >>> round(finalise(total).criterion, 2)
    1743.63
    """
    recipe = total.recipe
    asked = {"weights": recipe.weights, "offset": recipe.offset, "subset": recipe.subset}
    given = {name: value for name, value in asked.items() if value is not None}
    design = streaming.finalise(total, check_levels=checked_control(control).check_levels)
    options = FitOptions(reml=checked_flag(reml), control=control, given=given)
    return fit_streamed(design, recipe.formula, options)
