"""Whether fits can be compared at all: the same rows, responses, weights and offsets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.streaming import StreamedDesign
from fastlmm_core.formula.fingerprint import fingerprint, fingerprint_of_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import Design

__all__ = ["check_nested_families", "same_columns", "same_data"]

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
        why = _difference(first.design, models[k].design) or _frequencies(first, models[k])
        if why:
            one, other = (repr(name) for name in (names[0], names[k]))
            if one == other:
                one, other = "model 1", f"model {k + 1}"
            raise DataError(f"{one} and {other} {why}: only fits of the same data can be compared")


def _difference(a: Design, b: Design) -> str:
    """In what the data of two fits differ; an empty text where they do not."""
    n, other = _rows(a), _rows(b)
    if n != other:
        return f"used {n} and {other} rows, not the same ones (a missing value in one of them?)"
    if isinstance(a, StreamedDesign) or isinstance(b, StreamedDesign):  # in whatever order
        for mine, theirs, what in zip(_prints(a)[0], _prints(b)[0], ("responses", "weights", "offsets"), strict=True):
            if mine != theirs:
                return f"have different {what}"
        return ""
    if not _same_rows(a, b):
        return f"used {len(a.y)} rows each, but not the same ones"
    if not np.array_equal(a.y, b.y):
        return "have different responses, or the same one in another order of rows"
    for what, fill in (("weights", 1.0), ("offset", 0.0)):
        one, two = (_filled(getattr(d, what), fill, len(a.y)) for d in (a, b))
        if not np.array_equal(one, two):
            return f"have different {what if what == 'weights' else 'offsets'}"
    return ""


def _frequencies(a: FittedModel, b: FittedModel) -> str:
    """Likewise of how often rows count, which generalised fits know."""
    one, two = (_filled(getattr(m.options, "freq_weights", None), 1.0, _rows(m.design)) for m in (a, b))
    return "" if np.array_equal(one, two) else "have different freq_weights"


def _rows(design: Design) -> int:
    """Rows used."""
    return design.total.n if isinstance(design, StreamedDesign) else len(design.y)


def _prints(design: Design) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Fingerprints of the rows, and of the columns of X."""
    if isinstance(design, StreamedDesign):
        return design.prints
    columns = fingerprint_of_columns(design.y, design.X)
    return fingerprint(design.y, design.weights, design.offset), tuple(columns.tolist())


def _filled(values: NDArray[np.float64] | None, fill: float, n: int) -> NDArray[np.float64]:
    return np.full(n, fill) if values is None else values


def _same_rows(a: Design, b: Design) -> bool:
    """Same labels, or same places in the table; of tables of different lengths the response has to tell."""
    if a.index is not None and b.index is not None and a.index.equals(b.index):
        return True
    return a.n_total != b.n_total or bool(np.array_equal(a.row_index, b.row_index))


def same_columns(models: Sequence[FittedModel]) -> bool:
    """Whether the fixed parts have the same columns, so that restricted likelihoods compare."""
    if any(isinstance(m.design, StreamedDesign) for m in models):
        return len({_prints(m.design)[1] for m in models}) == 1
    first = models[0].design.X
    return all(m.design.X.shape == first.shape and np.array_equal(m.design.X, first) for m in models[1:])
