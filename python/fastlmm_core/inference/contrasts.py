"""Hypotheses of the terms of the fixed part: types 1, 2 and 3.

Type 1 and type 2 are read off the triangular factor of X with its columns reordered: row j of R, scaled to R_jj = 1, is
what column j explains beyond the columns before it (a term that goes last is its own coefficients). Type 3 asks whether
a term vanishes when factors are coded by contrasts that sum to zero; the model's own coding is translated into those,
so the answer is the same for any coding. Rows are written as differences from the first level, as lmerTest has them.
"""

from __future__ import annotations

import re
from itertools import combinations
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.conditioning import independent_columns
from fastlmm_core.core.threads import bounded
from fastlmm_core.errors import ModelError

if TYPE_CHECKING:
    from fastlmm_core.formula import Design
    from fastlmm_core.formula.fixed import MatrixSpec

__all__ = ["containing_terms", "full_rank_codings", "term_hypotheses"]

Array = NDArray[np.float64]
Factors = tuple[str, ...]

SAME = 1e-8
"""What may be left of rows that another set of rows spans, relative to themselves."""


@bounded
def term_hypotheses(design: Design, kept: NDArray[np.bool_], kind: int) -> dict[str, Array]:
    """Rows (k, rank) over the kept columns for each term but the intercept; no rows where nothing can be tested.

    Types 2 and 3 of a term often ask the same. They are then written in the same way, as the degrees of freedom of an F
    test depend on how its hypothesis is written (Fai & Cornelius 1996).

    Parameters
    ----------
    design : Design
    kept : (p,) bool
        Columns that are not linearly dependent on others.
    kind : {1, 2, 3}
    """
    names = [name for name, _ in design.x_terms if name != "Intercept" or not design.spec.terms.intercept]
    if kind == 3:
        return _type3(design, kept)
    if kind == 1:
        r = _triangular(design.x_factor[:, kept])
        unit = r / np.diag(r)[:, None]
        place = np.cumsum(kept) - 1
        return {
            name: unit[[place[j] for j in np.arange(len(kept))[where] if kept[j]]]
            for name, where in design.x_terms
            if name in names
        }
    rows = _type2(design, kept, names)
    try:
        third = _type3(design, kept)
    except ModelError:  # type 3 asks more of the terms' columns
        return rows
    return {name: third[name] if _same_span(mine, third[name]) else mine for name, mine in rows.items()}


def _type2(design: Design, kept: NDArray[np.bool_], names: list[str]) -> dict[str, Array]:
    """What each term explains beyond the terms that do not contain it.

    Its columns that the others leave independent are tested: with X = X_o T for those columns and the ones of the
    others, before them, and of the terms that contain it, behind them.
    """
    above = containing_terms(design.spec)
    where = {name: np.arange(len(kept))[columns] for name, columns in design.x_terms}
    rank = int(kept.sum())
    # X = Q g, with g triangular over the kept columns
    order = np.concatenate([np.flatnonzero(kept), np.flatnonzero(~kept)])
    g = np.empty((rank, len(kept)))
    g[:, order] = _triangular(design.x_factor[:, order])[:rank]
    out = {}
    for name in names:
        behind = [j for other in above[name] for j in where[other]]
        mine = set(where[name].tolist())
        before = [j for j in range(len(kept)) if j not in mine and j not in set(behind)]
        columns = np.array([*before, *where[name], *behind], dtype=np.int64)
        columns = columns[kept[columns]] if kept.all() else columns[independent_columns(g[:, columns])]
        at = np.flatnonzero(np.isin(columns, where[name]))
        if not above[name]:
            rows = np.eye(rank)[at]
        else:
            r = _triangular(g[:, columns])
            rows = (r / np.diag(r)[:, None])[at]
        if kept.all():
            out[name] = np.empty(rows.shape)
            out[name][:, columns] = rows
        else:  # from the coefficients of these columns to those of the kept ones
            out[name] = rows @ np.linalg.solve(g[:, columns], g[:, kept])
    return out


def _same_span(a: Array, b: Array) -> bool:
    """Whether two sets of independent rows span the same space."""
    if a.shape != b.shape or not len(a):
        return a.shape == b.shape
    size = np.linalg.norm(a, axis=0) + np.linalg.norm(b, axis=0)
    size = np.where(size > 1e-12 * size.max(), size, np.inf)  # what is less is rounding
    a, b = a / size, b / size
    left = a - np.linalg.lstsq(b.T, a.T, rcond=None)[0].T @ b
    return bool(np.linalg.norm(left) < SAME * np.linalg.norm(a))


def _triangular(x: Array) -> Array:
    """R of x = QR."""
    r: Array = np.linalg.qr(x, mode="r")  # type: ignore[assignment]
    return r


def containing_terms(spec: MatrixSpec) -> dict[str, list[str]]:
    """The terms that contain each term: all its factors and more, and the same covariates."""
    named = {":".join(term): set(term) for term in spec.terms.terms}
    numeric = {name: {e for e in term if e not in spec.factors} for name, term in named.items()}
    return {
        name: [other for other in named if named[other] > term and numeric[other] == numeric[name]]
        for name, term in named.items()
    }


def full_rank_codings(spec: MatrixSpec) -> bool:
    """Whether some factor is coded by one dummy a level, as in a model without an intercept."""
    return any(
        not reduced and expr in spec.factors
        for term, codes in zip(spec.terms.terms, spec.codes, strict=True)
        for expr, reduced in zip(term, codes, strict=True)
    )


def _type3(design: Design, kept: NDArray[np.bool_]) -> dict[str, Array]:
    spec = design.spec
    terms: list[Factors] = ([()] if spec.terms.intercept else []) + list(spec.terms.terms)
    codes: list[tuple[bool, ...]] = ([()] if spec.terms.intercept else []) + list(spec.codes)
    where = [columns for _, columns in spec.term_columns]
    by_covariates: dict[Factors, list[int]] = {}
    for k, term in enumerate(terms):
        by_covariates.setdefault(tuple(e for e in term if e not in spec.factors), []).append(k)
    deficient = not kept.all()
    rows, blocks_of_groups, dummies_of_groups = {}, [], []
    for members in by_covariates.values():
        blocks, total = _effect_blocks(
            spec, [terms[k] for k in members], [codes[k] for k in members], [where[k] for k in members]
        )
        p = len(kept)
        phi, target = np.zeros((total, p)), np.zeros((total, p))
        full = False
        for k in members:
            for matrix, zero_sum in ((phi, False), (target, True)):
                _fill(spec, terms[k], codes[k], where[k], blocks, matrix, zero_sum)
            full |= any(not r and e in spec.factors for e, r in zip(terms[k], codes[k], strict=True))
        if full:
            mine = np.concatenate([np.arange(p)[where[k]] for k in members])
            solution = np.linalg.lstsq(target[:, mine], phi, rcond=None)[0]
            start = 0
            for k in members:
                width = where[k].stop - where[k].start
                rows[k] = solution[start : start + width]
                start += width
        else:
            for k in members:
                block = blocks[_categorical(spec, terms[k])]
                rows[k] = phi[block]
        if deficient:
            blocks_of_groups.append(phi)
            dummies_of_groups.append(_dummies(spec, terms, codes, where, blocks, total, members))
    if deficient:
        return _from_estimable_functions(design, kept, blocks_of_groups, dummies_of_groups, terms)
    return {":".join(terms[k]): np.where(np.abs(rows[k]) < 1e-12, 0.0, rows[k]) for k in sorted(rows) if terms[k]}


def _dummies(
    spec: MatrixSpec,
    terms: list[Factors],
    codes: list[tuple[bool, ...]],
    where: list[slice],
    blocks: dict[Factors, slice],
    total: int,
    members: list[int],
) -> dict[int, Array]:
    """Each term coded by one column a cell, as effects: (total, cells)."""
    out = {}
    for k in members:
        widths = _covariate_widths(spec, terms[k], codes[k], where[k])
        cells = prod(widths.values()) * prod(len(spec.factors[e].levels) for e in _categorical(spec, terms[k]))
        out[k] = np.zeros((total, cells))
        every = tuple(False for _ in terms[k])
        _fill(spec, terms[k], every, slice(0, cells), blocks, out[k], False, widths)
    return out


def _from_estimable_functions(
    design: Design, kept: NDArray[np.bool_], phi: list[Array], dummies: list[dict[int, Array]], terms: list[Factors]
) -> dict[str, Array]:
    """Type 3 hypotheses where cells are empty, by Goodnight's definition (SAS technical report R-101, 1978).

    Among the estimable functions of the model with one column a cell, those of a term involve it and the terms that
    contain it only, and are orthogonal to those that involve the latter alone.

    The kept coefficients are G times those of the cells, so that estimable functions are L = M G.
    """
    X = design.x_factor
    reduced = np.zeros((int(kept.sum()), len(kept)))
    reduced[:, kept] = np.eye(len(reduced))
    reduced[:, ~kept] = np.linalg.lstsq(X[:, kept], X[:, ~kept], rcond=None)[0]
    g: dict[int, Array] = {}
    for effects, of_terms in zip(phi, dummies, strict=True):
        back = reduced @ np.linalg.pinv(effects)
        g |= {k: back @ cells for k, cells in of_terms.items()}
    above = containing_terms(design.spec)
    out = {}
    for k, term in enumerate(terms):
        if not term:
            continue
        containing = [h for h, other in enumerate(terms) if ":".join(other) in above[":".join(term)]]
        rest = [h for h in g if h != k and h not in containing]
        mine = _left_null(np.hstack([g[h] for h in rest])) if rest else np.eye(len(reduced))
        if containing:
            theirs = _left_null(mine @ g[k]) @ mine
            both = np.hstack([g[h] for h in (k, *containing)])
            mine = _left_null((mine @ both) @ (theirs @ both).T) @ mine
        out[":".join(term)] = mine
    return out


def _left_null(a: Array) -> Array:
    """Orthonormal rows n with n a = 0."""
    u, d, _ = np.linalg.svd(a)
    rank = int((d > 1e-9 * max(1.0, d.max(initial=0.0))).sum())
    return np.ascontiguousarray(u[:, rank:].T)


def _categorical(spec: MatrixSpec, term: Factors) -> Factors:
    return tuple(e for e in term if e in spec.factors)


def _covariate_widths(spec: MatrixSpec, term: Factors, codes: tuple[bool, ...], columns: slice) -> dict[str, int]:
    """Columns of each covariate of a term: several for "poly(x, 2)"."""
    covariates = [e for e in term if e not in spec.factors]
    coded = prod(spec.factors[e].matrix(r).shape[1] for e, r in zip(term, codes, strict=True) if e in spec.factors)
    total = (columns.stop - columns.start) // max(coded, 1)
    if len(covariates) == 1:
        return {covariates[0]: total}
    names = spec.names[columns]
    widths = {}
    for e in covariates:
        column = re.compile(re.escape(e) + r"\[([^\]]*)\]")
        widths[e] = len({label for name in names for label in column.findall(name)}) or 1
    if prod(widths.values()) != total:
        raise ModelError(f"type 3 tests cannot tell the columns of the covariates in {':'.join(term)} apart")
    return widths


def _effect_blocks(
    spec: MatrixSpec, terms: list[Factors], codes: list[tuple[bool, ...]], columns: list[slice]
) -> tuple[dict[Factors, slice], int]:
    """Rows of each effect: every subset of the terms' factors, with one row a difference from the first level."""
    blocks: dict[Factors, slice] = {}
    start = 0
    for term, reduced, where in zip(terms, codes, columns, strict=True):
        names, width = _categorical(spec, term), prod(_covariate_widths(spec, term, reduced, where).values())
        for size in range(len(names) + 1):
            for subset in combinations(names, size):
                if subset not in blocks:
                    rows = width * prod(len(spec.factors[e].levels) - 1 for e in subset)
                    blocks[subset] = slice(start, start + rows)
                    start += rows
    return blocks, start


def _fill(
    spec: MatrixSpec,
    term: Factors,
    codes: tuple[bool, ...],
    where: slice,
    blocks: dict[Factors, slice],
    out: Array,
    zero_sum: bool,
    widths: dict[str, int] | None = None,
) -> None:
    """Write the term's columns as effects: each coding C is 1 mean' + A (C - first row), A'1 = 0.

    With `zero_sum`, factors coded by contrasts are taken to be coded by A itself.
    """
    names = _categorical(spec, term)
    widths = _covariate_widths(spec, term, codes, where) if widths is None else widths
    means, differences = {}, {}
    for e, reduced in zip(term, codes, strict=True):
        if e not in spec.factors:
            continue
        coding = spec.factors[e].matrix(reduced)
        means[e], differences[e] = coding.mean(axis=0, keepdims=True), coding[1:] - coding[:1]
        if zero_sum and reduced:
            q = len(coding)
            means[e], differences[e] = np.zeros((1, q - 1)), np.eye(q - 1)
    for size in range(len(names) + 1):
        for subset in combinations(names, size):
            product = np.eye(1)
            for e in term:  # the first factor varies fastest, so later ones multiply from the left
                if e in spec.factors:
                    step = differences[e] if e in subset else means[e]
                else:
                    step = np.eye(widths[e])
                product = np.kron(step, product)
            out[blocks[subset], where] = product
