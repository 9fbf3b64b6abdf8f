"""Random-effect terms as arrays: the columns of their left sides, the codes of their groups, and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import FormulaWarning, ModelError, warn_once
from fastlmm_core.formula.checks import check_finite
from fastlmm_core.formula.fixed import MatrixSpec, fit_matrix
from fastlmm_core.formula.frame import Variable
from fastlmm_core.formula.levels import Factor, Levels, combine
from fastlmm_core.formula.parse import RandomTerm
from fastlmm_core.formula.structures import TermStructure, positions
from fastlmm_core.formula.terms import Terms
from fastlmm_core.records import quick

__all__ = ["RandomDesign", "RandomPart", "group_codes", "in_order", "lme4_order", "random_parts"]

Array = NDArray[np.float64]


@quick
@dataclass(frozen=True)
class RandomDesign:
    """One random-effect term as arrays.

    Attributes
    ----------
    group : str
        The grouping factor, "cask:batch".
    grp : str
        The same made unique over the model's terms: a second term on Subject is "Subject.1".
    columns : tuple of str
        Names of the l columns of `z`, ("Intercept", "Days").
    codes : ndarray (n,) of int32
        Level of each row, 0..q-1, every one present. Terms on one group share the array.
    z : ndarray (n, l) of float64, or None
        None stands for a single column of ones.
    level_set : Levels
        The levels and their lookup.
    spec : MatrixSpec or None
        How `z` is computed for other rows; None where `z` is None.
    structure : TermStructure or None
        Covariance of the columns, where it is not unstructured.
    relationship : object or None
        Known covariance between the levels, of the core; the codes are in its order.
    """

    group: str
    grp: str
    columns: tuple[str, ...]
    codes: NDArray[np.int32]
    z: Array | None
    level_set: Levels = field(repr=False)
    spec: MatrixSpec | None = field(repr=False, default=None)
    structure: TermStructure | None = field(repr=False, default=None)
    relationship: Any = field(repr=False, default=None)

    @property
    def levels(self) -> NDArray[np.object_]:
        """(q,) the levels in order, "a:A" for an interaction."""
        return self.level_set.labels


@quick
@dataclass(frozen=True)
class RandomPart:
    """The left side of one random-effect term over the rows used, or one column of it."""

    term: RandomTerm
    columns: tuple[str, ...]
    z: Array | None
    spec: MatrixSpec | None
    structure: TermStructure | None = None


def random_parts(
    term: RandomTerm,
    terms: Terms,
    variables: Mapping[str, Variable],
    n: int,
    same: tuple[MatrixSpec, Array] | None = None,
) -> list[RandomPart]:
    """Column names, z and how z came about, for the left side of one term; `diag` is a part a column.

    ``same`` is what has been made of the same terms and variables already: the fixed part, mostly.
    """
    if terms.intercept and not terms.terms:
        return [RandomPart(term, ("Intercept",), None, None)]
    if not terms.intercept and not terms.terms:
        raise ModelError(f"the random-effect term {term} has no columns")
    given = variables
    variables, structure = positions(term.structure, terms, variables, term)
    if same is not None and variables is given:
        spec, z = same[0], same[1].copy()
    else:
        spec, z = fit_matrix(terms, variables, n)
        check_finite(z, spec.names, f"the random-effect term {term}")
    if structure.name == "diag" and not structure.hom:
        columns = [spec.only(j) for j in range(len(spec.names))]
        return [RandomPart(term, one.names, np.ascontiguousarray(z[:, [j]]), one) for j, one in enumerate(columns)]
    if term.split and z.shape[1] > 1 and spec.factors:
        inner = term.expr.removeprefix("0 + ")
        warn_once(
            f"({inner} || {term.label}) keeps the covariances between the levels of a factor, as lme4 has it: "
            f"({term.expr} | {term.label}); diag({inner} | {term.label}) has independent ones",
            FormulaWarning,
        )
    return [RandomPart(term, spec.names, z, spec, None if structure.plain else structure)]


def group_codes(
    terms: Sequence[RandomTerm], factors: Mapping[str, Factor]
) -> dict[tuple[str, ...], tuple[NDArray[np.int32], Levels]]:
    """Codes and levels of every grouping factor, interactions combined part by part."""
    coded: dict[tuple[str, ...], tuple[NDArray[np.int32], Levels]] = {}
    for term in terms:
        for k in range(1, len(term.group) + 1):
            group = term.group[:k]
            if group in coded:
                continue
            factor = factors[group[-1]]
            # a copy: the codes of a pandas Categorical are the user's own array
            single = np.array(factor.codes, dtype=np.int32), Levels(factor.levels)
            coded[group] = single if k == 1 else combine(*coded[group[:-1]], *single)
    return coded


def lme4_order(sizes: Sequence[int]) -> list[int]:
    """Places of terms in lme4's order, from their numbers of levels; see `in_order`."""
    if any(a < b for a, b in pairwise(sizes)):
        return [int(k) for k in np.argsort(sizes, kind="stable")[::-1]]
    return list(range(len(sizes)))


def in_order(
    parts: Sequence[RandomPart], coded: Mapping[tuple[str, ...], tuple[NDArray[np.int32], Levels]]
) -> tuple[RandomDesign, ...]:
    """The terms in lme4's order, which reverses an ascending sort: among equals the last written comes first.

    Where the terms stand in non-increasing order already, lme4 leaves them as they are.
    """
    order = lme4_order([len(coded[part.term.group][1]) for part in parts])
    seen: dict[str, int] = {}
    designs = []
    for k in order:
        part = parts[k]
        label, (codes, levels) = part.term.label, coded[part.term.group]
        repeat = seen[label] = seen.get(label, -1) + 1
        grp = f"{label}.{repeat}" if repeat else label
        designs.append(RandomDesign(label, grp, part.columns, codes, part.z, levels, part.spec, part.structure))
    return tuple(designs)
