"""The iterative engine: crossed factors whose tail is too large to be factored.

    crossed_problem -> System (one theta: products and solves) -> Probes.traces -> derivatives -> Search -> estimates

Nothing of the size of the tail squared is formed: products come from the rows, solves from conjugate gradients, the two
traces of the gradient from random probes whose error is estimated and reported. Nothing is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastlmm_core.lazy import lazy_attributes

if TYPE_CHECKING:
    from fastlmm_core.core.iterative.choice import factored, may_iterate
    from fastlmm_core.core.iterative.estimates import fit, iterate
    from fastlmm_core.core.iterative.iterative_fit import IterativeFit, MonteCarlo

__all__ = ["IterativeFit", "MonteCarlo", "factored", "fit", "iterate", "may_iterate"]

_LAZY = {
    **dict.fromkeys(("factored", "may_iterate"), "choice"),
    **dict.fromkeys(("fit", "iterate"), "estimates"),
    **dict.fromkeys(("IterativeFit", "MonteCarlo"), "iterative_fit"),
}

__getattr__ = lazy_attributes(__name__, _LAZY)
