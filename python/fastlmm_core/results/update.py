"""A fit made again with something changed: formula, data, or any argument of `lmer`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from fastlmm_core.errors import DataError, FormulaError, ModelError
from fastlmm_core.fitting.fit import fit_design
from fastlmm_core.fitting.options import checked_start
from fastlmm_core.formula.frame import Table
from fastlmm_core.formula.update import updated_formula

if TYPE_CHECKING:
    from fastlmm_core.results.result import LmerResult

__all__ = ["update"]

WITHOUT_TABLE = frozenset({"reml", "control", "start", "verbose"})
"""Arguments whose change needs nothing but the arrays of the fit."""


def update(result: LmerResult, formula: str | None = None, data: Any = None, **changes: Any) -> LmerResult:
    """The fit with changes; see `LmerResult.update`."""
    from fastlmm_core.results.lmer import lmer

    options = result.options
    known = {*WITHOUT_TABLE, *ARGUMENTS, "env"}
    for name in changes:
        if name not in known:
            raise ModelError(f"update takes arguments of lmer, not {name!r}: {', '.join(sorted(known))}")
    if formula is None and data is None and set(changes) <= WITHOUT_TABLE:
        start = changes.pop("start", options.start)
        if start is not None:
            changes["start"] = checked_start(start, result.design)
        again = fit_design(type(result), result.design, result.formula, replace(options, **changes))
        again.kept.update({k: v for k, v in result.kept.items() if k == "data"})
        return again
    if data is None:
        try:
            data = result.kept_data()
        except DataError:
            raise DataError("the data are not kept: pass data=") from None
    text = result.formula
    if formula is not None:
        if not isinstance(formula, str):
            raise FormulaError(f"the formula must be a string, not {type(formula).__name__}")
        text = updated_formula(result.formula, formula, Table(data).names)
    call: dict[str, Any] = {"reml": options.reml, "control": options.control, "verbose": options.verbose}
    call |= dict(options.given) | {"env": result.design.context} | changes
    return cast("LmerResult", lmer(text, data, **call))


ARGUMENTS = ("subset", "weights", "offset", "na_action", "contrasts", "residual", "dispersion", "precision", "relmat")
"""Arguments of `lmer` that a fit remembers as they were given."""
