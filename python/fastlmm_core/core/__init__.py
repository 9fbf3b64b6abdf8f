"""The array API: a mixed model from arrays, and each step of the fit on its own. Needs NumPy and SciPy only.

    terms -> cross_products -> plan -> Objective (evaluate at theta) -> fit (minimise, estimates)
"""

from fastlmm_core.core.control import Control
from fastlmm_core.core.crossprod import CrossProducts, cross_products
from fastlmm_core.core.fit import CoreFit, FitLog, fit
from fastlmm_core.core.objective import Objective, objective
from fastlmm_core.core.plan import Plan, plan
from fastlmm_core.core.terms import Term

__all__ = [
    "Control",
    "CoreFit",
    "CrossProducts",
    "FitLog",
    "Objective",
    "Plan",
    "Term",
    "cross_products",
    "fit",
    "objective",
    "plan",
]
