"""Left sides of models for successes and failures: 0/1, true/false, two levels, `cbind(k, n - k)`, proportions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, FormulaError, ModelError
from fastlmm_core.formula.frame import Variable
from fastlmm_core.formula.levels import Factor

if TYPE_CHECKING:
    from fastlmm_core.formula.checks import Rows
    from fastlmm_core.formula.parse import ParsedFormula

__all__ = ["LEFT_SIDES", "Categories", "Outcome", "successes", "without_pair"]

Array = NDArray[np.float64]

LEFT_SIDES = (
    "a column of 0 and 1 (or true and false), a column with two levels, cbind(successes, failures), counts of "
    "successes with trials=, or proportions with weights="
)

MOST_CATEGORIES = 50

WHOLE = 1e-3
"""How far a proportion times its trials may be from a whole number: proportions are often rounded."""


def without_pair(formula: ParsedFormula) -> tuple[ParsedFormula, str | None]:
    """A formula whose response is the successes of `cbind(successes, failures)`, and the text of the trials.

    Raises
    ------
    FormulaError
        `cbind` of other than two columns.
    """
    text = formula.response.strip()
    if not (text.startswith("cbind") and text.endswith(")") and text[5:].lstrip().startswith("(")):
        return formula, None
    parts = _arguments(text[text.index("(") + 1 : -1])
    if len(parts) != 2 or not all(parts):
        raise FormulaError(f"{text} has {len(parts)} columns: the two are cbind(successes, failures)")
    return replace(formula, response=parts[0]), f"({parts[0]}) + ({parts[1]})"


def _arguments(text: str) -> list[str]:
    """The parts of a text between commas outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


class Outcome:
    """Reads a response whose values need not be numbers or vary; `note` says what counts as success, if that is news.

    Parameters
    ----------
    binary : bool
        Whether two levels stand for failure and success.
    """

    def __init__(self, *, binary: bool) -> None:
        self.binary, self.note = binary, ""

    def __call__(self, variable: Variable, name: str, rows: Rows) -> Array:
        """The response (n,) of the rows used.

        Raises
        ------
        DataError
            More than two levels, text where numbers are needed, infinite values.
        ModelError
            One level.
        """
        if isinstance(variable, Factor):
            return self._of_levels(variable, name, rows)
        values = variable.values
        if values.ndim != 1:
            raise DataError(f"the response {name} has {values.shape[1]} columns, not one; two are cbind({name}, ...)")
        y = np.array(values if rows is None else values[rows], dtype=np.float64)
        if count := int((~np.isfinite(y)).sum()):
            raise DataError(f"the response {name} is infinite in {count} rows")
        return y

    def _of_levels(self, factor: Factor, name: str, rows: Rows) -> Array:
        codes = np.asarray(factor.codes if rows is None else factor.codes[rows])
        if all(isinstance(level, (bool, np.bool_)) for level in factor.levels):
            return np.asarray(factor.levels.astype(np.float64)[codes])
        if not self.binary:
            raise DataError(f"the response {name} is categorical, not numeric")
        used = np.unique(codes)
        levels = [factor.levels[k] for k in used]
        if len(levels) > 2:
            shown = ", ".join(map(repr, levels[:5])) + (", ..." if len(levels) > 5 else "")
            raise DataError(
                f"the response {name} has {len(levels)} levels ({shown}): a binomial response has two. "
                f"({name} == {levels[-1]!r}) compares one with the others"
            )
        if len(levels) == 1:
            raise ModelError(f"the response {name} is constant ({levels[0]!r} in all {len(codes)} rows)")
        self.note = f"the response {name} has two levels: {levels[1]!r} counts as success, {levels[0]!r} as failure"
        return (codes == used[1]).astype(np.float64)


class Categories:
    """Reads a response of ordered categories; `levels` has their labels in order afterwards, `note` says where from."""

    def __init__(self) -> None:
        self.levels: tuple[str, ...] = ()
        self.note = ""

    def __call__(self, variable: Variable, name: str, rows: Rows) -> Array:
        """The response's categories (n,) of the rows used, numbered from zero.

        Raises
        ------
        DataError
            Text or a categorical without an order; numbers that are not whole; levels without rows.
        ModelError
            Fewer than three levels.
        """
        if isinstance(variable, Factor):
            codes, levels = self._of_factor(variable, name, rows)
        else:
            values = np.array(variable.values if rows is None else variable.values[rows], dtype=np.float64)
            if values.ndim != 1 or (values != np.rint(values)).any():
                raise DataError(
                    f"the response {name} is neither an ordered categorical nor whole numbers: an ordinal model needs "
                    "categories with an order"
                )
            numbers, found = np.unique(values, return_inverse=True)
            codes, levels = found.astype(np.int64), [f"{v:g}" for v in numbers]
            if len(levels) > MOST_CATEGORIES:
                raise DataError(
                    f"the response {name} has {len(levels)} different numbers: an ordinal model has a threshold "
                    f"between any two, and at most {MOST_CATEGORIES} categories"
                )
            self.note = f"the categories of {name} are its whole numbers in their order: {', '.join(levels)}"
        if len(levels) < 3:
            shown = ", ".join(map(repr, levels))
            raise ModelError(
                f"the response {name} has {len(levels)} level{'s' if len(levels) != 1 else ''} ({shown}): an ordinal "
                'one has three or more, and two are family="binomial"'
            )
        counts = np.bincount(codes, minlength=len(levels))
        if (counts == 0).any():
            empty = ", ".join(repr(level) for level, count in zip(levels, counts, strict=True) if not count)
            raise DataError(
                f"no row has the level {empty} of the response {name}: its thresholds have no estimates; "
                "cat.remove_unused_categories() leaves it out"
            )
        self.levels = tuple(levels)
        return codes.astype(np.float64)

    def _of_factor(self, factor: Factor, name: str, rows: Rows) -> tuple[NDArray[np.int64], list[str]]:
        if not factor.ordered:
            shown = ", ".join(str(level) for level in factor.levels[:5]) + (", ..." if len(factor.levels) > 5 else "")
            raise DataError(
                f"the response {name} has levels without an order ({shown}): pandas.Categorical(..., categories=[...], "
                "ordered=True) gives them one"
            )
        codes = np.asarray(factor.codes if rows is None else factor.codes[rows], dtype=np.int64)
        return codes, [str(level) for level in factor.levels]


def successes(y: Array, trials: Array | None, name: str, row_index: NDArray[np.int64], *, proportions: bool) -> Array:
    """Counts of successes from a left side of any kind.

    Parameters
    ----------
    y : (n,)
    trials : (n,) or None
    name : str
        The response's.
    row_index : (n,)
        Places in the table, for the messages.
    proportions : bool
        Whether y is successes over trials.

    Raises
    ------
    DataError
        Proportions or counts without their trials; more successes than trials; what is not a whole number.
    """

    def refuse(bad: NDArray[np.bool_], what: str) -> None:
        if bad.any():
            k = int(bad.argmax())
            raise DataError(f"{what} in {int(bad.sum())} of {len(y)} rows, first in row {row_index[k]} ({y[k]:g})")

    refuse(y < 0, f"the response {name} is negative")
    if trials is None:
        if ((y > 0) & (y < 1)).any():
            refuse((y != 0) & (y != 1), f"a binomial response is {LEFT_SIDES}; {name} has proportions without weights=")
        refuse(y > 1, f"a binomial response is {LEFT_SIDES}; {name} has counts above one without trials=")
        return y
    odd = (trials != np.rint(trials)) | (trials < 1)
    if odd.any():
        k = int(odd.argmax())
        raise DataError(
            f"trials must be positive whole numbers, which {int(odd.sum())} of {len(y)} are not, first in row "
            f"{row_index[k]} ({trials[k]:g})"
        )
    if not proportions:
        refuse(y != np.rint(y), f"successes must be whole numbers, which {name} is not")
        refuse(y > trials, f"more successes {name} than trials")
        return y
    refuse(y > 1, f"with weights= a binomial response is a proportion (counts take trials=); {name} is above one")
    counts = y * trials
    refuse(np.abs(counts - np.rint(counts)) > WHOLE, f"{name} times its trials is no whole number")
    return np.rint(counts)
