"""Monte Carlo errors of fits without a factor, beside the exact ones: `python -m benchmarks.seeds_related [--seeds N]`.

Each model is fitted exactly once and by the iterative engine with N seeds. Errors of theta are in sampling standard
errors, root mean square and largest, and over the error that each fit claims; the criterion's over the one claimed.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import pin
from benchmarks.report import aligned
from benchmarks.structures_large import animals, lattice, workers

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PROBLEMS", "main"]


def herds() -> tuple[pd.DataFrame, dict[str, Any]]:
    """4,000 animals that mate at random, in 40 herds."""
    data, options = animals(0.04, None)
    rng = np.random.default_rng(1)
    herd = rng.integers(0, 40, len(data))
    return data.assign(herd=herd, y=data["y"] + rng.normal(size=40)[herd]), options


PROBLEMS = {
    "animals": ("y ~ sex + (1 | animal)", lambda: animals(0.04, None)),
    "herds": ("y ~ sex + (1 | animal) + (1 | herd)", herds),
    "areas": ("y ~ x + (1 | area)", lambda: lattice(0.2)),
    "firms": ("y ~ x + sparse(firm) + (1 | worker)", lambda: workers(0.05, 0.2)),
}


def measured(name: str, seeds: int) -> list[str]:
    """One row of the table."""
    from fastlmm_core import lmer
    from fastlmm_core.core import Control

    formula, make = PROBLEMS[name]
    data, options = make()
    exact = lmer(formula, data, **options, control=Control(engine="sparse"))
    errors, ratios, criteria, start = [], [], [], time.process_time()
    for seed in range(seeds):
        fit = lmer(formula, data, **options, control=Control(engine="iterative", seed=seed))
        away, found = fit.core.theta - exact.core.theta, fit.monte_carlo
        assert found is not None
        errors.append(away / found.theta_sd)
        ratios.append(away / found.theta_se)
        criteria.append((fit.criterion - exact.criterion) / found.criterion_se)
    size = np.sqrt(np.mean(np.square(errors), axis=0))
    worst, over = np.abs(errors).max(axis=0), np.sqrt(np.mean(np.square(ratios), axis=0))
    shown = [f"{s:.1e} ({w:.1e})" for s, w in zip(size, worst, strict=True)]
    of_criterion = f"{np.sqrt(np.mean(np.square(criteria))):.2f}"
    took = f"{(time.process_time() - start) / seeds:.2f} s"
    return [name, formula, took, ", ".join(shown), ", ".join(f"{o:.2f}" for o in over), of_criterion]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="problems; all by default")
    parser.add_argument("--seeds", type=int, default=20)
    asked = parser.parse_args()
    pin(1)
    rows = [
        ["problem", "formula", "CPU time", "error of theta (largest)", "over its claim", "criterion's over its claim"]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows += [measured(name, asked.seeds) for name in asked.names or PROBLEMS]
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
