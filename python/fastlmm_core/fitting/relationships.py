"""Relationships as users give them: pedigrees, labelled matrices, sparse matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from fastlmm_core.core.structures.pedigree import Relationship, from_covariance, from_parents, from_precision
from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.spelling import explained
from fastlmm_core.formula.frame import Table, as_factor

if TYPE_CHECKING:
    from fastlmm_core.core import CoreFit
    from fastlmm_core.formula import Design

__all__ = ["pedigree", "relationship_values", "relationships", "sparse_coefficients"]


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


def relationships(
    precision: Mapping[str, Any] | None, relmat: Mapping[str, Any] | None
) -> dict[str, tuple[str, Relationship]]:
    """Grouping factor -> name of the argument and the relationship; see `lmer`.

    Raises
    ------
    ModelError
        Not a mapping, one factor in both, a matrix that is not positive definite.
    DataError
        A matrix that is not square or not symmetric.
    """
    out: dict[str, tuple[str, Relationship]] = {}
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


def _relationship(value: Any, name: str, inverse: bool) -> Relationship:
    if isinstance(value, Relationship):
        return value
    if isinstance(value, pd.DataFrame):
        if [str(v) for v in value.index] != [str(v) for v in value.columns]:
            raise DataError(f"{name}: the index and the columns have to name the same levels in the same order")
        levels, matrix = list(value.index), value.to_numpy(dtype=float)
    elif sp.issparse(value) or isinstance(value, np.ndarray):
        levels, matrix = None, value
    else:
        raise ModelError(
            f"{name} has to be pedigree(...), a DataFrame, an array or a sparse matrix, not {type(value).__name__}"
        )
    return from_precision(levels, matrix, name) if inverse else from_covariance(levels, matrix, name)


def relationship_values(design: Design, core: CoreFit, group: str | None) -> pd.DataFrame:
    """See `StructuredResult.breeding_values`."""
    from fastlmm_core.core.structures.equations_fit import EquationsFit

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
        error = np.diagonal(core.prediction_var()[k], axis1=1, axis2=2)
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
            frames.append(frame.assign(reliability=reliability[:, j]))
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
