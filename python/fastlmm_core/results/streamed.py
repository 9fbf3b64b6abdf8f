"""`lmer()` of rows that come in batches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from fastlmm_core.core.control import checked_control
from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.fit import fit_design
from fastlmm_core.fitting.models import model_of
from fastlmm_core.fitting.options import checked_start
from fastlmm_core.fitting.streaming import accumulate, finalise, prepare
from fastlmm_core.formula.sources import Stream, stream
from fastlmm_core.results.result import LmerResult

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastlmm_core.core import StreamedModel
    from fastlmm_core.fitting.options import FitOptions
    from fastlmm_core.fitting.streaming import StreamedDesign

__all__ = ["fit_streamed", "lmer_streamed", "refuse_with_streams"]


def refuse_with_streams(**given: Any) -> None:
    """ModelError where an argument of `lmer` is given that streamed rows do not have."""
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise ModelError(f"{' and '.join(named)} cannot be combined with rows that are streamed: fit a table in memory")


def lmer_streamed(
    formula: str, data: Any, options: FitOptions, start: ArrayLike | None, objective_only: bool, **arguments: Any
) -> LmerResult:
    """`lmer` of what `is_stream`; see there."""
    source = data if isinstance(data, Stream) else stream(data)
    control = checked_control(options.control)
    recipe = prepare(formula, source, memory=control.n_bytes, **arguments)
    total = accumulate(recipe, source, keep_rows=control.engine == "iterative")
    design = finalise(total, check_levels=control.check_levels, last=True)
    return fit_streamed(design, formula, options, start, objective_only)


def fit_streamed(
    design: StreamedDesign,
    formula: str,
    options: FitOptions,
    start: ArrayLike | None = None,
    objective_only: bool = False,
) -> LmerResult:
    """The result of a streamed design, or its criterion."""
    if objective_only:
        model = cast("StreamedModel", model_of(design, options))
        return cast("LmerResult", model.objective())
    theta = checked_start(start, design)
    return fit_design(LmerResult, design, formula, options if theta is None else replace(options, start=theta))
