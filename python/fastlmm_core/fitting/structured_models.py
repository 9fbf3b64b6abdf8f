"""Designs with covariance structures, known relationships or structured residuals as the core's models."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.control import Control
from fastlmm_core.core.residuals import CrossedModel, PatternModel, Residual
from fastlmm_core.core.residuals.units import LARGE_UNIT
from fastlmm_core.core.structures.covariances import Structure
from fastlmm_core.core.structures.equations_fit import EquationsModel
from fastlmm_core.core.structures.structured import StructuredModel
from fastlmm_core.core.terms import Term
from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.residual import check_random, core_residual, in_units

if TYPE_CHECKING:
    from fastlmm_core.formula import Design

__all__ = ["Asked", "core_structures", "structure_labels", "structured_model"]


class Asked(TypedDict):
    """What every model is asked."""

    weights: NDArray[np.float64] | None
    offset: NDArray[np.float64] | None
    reml: bool
    control: Control | None


def core_structures(design: Design) -> list[Structure]:
    """The structure of each random term."""
    out = []
    for term in design.random:
        asked = term.structure
        out.append(Structure() if asked is None else Structure(asked.name, asked.hom, asked.rank, asked.coordinates))
    return out


def structured_model(
    design: Design, terms: list[Term], asked: Asked
) -> PatternModel | StructuredModel | EquationsModel:
    """The model of a design that asks for more than the ordinary one.

    Raises
    ------
    ModelError
        An engine was asked for that does not fit such models, or structures that do not go together.
    """
    engine = "auto" if asked["control"] is None else asked["control"].engine
    structures = core_structures(design)
    relationships = [t.relationship for t in design.random]
    sparse = [Term(s.codes, s.z, n_levels=s.n_columns) for s in design.sparse]
    joint = bool(sparse) or any(r is not None for r in relationships)
    if engine == "iterative" and (not joint or design.residual is not None or any(s.name != "us" for s in structures)):
        raise ModelError(
            "the iterative engine fits linear models of independent residuals without covariance structures: use "
            "engine='auto'"
        )
    if design.residual is not None and engine != "auto":
        raise ModelError(
            f"engine={engine!r} does not fit models with a residual structure, which have equations of their own: use "
            "engine='auto'"
        )
    if joint and engine not in ("auto", "sparse", "iterative"):
        raise ModelError(
            f"engine={engine!r} does not fit models with relationships or sparse() effects: use engine='auto', "
            "'sparse' or 'iterative'"
        )
    if design.residual is not None:
        check_random(design)
        residual = core_residual(design.residual)
        if joint or not in_units(design):
            return CrossedModel(design.X, residual, terms, structures, relationships, sparse, **asked)
    elif joint:
        return EquationsModel(design.X, terms, structures, relationships, sparse, **asked)
    elif engine != "auto" or not independent_units(design):
        return StructuredModel(design.X, terms, structures, **asked)
    else:
        residual = Residual(np.arange(len(design.y), dtype=np.int64))
    return PatternModel(design.X, residual, terms, structures=structures, **asked)


def independent_units(design: Design) -> bool:
    """Whether the random terms have one grouping factor, with levels of a size that is factored as a whole."""
    first = design.random[0]
    if any(t.codes is not first.codes for t in design.random[1:]):
        return False
    return int(np.bincount(first.codes).max()) <= LARGE_UNIT


def structure_labels(design: Design) -> list[str]:
    """Labels of the parameters of the random terms' structures, in the order of the core's."""
    out = []
    for term, structure in zip(design.random, core_structures(design), strict=True):
        out += [f"{term.grp}.{name}" for name in structure.covariance(len(term.columns)).labels(term.columns)]
    return out
