"""Which of the core's models a design is: ordinary, of independent units, structured, or with known relationships."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from fastlmm_core.core.arrays import ModelArrays
from fastlmm_core.core.model import Model
from fastlmm_core.core.terms import Term
from fastlmm_core.errors import NotSavedError, UnitError

if TYPE_CHECKING:
    from fastlmm_core.core import StreamedModel
    from fastlmm_core.core.residuals import PatternModel
    from fastlmm_core.core.structures.equations_fit import EquationsModel
    from fastlmm_core.core.structures.structured import StructuredModel
    from fastlmm_core.fitting.options import FitOptions
    from fastlmm_core.fitting.structured_models import Asked
    from fastlmm_core.formula import Design

__all__ = ["AnyModel", "arrays_of", "core_terms", "is_structured", "model_of"]

AnyModel: TypeAlias = "Model | PatternModel | StructuredModel | EquationsModel | StreamedModel"


def core_terms(design: Design) -> list[Term]:
    """The random terms of a design as the core takes them; nobody writes to their arrays, so that none is copied."""
    return [Term.sound(t.codes, t.z, len(t.level_set)) for t in design.random]


def arrays_of(design: Design) -> ModelArrays:
    """A design as the core takes it, but for the response."""
    return ModelArrays(design.X, tuple(core_terms(design)), design.weights, design.offset)


def is_structured(design: Design) -> bool:
    """Whether a design needs more than the ordinary model."""
    random = any(t.structure is not None or t.relationship is not None for t in design.random)
    return design.residual is not None or bool(design.sparse) or random


def model_of(design: Design, options: FitOptions) -> AnyModel:
    """The core's model of a design, ready for any response; of a streamed one for its own."""
    if design.streamed:
        from fastlmm_core.fitting.streaming import streamed_model

        return streamed_model(design, options)
    if not len(design.y):
        raise NotSavedError
    terms = core_terms(design)
    asked: Asked = {
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


def _model(design: Design, terms: list[Term], asked: Asked) -> AnyModel:
    if not is_structured(design):
        return Model(design.X, terms, **asked)
    from fastlmm_core.fitting.structured_models import structured_model

    return structured_model(design, terms, asked)
