"""Which of a factor's columns its triangle begins with, while the search is under way.

The covariance of correlated effects is Sigma = FF' with F a triangle for any order of its columns. Where what the first
column has is next to nothing beside the others, as an intercept at an origin far from the data is, only the length of
the rows below it is determined: a circle on which the criterion is all but flat, and Newton's steps creep along it. In
the order of a pivoted Cholesky factor, the largest of what is left first, small elements come last, and there is none.
Probes and products take any F, so that a change of order is one of places: parameter a is element (pi_i, pi_j) of F.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.iterative.problem import Factors, Places, tail_terms
from fastlmm_core.core.iterative.system import relative_factor

__all__ = ["better_order", "carried"]

Array = NDArray[np.float64]
P = TypeVar("P", bound=Factors)

SLACK = 16.0
"""Times that the variance an order leaves to a later column may be that of the one it takes."""


def better_order(problem: P, theta: Array, fixed: NDArray[np.bool_]) -> P | None:
    """The problem with factors of several correlated columns in a better order; None where all are in a good one.

    Parameters
    ----------
    problem : Factors
    theta : (n_theta,)
    fixed : (n_theta,) bool
        Parameters whose factors are left as they are.
    """
    found = []
    for places, l in problem.factors:
        own = [a for a, _, _ in places]
        whole = l > 1 and len(places) == l * (l + 1) // 2 and not fixed[own].any()
        order = pivots(covariance(places, theta, l), [i for _, i, j in places if i == j]) if whole else None
        found.append(places if order is None else moved(places, order))
    if found == [places for places, _ in problem.factors]:
        return None
    groups = tuple(replace(group, parameters=own) for group, own in zip(problem.groups, found[1:], strict=True))
    return replace(problem, lead=found[0], groups=groups, tail=tail_terms(groups))


def covariance(places: Places, theta: Array, l: int) -> Array:
    """FF' (l, l)."""
    factor = relative_factor(places, theta, l)
    return factor @ factor.T


def moved(places: Places, order: Sequence[int]) -> Places:
    """The same parameters, for columns in another order."""
    rank = {i: k for k, i in enumerate(i for _, i, j in places if i == j)}
    return tuple((a, order[rank[i]], order[rank[j]]) for a, i, j in places)


def pivots(sigma: Array, order: Sequence[int]) -> list[int] | None:
    """Columns by the largest variance that earlier ones leave; None where ``order`` is about as good."""
    if taken(sigma, order) is not None:
        return None
    return taken(sigma, None)


def taken(sigma: Array, order: Sequence[int] | None) -> list[int] | None:
    """The order in which columns are eliminated, the largest first or as given; None where that takes a small one."""
    left, out = sigma.copy(), list[int]()
    for k in range(len(sigma)):
        d = left.diagonal().copy()
        d[out] = -np.inf
        i = int(d.argmax()) if order is None else order[k]
        if SLACK * d[i] < d.max():
            return None
        out.append(i)
        if d[i] > 0.0:
            left -= np.outer(left[:, i], left[i]) / d[i]
    return out


def carried(source: Factors, target: Factors, theta: Array) -> tuple[Array, Array]:
    """Parameters of one order from those of another, and their Jacobian.

    Returns
    -------
    theta : (n_theta,)
        Diagonal elements are not negative where orders differ.
    jacobian : (n_theta, n_theta)
        Of the new in the old ones; zero for a column whose diagonal element is zero.
    """
    out, jacobian = theta.copy(), np.eye(len(theta))
    for (places, l), (wanted, _) in zip(source.factors, target.factors, strict=True):
        if places == wanted:
            continue
        factor = relative_factor(places, theta, l)
        changes = np.zeros((len(places), l, l))
        for k, (_, i, j) in enumerate(places):
            changes[k, i] += factor[:, j]
            changes[k, :, i] += factor[:, j]
        order = [i for _, i, j in wanted if i == j]
        both = np.ix_(order, order)
        L, slopes = cholesky((factor @ factor.T)[both], changes[:, order][:, :, order])
        rank = {i: k for k, i in enumerate(order)}
        own = [a for a, _, _ in places]
        jacobian[np.ix_(own, own)] = 0.0
        for a, i, j in wanted:
            out[a] = L[rank[i], rank[j]]
            jacobian[a, own] = slopes[:, rank[i], rank[j]]
    return out, jacobian


def cholesky(sigma: Array, changes: Array) -> tuple[Array, Array]:
    """Lower triangle L (l, l) of a semidefinite matrix, and its derivatives (k, l, l) in directions (k, l, l).

    A column whose pivot is rounding is zero, and so are its derivatives.
    """
    left, moving = sigma.copy(), changes.copy()
    L, slopes = np.zeros_like(sigma), np.zeros_like(changes)
    for j in range(len(sigma)):
        d = left[j, j]
        if d <= 1e-14 * sigma[j, j]:
            continue
        root = np.sqrt(d)
        L[j:, j] = left[j:, j] / root
        slopes[:, j:, j] = moving[:, j:, j] / root - np.multiply.outer(moving[:, j, j], left[j:, j]) / (2.0 * d * root)
        left -= np.outer(L[:, j], L[:, j])
        product = slopes[:, :, j, None] * L[:, j]
        moving -= product + product.transpose(0, 2, 1)
    return L, slopes
