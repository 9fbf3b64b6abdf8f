"""A fit made again with something changed: formula, data, or any argument of `lmer`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from fastlmm_core.errors import DataError, FormulaError, SpellingError
from fastlmm_core.fitting.fit import fit_design
from fastlmm_core.fitting.generalised import fit_generalised
from fastlmm_core.fitting.options import checked_start
from fastlmm_core.formula.frame import Table
from fastlmm_core.formula.update import updated_formula

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.results.glmer_result import GlmerResult
    from fastlmm_core.results.result import LmerResult

__all__ = ["update", "update_generalised"]

WITHOUT_TABLE = frozenset({"reml", "control", "start", "verbose"})
"""Arguments whose change needs nothing but the arrays of the fit."""


def update(result: LmerResult, formula: str | None = None, data: Any = None, **changes: Any) -> LmerResult:
    """The fit with changes; see `LmerResult.update`."""
    from fastlmm_core.results.lmer import lmer

    options = result.options
    check_names(changes, {*WITHOUT_TABLE, *ARGUMENTS, "env"}, "lmer")
    if formula is None and data is None and set(changes) <= WITHOUT_TABLE:
        start = changes.pop("start", options.start)
        if start is not None:
            changes["start"] = checked_start(start, result.design)
        again = fit_design(type(result), result.design, result.formula, replace(options, **changes))
        again.kept.update({k: v for k, v in result.kept.items() if k == "data"})
        return again
    text, data = changed(result, formula, data)
    call: dict[str, Any] = {"reml": options.reml, "control": options.control, "verbose": options.verbose}
    call |= dict(options.given) | {"env": result.design.context} | changes
    return cast("LmerResult", lmer(text, data, **call))


def check_names(changes: Iterable[str], known: set[str], call: str) -> None:
    """Refuse what the call that makes such a fit does not take (SpellingError)."""
    for name in changes:
        if name not in known:
            raise SpellingError(f"update() takes arguments of {call}, not {name!r}: {', '.join(sorted(known))}")


def changed(result: FittedModel, formula: str | None, data: Any) -> tuple[str, Any]:
    """The new formula and the table to fit it to."""
    if data is None:
        try:
            data = result.kept_data()
        except DataError:
            raise DataError("the data are not kept: pass data=") from None
    if formula is None:
        return result.formula, data
    if not isinstance(formula, str):
        raise FormulaError(f"the formula must be a string, not {type(formula).__name__}")
    return updated_formula(result.formula, formula, Table(data).names), data


def update_generalised(
    result: GlmerResult, formula: str | None = None, data: Any = None, **changes: Any
) -> GlmerResult:
    """The fit with changes; see `GlmerResult.update`."""
    from fastlmm_core.results.glmer import glmer

    options = result.options
    check_names(changes, {*GENERALISED_WITHOUT_TABLE, *GENERALISED, "env"}, "glmer")
    if formula is None and data is None and set(changes) <= GENERALISED_WITHOUT_TABLE:
        again = fit_generalised(type(result), result.design, result.formula, replace(options, **changes))
        again.kept.update({k: v for k, v in result.kept.items() if k == "data"})
        return again
    text, data = changed(result, formula, data)
    family: Any = options.family
    if options.zero is not None:  # which is among what was given
        family = family.base
    if "link" in changes and family.fixed_rho is None:
        family = family.name
    call: dict[str, Any] = {"family": family, "n_agq": options.n_agq, "control": options.control}
    given = {k: v for k, v in options.given.items() if k != "link"}  # the family has it
    call |= {"verbose": options.verbose, **given, "env": result.design.context} | changes
    return glmer(text, data, **call)


GENERALISED_WITHOUT_TABLE = frozenset({"n_agq", "control", "start", "verbose"})

GENERALISED = (
    *("family", "link", "weights", "trials", "freq_weights", "offset", "exposure", "zero"),
    *("subset", "na_action", "contrasts"),
)
"""Arguments of `glmer` that a fit remembers as they were given, and its family."""

ARGUMENTS = ("subset", "weights", "offset", "na_action", "contrasts", "residual", "dispersion", "precision", "relmat")
"""Arguments of `lmer` that a fit remembers as they were given."""
