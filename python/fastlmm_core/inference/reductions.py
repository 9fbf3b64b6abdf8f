"""A model without some of its random effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core import Model, Term
from fastlmm_core.errors import ModelError, NotSavedError
from fastlmm_core.fitting.fit import core_terms
from fastlmm_core.fitting.models import arrays_of

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import Design, RandomDesign
    from fastlmm_core.formula.fixed import MatrixSpec

__all__ = [
    "Reduction",
    "column_basis",
    "criterion_without",
    "linear_criteria",
    "model_without",
    "reduced_criteria",
    "reductions",
    "refuse_structures",
    "refuse_without_rows",
    "whole_term",
]

Array = NDArray[np.float64]
Criteria = Callable[[Array], tuple[Array, NDArray[np.bool_]]]


@dataclass(frozen=True, eq=False)
class Reduction:
    """What is left of the random part.

    Attributes
    ----------
    label : str
        What is taken away, for people.
    term : int
        The random term it is taken from.
    terms : tuple of Term
        What stays.
    df : int
        Parameters fewer.
    n_effects : int
        Effects fewer.
    """

    label: str
    term: int
    terms: tuple[Term, ...]
    df: int
    n_effects: int


def refuse_structures(design: Design, what: str) -> None:
    """ModelError for structured random effects, known relationships, residual structures and sparse fixed effects."""
    if design.sparse:
        raise ModelError(f"{what} of a model with sparse() effects is not available")
    if design.residual is not None:
        raise ModelError(f"{what} of a model with a residual structure or dispersion is not available")
    for term in design.random:
        if term.structure is not None or term.relationship is not None:
            kind = "a known relationship" if term.structure is None else "a structured covariance"
            raise ModelError(f"{what} of a model with {kind} between the effects of {term.group} is not available")


def refuse_without_rows(design: Design, what: str) -> None:
    """NotSavedError for a fit that was saved without its data."""
    if not (design.streamed or len(design.y)):
        raise NotSavedError(what)


def reductions(design: Design, reduce_terms: bool) -> Iterator[Reduction]:
    """Each way to make the random part smaller by a step, as `ranova` tests them."""
    refuse_structures(design, "a reduction of the random part")
    terms = core_terms(design)
    for k, random in enumerate(design.random):
        for label, z, l in _smaller_terms(random, reduce_terms):
            left = [t for h, t in enumerate(terms) if h != k]
            if l:
                left.insert(k, Term(terms[k].codes, z, n_levels=terms[k].n_levels))
            yield Reduction(label, k, tuple(left), terms[k].n_theta - l * (l + 1) // 2, terms[k].n_columns - l)


def whole_term(result: FittedModel, k: int) -> Reduction:
    """The model without random term k."""
    refuse_structures(result.design, "a reduction of the random part")
    terms = core_terms(result.design)
    left = tuple(t for h, t in enumerate(terms) if h != k)
    return Reduction(result.design.random[k].grp, k, left, terms[k].n_theta, terms[k].n_columns)


def model_without(result: FittedModel, reduction: Reduction) -> Model | None:
    """The core's model of what is left, by the fit's criterion; None where no random effect is."""
    if not reduction.terms:
        return None
    return arrays_of(result.design).with_terms(reduction.terms).model(result.reml, result.options.control)


def criterion_without(result: FittedModel, reduction: Reduction) -> float:
    """Criterion of the fit of what is left."""
    model = model_without(result, reduction)
    if model is None:
        return _linear_criterion(result)
    return model.fit(result.design.y).criterion


def reduced_criteria(result: FittedModel, reduce_terms: bool) -> Iterator[tuple[Reduction, float]]:
    """Each of `reductions` with the criterion of its fit, made as it is asked for."""
    for reduction in reductions(result.design, reduce_terms):
        yield reduction, criterion_without(result, reduction)


def _linear_criterion(result: FittedModel) -> float:
    """Criterion without any random effect: the fit's own at theta = 0."""
    with result.core.workspace() as objective:
        return float(objective(np.zeros(len(result.core.theta))))


def linear_criteria(result: FittedModel) -> tuple[Criteria, Array, float]:
    """The model without random effects: its criterion for responses (k, n), and its estimates of beta and sigma."""
    design = result.design
    n = len(design.y)
    w = np.ones(n) if design.weights is None else design.weights
    offset = 0.0 if design.offset is None else design.offset
    basis = column_basis(design.X * np.sqrt(w)[:, None])
    at_fit = _linear_criterion(result)
    nu = n - basis.shape[1] if result.reml else n

    def squares(Y: Array) -> Array:
        scaled = (Y - offset) * np.sqrt(w)
        projected = scaled @ basis
        return np.asarray(np.sum(scaled**2, axis=1) - np.sum(projected**2, axis=1))

    observed = float(squares(design.y[None])[0])

    def criteria(Y: Array) -> tuple[Array, NDArray[np.bool_]]:
        value = at_fit + nu * np.log(squares(Y) / observed)  # log-determinants and constants are the same
        return value, np.isfinite(value)

    beta = np.linalg.lstsq(design.X * np.sqrt(w)[:, None], (design.y - offset) * np.sqrt(w), rcond=None)[0]
    return criteria, np.asarray(beta), float(np.sqrt(observed / nu))


def column_basis(X: Array) -> Array:
    """An orthonormal basis of the span of the columns of X, whatever its rank."""
    if not X.shape[1]:
        return np.empty((len(X), 0))
    u, d, _ = np.linalg.svd(X, full_matrices=False)
    return u[:, d > 1e-10 * d[0]]


def _smaller_terms(random: RandomDesign, reduce_terms: bool) -> Iterator[tuple[str, NDArray[np.float64] | None, int]]:
    """Smaller versions of one random term: a label, and the z and number of columns that stay.

    As lmerTest: a term of several effects loses one at a time, but never the intercept beside others; one dummy a level
    of a factor becomes an intercept; a term of one effect goes altogether.
    """
    if random.z is None or random.spec is None:
        yield f"(1 | {random.group})", None, 0
        return
    whole = f"({_left_side(random.spec)} | {random.group})"
    parts = random.spec.term_columns
    l = random.z.shape[1]
    if reduce_terms and len(parts) > 1:
        names = {name: set(name.split(":")) for name, _ in parts}
        for name, columns in parts:
            if name == "Intercept" or any(names[other] > names[name] for other in names):
                continue
            stay = np.delete(np.arange(l), columns)
            yield f"{name} in {whole}", np.ascontiguousarray(random.z[:, stay]), len(stay)
    elif reduce_terms and l > 1 and np.allclose(random.z.sum(axis=1), 1.0):
        yield f"{parts[0][0]} in {whole}", None, 1
    else:
        yield whole, None, 0


def _left_side(spec: MatrixSpec) -> str:
    names = [name for name, _ in spec.term_columns]
    return " + ".join(["1", *names[1:]] if spec.terms.intercept else ["0", *names])
