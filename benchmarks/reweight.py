"""New weights to value and gradient on InstEval: `python -m benchmarks.reweight`. CPU milliseconds of one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastlmm_core.core import Control
    from fastlmm_core.core.crossprod import DesignProducts

__all__ = ["Refilled", "main", "milliseconds"]

Array = NDArray[np.float64]
FORMULA = "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)"


class Refilled:
    """A linear model's criterion whose weights are written into the places of one layout, as a generalised model's are.

    The rows' conditioned columns Q and residual e stay those of the design without weights; Z'WZ, Z'W[Q e] and
    [Q e]'W[Q e] are made of the weights given.

    Parameters
    ----------
    design : DesignProducts
        Made without weights.
    y : (n,)
    reml : bool
    control : Control
    """

    def __init__(self, design: DesignProducts, y: Array, reml: bool, control: Control) -> None:
        from fastlmm_core.core.layout import plan

        cross, p = design.cross(y), design.rank
        c = cross.conditioning
        layout = plan(design, control)
        self.rows, self.evaluator, self.theta_map = layout.rows(design), layout.evaluator(reml), design.theta_map
        self.columns = np.empty((p + 1, design.n))
        self.columns[:p] = design.q(slice(0, design.n)).T
        rest = design.prepare(y) - design.X[:, c.keep] @ c.shift
        self.columns[p] = (rest - c.r[:p, p] @ self.columns[:p]) / c.y_scale
        self.constant = c.constant(self.evaluator.nu, reml)

    def reweight(self, weights: Array) -> None:
        """Take other weights (n,)."""
        from fastlmm_core._native.criterion.values import Values

        scaled = self.columns * weights
        lead, tail = self.rows.sums(scaled)
        made, dtd = self.rows.refill(weights), scaled @ self.columns.T
        values = Values(made.blocks, made.cells, made.tail, np.ascontiguousarray(lead.T), tail, dtd, made.total_weight)
        self.evaluator.load(values, self.constant - float(np.log(weights).sum()))

    def derivatives(self, theta: Array) -> tuple[float, Array, Array]:
        """Criterion, gradient and model Hessian at theta."""
        m = self.theta_map.to_conditioned
        value, gradient, hessian = self.evaluator.derivatives(np.asarray(m @ theta))
        return value, m.T @ gradient, m.T @ hessian @ m


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
    from fastlmm_core.core.threads import one_blas_thread
    from fastlmm_core.fitting.models import arrays_of

    design = build_design(FORMULA, load_dataset("InstEval"))
    arrays, control = arrays_of(design), Control(threads=1)
    w = np.random.default_rng(0).uniform(0.5, 2.0, len(design.y))
    weighted = type(arrays)(arrays.X, arrays.terms, w)
    theta = np.full(3, 0.3)
    kept = weighted.objective(design.y, True, control)
    many = Refilled(DesignProducts(arrays.X, arrays.terms), design.y, True, control)

    def anew() -> None:
        weighted.objective(design.y, True, control).derivatives(theta)

    def reloaded() -> None:
        kept.load(weighted.products(design.y))
        kept.derivatives(theta)

    def refilled() -> None:
        many.reweight(w)
        many.derivatives(theta)

    many.reweight(w)
    with one_blas_thread():
        for name, run in (
            ("products, plan, evaluation", anew),
            ("products, evaluation", reloaded),
            ("refill, evaluation", refilled),
            ("evaluation alone", lambda: many.derivatives(theta)),
        ):
            print(f"{name:<28}{milliseconds(run):8.1f}")


if __name__ == "__main__":
    main()
