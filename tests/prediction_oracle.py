"""Predictions and leverages from dense n x n algebra, beside `oracle`: no mixed-model equations anywhere.

A combination x'beta + z'b of a model is `x` (p,) and, per term, a level and the columns z that multiply its effects.
With c = Cov(y, z'b) / sigma^2, whose element i is z_i' Sigma z for the rows i of that level,

    Var(x'beta-hat + z'b-hat - x'beta - z'b) = sigma^2 (z'Sigma z - c'V^-1 c + g'(X'V^-1X)^-1 g),  g = x - X'V^-1 c  (1)

(Searle, Casella & McCulloch 1992, section 7.4), and between two combinations likewise. The fitted values are H y with

    H = X (X'V^-1X)^-1 X'V^-1 + (V - W^-1) P                                                                       (2)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import oracle

Array = NDArray[Any]

__all__ = ["hat_matrix", "joint_covariance", "prediction_covariance", "random_combinations"]


def design(ev: oracle.Evaluation) -> Array:
    """Columns of X in the model."""
    return np.asarray(ev.model.X)[:, ev.kept]


def prediction_covariance(ev: oracle.Evaluation, x: Array, parts: list[tuple[Array, Array]]) -> Array:
    """(k, k): equation (1) for k combinations; ``parts`` has (codes (k,), z (k, l)) a term, code -1 for no effect."""
    X = design(ev)
    prior = np.zeros((len(x), len(x)))
    c = np.zeros((len(x), ev.n))
    for term, L, (codes, z) in zip(ev.model.terms, ev.L, parts, strict=True):
        scaled = np.where(codes[:, None] >= 0, z, 0.0) @ L
        prior = prior + (scaled @ scaled.T) * (codes[:, None] == codes[None, :])
        rows = oracle.term_z(term) @ L
        c = c + (scaled @ rows.T) * (codes[:, None] == np.asarray(term.codes)[None, :])
    g = np.asarray(x)[:, ev.kept] - c @ ev.Vinv @ X
    return oracle.sigma(ev) ** 2 * (prior - c @ ev.Vinv @ c.T + g @ ev.cov_unit @ g.T)


def hat_matrix(ev: oracle.Evaluation) -> Array:
    """(n, n): equation (2)."""
    X = design(ev)
    weights = np.ones(ev.n) if ev.model.weights is None else np.asarray(ev.model.weights)
    V = np.diag(1.0 / weights)
    for term, L in zip(ev.model.terms, ev.L, strict=True):
        scaled = oracle.term_z(term) @ L
        V = V + (scaled @ scaled.T) * oracle.same_level(term)
    return X @ ev.cov_unit @ X.T @ ev.Vinv + (V - np.diag(1.0 / weights)) @ ev.P


def joint_covariance(ev: oracle.Evaluation) -> Array:
    """(p + q, p + q): equation (1) for every coefficient in the model and every random effect, in order of terms."""
    p = np.shape(ev.model.X)[1]
    sizes = [(oracle.term_levels(t), oracle.term_z(t).shape[1]) for t in ev.model.terms]
    total = len(ev.kept) + sum(q * l for q, l in sizes)
    x = np.zeros((total, p))
    x[np.arange(len(ev.kept)), ev.kept] = 1.0
    parts, at = [], len(ev.kept)
    for q, l in sizes:
        codes, z = np.full(total, -1), np.zeros((total, l))
        codes[at : at + q * l] = np.repeat(np.arange(q), l)
        z[at : at + q * l] = np.tile(np.eye(l), (q, 1))
        parts.append((codes, z))
        at += q * l
    return prediction_covariance(ev, x, parts)


def random_combinations(problem: Any, k: int, seed: int) -> tuple[Array, list[tuple[Array, Array]]]:
    """k combinations of any levels, whether or not a row of the model joins them; about a fifth are of no level."""
    rng = np.random.default_rng(seed)
    parts, drawn = [], {}
    for term in problem.terms:
        q, l = oracle.term_levels(term), oracle.term_z(term).shape[1]
        if (id(term.codes), q) not in drawn:  # terms on one factor meet the same level
            drawn[id(term.codes), q] = np.where(rng.random(k) < 0.2, -1, rng.integers(0, q, k))
        parts.append((drawn[id(term.codes), q], np.ones((k, 1)) if term.z is None else rng.normal(size=(k, l))))
    return rng.normal(size=(k, np.shape(problem.X)[1])), parts
