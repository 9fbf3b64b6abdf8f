"""The iterative engine: crossed factors whose tail is too large to be factored.

    crossed_problem -> System (one theta: products and solves) -> Probes.traces -> derivatives -> Search -> estimates

Nothing of the size of the tail squared is formed: products come from the rows, solves from conjugate gradients, the two
traces of the gradient from random probes whose error is estimated and reported.
"""

from fastlmm_core.core.iterative.choice import factored, may_iterate
from fastlmm_core.core.iterative.estimates import fit, iterate
from fastlmm_core.core.iterative.iterative_fit import IterativeFit, MonteCarlo

__all__ = ["IterativeFit", "MonteCarlo", "factored", "fit", "iterate", "may_iterate"]
