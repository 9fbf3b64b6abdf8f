"""New weights to value and gradient on InstEval: `python -m benchmarks.reweight`. CPU milliseconds of one thread."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

__all__ = ["main", "milliseconds"]

FORMULA = "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)"


def milliseconds(run: Callable[[], object], rounds: int = 9) -> float:
    """Least CPU time of a call."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return 1e3 * min(taken)


def main() -> None:
    """Print what each way costs."""
    from fastlmm_core import build_design, load_dataset
    from fastlmm_core.core import Control
    from fastlmm_core.core.crossprod import DesignProducts
    from fastlmm_core.core.reweighting import Reweighting
    from fastlmm_core.fitting.models import arrays_of

    design = build_design(FORMULA, load_dataset("InstEval"))
    arrays, control = arrays_of(design), Control(threads=1)
    w = np.random.default_rng(0).uniform(0.5, 2.0, len(design.y))
    weighted = type(arrays)(arrays.X, arrays.terms, w)
    theta = np.full(3, 0.3)
    kept = weighted.objective(design.y, True, control)
    many = Reweighting(DesignProducts(arrays.X, arrays.terms), design.y, True, control)

    def anew() -> None:
        weighted.objective(design.y, True, control).derivatives(theta)

    def reloaded() -> None:
        kept.load(weighted.products(design.y))
        kept.derivatives(theta)

    def refilled() -> None:
        many.reweight(w)
        many.derivatives(theta)

    for name, run in (
        ("products, plan, evaluation", anew),
        ("products, evaluation", reloaded),
        ("refill, evaluation", refilled),
        ("evaluation alone", lambda: many.derivatives(theta)),
    ):
        print(f"{name:<28}{milliseconds(run):8.1f}")


if __name__ == "__main__":
    main()
