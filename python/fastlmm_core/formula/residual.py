"""`residual="ar1(visit | subject)"` and `dispersion="~ sex"`: from text and columns to the core's arrays.

The names are mmrm's and glmmTMB's; a bare one has one variance for all visits, `hom=False` (or mmrm's h: `ar1h`, `csh`,
`toeph`, `adh`) one each. Visits are in the order of the factor's levels; a numeric column's distinct values are its
levels.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, FastLMMWarning, FormulaError, ModelError, no_such, warn
from fastlmm_core.formula.checks import check_finite
from fastlmm_core.formula.evaluate import Context, Evaluator
from fastlmm_core.formula.fixed import MatrixSpec, fit_matrix, variables_of
from fastlmm_core.formula.frame import Numeric, Table, Variable, as_factor
from fastlmm_core.formula.levels import Factor, Levels, combine
from fastlmm_core.formula.quoting import python_power, split, unquote_name, unwrap
from fastlmm_core.formula.terms import Terms, parse_terms

__all__ = ["Dispersion", "ParsedResidual", "ResidualDesign", "ResidualRequest", "parse_residual", "point_values"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

KINDS = {
    "us": "unstructured",
    "diag": "diagonal",
    "cs": "compound symmetry",
    "ar1": "AR(1)",
    "toep": "Toeplitz",
    "ad": "ante-dependence",
    "exp": "exponential",
    "gau": "Gaussian",
    "ou": "Ornstein-Uhlenbeck",
}
"""The core's structures in words."""

NAMES: dict[str, tuple[str, bool]] = {
    **{name: (name, True) for name in ("cs", "ar1", "toep", "ad", "exp", "gau", "ou")},
    **{f"{name}h": (name, False) for name in ("cs", "ar1", "toep", "ad", "sp_exp", "sp_gau")},
    **{f"hom{name}": (name, True) for name in ("cs", "ar1", "toep", "ad")},
    **{f"het{name}": (name, False) for name in ("cs", "ar1", "toep", "ad")},
    "sp_exp": ("exp", True),
    "sp_gau": ("gau", True),
    "sp_exph": ("exp", False),
    "sp_gauh": ("gau", False),
    "us": ("us", False),
    "un": ("us", False),
    "diag": ("diag", False),
}
"""Name -> structure of the core, and whether it has one variance for all visits."""

ORDERED = ("ar1", "toep", "ad")
SPATIAL = ("exp", "gau", "ou")

_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*(?=\()")
_POWER = re.compile(r"(?<![\w.])power\s*\(")


@dataclass(frozen=True)
class ParsedResidual:
    """`kind(visit | group / subject)`, taken apart.

    Attributes
    ----------
    text : str
        As written.
    kind : str
        One of `KINDS`.
    hom : bool
        One variance for all visits.
    visit : tuple of str
        The column of visits, or those of the coordinates.
    group : str or None
        Column whose levels have parameters of their own.
    subject : tuple of str
        Columns whose interaction is the subject.
    nugget : bool
        Part of the variance is not shared with other places.
    """

    text: str
    kind: str
    hom: bool
    visit: tuple[str, ...]
    group: str | None
    subject: tuple[str, ...]
    nugget: bool = False

    @property
    def columns(self) -> list[str]:
        """All columns named."""
        return [*self.visit, *([self.group] if self.group else []), *self.subject]

    @property
    def title(self) -> str:
        """In words: "heterogeneous AR(1)"."""
        name = KINDS[self.kind]
        if self.kind in ("us", "diag"):
            return name
        name = f"{name} with a nugget" if self.nugget else name
        return name if self.hom else f"heterogeneous {name}"


def parse_residual(text: str) -> ParsedResidual:
    """Take a residual structure apart.

    Raises
    ------
    FormulaError
        Not of the form `name(visit | subject)` or `name(visit | group / subject)`, or an unknown name.
    """
    form = "residual is written as 'us(visit | subject)' or 'us(visit | group / subject)'"
    if not isinstance(text, str):
        raise FormulaError(f"{form}, not {text!r}")
    match = _CALL.match(text)
    inner = unwrap(text[match.end() :].strip()) if match else None
    if match is None or inner is None:
        raise FormulaError(f"{form}, not {text!r}")
    if match[1] not in NAMES:
        raise FormulaError(no_such("residual structure", match[1], sorted(NAMES)))
    kind, hom = NAMES[match[1]]
    body, *options = split(inner, ",")
    hom, nugget = _options(match[1], kind, hom, options)
    sides = split(body, "|")
    if len(sides) != 2:
        raise FormulaError(f"{form}, not {text!r}")
    left, right = sides
    pieces = split(right, "/")
    if len(pieces) > 2 or not left:
        raise FormulaError(f"{form}, not {text!r}")
    visit = tuple(_column(name, text) for name in split(re.sub(r"^[01]\s*\+", "", left), "+"))
    if len(visit) > 1 and kind not in SPATIAL:
        raise FormulaError(f"{match[1]} takes one column of visits; {', '.join(SPATIAL)} take several coordinates")
    group = _column(pieces[0], text) if len(pieces) == 2 else None
    subject = tuple(_column(n, text) for n in split(pieces[-1], ":"))
    return ParsedResidual(text, kind, hom, visit, group, subject, nugget)


def _options(name: str, kind: str, hom: bool, options: list[str]) -> tuple[bool, bool]:
    """`hom=` and `nugget=` of a structure."""
    nugget = False
    for option in options:
        key, _, value = (piece.strip() for piece in option.partition("="))
        truth = value.lower()
        if truth not in ("true", "false") or not (key == "hom" or (key == "nugget" and kind in SPATIAL)):
            takes = "hom= or nugget=" if kind in SPATIAL else "hom="
            raise FormulaError(f"{name}(...) takes {takes} with True or False, not {option!r}")
        if key == "nugget":
            nugget = truth == "true"
            continue
        hom = truth == "true"
        if kind == "us" and hom:
            raise FormulaError("us has a variance for each visit: use cs, ar1 or toep with hom=True")
    return hom, nugget


def _column(text: str, whole: str) -> str:
    name = unquote_name(text)
    if name is None:
        raise FormulaError(f"cannot read {text!r} in residual={whole!r}: it has to be a column's name")
    return name


def power(x: Any) -> Any:
    """Log |x|: the standard deviation is proportional to a power of |x|."""
    return np.log(np.abs(np.asarray(x, dtype=np.float64)))


@dataclass(frozen=True)
class Dispersion:
    """`dispersion="~ sex + power(x)"`: columns in which the log standard deviation is linear, without the constant.

    Attributes
    ----------
    text : str
    names : tuple of str
        Of the columns.
    spec : MatrixSpec
        How they are computed for other rows.
    context, state
        As a `Design` has them for its formula.
    """

    text: str
    names: tuple[str, ...]
    spec: MatrixSpec = field(repr=False)
    context: Context = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)


class ResidualRequest:
    """What `residual` and `dispersion` ask for, before rows are chosen: which columns, and their values."""

    def __init__(
        self, residual: str | None, dispersion: str | None, table: Table, env: Mapping[str, Any] | None
    ) -> None:
        self.parsed = None if residual is None else parse_residual(residual)
        self.text = dispersion
        self.table = table
        self.context = Context(ChainMap({"power": power}, dict(env or {})))
        self.state: dict[str, Any] = {}
        self.terms: Terms | None = None
        if dispersion is not None:
            if not isinstance(dispersion, str) or not dispersion.strip().startswith("~"):
                raise FormulaError(f"dispersion is written as '~ sex' or '~ power(x)', not {dispersion!r}")
            self.terms = parse_terms(python_power(dispersion.strip()[1:]), table.names)
            if not self.terms.intercept or not self.terms.terms:
                raise FormulaError(
                    f"dispersion={dispersion!r} needs a constant and a term beside it: the constant is sigma"
                )
        self.evaluate = Evaluator(table, self.context, self.state)

    @property
    def needed(self) -> list[str]:
        """Columns of the table that are read."""
        names = [] if self.parsed is None else list(self.parsed.columns)
        if self.terms is not None:
            for expr in self.terms.factors:
                names += self.evaluate.names(expr) if expr in self.terms.computed else [expr]
        return names

    def variables(self) -> dict[str, Variable]:
        """Every variable over all rows of the table."""
        out: dict[str, Variable] = {}
        if self.parsed is not None:
            for name in self.parsed.columns:
                out[name] = self.table[name]
        if self.terms is not None:
            self._refuse_zeros()
            out.update(variables_of(self.terms, self.evaluate))
        return out

    def _refuse_zeros(self) -> None:
        assert self.terms is not None
        for expr in self.terms.factors:
            if expr in self.terms.computed and _POWER.match(expr):
                for name in self.evaluate.names(expr):
                    column = self.table[name]
                    if isinstance(column, Numeric) and (column.values == 0).any():
                        raise DataError(
                            f"dispersion variable {name!r} has zeros: its power is zero there; leave those "
                            "rows out, or use a term without power()"
                        )

    def design(self, taken: Mapping[str, Variable], n: int) -> ResidualDesign:
        """The arrays of the rows used.

        Parameters
        ----------
        taken : mapping
            `variables()` of the rows used.
        n : int
        """
        dispersion, columns = None, None
        if self.terms is not None:
            assert self.text is not None
            spec, matrix = fit_matrix(self.terms, {e: taken[e] for e in self.terms.factors}, n)
            columns = np.ascontiguousarray(matrix[:, 1:])
            check_finite(columns, spec.names[1:], "the dispersion")
            dispersion = Dispersion(self.text, spec.names[1:], spec, self.context, self.state)
        self.context.forget()
        if self.parsed is None:
            rows = np.arange(n, dtype=np.int64)
            return ResidualDesign(None, dispersion, rows, None, rows * 0, (), None, None, (), columns)
        return self._structure(self.parsed, taken, dispersion, columns)

    def _structure(
        self,
        parsed: ParsedResidual,
        taken: Mapping[str, Variable],
        dispersion: Dispersion | None,
        columns: Array | None,
    ) -> ResidualDesign:
        factors = {
            name: as_factor(taken[name]) for name in (*parsed.subject, *([parsed.group] if parsed.group else []))
        }
        codes, levels = _interaction([factors[name] for name in parsed.subject])
        group: Index | None = None
        groups: tuple[str, ...] = ()
        if parsed.group:
            group, groups = factors[parsed.group].codes.astype(np.int64), tuple(map(str, factors[parsed.group].levels))
            codes, levels = self._nested(parsed, codes, levels, group, groups)
        coordinates = None
        if parsed.kind in SPATIAL:
            positions, labels, coordinates = _coordinates(parsed, [taken[name] for name in parsed.visit])
        else:
            visit = as_factor(taken[parsed.visit[0]])
            positions, labels = visit.codes.astype(np.int64), tuple(map(str, visit.levels))
            _warn_spacing(parsed, taken[parsed.visit[0]])
        out = ResidualDesign(parsed, dispersion, codes, levels, positions, labels, coordinates, group, groups, columns)
        check_visits(out)
        return out

    def _nested(
        self, parsed: ParsedResidual, codes: Index, levels: Levels, group: Index, groups: tuple[str, ...]
    ) -> tuple[Index, Levels]:
        """Refuse a subject whose rows are in two groups."""
        low = np.full(len(levels), len(groups), np.int64)
        high = np.full(len(levels), -1, np.int64)
        np.minimum.at(low, codes, group)
        np.maximum.at(high, codes, group)
        if (low != high).any():
            k = int(np.argmax(low != high))
            raise DataError(
                f"subject {levels.text[k]!r} has rows in {parsed.group} {groups[low[k]]!r} and {groups[high[k]]!r}: "
                "each subject belongs to one group"
            )
        return codes, levels


def _interaction(factors: list[Factor]) -> tuple[Index, Levels]:
    codes, levels = np.array(factors[0].codes, dtype=np.int32), Levels(factors[0].levels)
    for factor in factors[1:]:
        codes, levels = combine(codes, levels, np.array(factor.codes, dtype=np.int32), Levels(factor.levels))
    return codes.astype(np.int64), levels


def point_values(parsed: ParsedResidual, columns: list[Variable]) -> Array:
    """Coordinates (n, d) of all rows."""
    values = []
    for name, column in zip(parsed.visit, columns, strict=True):
        if isinstance(column, Factor) or column.values.ndim != 1:
            raise DataError(f"{parsed.kind} needs numeric coordinates, but {name} is categorical")
        values.append(column.values.astype(np.float64))
    return np.column_stack(values)


def _coordinates(parsed: ParsedResidual, columns: list[Variable]) -> tuple[Index, tuple[str, ...], Array]:
    """Distinct points, and which of them each row is at."""
    points, inverse = np.unique(point_values(parsed, columns), axis=0, return_inverse=True)
    labels = tuple(", ".join(f"{v:g}" for v in point) for point in points)
    return inverse.reshape(-1).astype(np.int64), labels, points


def _warn_spacing(parsed: ParsedResidual, column: Variable) -> None:
    """Lags count levels: say so where the levels are times with gaps."""
    if parsed.kind not in ORDERED or not isinstance(column, Numeric):
        return
    steps = np.diff(np.unique(column.values))
    if len(steps) and steps.max() > 1.0001 * steps.min():
        warn(
            f"{parsed.visit[0]} is unequally spaced, and {parsed.kind} counts its levels one by one: use ou() or "
            "exp() for real times",
            FastLMMWarning,
        )


@dataclass(frozen=True)
class ResidualDesign:
    """The residual structure of the rows used, as arrays; picklable.

    Attributes
    ----------
    parsed : ParsedResidual or None
        None where only the dispersion is modelled.
    dispersion : Dispersion or None
    subject : (n,) int64
    subjects : Levels or None
    positions : (n,) int64
        Visit, or distinct coordinate, of each row.
    visits : tuple of str
        Their labels.
    coordinates : (T, d) or None
    group : (n,) int64 or None
    groups : tuple of str
    columns : (n, e) or None
        Of the dispersion.
    """

    parsed: ParsedResidual | None
    dispersion: Dispersion | None
    subject: Index = field(repr=False)
    subjects: Levels | None = field(repr=False)
    positions: Index = field(repr=False)
    visits: tuple[str, ...]
    coordinates: Array | None = field(repr=False)
    group: Index | None = field(repr=False)
    groups: tuple[str, ...]
    columns: Array | None = field(repr=False)

    @property
    def parts(self) -> list[ParsedResidual | Dispersion]:
        """What was asked for: the structure, the dispersion, or both."""
        return [part for part in (self.parsed, self.dispersion) if part is not None]

    @property
    def kind(self) -> str:
        """One of `KINDS`, or "none"."""
        return "none" if self.parsed is None else self.parsed.kind


def check_visits(design: ResidualDesign) -> None:
    """One row a visit; under an unstructured matrix every pair of visits in some subject.

    Raises
    ------
    DataError, ModelError
    """
    assert design.parsed is not None
    assert design.subjects is not None
    T = len(design.visits)
    key = design.subject * T + design.positions
    ordered = np.sort(key)
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        s, t = divmod(int(ordered[twice[0]]), T)
        at = "visit" if design.coordinates is None else "place"
        raise DataError(
            f"subject {design.subjects.text[s]} has two rows at {at} {design.visits[t]!r}: a residual structure needs "
            f"one row a {at}; add a column that tells them apart, or average them"
        )
    if T > 1 and len(np.unique(design.subject)) == len(design.subject):
        raise ModelError(
            f"each subject of residual={design.parsed.text!r} has one row: there is nothing to correlate; use "
            "dispersion for unequal variances"
        )
    if design.kind != "us":
        return
    for g in range(max(len(design.groups), 1)):
        mine = np.ones(len(key), bool) if design.group is None else design.group == g
        seen = np.zeros((len(design.subjects), T), dtype=np.float32)
        seen[design.subject[mine], design.positions[mine]] = 1.0
        together = seen.T @ seen
        if (together == 0).any():
            a, b = np.argwhere(together == 0)[0]
            within = f" in {design.parsed.group} {design.groups[g]!r}" if design.groups else ""
            if a == b:
                raise ModelError(
                    f"no subject was seen at {design.visits[a]!r}{within}: its variance is not estimable under us; "
                    "use one covariance for all groups"
                )
            raise ModelError(
                f"no subject was seen at both {design.visits[a]!r} and {design.visits[b]!r}{within}: their covariance "
                "is not estimable under us; use toeph, ad or ar1"
            )
