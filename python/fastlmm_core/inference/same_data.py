"""Whether fits can be compared at all: the same rows, responses, weights and offsets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.streaming import StreamedDesign
from fastlmm_core.formula.fingerprint import fingerprint, fingerprint_of_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.families import Family
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import Design

__all__ = ["check_nested_families", "row_prints", "same_columns", "same_criterion", "same_data"]

LIMITS = {
    "negativebinomial": "poisson",
    "negativebinomial1": "poisson",
    "truncated_nbinom2": "truncated_poisson",
    "truncated_nbinom1": "truncated_poisson",
    "hurdle_nbinom2": "hurdle_poisson",
    "hurdle_nbinom1": "hurdle_poisson",
}
"""Families that have another one as a limit of their own parameter."""

INFLATED = "zero_inflated_"
"""What the names of zero-inflated families begin with; these contain those of their counts."""
PRINTED = ("responses", "weights", "offsets", "freq_weights")
"""What fingerprints of rows are of."""

CANONICAL = {"binomial": "logit", "poisson": "log", "gamma": "inverse", "truncated_poisson": "log"}
"""Links by which the linear predictor is the family's natural parameter."""


def contains(family: str, other: str) -> bool:
    """Whether a family is another one, or has it as a limit."""
    counts, plain = family.removeprefix(INFLATED), other.removeprefix(INFLATED)
    return (counts == plain or LIMITS.get(counts) == plain) and (family != counts or other == plain)


def check_fits(models: Sequence[object]) -> None:
    """ModelError where something among the models is no fit."""
    for m in models:
        if not (hasattr(m, "design") and hasattr(m, "core")):
            raise ModelError(f"fitted models are compared, not {type(m).__name__}")


def check_nested_families(models: Sequence[FittedModel]) -> None:
    """Raise where likelihood ratios mean nothing: what is no fit, or families of which none contains the other.

    Raises
    ------
    ModelError
    """
    check_fits(models)
    families = [m.family if isinstance(m, GeneralisedModel) else None for m in models]
    names = {"gaussian" if f is None else f.name for f in families}
    links = {"identity" if f is None else f.link.name for f in families}
    if not all(contains(a, b) or contains(b, a) for a, b in combinations(sorted(names), 2)):
        raise ModelError(
            f"no likelihood-ratio test compares the families {' and '.join(sorted(names))}, neither of which contains "
            "the other: compare() has their information criteria"
        )
    if len(links) > 1:
        raise ModelError(
            f"no likelihood-ratio test compares the links {' and '.join(sorted(links))}: compare() has the models' "
            "information criteria"
        )


def same_criterion(models: Sequence[FittedModel]) -> None:
    """Raise where the likelihoods of fits are approximated in different ways.

    Raises
    ------
    ModelError
        Other points of quadrature, a first look (``n_agq=0``) beside a whole fit, or observed beside expected weights.
    """
    fits: list[Any] = [m.core for m in models if _approximates(m)]
    points = {core.n_agq for core in fits}
    if len(points) > 1:
        ways = " and ".join(f"n_agq={k}" for k in sorted(points))
        raise ModelError(
            f"the fits approximate their likelihoods in different ways ({ways}), whose criteria do not compare: fit "
            f"all by one, as in update(n_agq={max(points)})"
        )
    kinds = {core.control.weights for core in fits if not _observed_alone(core.family)}
    if len(kinds) > 1:
        raise ModelError(
            "some fits approximate their likelihoods by observed weights and some by expected ones, whose criteria do "
            "not compare: fit all with the same Control(weights=...)"
        )


def _approximates(m: FittedModel) -> bool:
    """Whether a fit's likelihood is an approximation, as that of normal responses is not."""
    return isinstance(m, GeneralisedModel) and (m.family.name, m.family.link.name) != ("gaussian", "identity")


def _observed_alone(family: Family) -> bool:
    """Whether its rows' weights are of one kind, whatever is asked for: observed and expected ones are the same."""
    return family.vector or CANONICAL.get(family.name) == family.link.name


def same_data(models: Sequence[FittedModel], labels: Sequence[str] | None = None) -> None:
    """Raise where fits do not share their data.

    Parameters
    ----------
    models : sequence of FittedModel
        Each is held against the first.
    labels : sequence of str, optional
        What the error calls them; the formulas by default.

    Raises
    ------
    DataError
        Different rows, responses, weights or offsets.
    """
    check_fits(models)
    names = [m.formula for m in models] if labels is None else list(labels)
    first = models[0]
    for k in range(1, len(models)):
        why = _difference(first, models[k])
        if why:
            one, other = (repr(name) for name in (names[0], names[k]))
            if one == other:
                one, other = "model 1", f"model {k + 1}"
            raise DataError(f"{one} and {other} {why}: only fits of the same data can be compared")


def _difference(a: FittedModel, b: FittedModel) -> str:
    """In what the data of two fits differ; an empty text where they do not."""
    one, other = a.design, b.design
    if a.nobs != b.nobs:
        return f"used {a.nobs} and {b.nobs} rows, not the same ones (a missing value in one of them?)"
    if not (_has_rows(a) and _has_rows(b)):  # in whatever order
        for print_a, print_b, what in zip(row_prints(a)[0], row_prints(b)[0], PRINTED, strict=True):
            if print_a != print_b:
                return f"have different {what}"
        return ""
    if not _same_rows(one, other):
        return f"used {a.nobs} rows each, but not the same ones"
    if not np.array_equal(one.y, other.y):
        return "have different responses, or the same one in another order of rows"
    for what, fill, mine, theirs in (
        ("weights", 1.0, one.weights, other.weights),
        ("offsets", 0.0, one.offset, other.offset),
        ("freq_weights", 1.0, _frequencies(a), _frequencies(b)),
    ):
        if not np.array_equal(_filled(mine, fill, a.nobs), _filled(theirs, fill, b.nobs)):
            return f"have different {what}"
    return ""


def _filled(values: NDArray[np.float64] | None, fill: float, n: int) -> NDArray[np.float64]:
    return np.full(n, fill) if values is None else values


def _frequencies(m: FittedModel) -> NDArray[np.float64] | None:
    """How often rows count, which generalised fits know."""
    return getattr(m.options, "freq_weights", None)


def _has_rows(m: FittedModel) -> bool:
    """Whether a fit has its rows, as streamed ones and those saved without their data have not."""
    return not isinstance(m.design, StreamedDesign) and len(m.design.y) == m.nobs


def row_prints(m: FittedModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Fingerprints of the rows (responses, weights, offsets, freq_weights), and of the columns of X.

    Raises
    ------
    DataError
        The fit was saved by a version that did not keep them.
    """
    design = m.design
    if isinstance(design, StreamedDesign):
        rows, columns = design.prints
        return (*rows, 0), columns
    if not _has_rows(m):
        if "prints" not in m.kept:
            raise DataError(f"{m.formula!r} was saved without what tells its data: save the fit again")
        rows, columns = m.kept["prints"]
        return rows, columns
    own = fingerprint_of_columns(design.y, design.X)
    rows = fingerprint(design.y, design.weights, design.offset)
    return (*rows, fingerprint(design.y, _frequencies(m), None)[1]), tuple(own.tolist())


def _same_rows(a: Design, b: Design) -> bool:
    """Same labels, or same places in the table; of tables of different lengths the response has to tell."""
    if a.index is not None and b.index is not None and a.index.equals(b.index):
        return True
    return a.n_total != b.n_total or bool(np.array_equal(a.row_index, b.row_index))


def same_columns(models: Sequence[FittedModel]) -> bool:
    """Whether the fixed parts have the same columns, so that restricted likelihoods compare."""
    if not all(map(_has_rows, models)):
        return len({row_prints(m)[1] for m in models}) == 1
    first = models[0].design.X
    return all(m.design.X.shape == first.shape and np.array_equal(m.design.X, first) for m in models[1:])
