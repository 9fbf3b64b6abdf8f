"""The parameters of a model in the order of lme4's `confint`: their names, and their values for any number of fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import ModelError

if TYPE_CHECKING:
    from fastlmm_core.formula import Design

__all__ = ["Parameter", "choose", "parameter_values", "parameters"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model.

    Attributes
    ----------
    name : str
        "sd_Intercept|Subject", "cor_Days.Intercept|Subject", "sigma", or the coefficient's own.
    kind : {"sd", "cor", "sigma", "own", "beta"}
        "own": one of a family's parameters that is no logarithm.
    term : int
        Random term of an sd or cor, those of a zero part after the others; -1 elsewhere.
    row, column : int
        Columns of the term (equal for an sd); `row` is the place of a coefficient.
    """

    name: str
    kind: Literal["sd", "cor", "sigma", "own", "beta"]
    term: int = -1
    row: int = -1
    column: int = -1

    @property
    def element(self) -> tuple[int, int, int]:
        """Term, row and column, in the lower triangle, of an sd's or correlation's element."""
        return self.term, max(self.row, self.column), min(self.row, self.column)


def parameters(design: Design) -> tuple[Parameter, ...]:
    """Every parameter: the lower triangle of each term column by column, sigma, the coefficients.

    The grouping factor's name is used, as lme4 does; where two terms would share a name, the terms' own names are.
    """

    def of_terms(own_name: bool) -> list[Parameter]:
        out = []
        for k, term in enumerate(design.random):
            group = term.grp if own_name else term.group
            for j, column in enumerate(term.columns):
                out.append(Parameter(f"sd_{column}|{group}", "sd", k, j, j))
                for i in range(j + 1, len(term.columns)):
                    out.append(Parameter(f"cor_{term.columns[i]}.{column}|{group}", "cor", k, i, j))
        return out

    found = of_terms(own_name=False)
    if len({p.name for p in found}) < len(found):
        found = of_terms(own_name=True)
    fixed = [Parameter(name, "beta", row=j) for j, name in enumerate(design.x_names)]
    return (*found, Parameter("sigma", "sigma"), *fixed)


def parameter_values(design: Design, theta: Array, sigma: Array, beta: Array) -> Array:
    """Values of `parameters` for k fits of one model.

    Parameters
    ----------
    theta, sigma, beta : (k, n_theta), (k,), (k, p)

    Returns
    -------
    ndarray (k, n_parameters)
        A correlation with an effect that does not vary is NaN.
    """
    columns: list[Array] = []
    at = 0
    for term in design.random:
        l = len(term.columns)
        factor = np.zeros((len(theta), l, l))
        for j in range(l):
            factor[:, j:, j] = theta[:, at : at + l - j]
            at += l - j
        norm = np.sqrt(np.square(factor).sum(axis=2))
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = factor / norm[:, :, None]
        for j in range(l):
            columns.append(norm[:, j] * sigma)
            for i in range(j + 1, l):
                columns.append(np.clip(np.einsum("kc,kc->k", unit[:, i], unit[:, j]), -1.0, 1.0))
    return np.column_stack([*columns, sigma, beta])


def choose(every: Sequence[Parameter], wanted: str | Iterable[str] | None) -> list[Parameter]:
    """The parameters asked for, in the model's order.

    Parameters
    ----------
    wanted : str, iterable of str, or None
        Names; "theta_" stands for all standard deviations and correlations with sigma, "beta_" for the coefficients.

    Raises
    ------
    ModelError
        An unknown name; the nearest ones are shown.
    """
    if wanted is None:
        return list(every)
    names = {wanted} if isinstance(wanted, str) else set(wanted) if isinstance(wanted, Iterable) else {wanted}
    if not all(isinstance(name, str) for name in names):
        raise ModelError(f"parameters are chosen by name, not by {names}")
    if "theta_" in names:
        names = (names - {"theta_"}) | {p.name for p in every if p.kind != "beta"}
    if "beta_" in names:
        names = (names - {"beta_"}) | {p.name for p in every if p.kind == "beta"}
    unknown = sorted(names - {p.name for p in every})
    if unknown:
        near = get_close_matches(unknown[0], [p.name for p in every]) or [p.name for p in every][:10]
        raise ModelError(f"the model has no parameter {unknown[0]!r}; there is {', '.join(near)}")
    return [p for p in every if p.name in names]
