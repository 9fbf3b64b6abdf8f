"""The array API: a mixed model from arrays, and each step of the fit on its own. Needs NumPy and SciPy only.

    terms -> cross_products -> plan -> Objective (evaluate at theta) -> fit (minimise, estimates)

`Model` keeps all that does not depend on the response; `fit_many` fits thousands of responses with one design.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastlmm_core.core.control import Control
from fastlmm_core.core.criterion import Objective, objective
from fastlmm_core.core.crossprod import cross_products
from fastlmm_core.core.estimates import CoreFit, FitLog
from fastlmm_core.core.evaluation import Evaluation, ExplicitInverse, Modes
from fastlmm_core.core.layout import Layout, plan
from fastlmm_core.core.many.candidates import Scan, scan
from fastlmm_core.core.model import ManyFits, Model, fit, fit_many
from fastlmm_core.core.products import CrossProducts
from fastlmm_core.core.terms import Term
from fastlmm_core.lazy import lazy_attributes

if TYPE_CHECKING:
    from fastlmm_core.core import glmm, iterative
    from fastlmm_core.core.arrays import ModelArrays
    from fastlmm_core.core.many.responses import ManyResponses, fit_responses, fit_responses_by_blocks
    from fastlmm_core.core.streaming.accumulate import Accumulator, BatchTerm
    from fastlmm_core.core.streaming.streamed import StreamedModel

__all__ = [
    "Accumulator",
    "BatchTerm",
    "Control",
    "CoreFit",
    "CrossProducts",
    "Evaluation",
    "ExplicitInverse",
    "FitLog",
    "Layout",
    "ManyFits",
    "ManyResponses",
    "Model",
    "ModelArrays",
    "Modes",
    "Objective",
    "Scan",
    "StreamedModel",
    "Term",
    "cross_products",
    "fit",
    "fit_many",
    "fit_responses",
    "fit_responses_by_blocks",
    "glmm",
    "iterative",
    "objective",
    "plan",
    "scan",
]

_LAZY = {
    **dict.fromkeys(("Accumulator", "BatchTerm"), "streaming.accumulate"),
    **dict.fromkeys(("ManyResponses", "fit_responses", "fit_responses_by_blocks"), "many.responses"),
    "ModelArrays": "arrays",
    "StreamedModel": "streaming.streamed",
}
"""What most fits do without, by module."""

__getattr__ = lazy_attributes(__name__, _LAZY, ("glmm", "iterative"))
