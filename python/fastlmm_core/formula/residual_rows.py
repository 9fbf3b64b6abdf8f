"""New rows as a residual structure sees them: subjects and visits found among the fit's, dispersion columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import DataError
from fastlmm_core.formula.checks import check_finite
from fastlmm_core.formula.evaluate import Evaluator
from fastlmm_core.formula.fixed import columns_of, variables_of
from fastlmm_core.formula.frame import Table, Variable, as_factor
from fastlmm_core.formula.levels import Factor, level_text
from fastlmm_core.formula.residual import ResidualDesign, point_values

__all__ = ["NewResidual", "NewResidualRows", "own_residual"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

SHOWN = 8
"""Levels that an error lists."""


@dataclass(frozen=True, eq=False)
class NewResidual:
    """Residuals of rows beside the fit's.

    Attributes
    ----------
    subject : (n,) int64
        Among the fit's subjects, -1 for any other.
    positions : (n,) int64
        Visit, or coordinate, of each row.
    coordinates : (T, d) or None
        Of the positions; those that the fit has not come after its own.
    group : (n,) int64 or None
    columns : (n, e) or None
        Of the dispersion.
    """

    subject: Index
    positions: Index
    coordinates: Array | None
    group: Index | None
    columns: Array | None


def own_residual(within: ResidualDesign) -> NewResidual:
    """The fit's own rows."""
    return NewResidual(within.subject, within.positions, within.coordinates, within.group, within.columns)


class NewResidualRows:
    """What a structure needs of a table, before its complete rows are chosen.

    Parameters
    ----------
    within : ResidualDesign
    table : Table
    known : bool
        Whether subjects are looked up: their residuals are part of the prediction. Otherwise only what the variance of
        a residual depends on is read.
    allow_new : bool
        Unseen and missing subjects are -1 instead of an error, or no prediction.

    Raises
    ------
    DataError
        A column is absent; a subject, visit or group that the fit has not.
    """

    def __init__(self, within: ResidualDesign, table: Table, *, known: bool, allow_new: bool) -> None:
        self.within, self.table, self.known, self.allow_new = within, table, known, allow_new
        parsed, dispersion = within.parsed, within.dispersion
        self.evaluate: Evaluator | None = None
        self.dispersion: dict[str, Variable] = {}
        needs_visit = parsed is not None and (known or parsed.kind in ("us", "diag") or not parsed.hom)
        self.visit = parsed.visit if parsed is not None and needs_visit else ()
        self.group = parsed.group if parsed is not None else None
        self.subject = parsed.subject if parsed is not None and known else ()
        names = [*self.subject, *([self.group] if self.group else []), *self.visit]
        for name in names:
            if name not in table:
                assert parsed is not None
                raise DataError(f"{table.no_column(name)}. residual={parsed.text!r} needs it")
        if dispersion is not None:
            evaluate = Evaluator(table, dispersion.context, dict(dispersion.state))
            table.require(columns_of([dispersion.spec.terms], evaluate))
            self.dispersion = variables_of(dispersion.spec.terms, evaluate)
        self.columns: dict[str, Variable] = {name: table[name] for name in names}

    def masks(self) -> list[Mask]:
        """Rows that cannot be predicted because something is missing, one mask a column."""
        optional = set(self.subject) if self.allow_new else set()
        variables = [v for name, v in self.columns.items() if name not in optional] + list(self.dispersion.values())
        return [mask for v in variables if (mask := v.missing()) is not None]

    def taken(self, rows: Index | None, n: int) -> NewResidual:
        """The rows asked for (None: all n)."""
        within = self.within

        def of_rows(codes: Index) -> Index:
            return codes if rows is None else codes[rows]

        subject, group = np.full(n, -1, np.int64), None
        if self.subject:
            subject = self._subjects(rows)
        if self.group is not None:
            group = of_rows(self._among(self.columns[self.group], within.groups, f"of {self.group}", rows))
            self._one_group(subject, group)
        positions, coordinates = np.zeros(n, np.int64), within.coordinates
        if self.visit and coordinates is None:
            positions = of_rows(self._among(self.columns[self.visit[0]], within.visits, f"of {self.visit[0]}", rows))
        elif self.visit:
            positions, coordinates = self._places(rows)
        return NewResidual(subject, positions, coordinates, group, self._dispersion(rows, n))

    def _subjects(self, rows: Index | None) -> Index:
        within = self.within
        assert within.subjects is not None
        factors = [as_factor(self.columns[name]) for name in self.subject]
        codes = within.subjects.place(factors)
        codes = codes if rows is None else codes[rows]
        new = codes < 0
        if new.any() and not self.allow_new:
            row = int(np.argmax(new)) if rows is None else int(rows[int(np.argmax(new))])
            level = ":".join(str(factor.levels[factor.codes[row]]) for factor in factors)
            raise DataError(
                f"the new data have a subject ({':'.join(self.subject)}) that the model was not fitted to: {level!r} "
                f"({int(new.sum())} rows have such subjects), whose residuals nothing is known of; "
                "allow_new_levels=True predicts them without"
            )
        return codes

    def _among(self, column: Variable, known: Sequence[str], what: str, rows: Index | None) -> Index:
        """Codes of a column's levels among those of the fit."""
        factor = as_factor(column)
        found = _place(factor, known)
        codes = np.append(found, -1)[factor.codes].astype(np.int64)
        unseen = (codes < 0) & (factor.codes >= 0)
        if rows is not None:
            kept = np.zeros(len(codes), bool)
            kept[rows] = True
            unseen &= kept
        if unseen.any():
            level = str(factor.levels[factor.codes[int(np.argmax(unseen))]])
            some = ", ".join(map(repr, known[:SHOWN])) + (", ..." if len(known) > SHOWN else "")
            assert self.within.parsed is not None
            raise DataError(
                f"the new data have a level {what} that residual={self.within.parsed.text!r} was not fitted to: "
                f"{level!r} ({int(unseen.sum())} rows); those of the fit are {some}"
            )
        return codes

    def _one_group(self, subject: Index, group: Index) -> None:
        """A known subject is in the group that it was in."""
        within = self.within
        assert within.group is not None
        own = np.full(0 if within.subjects is None else len(within.subjects), -1, np.int64)
        own[within.subject] = within.group
        known = subject >= 0
        wrong = np.flatnonzero(own[subject[known]] != group[known])
        if len(wrong):
            row = int(np.flatnonzero(known)[wrong[0]])
            assert within.subjects is not None
            raise DataError(
                f"subject {within.subjects.text[subject[row]]!r} is in {self.group} {within.groups[group[row]]!r} in "
                f"the new data, but in {within.groups[own[subject[row]]]!r} in those of the fit"
            )

    def _places(self, rows: Index | None) -> tuple[Index, Array]:
        """Positions of rows by their coordinates, and all coordinates, new ones after the fit's."""
        within = self.within
        assert within.parsed is not None
        assert within.coordinates is not None
        points = point_values(within.parsed, [self.columns[name] for name in self.visit])
        points = points if rows is None else points[rows]
        T = len(within.coordinates)
        every, inverse = np.unique(np.vstack([within.coordinates, points]), axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        number = np.full(len(every), -1, np.int64)
        number[inverse[:T]] = np.arange(T)
        new = np.flatnonzero(number < 0)
        if len(new) and not within.parsed.hom:
            row = int(np.flatnonzero(np.isin(inverse[T:], new))[0])
            raise DataError(
                f"the new data have a place ({', '.join(f'{v:g}' for v in points[row])}) of "
                f"{' + '.join(self.visit)} that residual={within.parsed.text!r} was not fitted to: its variance, "
                "one of each place's own, is not known"
            )
        number[new] = T + np.arange(len(new))
        return number[inverse[T:]], np.vstack([within.coordinates, every[new]])

    def _dispersion(self, rows: Index | None, n: int) -> Array | None:
        dispersion = self.within.dispersion
        if dispersion is None:
            return None
        taken: dict[str, Any] = {
            expr: dispersion.spec.recode(v.take(rows), expr) for expr, v in self.dispersion.items()
        }
        out = dispersion.spec.matrix(taken, n)[:, 1:]
        check_finite(out, dispersion.names, "the dispersion of the new data")
        return np.ascontiguousarray(out)


def _place(factor: Factor, known: Sequence[str]) -> Index:
    """Where each of a factor's levels stands among texts, -1 where it does not: as text, or as the same number."""
    by_text = {text: k for k, text in enumerate(known)}
    by_number: dict[float, int] = {}
    for k, text in enumerate(known):
        if (value := _number(text)) is not None:
            by_number.setdefault(value, k)
    out = []
    for text in map(str, level_text(factor.levels)):
        k = by_text.get(text, -1)
        if k < 0 and (value := _number(text)) is not None:
            k = by_number.get(value, -1)
        out.append(k)
    return np.array(out, np.int64)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
