"""Covariance structures of random-effect terms: their names in formulas, and what the data have to offer for them.

Names and defaults are lme4's and glmmTMB's: `us`, `diag`, `cs` and `toep` have a variance for each column, `ar1`, `ad`,
`exp`, `gau` and `ou` one for all; `hom=` says otherwise, as do the prefixes of glmmTMB (`homcs`, `hetar1`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fastlmm_core.errors import FormulaError, ModelError
from fastlmm_core.formula.frame import Numeric, Variable, as_factor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.formula.design import RandomDesign
    from fastlmm_core.formula.terms import Terms

__all__ = ["STRUCTURES", "UNSTRUCTURED", "TermStructure", "check_identifiable", "positions", "read_structure"]

STRUCTURES: dict[str, tuple[str, bool]] = {
    "us": ("us", False),
    "rr": ("rr", False),
    **{name: (name, False) for name in ("diag", "cs", "toep")},
    **{name: (name, True) for name in ("ar1", "ad", "exp", "gau", "ou")},
    **{f"hom{name}": (name, True) for name in ("diag", "cs", "toep", "ar1", "ad")},
    **{f"het{name}": (name, False) for name in ("cs", "toep", "ar1", "ad", "exp", "gau", "ou")},
}
"""Name in a formula -> the core's structure, and whether all columns have one variance."""

ORDERED = ("ar1", "toep", "ad")
SPATIAL = ("exp", "gau", "ou")


@dataclass(frozen=True)
class TermStructure:
    """What a term asks for beyond its columns.

    Attributes
    ----------
    name : str
        Of the core's structures.
    hom : bool
        One variance for all columns.
    rank : int
        Of `rr`.
    coordinates : tuple of tuple of float
        Of the columns, for `exp`, `gau` and `ou`.
    """

    name: str
    hom: bool
    rank: int = 0
    coordinates: tuple[tuple[float, ...], ...] = ()

    @property
    def call(self) -> str:
        """The name as a formula has it; nothing for an unstructured term."""
        if self.name == "us":
            return ""
        usual = STRUCTURES[self.name][1]
        return self.name if self.hom == usual else f"{'hom' if self.hom else 'het'}{self.name}"

    @property
    def arguments(self) -> str:
        """What follows the grouping factor in the call."""
        return f", d={self.rank}" if self.name == "rr" else ""

    @property
    def plain(self) -> bool:
        """Whether an ordinary term says the same: `us`, and `diag` with a variance a column."""
        return self.name == "us" or (self.name == "diag" and not self.hom)


UNSTRUCTURED = TermStructure("us", False)
"""Of `(x | g)`."""


def read_structure(name: str, options: Sequence[str], text: str) -> TermStructure:
    """The structure that `name(x | g, hom=..., d=...)` asks for.

    Raises
    ------
    FormulaError
        An option that does not exist, or a value it cannot have.
    """
    kind, hom = STRUCTURES[name]
    rank = 2 if kind == "rr" else 0
    for option in options:
        key, _, value = (piece.strip() for piece in option.partition("="))
        if key == "hom" and kind not in ("us", "rr") and value.lower() in ("true", "false", "t", "f"):
            hom = value.lower().startswith("t")
        elif key == "d" and kind == "rr" and value.isdecimal() and int(value) > 0:
            rank = int(value)
        else:
            takes = "d=2" if kind == "rr" else "no options" if kind == "us" else "hom=True or hom=False"
            raise FormulaError(f"{name}(...) takes {takes}, not {option!r}, in {text}")
    return TermStructure(kind, hom, rank)


def positions(
    structure: TermStructure, terms: Terms, variables: Mapping[str, Variable], text: object
) -> tuple[Mapping[str, Variable], TermStructure]:
    """Variables of a term whose columns are places in an order, numbers made levels; with their coordinates.

    Raises
    ------
    FormulaError
        The term is not of the form `0 + factor`.
    ModelError
        Coordinates are not numbers.
    """
    if structure.name not in (*ORDERED, *SPATIAL):
        return variables, structure
    if terms.intercept or len(terms.terms) != 1 or len(terms.terms[0]) != 1:
        raise FormulaError(
            f"{structure.name} orders the levels of one column: write {structure.name}(0 + time | group), not {text}"
        )
    (expr,) = terms.terms[0]
    variable = variables[expr]
    factor = as_factor(variable)
    if structure.name in SPATIAL:
        try:
            values = [float(v) for v in factor.levels]
        except (TypeError, ValueError):
            raise ModelError(
                f"{structure.name} needs numbers for coordinates, but {expr} has {factor.levels[0]!r}"
            ) from None
        structure = TermStructure(structure.name, structure.hom, 0, tuple((v,) for v in values))
    if isinstance(variable, Numeric):
        return {**variables, expr: replace(factor, numeric=True)}, structure
    return variables, structure


def one_row_a_cell(term: RandomDesign) -> bool:
    """Whether the columns of z are the levels of a factor, and no level of the group has two rows in one of them."""
    if term.z is None or term.z.shape[1] < 2:
        return False
    z = term.z
    if not (np.isin(z, (0.0, 1.0)).all() and (z.sum(axis=1) == 1.0).all()):
        return False
    cell: NDArray[np.int64] = term.codes.astype(np.int64) * z.shape[1] + z.argmax(axis=1)
    return len(np.unique(cell)) == len(cell)


def check_identifiable(terms: Sequence[RandomDesign], n: int) -> None:
    """Refuse structures whose variances cannot be told from the residual's.

    Raises
    ------
    ModelError
        One level; one row a level and column, under a structure whose diagonal takes any constant.
    """
    for term in terms:
        structure = term.structure
        if structure is None:
            continue
        if len(term.level_set) < 2:
            raise ModelError(
                f"grouping factors must have more than one level: {term.group} has only {term.level_set.labels[0]!r} "
                f"in the {n} rows used"
            )
        shares = structure.name == "us" or (structure.hom and structure.name in ("diag", "cs", "toep"))
        if shares and one_row_a_cell(term):
            name = f"{'hom' if structure.hom else ''}{structure.name}"
            instead = {"us": "us", "cs": "cs", "toep": "toep", "diag": "cs"}[structure.name]
            raise ModelError(
                f"{name}(...) of {len(term.columns)} columns and the residual variance are not told apart: each "
                f"{term.group} has one row a column; write residual='{instead}(... | {term.group})'"
            )
