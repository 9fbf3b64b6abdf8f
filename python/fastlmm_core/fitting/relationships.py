"""Relationships as users give them: pedigrees, labelled matrices, sparse matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from fastlmm_core.core.structures.neighbours import from_neighbours
from fastlmm_core.core.structures.pedigree import from_parents
from fastlmm_core.core.structures.relationship import (
    Known,
    KnownCovariance,
    Relationship,
    from_covariance,
    from_precision,
)
from fastlmm_core.errors import DataError, FastLMMWarning, ModelError, warn
from fastlmm_core.fitting.spelling import explained
from fastlmm_core.fitting.text import listed
from fastlmm_core.formula.frame import Table, as_factor

if TYPE_CHECKING:
    from fastlmm_core.core import CoreFit
    from fastlmm_core.formula import Design

__all__ = ["neighbours", "pedigree", "relationship_values", "relationships", "sparse_coefficients"]


@explained
def pedigree(table: Any, id: str, sire: str, dam: str) -> Relationship:
    """The additive relationship of a pedigree, for `lmer(..., precision={"animal": pedigree(...)})`.

    Parameters
    ----------
    table : table
        pandas, polars, pyarrow: one row an animal, in any order. Parents need no row of their own: without one they are
        founders.
    id, sire, dam : str
        Columns of the animal and its parents; a missing parent (or 0, where no animal is called so) is unknown. One
        animal may be sire and dam: a selfing.

    Returns
    -------
    Relationship
        Its `levels` with parents before offspring, `precision` (the inverse relationship, with inbreeding),
        `inbreeding` and `logdet`.

    Raises
    ------
    DataError
        An animal has two rows, or is its own ancestor.

    Examples
    --------
    >>> import pandas as pd
    >>> from fastlmm_core import pedigree
    >>> animals = pd.DataFrame({"calf": [4, 5, 6], "sire": [1, 3, 1], "dam": [None, 2, 2]})
    >>> pedigree(animals, "calf", "sire", "dam")
    <Relationship of 6 levels, 20 entries of the inverse>
    """
    source = Table(table)
    source.require([id, sire, dam])
    text: list[np.ndarray[Any, Any]] = []
    for name in (id, sire, dam):
        factor = as_factor(source[name])
        labels = np.array([*factor.levels.astype(str), None], dtype=object)
        text.append(labels[factor.codes])
    own, sires, dams = text
    if any(v is None for v in own):
        raise DataError(f"{id} is missing in {sum(v is None for v in own)} rows of the pedigree")
    names = pd.Index(own)
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        raise DataError(f"the pedigree has two rows for {str(twice)!r}")
    unknown = {None} if "0" in names else {None, "0"}
    founders = [v for v in dict.fromkeys([*sires, *dams]) if v not in unknown and v not in names]
    every = pd.Index([*founders, *own])
    parents = []
    for column in (sires, dams):
        place = every.get_indexer(pd.Index([v if v not in unknown else None for v in column], dtype=object))
        parents.append(np.concatenate([np.full(len(founders), -1, np.int64), place.astype(np.int64)]))
    return from_parents(list(every), *parents)


@explained
def neighbours(
    areas: Any, first: str | None = None, second: str | None = None, *, weight: str | None = None, scaled: bool = False
) -> Relationship:
    """The intrinsic conditional autoregression (ICAR) of a map, for `lmer(..., precision={"area": neighbours(...)})`.

    The precision is Q = D - W: differences of neighbours have variance sigma^2 / weight. It is singular; in each
    connected part of the map the effects sum to zero (Besag, York and Mollie 1991). An area without neighbours has
    an effect of zero, and is named in a warning.

    Parameters
    ----------
    areas : mapping, table or matrix
        A mapping of each area to its neighbours (a list of names; that of an island is empty); a table with a row a
        pair of neighbours, with `first` and `second`; or a symmetric matrix of weights, zero where areas do not touch:
        a DataFrame whose index names the areas, or an array or scipy sparse matrix in the order of the factor's levels.
    first, second : str, optional
        Columns of a table of pairs. A pair may be listed from both sides.
    weight : str, optional
        Column of the pairs' weights; 1 by default.
    scaled : bool
        Divide the covariance, in each connected part, by the geometric mean of its diagonal, so that sigma is the
        standard deviation of a typical area's effect (Sorbye and Rue 2014).

    Returns
    -------
    Relationship
        Its `levels`, `precision`, `components` (the connected part of each level) and `logdet`, that of the
        pseudo-inverse.

    Raises
    ------
    DataError
        An area is its own neighbour; a is a neighbour of b but b not of a; weights that are not positive or differ
        between the two sides.
    ModelError
        No map in one of these forms.

    Examples
    --------
    >>> from fastlmm_core import neighbours
    >>> neighbours({"a": ["b"], "b": ["a", "c"], "c": ["b"]})
    <Relationship of 3 levels in 1 connected parts, 7 entries of the inverse>
    """
    from fastlmm_core.fitting.maps import edges_of

    names, a, b, weights, labelled = edges_of(areas, first, second, weight)
    out = from_neighbours(names, a, b, weights, scaled, labelled)
    assert out.components is not None
    alone = np.flatnonzero(np.bincount(out.components)[out.components] == 1)
    if len(alone):
        warn(
            f"{len(alone)} of {len(names)} areas have no neighbours, so that their effect is zero: "
            f"{listed([repr(str(names[i])) for i in alone])}. Give them some, or add an independent effect of a copy "
            "of the column",
            FastLMMWarning,
        )
    return out


def relationships(
    precision: Mapping[str, Any] | None, relmat: Mapping[str, Any] | None
) -> dict[str, tuple[str, Known]]:
    """Grouping factor -> name of the argument and the relationship; see `lmer`.

    Raises
    ------
    ModelError
        Not a mapping, one factor in both, a matrix that is not positive definite.
    DataError
        A matrix that is not square or not symmetric.
    """
    out: dict[str, tuple[str, Known]] = {}
    for argument, given in (("precision", precision), ("relmat", relmat)):
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise ModelError(f'{argument} maps grouping factors to matrices, as in {argument}={{"id": A}}')
        for name, value in given.items():
            if name in out:
                raise ModelError(f"{name!r} has both a precision and a covariance: give one of them")
            out[name] = argument, _relationship(value, f"{argument}[{name!r}]", argument == "precision")
    return out


def _relationship(value: Any, name: str, inverse: bool) -> Known:
    if isinstance(value, Relationship | KnownCovariance):
        return value
    if isinstance(value, pd.DataFrame):
        if [str(v) for v in value.index] != [str(v) for v in value.columns]:
            raise DataError(f"{name}: the index and the columns have to name the same levels in the same order")
        levels, matrix = list(value.index), value.to_numpy(dtype=float)
    elif sp.issparse(value) or isinstance(value, np.ndarray):
        levels, matrix = None, value
    else:
        raise ModelError(
            f"{name} has to be pedigree(...), neighbours(...), a DataFrame, an array or a sparse matrix, not "
            f"{type(value).__name__}"
        )
    return from_precision(levels, matrix, name) if inverse else from_covariance(levels, matrix, name)


def relationship_values(design: Design, core: CoreFit, group: str | None) -> pd.DataFrame:
    """See `StructuredResult.breeding_values`."""
    from fastlmm_core.core.structures.equations_fit import EquationsFit
    from fastlmm_core.core.structures.iterative import IterativeEquationsFit

    related = [k for k, t in enumerate(design.random) if t.relationship is not None]
    if not isinstance(core, EquationsFit) or not related:
        raise ModelError("breeding_values needs a grouping factor with precision= or relmat=")
    chosen = [k for k in related if design.random[k].group == group] if group is not None else related[:1]
    if not chosen:
        have = ", ".join(design.random[k].group for k in related)
        raise ModelError(f"{group!r} has no known relationship; the factors that have one are {have}")
    frames = []
    for k in chosen:
        term = design.random[k]
        cov = core.sigma**2 * np.diag(core.L[k] @ core.L[k].T)
        # what an area without neighbours has is zero, up to rounding of either sign
        error = np.maximum(np.diagonal(core.prediction_var()[k], axis1=1, axis2=2), 0.0)
        if core.unidentified is not None and k in core.unidentified.terms:
            error = np.full_like(error, np.nan)
        variance = term.relationship.variances[:, None] * cov
        with np.errstate(divide="ignore", invalid="ignore"):
            reliability = np.where(variance > 0, 1.0 - error / variance, np.nan)
        for j, column in enumerate(term.columns):
            frame = pd.DataFrame(
                {"effect": column, "value": core.b[k][:, j], "std_error": np.sqrt(error[:, j])},
                index=pd.Index(term.levels, name=term.group),
            )
            frame = frame.assign(reliability=reliability[:, j])
            if isinstance(core, IterativeEquationsFit):
                with np.errstate(divide="ignore", invalid="ignore"):
                    random = 2.0 * np.sqrt(error[:, j]) * core.prediction_sd_error()[k][:, j] / variance[:, j]
                frame = frame.assign(reliability_error=np.where(variance[:, j] > 0, random, np.nan))
            frames.append(frame)
    out = pd.concat(frames)
    return out if out["effect"].nunique() > 1 else out.drop(columns="effect")


def sparse_coefficients(design: Design, core: CoreFit, name: str | None, se: bool) -> pd.DataFrame:
    """See `StructuredResult.sparse_coef`."""
    from fastlmm_core.core.structures.equations_fit import EquationsFit

    names = [s.name for s in design.sparse]
    if not isinstance(core, EquationsFit) or not names:
        raise ModelError("the model has no sparse() effects")
    if name is not None and name not in names:
        raise ModelError(f"{name!r} is no sparse() effect of the model; they are {', '.join(names)}")
    k = 0 if name is None else names.index(name)
    sparse = design.sparse[k]
    place = sparse.column_of
    columns = {"estimate": np.where(place >= 0, core.absorbed[k][place], 0.0)}
    if se:
        columns["std_error"] = np.where(place >= 0, np.sqrt(core.absorbed_var()[k])[place], np.nan)
    return pd.DataFrame(columns, index=pd.Index(sparse.level_set.labels, name=sparse.name))
