"""Contrasts among the k levels of a factor, with the names under which tables show them (emmeans' conventions)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, ModelError

__all__ = ["CONTRASTS", "ContrastMatrix", "contrast_matrix"]

Array = NDArray[np.float64]
Labels = Sequence[str]

_OPERATOR = re.compile(r"[-+*/]")

HIGHEST_DEGREE = 6
"""Polynomial contrasts stop here, as emmeans' do."""

DEGREES = ("linear", "quadratic", "cubic", "quartic", "degree 5", "degree 6")


@dataclass(frozen=True)
class ContrastMatrix:
    """Coefficients (c, k) of c contrasts, their names, and whether they are all pairs of the levels."""

    coefficients: Array
    names: tuple[str, ...]
    pairwise: bool = False


def contrast_matrix(
    method: Any, labels: Labels, *, ref: int = 0, reverse: bool = False, names: Sequence[str] | None = None
) -> ContrastMatrix:
    """The contrasts called `method` among levels with these labels.

    Parameters
    ----------
    method : str, mapping, array (c, k) or callable
        A name in `CONTRASTS`; names and coefficients; coefficients alone; or a function from labels to a mapping.
    labels : sequence of str
    ref : int
        Position of the reference level for "trt_vs_ctrl"; negative ones count from the end.
    reverse : bool
        Differences the other way round.
    names : sequence of str, optional
        Instead of the usual ones.

    Raises
    ------
    ModelError
        No such method.
    DataError
        Coefficients of another number than the levels.
    """
    if isinstance(method, str):
        name = method.strip().replace(".", "_")
        if name not in CONTRASTS:
            raise ModelError(f"contrasts {method!r} do not exist: use one of {', '.join(CONTRASTS)}, or coefficients")
        if not -len(labels) <= ref < len(labels):
            raise DataError(f"ref is {ref}, but there are {len(labels)} levels: {', '.join(labels[:10])}")
        found = CONTRASTS[name]([_bracketed(label) for label in labels], ref % len(labels), reverse)
    else:
        found = _given(method(list(labels)) if callable(method) else method, labels)
        if reverse:
            found = ContrastMatrix(-found.coefficients, found.names)
    if names is not None:
        if len(names) != len(found.names):
            raise DataError(f"{len(names)} names were given for {len(found.names)} contrasts")
        found = ContrastMatrix(found.coefficients, tuple(map(str, names)), found.pairwise)
    return found


def _given(coefficients: Any, labels: Labels) -> ContrastMatrix:
    """Contrasts that the user wrote out."""
    k = len(labels)
    if isinstance(coefficients, Mapping):
        names, values = tuple(map(str, coefficients)), list(coefficients.values())
    else:
        values = list(np.atleast_2d(np.asarray(coefficients, dtype=np.float64)))
        names = tuple(_written_out(np.asarray(row), labels) if len(row) == k else "" for row in values)
    for name, row in zip(names, values, strict=True):
        if np.shape(row) != (k,):
            raise DataError(
                f"the contrast {name or 'given'!r} has {np.size(row)} coefficients, but there are {k} levels: "
                f"{', '.join(labels[:10])}"
            )
    array = np.array(values, dtype=np.float64).reshape(-1, k)
    if not np.isfinite(array).all():
        raise DataError("the contrasts have coefficients that are not finite")
    return ContrastMatrix(array, names)


def _written_out(row: Array, labels: Labels) -> str:
    text = ""
    for weight, label in zip(row, labels, strict=True):
        if weight:
            size = "" if abs(weight) == 1.0 else f"{abs(weight):.4g} "
            sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
            text += sign + size + _bracketed(label)
    return text or "0"


def _bracketed(label: str) -> str:
    """A label in which an operator would be misread goes into brackets."""
    return f"({label})" if _OPERATOR.search(label) else label


def _differences(labels: Labels, pairs: Sequence[tuple[int, int]], pairwise: bool = False) -> ContrastMatrix:
    """First less second, for each pair of positions."""
    rows = np.zeros((len(pairs), len(labels)))
    for row, (i, j) in zip(rows, pairs, strict=True):
        row[i], row[j] = 1.0, -1.0
    return ContrastMatrix(rows, tuple(f"{labels[i]} - {labels[j]}" for i, j in pairs), pairwise)


def _pairwise(labels: Labels, ref: int, reverse: bool) -> ContrastMatrix:
    k = len(labels)
    if reverse:
        return _differences(labels, [(i, j) for i in range(1, k) for j in range(i)], True)
    return _differences(labels, [(i, j) for i in range(k) for j in range(i + 1, k)], True)


def _revpairwise(labels: Labels, ref: int, reverse: bool) -> ContrastMatrix:
    return _pairwise(labels, ref, not reverse)


def _trt_vs_ctrl(labels: Labels, ref: int, reverse: bool) -> ContrastMatrix:
    others = [i for i in range(len(labels)) if i != ref]
    return _differences(labels, [(ref, i) if reverse else (i, ref) for i in others])


def _consec(labels: Labels, ref: int, reverse: bool) -> ContrastMatrix:
    steps = range(len(labels) - 1)
    return _differences(labels, [(i, i + 1) if reverse else (i + 1, i) for i in steps])


def _mean_chg(labels: Labels, ref: int, reverse: bool) -> ContrastMatrix:
    k, sign = len(labels), -1.0 if reverse else 1.0
    rows = [np.r_[np.full(i, -sign / i), np.full(k - i, sign / (k - i))] for i in range(1, k)]
    return ContrastMatrix(np.array(rows).reshape(-1, k), tuple(f"{labels[i - 1]}|{labels[i]}" for i in range(1, k)))


def _helmert(labels: Labels, ref: int, reverse: bool) -> ContrastMatrix:
    """Each level against the mean of those before it."""
    k, sign = len(labels), -1.0 if reverse else 1.0
    rows = np.zeros((k - 1, k))
    for i in range(1, k):
        rows[i - 1, :i], rows[i - 1, i] = -sign / i, sign
    names = [f"{labels[i]} vs. {labels[0] if i == 1 else f'{labels[0]}..{labels[i - 1]}'}" for i in range(1, k)]
    return ContrastMatrix(rows, tuple(names))


def _poly(labels: Labels, ref: int, reverse: bool) -> ContrastMatrix:
    """Orthogonal polynomials of equally spaced levels, in the smallest whole numbers; the highest coefficient positive.

    Gram and Schmidt's process in rational arithmetic.
    """
    k, sign = len(labels), -1 if reverse else 1
    made: list[list[Fraction]] = [[Fraction(1)] * k]
    for degree in range(1, min(k - 1, HIGHEST_DEGREE) + 1):
        row = [Fraction(i) ** degree for i in range(k)]
        for q in made:
            share = sum((a * b for a, b in zip(row, q, strict=True)), Fraction(0)) / sum(
                (b * b for b in q), Fraction(0)
            )
            row = [a - share * b for a, b in zip(row, q, strict=True)]
        whole = np.array([int(a * int(np.lcm.reduce([b.denominator for b in row]))) for a in row], dtype=object)
        row = [Fraction(int(a), int(np.gcd.reduce(whole))) for a in whole]
        made.append(row)
    rows = sign * np.array([[float(a) for a in row] for row in made[1:]]).reshape(-1, k)
    return ContrastMatrix(rows, DEGREES[: len(rows)])


def _eff(labels: Labels, ref: int, reverse: bool) -> ContrastMatrix:
    k, sign = len(labels), -1.0 if reverse else 1.0
    return ContrastMatrix(sign * (np.eye(k) - 1.0 / k), tuple(f"{label} effect" for label in labels))


def _del_eff(labels: Labels, ref: int, reverse: bool) -> ContrastMatrix:
    """Each level against the mean of the others."""
    k, sign = len(labels), -1.0 if reverse else 1.0
    if k < 2:
        return ContrastMatrix(np.zeros((0, k)), ())
    rows = np.eye(k) - (1.0 - np.eye(k)) / (k - 1)
    return ContrastMatrix(sign * rows, tuple(f"{label} effect" for label in labels))


def _identity(labels: Labels, ref: int, reverse: bool) -> ContrastMatrix:
    return ContrastMatrix((-1.0 if reverse else 1.0) * np.eye(len(labels)), tuple(labels))


CONTRASTS: dict[str, Callable[[Labels, int, bool], ContrastMatrix]] = {
    "pairwise": _pairwise,
    "revpairwise": _revpairwise,
    "trt_vs_ctrl": _trt_vs_ctrl,
    "consec": _consec,
    "mean_chg": _mean_chg,
    "poly": _poly,
    "helmert": _helmert,
    "eff": _eff,
    "del_eff": _del_eff,
    "identity": _identity,
}
