"""The part for zeros of a generalised model, `zero="~ x + (1 | g) + offset(o)"`: its rows, and what others make of it.

It is read as a model of its own with the same response, so that columns, levels, offsets and new data follow the same
rules as the counts' part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DataError, FormulaError, ModelError
from fastlmm_core.families import TwoPart
from fastlmm_core.fitting.models import is_structured
from fastlmm_core.fitting.predict import included_columns, linear_predictor, target_rows
from fastlmm_core.formula import build_design, parse_formula
from fastlmm_core.formula.left_side import Outcome

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastlmm_core.families import Family
    from fastlmm_core.fitting.generalised_model import GeneralisedModel
    from fastlmm_core.formula import Design, NewDesign
    from fastlmm_core.formula.design import NaAction
    from fastlmm_core.formula.parse import ParsedFormula

__all__ = ["ZeroRequest", "design_and_fit", "family_at", "group_names"]


def group_names(part: Design) -> list[str]:
    """Of each random term its grouping factor, or its own name where two terms have one."""
    groups = [term.group for term in part.random]
    return groups if len(set(groups)) == len(groups) else [term.grp for term in part.random]


class ZeroRequest:
    """`zero=` over a table: the rows that have its variables, then the part's design.

    Parameters
    ----------
    text : str
        One-sided formula.
    model : ParsedFormula
        Of the counts.

    Raises
    ------
    FormulaError, ModelError
        Not a one-sided formula of named terms; structured random effects.
    DataError
        As `build_design`.

    Attributes
    ----------
    subset : str, array or None
        Rows to use, those without its variables left out.
    """

    def __init__(
        self,
        text: str,
        model: ParsedFormula,
        data: Any,
        subset: str | ArrayLike | None,
        na_action: NaAction,
        env: Mapping[str, Any],
        *,
        check_levels: bool,
    ) -> None:
        if not isinstance(text, str) or not text.strip().startswith("~"):
            raise FormulaError(f'zero must be a one-sided formula such as "~ x", not {text!r}')
        if text.strip()[1:].strip() == ".":
            raise ModelError(f"zero takes named terms only, no '.': {text!r}")
        parsed = parse_formula(f"y {text.strip()}", fixed_only=True)
        self.arguments: dict[str, Any] = {
            "na_action": na_action,
            "env": env,
            "response": Outcome(binary=False),
            "observation_level": True,
            "check_levels": check_levels,
        }
        self.formula, self.data = replace(parsed, response=model.response), data
        self.found = build_design(self.formula, data, subset=subset, **self.arguments)
        self.lost = self.found.n_missing
        if is_structured(self.found):
            raise ModelError("the zero part has unstructured random effects only: (x | g) or (x || g)")
        self.subset = subset
        if self.lost:
            self.subset = np.zeros(self.found.n_total, bool)
            self.subset[self.found.row_index] = True

    def part(self, design: Design) -> Design:
        """The part's design of the rows that the counts' design uses."""
        if not np.array_equal(self.found.row_index, design.row_index):
            used = np.zeros(design.n_total, bool)
            used[design.row_index] = True
            self.found = build_design(self.formula, self.data, subset=used, **self.arguments)
        return self.found

    def counted(self, design: Design) -> Design:
        """The design with the rows that lack a variable of this part among its missing ones."""
        return replace(design, n_missing=design.n_missing + self.lost) if self.lost else design


def family_at(
    result: GeneralisedModel,
    newdata: Any,
    rows: NewDesign,
    *,
    re_form: str = "all",
    allow_new_levels: bool = False,
) -> Family:
    """The family for the rows of a prediction, whose zero part has columns, an offset and random effects of its own.

    Parameters
    ----------
    re_form : {"all", "none"}
        Whether the log odds have their random effects at the modes, or none.

    Raises
    ------
    ModelError
        Another `re_form` where the log odds have random effects.
    DataError
        New rows for columns that were an array.
    """
    family, part = result.core.family, result.options.zero
    if not isinstance(family, TwoPart):
        return family
    if family.effects and re_form not in ("all", "none"):
        raise ModelError(
            f're_form is "all" or "none" where the zero part has random effects of its own, not {re_form!r}'
        )
    if newdata is None:
        if re_form == "all" or not family.effects:
            return family
        return family.at(family.zero, None if part is None else part.offset)
    if family.zero is None and part is None and family.offset is None:
        return family
    if part is None:
        raise DataError('the zero part\'s columns were an array: for new rows they have to be a formula, zero="~ x"')
    masks = included_columns(part, re_form if family.effects else "none")
    new = target_rows(part, newdata, masks, allow_new_levels=allow_new_levels)
    assert new.X is not None
    effects = result.core.zero_part
    offset = new.offset
    if effects is not None:
        offset = linear_predictor(new, replace(effects, beta=np.zeros(new.X.shape[1])), masks)  # type: ignore[arg-type]
    used = slice(None) if rows.rows is None else rows.rows
    return family.at(new.full(new.X)[used], None if offset is None else new.full(offset)[used])


def design_and_fit(result: GeneralisedModel, part: str) -> tuple[Design, Any]:
    """The design and the fit that tables of random effects read: the counts', or those of the zero part.

    Raises
    ------
    ModelError
        Another part, or one without random effects.
    """
    if part == "mean":
        return result.design, result.core
    if part != "zero":
        raise ModelError(f'part must be "mean" or "zero", not {part!r}')
    found = result.core.zero_part
    if found is None or result.options.zero is None:
        raise ModelError('the model has no random effects in a zero part: they are asked for by zero="~ x + (1 | g)"')
    return result.options.zero, found
