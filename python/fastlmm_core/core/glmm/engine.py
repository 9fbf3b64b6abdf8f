"""Which engine evaluates a generalised model: level by level, by a factor, or without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastlmm_core.core.control import Control
from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.core.glmm.first_look import FirstLook
from fastlmm_core.core.glmm.fitted import Engine
from fastlmm_core.core.glmm.laplace import Laplace
from fastlmm_core.core.glmm.quadrature import OneFactor
from fastlmm_core.core.glmm.two_predictors import TwoPredictors
from fastlmm_core.core.glmm.vector_quadrature import VectorQuadrature
from fastlmm_core.errors import MemoryLimitError, ModelError

if TYPE_CHECKING:
    from fastlmm_core.core.glmm.iterative.laplace import IterativeLaplace

__all__ = ["make_engine"]


def make_engine(design: GlmmDesign, n_agq: int, control: Control) -> Engine:
    """The engine for a design.

    Raises
    ------
    ModelError
        Quadrature with several grouping factors or too many columns.
    """
    one = len(design.groups) == 1 and design.family.code >= 0
    whole = control.engine == "cholmod"  # all effects in one factor, the levels of a single grouping factor too
    if design.family.vector and control.weights == "expected":
        raise ModelError(f"{design.family.name} models have observed weights only: leave Control(weights=) out")
    if n_agq > 1:
        if whole:
            raise ModelError('quadrature goes level by level, without CHOLMOD: leave Control(engine="cholmod") out')
        if design.family.code < 0 and not design.family.vector:
            raise ModelError(f"n_agq={n_agq} is for the families of this package, not for {design.family.name}")
        if len(design.groups) > 1:
            raise ModelError(
                f"n_agq={n_agq} needs one grouping factor, but the model has {len(design.groups)}: use n_agq=1"
            )
        if design.groups[0].n_columns > 3:
            raise ModelError(
                f"n_agq={n_agq} needs at most 3 effects a level, but the model has {design.groups[0].n_columns}: "
                "use n_agq=1"
            )
    if design.zero_terms:
        if n_agq != 1:
            raise ModelError("a zero part with random effects is fitted by Laplace's approximation: use n_agq=1")
        if control.engine == "iterative":
            raise ModelError("the iterative engine takes no zero part with random effects: use another engine")
        return TwoPredictors(design, control)
    if n_agq > 1 and design.family.vector:
        return VectorQuadrature(design, n_agq, control)
    if one and n_agq >= 1 and not whole:
        return OneFactor(design, n_agq, control)
    if len(design.groups) > 1 and control.engine == "iterative":
        if n_agq != 1:
            raise ModelError("the iterative engine has Laplace's approximation only: leave n_agq= out")
        return without_factor(design, control, "it was asked for")
    if n_agq == 0:
        return FirstLook(design, control)
    return laplace(design, control)


def laplace(design: GlmmDesign, control: Control) -> Engine:
    """The engine of several factors: without a factor of the effects where that is out of reach."""
    from fastlmm_core.core.iterative.choice import REACH, beyond_reach, may_iterate

    simple = not design.family.vector and control.weights == "observed"
    if len(design.groups) < 2 or not simple or not may_iterate(design.products, control):
        return Laplace(design, control)
    reason = beyond_reach(design.products, control)
    if reason is None:
        try:
            engine = Laplace(design, control)
        except MemoryLimitError as error:
            reason = str(error).split(": ")[0]
        else:
            if engine.layout.seconds <= REACH:
                return engine
            reason = f"an evaluation of the {engine.layout.engine} engine would take {engine.layout.seconds:.2g} s"
    return without_factor(design, control, reason)


def without_factor(design: GlmmDesign, control: Control, reason: str) -> IterativeLaplace:
    """The iterative engine, and why."""
    from fastlmm_core.core.glmm.iterative.laplace import IterativeLaplace

    return IterativeLaplace(design, control, reason)
