"""Which of the core's models a design is: ordinary, of independent units, structured, or with known relationships."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core import Control, Model, ModelArrays, StreamedModel, Term
from fastlmm_core.core.covariances import Structure
from fastlmm_core.core.equations_fit import EquationsModel
from fastlmm_core.core.residuals import CrossedModel, PatternModel, Residual
from fastlmm_core.core.structured import StructuredModel
from fastlmm_core.errors import ModelError, UnitError
from fastlmm_core.fitting.residual import LARGE_UNIT, check_random, core_residual, in_units
from fastlmm_core.fitting.streaming import StreamedDesign

if TYPE_CHECKING:
    from fastlmm_core.fitting.options import FitOptions
    from fastlmm_core.formula import Design

__all__ = ["AnyModel", "arrays_of", "core_structures", "core_terms", "is_structured", "model_of"]


class _Asked(TypedDict):
    """What every model is asked."""

    weights: NDArray[np.float64] | None
    offset: NDArray[np.float64] | None
    reml: bool
    control: Control | None


AnyModel = Model | PatternModel | StructuredModel | EquationsModel | StreamedModel


def core_terms(design: Design) -> list[Term]:
    """The random terms of a design as the core takes them; nobody writes to their arrays, so that none is copied."""
    for term in design.random:
        for array in (term.codes, term.z):
            if array is not None:
                array.setflags(write=False)
    return [Term(t.codes, t.z, n_levels=len(t.level_set)) for t in design.random]


def arrays_of(design: Design) -> ModelArrays:
    """A design as the core takes it, but for the response."""
    return ModelArrays(design.X, tuple(core_terms(design)), design.weights, design.offset)


def core_structures(design: Design) -> list[Structure]:
    """The structure of each random term."""
    out = []
    for term in design.random:
        asked = term.structure
        out.append(Structure() if asked is None else Structure(asked.name, asked.hom, asked.rank, asked.coordinates))
    return out


def is_structured(design: Design) -> bool:
    """Whether a design needs more than the ordinary model."""
    random = any(t.structure is not None or t.relationship is not None for t in design.random)
    return design.residual is not None or bool(design.sparse) or random


def model_of(design: Design, options: FitOptions) -> AnyModel:
    """The core's model of a design, ready for any response; of a streamed one for its own."""
    if isinstance(design, StreamedDesign):
        return StreamedModel(design.total, design.level_orders, reml=options.reml, control=options.control)
    terms = core_terms(design)
    asked: _Asked = {
        "weights": design.weights,
        "offset": design.offset,
        "reml": options.reml,
        "control": options.control,
    }
    try:
        return _model(design, terms, asked)
    except UnitError as error:
        if error.place is None:
            raise
        term, column = error.place
        names = design.x_names if term is None else design.random[term].columns
        raise UnitError(names[column], error.largest, error.place) from None


def _model(design: Design, terms: list[Term], asked: _Asked) -> AnyModel:
    if not is_structured(design):
        return Model(design.X, terms, **asked)
    control = asked["control"]
    if control is not None and control.engine == "iterative":
        raise ModelError(
            "the iterative engine fits linear models of independent residuals without covariance structures: use "
            "engine='auto'"
        )
    structures = core_structures(design)
    relationships = [t.relationship for t in design.random]
    sparse = [Term(s.codes, s.z, n_levels=s.n_columns) for s in design.sparse]
    joint = bool(sparse) or any(r is not None for r in relationships)
    if design.residual is not None:
        check_random(design)
        residual = core_residual(design.residual)
        if joint or not in_units(design):
            return CrossedModel(design.X, residual, terms, structures, relationships, sparse, **asked)
    elif joint:
        return EquationsModel(design.X, terms, structures, relationships, sparse, **asked)
    elif not independent_units(design):
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
