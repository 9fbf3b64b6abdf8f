"""Rows of generalised models: what left side, trials, exposure, frequencies and zero part make of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.families import Family, Hurdle, Link, Ordinal, TwoPart, ZeroInflated, as_family
from fastlmm_core.fitting.models import is_structured
from fastlmm_core.fitting.zero_part import ZeroRequest, group_names
from fastlmm_core.formula import build_design, parse_formula
from fastlmm_core.formula.evaluate import Context
from fastlmm_core.formula.frame import Table
from fastlmm_core.formula.left_side import Categories, Outcome, successes, without_pair
from fastlmm_core.formula.rowwise import numeric_argument, subset_rows
from fastlmm_core.formula.side import without_intercept

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.formula import Design
    from fastlmm_core.formula.design import NaAction

__all__ = ["FamilyRequest", "GeneralisedRows", "RowArguments", "read_rows"]


@dataclass(frozen=True)
class RowArguments:
    """What `glmer` takes of each row, by its arguments' names: texts, one value a row of the table, or None."""

    weights: str | ArrayLike | None = None
    trials: str | ArrayLike | None = None
    freq_weights: str | ArrayLike | None = None
    offset: str | ArrayLike | None = None
    zero: str | None = None
    exposure: str | ArrayLike | None = None
    subset: str | ArrayLike | None = None


@dataclass(frozen=True)
class GeneralisedRows:
    """A design, and what a generalised model knows of its rows besides.

    Attributes
    ----------
    design : Design
        Its response is numbers in the family's support: successes, counts, categories numbered from zero.
    family : Family
        With the levels of the response or the columns of the zero part, where it has them.
    proportions : bool
        Whether the response was successes over trials.
    trials : str or None
        The text that computes the trials of new rows.
    frequencies : (n,) or None
        How often each row counts.
    zero : Design or None
        The part for zeros: columns, random effects and offset of its log odds.
    """

    design: Design
    family: Family
    proportions: bool
    trials: str | None
    frequencies: NDArray[np.float64] | None
    zero: Design | None


class FamilyRequest:
    """A family as it was asked for, before the levels of the response are known.

    Parameters
    ----------
    family : str or Family
    link : str or Link, optional

    Attributes
    ----------
    chosen : Family
        Of an ordinal family that was named, one with as few levels as there can be.
    ordered : bool
        Whether the response is read as ordered categories.
    """

    def __init__(self, family: str | Family, link: str | Link | None) -> None:
        self.given = family if isinstance(family, Ordinal) else None
        self.ordered = family == Ordinal.name or self.given is not None
        named = self.ordered and self.given is None
        self.chosen: Family = Ordinal(link, levels=3) if named else as_family(family, link)

    def of_levels(self, levels: tuple[str, ...], response: str) -> Ordinal:
        """The ordinal family of a response's levels; DataError where the family given has others."""
        if self.given is not None and self.given.levels != levels:
            raise DataError(
                f"the response {response} has the levels {', '.join(levels)}, the family given "
                f"has {', '.join(self.given.levels)}"
            )
        return Ordinal(self.chosen.link, levels=levels)


def read_rows(
    formula: str,
    data: Any,
    asked: FamilyRequest,
    given: RowArguments,
    *,
    na_action: NaAction,
    contrasts: Mapping[str, Any] | None,
    env: Mapping[str, Any],
    check_levels: bool,
) -> GeneralisedRows:
    """The rows that a generalised model uses, their response checked against its family.

    Parameters and errors are those of `glmer`.
    """
    parsed, pair = without_pair(parse_formula(formula))
    family, subset, offset = asked.chosen, given.subset, given.offset
    binomial = family.name == "binomial"
    known = _known_trials(pair, given.trials, given.weights, family)
    zero = None
    if given.zero is not None and given.zero.replace(" ", "") != "~0":
        two_part(family, None)
        zero = ZeroRequest(given.zero, parsed, data, subset, na_action, env, check_levels=check_levels)
        subset = zero.subset
    if given.exposure is not None:
        offset = _with_exposure(given.exposure, offset, family, data, subset, env)
    counted = None
    if given.freq_weights is not None:
        counted, subset = _frequencies(given.freq_weights, data, subset, env)
    reader = Categories() if asked.ordered else Outcome(binary=binomial)
    design = build_design(
        parsed,
        data,
        subset=subset,
        weights=known,
        offset=offset,
        na_action=na_action,
        contrasts=contrasts,
        env=env,
        response=reader,
        observation_level=True,
        check_levels=check_levels,
    )
    if is_structured(design):
        raise ModelError("generalised models have unstructured random effects only: (x | g) or (x || g)")
    if zero is not None:
        family, design = two_part(family, zero.part(design)), zero.counted(design)
    if isinstance(reader, Categories):
        family, design = asked.of_levels(reader.levels, parsed.response), without_intercept(design)
    proportions = binomial and given.weights is not None
    if binomial:
        y = successes(design.y, design.weights, parsed.response, design.row_index, proportions=proportions)
        design = design.with_response(y)
    else:
        _check_varying(design, family)
    return GeneralisedRows(
        replace(design, notes=(reader.note, *design.notes)) if reader.note else design,
        family,
        proportions,
        trials=known if binomial and isinstance(known, str) else None,
        frequencies=None if counted is None else counted[design.row_index],
        zero=None if zero is None else zero.part(design),
    )


def _known_trials(
    pair: str | None, trials: str | ArrayLike | None, weights: str | ArrayLike | None, family: Family
) -> str | ArrayLike | None:
    """What says how many trials a row has, or the weights; ModelError where several do, or the family has none."""
    binomial = family.name == "binomial"
    if pair is not None and not binomial:
        raise ModelError(f"cbind(successes, failures) belongs to the binomial family, not to {family.name}")
    if (pair is not None) + (trials is not None) + (binomial and weights is not None) > 1:
        raise ModelError("give one of cbind(successes, failures), trials= and weights=: each says how many trials")
    if trials is not None and not binomial:
        raise ModelError(f"trials belong to the binomial family, not to {family.name}")
    return pair if pair is not None else trials if trials is not None else weights


def two_part(base: Family, side: Design | None) -> Family:
    """Counts with a part of their own for zeros: a hurdle where they begin at one, zero inflation elsewhere.

    Raises
    ------
    ModelError
        Not a family of counts.
    """
    if isinstance(base, TwoPart):  # an object's, or an updated fit's own columns give way to the formula's
        base = base.base
    kind: type[TwoPart] = Hurdle if base.name.startswith("truncated") else ZeroInflated
    if side is None:
        return kind(base)
    effects = [(name, term.columns) for name, term in zip(group_names(side), side.random, strict=True)]
    return kind(base, side.X, side.x_names, offset=side.offset, effects=effects)


def _used(subset: str | ArrayLike | None, table: Table, context: Context, n: int) -> NDArray[np.bool_]:
    """Which of n rows `subset` keeps: all where there is none."""
    return np.ones(n, bool) if subset is None else np.asarray(subset_rows(subset, table, context))


def _check_varying(design: Design, family: Family) -> None:
    """ModelError for a constant response of a family in which that leaves nothing to model."""
    y, name = design.y, design.formula.response
    if family.name == "ordinal":
        return
    if isinstance(family, TwoPart) and not (y == 0.0).any():
        raise ModelError(f"the response {name} is zero in none of {len(y)} rows: leave zero= out")
    if family.name.startswith("truncated") and (zeros := y == 0.0).any():
        raise DataError(
            f"the response {name} is zero in {int(zeros.sum())} of {len(y)} rows, first in row "
            f"{design.row_index[int(zeros.argmax())]}: {family.name} counts begin at one"
        )
    if y.max() == y.min() and (family.name in ("gaussian", "gamma", "inverse_gaussian", "beta") or y[0] == 0.0):
        raise ModelError(f"the response {name} is constant ({y[0]:g} in all {len(y)} rows)")


def _with_exposure(
    exposure: str | ArrayLike,
    offset: str | ArrayLike | None,
    family: Family,
    data: Any,
    subset: str | ArrayLike | None,
    env: Mapping[str, Any],
) -> str | ArrayLike:
    """The offset with the logarithm of the exposure in it.

    Raises
    ------
    ModelError
        Another link than the log.
    DataError
        Exposures that are not positive; an offset given in another way.
    """
    if family.link.name != "log":
        raise ModelError(f"exposure= multiplies means, which needs the log link, not {family.link.name}: use offset=")
    table, context = Table(data), Context(env)
    values = numeric_argument(exposure, "exposure", table, context)
    bad = (values <= 0.0) & _used(subset, table, context, len(values))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"exposure must be positive, which it is not in {int(bad.sum())} of {len(values)} rows, first in row {row} "
            f"({values[row]:g})"
        )
    if isinstance(exposure, str) and (offset is None or isinstance(offset, str)):
        return f"log({exposure})" if offset is None else f"({offset}) + log({exposure})"
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.where(values > 0.0, np.log(values), np.nan)
    if offset is None:
        return logs
    return np.asarray(logs + numeric_argument(offset, "offset", table, context))


def _frequencies(
    freq_weights: str | ArrayLike, data: Any, subset: str | ArrayLike | None, env: Mapping[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How often each row of the table counts, and the rows that count at all.

    Raises
    ------
    DataError
        Missing, negative or infinite numbers.
    """
    table, context = Table(data), Context(env)
    values = numeric_argument(freq_weights, "freq_weights", table, context)
    used = _used(subset, table, context, len(values))
    bad = ~(np.isfinite(values) & (values >= 0.0)) & used
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"freq_weights must be finite and not negative, which {int(bad.sum())} of {len(values)} are not, first in "
            f"row {row} ({values[row]:g})"
        )
    if not (used & (values > 0.0)).any():
        raise DataError("freq_weights are zero in every row used")
    return values, used & (values > 0.0)
